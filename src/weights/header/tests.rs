use safetensors::SafeTensors;

use super::*;

fn parse_file(file: &[u8]) -> Result<Vec<Stored>> {
    parse(file, Path::new("rm/model.safetensors"))
}

/// A file with this header and `data_bytes` zeros.
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

/// Returns the error's text, after checking its kind and place.
fn refusal(file: &[u8]) -> String {
    let error = parse_file(file).unwrap_err();
    assert_eq!((error.kind(), error.place()), (ErrorKind::Weights, Some("rm/model.safetensors")));
    assert!(error.hint().is_some(), "{error}");
    error.message().to_owned()
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"empty":{"dtype":"I64","shape":[0,7],"data_offsets":[12,12]}}"#;

#[test]
fn tensors_are_found_whatever_the_order_of_the_header() {
    let start = 8 + GOOD.len();
    let tensors = parse_file(&file(GOOD, 20)).unwrap();
    let found: Vec<_> =
        tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.bytes.clone())).collect();
    let expected: [(&str, Dtype, &[usize], Range<usize>); 3] = [
        ("a", Dtype::BF16, &[2, 3], start..start + 12),
        ("empty", Dtype::I64, &[0, 7], start + 12..start + 12),
        ("b", Dtype::F32, &[2], start + 12..start + 20),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_file_that_is_no_safetensors_file_says_so() {
    assert_eq!(refusal(b""), "the file has 0 bytes, too few for a safetensors header");
    assert_eq!(refusal(b"1234567"), "the file has 7 bytes, too few for a safetensors header");
    assert_eq!(
        refusal(&[0xff; 64]),
        "the header claims 18446744073709551615 bytes, expected at most 16777216"
    );
    assert_eq!(
        refusal(&file(GOOD, 0)[..100]),
        format!("the header claims {} bytes, but only 92 follow", GOOD.len())
    );
    assert_eq!(
        refusal(&file("", 0)),
        "the safetensors header cannot be parsed: EOF while parsing a value at line 1 column 0"
    );

    let mut not_utf8 = file("{\"?\":1}", 0);
    not_utf8[10] = 0xff;
    assert_eq!(refusal(&not_utf8), "the safetensors header is not UTF-8");

    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n";
    assert_eq!(refusal(pointer), "this is a pointer of git-lfs, not the file itself");
}

#[test]
fn a_contradictory_header_names_the_tensor() {
    let tensor = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let cases = [
        (
            vec![tensor("a", "F32", "[2]", 0, 4)],
            4,
            "tensor `a` lies at bytes 0..4, expected 8 bytes for F32 [2]",
        ),
        (
            vec![tensor("a", "F32", "[2]", 8, 0)],
            8,
            "tensor `a` lies at bytes 8..0, expected 8 bytes for F32 [2]",
        ),
        (
            vec![tensor("a", "F32", "[4611686018427387904,4]", 0, 0)],
            0,
            "tensor `a` lies at bytes 0..0, expected more than any file has bytes for F32 [4611686018427387904, 4]",
        ),
        (
            vec![tensor("a", "F32", "[1]", 0, 4), tensor("b", "F32", "[1]", 8, 12)],
            12,
            "bytes 4..8 before tensor `b` belong to no tensor",
        ),
        (
            vec![tensor("a", "F32", "[2]", 0, 8), tensor("b", "F32", "[2]", 4, 12)],
            12,
            "tensors `a` and `b` overlap at byte 4",
        ),
        (
            vec![tensor("a", "F32", "[2]", 0, 8)],
            7,
            "tensor `a` ends at byte 8 of the data, but the file holds 7: it is truncated",
        ),
        (vec![tensor("a", "F32", "[2]", 0, 8)], 11, "the last 3 bytes belong to no tensor"),
        (vec![], 1, "the last 1 bytes belong to no tensor"),
    ];
    for (tensors, data_bytes, message) in cases {
        assert_eq!(refusal(&file(&format!("{{{}}}", tensors.join(",")), data_bytes)), message);
    }
    let twice = format!("{{{0},{0}}}", tensor("a", "F32", "[2]", 0, 8));
    assert!(refusal(&file(&twice, 8)).contains("tensor `a` is listed twice"));
    let unknown = format!("{{{}}}", tensor("a", "F7", "[2]", 0, 8));
    assert!(refusal(&file(&unknown, 8)).contains("unknown variant `F7`"));
}

/// Sixteen tensors of 2^60 bytes, the last one byte shorter: header length + offsets do not fit 64
/// bits.
#[test]
fn offsets_near_the_end_of_the_address_space_are_an_error() {
    let tensors: Vec<String> = (0..16_u64)
        .map(|index| {
            let begin = index << 60;
            let end = begin.saturating_add(1 << 60);
            let size = end - begin;
            format!(r#""{index:02}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let text = format!("{{{}}}", tensors.join(","));
    let message =
        "tensor `00` ends at byte 1152921504606846976 of the data, but the file holds 64: it is truncated";
    assert_eq!(refusal(&file(&text, 64)), message);
}

/// xorshift64*, seeded: the same inputs on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// No input may panic; and what is accepted lies inside the file and is accepted by the crate's
/// reader, too.
#[test]
fn mutated_files_never_panic_nor_pass_where_safetensors_fails() {
    const SEED: u64 = 0x5eed_0001;
    const PIECES: [&str; 12] = [
        "0",
        "18446744073709551615",
        "-1",
        "[",
        "{",
        "\"a\"",
        "\"F32\"",
        "1e9",
        "null",
        "__metadata__",
        ",",
        "99999999999999999999",
    ];
    let good = file(GOOD, 20);
    let mut random = Random(SEED);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len().max(1));
            match random.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.below(256) as u8),
                2 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
                3 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
                _ => {
                    let piece = PIECES[random.below(PIECES.len())].bytes();
                    bytes.splice(at..at, piece);
                    // A header of the right length gets past the first check.
                    let header = (bytes.len().saturating_sub(8 + 20) as u64).to_le_bytes();
                    bytes.iter_mut().zip(header).for_each(|(byte, new)| *byte = new);
                }
            }
        }
        match parse_file(&bytes) {
            Ok(tensors) => {
                accepted += 1;
                assert!(
                    tensors.iter().all(|tensor| tensor.bytes.end <= bytes.len()),
                    "seed {SEED}, round {round}"
                );
                let judge = SafeTensors::read_metadata(&bytes);
                assert!(judge.is_ok(), "seed {SEED}, round {round}: {judge:?}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Weights, "seed {SEED}, round {round}: {error}");
            }
        }
    }
    // Both sides are exercised: mutations of data and of names are harmless.
    assert!(accepted > 50 && refused > 1000, "{accepted} accepted, {refused} refused");
}
