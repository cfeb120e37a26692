use std::fs;

use safetensors::Dtype;

use super::*;

/// A file that torch wrote: `tests/fixtures/pickles/make.py`.
fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickles/small").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse_file(file: &[u8]) -> Result<Vec<Stored>> {
    parse(file, Path::new("rm/pytorch_model.bin"))
}

#[track_caller]
fn refusal(file: &[u8]) -> (ErrorKind, String) {
    let error = parse_file(file).unwrap_err();
    assert_eq!(error.place(), Some("rm/pytorch_model.bin"));
    assert!(error.hint().is_some(), "{error}");
    (error.kind(), error.message().to_owned())
}

#[track_caller]
fn damage(file: &[u8]) -> String {
    let (kind, message) = refusal(file);
    assert_eq!(kind, ErrorKind::Weights, "{message}");
    message
}

const SMALL: [&str; 3] = ["zip.bin", "legacy.bin", "rezipped.bin"];

#[test]
fn files_of_torch_give_their_tensors_in_each_format() {
    for name in SMALL {
        let file = fixture(name);
        let mut tensors = parse_file(&file).unwrap();
        assert!(tensors.is_sorted_by_key(|tensor| tensor.bytes.start), "{name}");
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let floats =
            |range: std::ops::Range<u8>| range.flat_map(|value| f32::from(value).to_le_bytes()).collect();
        let expected: [(&str, Dtype, &[usize], Vec<u8>); 6] = [
            ("count", Dtype::I64, &[], vec![7, 0, 0, 0, 0, 0, 0, 0]),
            ("empty", Dtype::F16, &[0, 5], vec![]),
            ("mask", Dtype::BOOL, &[3], vec![1, 0, 1]),
            ("parameter", Dtype::BF16, &[2], vec![0xc0, 0x3f, 0x00, 0xc0]),
            ("tail", Dtype::F32, &[2, 2], floats(8..12)),
            ("whole", Dtype::F32, &[3, 4], floats(0..12)),
        ];
        assert_eq!(tensors.len(), expected.len(), "{name}");
        for (tensor, (tensor_name, dtype, shape, bytes)) in tensors.iter().zip(&expected) {
            assert_eq!(
                (&*tensor.name, tensor.dtype, &*tensor.shape),
                (*tensor_name, *dtype, *shape),
                "{name}"
            );
            assert_eq!(file[tensor.bytes.clone()], *bytes, "{name}, {tensor_name}");
        }
        // Views share the bytes of their storage.
        assert_eq!(tensors[4].bytes.end, tensors[5].bytes.end, "{name}");
    }
}

/// Nothing is read past the file's end: every byte of a tensor lies inside, and indices are
/// checked.
#[test]
fn no_cut_and_no_flipped_bit_panics() {
    for name in SMALL {
        let good = fixture(name);
        for length in 0..good.len() {
            let (kind, message) = refusal(&good[..length]);
            assert!(
                [ErrorKind::Weights, ErrorKind::Unsupported].contains(&kind),
                "{name}, {length}: {message}"
            );
        }
        let (mut accepted, mut refused) = (0, 0);
        for at in 0..good.len() {
            for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut file = good.clone();
                file[at] ^= flip;
                match parse_file(&file) {
                    Ok(tensors) => {
                        accepted += 1;
                        let inside = |tensor: &Stored| {
                            let elements = tensor.shape.iter().product::<usize>();
                            tensor.bytes.end <= file.len()
                                && tensor.bytes.len() == elements * tensor.dtype.bitsize() / 8
                        };
                        assert!(tensors.iter().all(inside), "{name}: byte {at}, {flip:#04x}: {tensors:?}");
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(accepted > 1000 && refused > 1000, "{name}: {accepted} accepted, {refused} refused");
    }
}

#[test]
fn a_file_that_torch_did_not_write_says_so() {
    let neither = "the file begins neither as a zip archive nor as a pickle of PyTorch";
    for file in [&b""[..], b"PK", b"\x80\x02}.", b"GGUF", &[0; 64]] {
        assert_eq!(damage(file), neither);
    }
    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n";
    assert_eq!(damage(pointer), "this is a pointer of git-lfs, not the file itself");
}

/// The file with `from`, which it has once, replaced by the same number of bytes.
#[track_caller]
fn edited(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let places: Vec<usize> =
        file.windows(from.len()).enumerate().filter(|(_, part)| *part == from).map(|(at, _)| at).collect();
    let [at] = *places else { panic!("{from:?} is there {} times", places.len()) };
    assert_eq!(from.len(), to.len());
    [&file[..at], to, &file[at + to.len()..]].concat()
}

/// A legacy file of one f32 storage `0` of six elements, and one tensor `w`; shape and strides are
/// the opcodes of two tuples.
fn legacy_file(count: u8, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tensor = [
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n",
        &b"X\x01\0\0\x000X\x03\0\0\0cpuK"[..],
        &[count],
        b"NtQ",
        offset,
        shape,
        strides,
        b"\x89}tRs.",
    ];
    let storage = [&b"\x80\x02](X\x01\0\0\x000e."[..], &6_u64.to_le_bytes(), &[0; 24]];
    let head = [legacy::MAGIC, b"\x80\x02M\xe9\x03.", b"\x80\x02}X\x0d\0\0\0little_endian\x88s."];
    [head.concat(), tensor.concat(), storage.concat()].concat()
}

/// Opcodes of a tensor's offset, shape and strides, and what they give.
type View<'a, T> = (&'a [u8], &'a [u8], &'a [u8], T);

#[test]
fn a_tensor_must_be_a_contiguous_part_of_its_storage() {
    let file = |offset: &[u8], shape: &[u8], strides: &[u8]| legacy_file(6, offset, shape, strides);
    // Strides of sizes 1 are free, and those of no elements.
    let good: [View<&[usize]>; 6] = [
        (b"K\0", b"K\x02K\x03\x86", b"K\x03K\x01\x86", &[2, 3]),
        (b"K\x03", b"K\x03\x85", b"K\x01\x85", &[3]),
        (b"K\x05", b")", b")", &[]),
        (b"K\0", b"K\x01K\x06\x86", b"K\0K\x01\x86", &[1, 6]),
        (b"K\x06", b"K\0K\x03\x86", b"K\x09K\x09\x86", &[0, 3]),
        (b"K\0", b"K\x01K\x01K\x01\x87", b"K\x07K\x08K\x09\x87", &[1, 1, 1]),
    ];
    for (offset, shape, strides, expected) in good {
        let tensors = parse_file(&file(offset, shape, strides)).unwrap();
        assert_eq!(tensors[0].shape, expected);
        assert_eq!(tensors[0].bytes.len(), 4 * expected.iter().product::<usize>());
    }

    const BILLION: &[u8] = b"J\0\xca\x9a\x3b";
    let billions = [&b"("[..], &BILLION.repeat(9), b"t"].concat();
    let rows = [BILLION, b"K\x01\x86"].concat();
    let outside = |shape: &str, offset: &str| {
        format!("tensor `w` with shape {shape} begins at element {offset} of storage `0`, which has 6")
    };
    let cases: [View<String>; 7] = [
        (b"K\x01", b"K\x02K\x03\x86", b"K\x03K\x01\x86", outside("[2, 3]", "1")),
        (b"K\x07", b"K\0\x85", b"K\x01\x85", outside("[0]", "7")),
        (b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85", outside("[1]", "-1")),
        (
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"K\x01\x85",
            b"K\x01\x85",
            outside("[1]", "9223372036854775807"),
        ),
        (b"K\0", &rows, b"K\x01K\x01\x86", outside("[1000000000, 1]", "0")),
        (
            b"K\0",
            b"J\xff\xff\xff\xff\x85",
            b"K\x01\x85",
            "tensor `w` has a negative size or stride, or one that is no integer".to_owned(),
        ),
        (
            b"K\0",
            b"K\x06\x85",
            b")",
            "tensor `w` has 1 dimensions and 0 strides, expected as many of both, at most 64".to_owned(),
        ),
    ];
    for (offset, shape, strides, message) in cases {
        assert_eq!(damage(&file(offset, shape, strides)), message);
    }
    let message = damage(&file(b"K\0", &billions, &billions));
    assert!(message.starts_with("tensor `w` with shape [1000000000, "), "{message}");
    let (kind, message) = refusal(&file(b"K\0", b"K\x03K\x02\x86", b"K\x01K\x03\x86"));
    let transposed = "tensor `w` with shape [3, 2] has strides [1, 3]: it is not contiguous";
    assert_eq!((kind, &*message), (ErrorKind::Unsupported, transposed));
}

#[test]
fn legacy_storages_must_be_those_of_the_tensors() {
    let good = legacy_file(6, b"K\0", b"K\x06\x85", b"K\x01\x85");
    assert_eq!(parse_file(&good).unwrap().len(), 1);
    assert_eq!(damage(&[&good[..], b"x"].concat()), "the last 1 bytes belong to no storage");
    assert_eq!(damage(&good[..good.len() - 1]), "the file ends in storage `0`: it is truncated");
    assert_eq!(damage(&good[..good.len() - 25]), "the file ends in storage `0`: it is truncated");
    let count = legacy_file(5, b"K\0", b"K\x05\x85", b"K\x01\x85");
    assert_eq!(damage(&count), "storage `0` has 6 elements, but the pickle says 5");
    let keys = |to: &[u8]| edited(&good, b"\x80\x02](X\x01\0\0\x000e.", to);
    assert_eq!(damage(&keys(b"\x80\x02](X\x01\0\0\x001e.")), "no tensor is in storage `1`");
    assert_eq!(
        damage(&keys(b"\x80\x02](K\x01K\x02K\x03e.")),
        "the key of a storage is an integer, expected a string"
    );
    let dict = "the keys of storages are a dict, expected a list";
    assert_eq!(damage(&keys(b"\x80\x02}K\x01M\x02\0sq\0.")), dict);
    let none = keys(b"\x80\x02K\x01K\x01K\x01K\x01].");
    assert_eq!(damage(&none), "the last 32 bytes belong to no storage");
    let absent = "tensor `w` is in storage `0`, which the file does not have";
    assert_eq!(damage(&none[..none.len() - 32]), absent);
    let order = edited(&good, b"little_endian\x88", b"little_endian\x89");
    assert_eq!(refusal(&order), (ErrorKind::Unsupported, "the file is of a big-endian machine".to_owned()));
    let version = edited(&good, b"M\xe9\x03", b"M\xea\x03");
    assert_eq!(damage(&version), "the file is not of version 1001 of PyTorch's protocol");
}

#[test]
fn archives_need_each_storage_in_its_size() {
    let good = fixture("zip.bin");
    let twice = |from: &[u8], to: &[u8]| {
        let mut file = good.clone();
        let windows = good.windows(from.len()).enumerate();
        let places: Vec<usize> = windows.filter(|(_, part)| *part == from).map(|(at, _)| at).collect();
        assert_eq!(places.len(), 2, "{from:?}");
        places.into_iter().for_each(|at| file[at..at + to.len()].copy_from_slice(to));
        file
    };
    assert_eq!(damage(&twice(b"zip/data/0", b"zip/data/x")), "the zip archive has no entry for storage `0`");
    for (name, other) in [("data.pkl", "data.pkx"), ("version", "versiox")] {
        let [from, to] = [name, other].map(|name| format!("zip/{name}"));
        let message = format!("the zip archive has no entry `{name}`, as each file of `torch.save` has");
        assert_eq!(damage(&twice(from.as_bytes(), to.as_bytes())), message);
    }
    // Two tensors are in a storage of 12 elements.
    let more = twice(b"K\x0ctq", b"K\x0dtq");
    assert_eq!(damage(&more), "storage `0` has 52 bytes, but its zip entry has 48");
    let different = edited(&good, b"K\x0ctq\x08", b"K\x0dtq\x08");
    assert_eq!(damage(&different), "storage `0` has two types or two sizes");
    let version = edited(&good, b"3\n", b"11");
    let message = "the archive has version 11, expected 1..=10".to_owned();
    assert_eq!(refusal(&version), (ErrorKind::Unsupported, message));
}

/// Files that torch writes, of other objects than dicts of dense, contiguous tensors.
#[test]
fn files_of_torch_with_other_objects_are_refused_by_name() {
    let wants = |name: &str| format!("the pickle wants `{name}`, which is no plain tensor");
    let cases = [
        ("code", wants("posix.system")),
        ("code_4", wants("posix.system")),
        ("code_legacy", wants("posix.system")),
        ("sparse", wants("torch._utils._rebuild_sparse_tensor")),
        ("quantized", wants("torch._utils._rebuild_qtensor")),
        ("float8", wants("torch._utils._rebuild_tensor_v3")),
        ("complex", wants("torch.ComplexFloatStorage")),
        ("module", wants("torch.nn.modules.linear.Linear")),
        (
            "transposed",
            "tensor `weight` with shape [3, 2] has strides [1, 3]: it is not contiguous".to_owned(),
        ),
        ("negated", "a tensor has properties of its own, such as a negative sign".to_owned()),
        ("state_dict", "the pickle has a dict as `state_dict`, expected a tensor".to_owned()),
        ("epoch", "the pickle has an integer as `epoch`, expected a tensor".to_owned()),
        ("numbered", "a key of the pickle's dict is an integer, expected a tensor's name".to_owned()),
        ("list", "the pickle holds a list, expected a dict of tensors".to_owned()),
        ("deflated", "zip entry `archive/data.pkl` is compressed (method 8)".to_owned()),
        ("big_endian", "the archive's elements have byte order `big`, expected `little`".to_owned()),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickles/small/refused");
    assert_eq!(fs::read_dir(folder).unwrap().count(), cases.len());
    for (name, message) in cases {
        let (kind, found) = refusal(&fixture(&format!("refused/{name}.bin")));
        assert_eq!((kind, found), (ErrorKind::Unsupported, message), "{name}");
    }
}
