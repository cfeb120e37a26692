use super::*;
use crate::error::ErrorKind;

/// A pickle of protocol 2 with these opcodes, and STOP.
fn pickle(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x02", opcodes, b"."].concat()
}

fn root(opcodes: &[u8]) -> Pickled {
    run(&pickle(opcodes)).unwrap_or_else(|error| panic!("{error:#}"))
}

fn refusal(opcodes: &[u8]) -> (ErrorKind, String) {
    let error = run(&pickle(opcodes)).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    (error.kind(), error.message().to_owned())
}

fn damage(opcodes: &[u8]) -> String {
    let (kind, message) = refusal(opcodes);
    assert_eq!(kind, ErrorKind::Weights, "{message}");
    message
}

#[test]
fn numbers_and_constants_are_read() {
    let cases: [(&[u8], Value); 13] = [
        (b"N", Value::None),
        (b"\x88", Value::Bool(true)),
        (b"\x89", Value::Bool(false)),
        (b"K\xff", Value::Int(255)),
        (b"M\x01\x02", Value::Int(0x201)),
        (b"J\xfe\xff\xff\xff", Value::Int(-2)),
        (b"\x8a\x00", Value::Int(0)),
        (b"\x8a\x01\xff", Value::Int(-1)),
        (b"\x8a\x05\x00\x00\x00\x00\x01", Value::Int(1 << 32)),
        (b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80", Value::Int(i64::MIN)),
        (b"G\x3f\xf0\0\0\0\0\0\0", Value::Float),
        (b"\x95\x01\0\0\0\0\0\0\0N", Value::None),
        // A value below is left over, as in Python.
        (b"NK\x01", Value::Int(1)),
    ];
    for (opcodes, value) in cases {
        let pickled = root(opcodes);
        assert_eq!((pickled.root, pickled.bytes), (value, opcodes.len() + 3), "{opcodes:?}");
    }
}

#[test]
fn containers_hold_what_was_put_into_them() {
    let opcodes = b"}(X\x01\0\0\0aK\x01\x8c\x02\xc3\xbc](K\x02K\x03eu\x8c\x01c(K\x04)tsK\x05Ns";
    let Pickled { values, root: Value::Dict(dict), .. } = root(opcodes) else { panic!("a dict") };
    let entry = |key| values.entry(dict, key);
    assert_eq!(entry("a"), Some(Value::Int(1)));
    let Some(Value::List(list)) = entry("\u{fc}") else { panic!("{:?}", entry("\u{fc}")) };
    assert_eq!(values.lists[list], [Value::Int(2), Value::Int(3)]);
    let Some(Value::Tuple(span)) = entry("c") else { panic!("{:?}", entry("c")) };
    let &[Value::Int(4), Value::Tuple(empty)] = values.tuple(span) else { panic!("{values:?}") };
    assert!(values.tuple(empty).is_empty());
    assert_eq!(values.dicts[dict].len(), 4);
    assert_eq!(entry("b"), None);
}

#[test]
fn a_memoized_value_is_the_same_value() {
    // A list that holds itself twice.
    let Pickled { values, root, .. } = root(b"]q\x05h\x05ah\x05ar\x00\x01\x00\x00j\x00\x01\x00\x00");
    assert_eq!(root, Value::List(0));
    assert_eq!(values.lists, [[Value::List(0), Value::List(0)]]);
    // MEMOIZE counts from 0.
    let Pickled { root, .. } = self::root(b"K\x07\x94N\x94h\x00");
    assert_eq!(root, Value::Int(7));
    assert_eq!(damage(b"h\x00"), "the pickle reads entry 0 of its memo, which it has not set");
    assert_eq!(
        damage(b"Nq\x01j\xff\xff\xff\xff"),
        "the pickle reads entry 4294967295 of its memo, which it has not set"
    );
    assert_eq!(damage(b"q\x01"), "the pickle takes a value from its empty stack");
}

/// Each of these would call `os.system`, or make an object, in Python.
#[test]
fn whatever_would_run_code_is_refused_by_name() {
    let wants = |name: &str| format!("the pickle wants `{name}`, which is no plain tensor");
    let opcode = |name: &str, at: usize| {
        format!("the pickle has the opcode {name} at byte {at}, which plain tensors do not need")
    };
    let command = b"\x8c\x02id\x85R";
    let cases: [(Vec<u8>, String); 16] = [
        ([b"cos\nsystem\n", &command[..]].concat(), wants("os.system")),
        ([b"\x8c\x02os\x8c\x06system\x93", &command[..]].concat(), wants("os.system")),
        ([b"c__builtin__\neval\n", &command[..]].concat(), wants("__builtin__.eval")),
        ([b"cbuiltins\ngetattr\n", &command[..]].concat(), wants("builtins.getattr")),
        (
            [b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", &command[..]].concat(),
            wants("torch._utils._rebuild_tensor_v2.__globals__"),
        ),
        ([b"ctorch\nload\n", &command[..]].concat(), wants("torch.load")),
        ([b"ctorch\nStorage\n", &command[..]].concat(), wants("torch.Storage")),
        // Names are printed without control characters.
        (b"cos\x1b[2J\nsystem\n".to_vec(), wants("os\\u{1b}[2J.system")),
        (b"(X\x02\0\0\0idios\nsystem\n".to_vec(), opcode("INST", 10)),
        (b"(ccollections\nOrderedDict\no".to_vec(), opcode("OBJ", 28)),
        (b"ccollections\nOrderedDict\n)\x81".to_vec(), opcode("NEWOBJ", 28)),
        (b"ccollections\nOrderedDict\n)}\x92".to_vec(), opcode("NEWOBJ_EX", 29)),
        (b"\x82\x01".to_vec(), opcode("EXT1", 2)),
        (b"\x83\x01\x00".to_vec(), opcode("EXT2", 2)),
        (b"\x84\x01\x00\x00\x00".to_vec(), opcode("EXT4", 2)),
        (b"Pstorage\n".to_vec(), opcode("PERSID", 2)),
    ];
    for (opcodes, message) in cases {
        assert_eq!(refusal(&opcodes), (ErrorKind::Unsupported, message));
    }
}

#[test]
fn calls_take_the_arguments_of_tensors_only() {
    const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n";
    const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
    const BOTH: &[u8] = b"K\x02K\x03\x86K\x03K\x01\x86";
    let tensor = |head: &[u8], tail: &[u8]| [REBUILD, b"(", STORAGE, head, BOTH, tail, b"tR"].concat();

    let Pickled { values, root: good, .. } = root(&tensor(b"K\0", b"\x89}"));
    let Value::Tensor(0) = good else { panic!("{good:?}") };
    let integers = |span| values.tuple(span).to_vec();
    assert_eq!(integers(values.tensors[0].shape), [Value::Int(2), Value::Int(3)]);
    assert_eq!(integers(values.tensors[0].strides), [Value::Int(3), Value::Int(1)]);
    let storage = values.storages[0];
    assert_eq!((storage.dtype, storage.count, values.text(storage.key)), (safetensors::Dtype::F32, 6, "0"));
    // With empty properties, as a parameter, and with attributes on a dict.
    assert_eq!(root(&tensor(b"K\0", b"\x89}}")).root, Value::Tensor(0));
    let parameter =
        [b"ctorch._utils\n_rebuild_parameter\n", &tensor(b"K\0", b"\x89}")[..], b"\x88}\x87R"].concat();
    assert_eq!(root(&parameter).root, Value::Tensor(0));
    assert_eq!(root(b"ccollections\nOrderedDict\n)R}X\x01\0\0\0aNsb").root, Value::Dict(0));

    let other = "`torch._utils._rebuild_tensor_v2` is called with other arguments than a tensor's";
    for arguments in [tensor(b"N", b"\x89}"), tensor(b"K\0", b"\x89"), tensor(b"K\0K\0", b"\x89}")] {
        assert_eq!(damage(&arguments), other);
    }
    let properties = "a tensor has properties of its own, such as a negative sign".to_owned();
    assert_eq!(refusal(&tensor(b"K\0", b"\x89}}X\x03\0\0\0neg\x88s")), (ErrorKind::Unsupported, properties));
    let cases: [(&[u8], &str); 6] = [
        (b"K\x01)R", "the pickle calls an integer"),
        (b"ccollections\nOrderedDict\nNR", "the pickle makes a call with None, expected a tuple"),
        (
            b"ctorch._utils\n_rebuild_parameter\nNN\x86R",
            "`torch._utils._rebuild_parameter` is called with other arguments than a tensor's",
        ),
        (b"X\x01\0\0\x000Q", "a persistent id is a string, expected a storage's tuple"),
        (b"(X\x06\0\0\0moduleNX\x01\0\0\x000tQ", "a persistent id is another tuple than that of a storage"),
        (
            b"(X\x06\0\0\0modulectorch\nIntStorage\nX\x01\0\0\x000X\0\0\0\0K\x01tQ",
            "a persistent id is that of a `module`, expected a storage",
        ),
    ];
    for (opcodes, message) in cases {
        assert_eq!(damage(opcodes), message);
    }
    let unsupported: [(&[u8], &str); 6] = [
        (b"\x80\x05", "the pickle has protocol 5, expected 2, 3 or 4"),
        (b"NN0", "the pickle has the opcode POP at byte 4, which plain tensors do not need"),
        (b"U\x01a", "the pickle has the opcode SHORT_BINSTRING at byte 2, which plain tensors do not need"),
        (b"ctorch\nIntStorage\n)R", "the pickle makes a storage of its own"),
        (b"ccollections\nOrderedDict\n]\x85R", "the pickle makes an OrderedDict of a list, as Python 2 did"),
        (b"]}b", "the pickle sets the state of a list to a dict"),
    ];
    for (opcodes, message) in unsupported {
        assert_eq!(refusal(opcodes), (ErrorKind::Unsupported, message.to_owned()));
    }
}

#[test]
fn a_pickle_that_contradicts_itself_says_how() {
    let cases: [(&[u8], &str); 15] = [
        (b"", "the pickle takes a value from its empty stack"),
        (b"(", "the pickle takes a value from its empty stack"),
        (b"N(\x85", "the pickle takes a value from its empty stack"),
        (b"t", "the pickle ends a sequence that it has not begun"),
        (b"(Ne", "the pickle takes a value from its empty stack"),
        (b"](Nu", "the pickle sets items of a list"),
        (b"}Na", "the pickle appends to a dict"),
        (b"}(Nu", "the pickle sets a dict's key without a value"),
        (b"](N(K\x01e", "the pickle appends to None"),
        (b"\x8a\x09123456789", "the pickle has an integer of 9 bytes, expected at most 8"),
        (b"\x8c\x01\xff", "a string before byte 5 of the pickle is not UTF-8"),
        (b"X\xff\xff\xff\xffabc", "the pickle has 11 bytes and ends too early"),
        (b"\xff", "byte 2 of the pickle, 0xff, is no known opcode"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xff", "a frame of the pickle claims 18446744073709551615 bytes"),
        (b"K\x01K\x02\x93", "the pickle names a class by an integer and an integer, expected strings"),
    ];
    for (opcodes, message) in cases {
        assert_eq!(damage(opcodes), message, "{opcodes:?}");
    }
    let long = [b"c", &[b'a'; GLOBAL_BYTES_MAX + 1][..], b"\nb\n"].concat();
    assert!(damage(&long).starts_with("the pickle has a name of more than 1024 bytes"));
}

/// A list of two of the list before, and so on: 2^200 items to one that walks them, 200 lists here.
#[test]
fn a_billion_laughs_cost_as_much_as_their_bytes() {
    let mut opcodes = b"]q\0".to_vec();
    for step in 1..=200_u8 {
        opcodes.extend([b']', b'q', step, b'(', b'h', step - 1, b'h', step - 1, b'e']);
    }
    let Pickled { values, root, .. } = root(&opcodes);
    assert_eq!((root, values.lists.len()), (Value::List(200), 201));
    assert!(values.lists.iter().all(|list| list.len() <= 2 && list.capacity() <= 8));
    // Tuples of tuples, and dicts of dicts.
    let tuples: Vec<u8> = b")q\0".iter().copied().chain(b"h\0h\0\x86q\0".repeat(200)).collect();
    assert!(matches!(self::root(&tuples).root, Value::Tuple(_)));
    let dicts: Vec<u8> = b"}q\0".iter().copied().chain(b"}Nh\0sK\x01h\0sq\0".repeat(200)).collect();
    assert_eq!(self::root(&dicts).values.dicts.len(), 201);
}

#[test]
fn limits_hold_stack_memo_and_opcodes() {
    let deep = "the pickle has more than 65536 values on its stack";
    for opcode in [&b"N"[..], b"(", b"]", b"}", b")"] {
        assert_eq!(damage(&opcode.repeat(STACK_MAX + 1)), deep);
    }
    // A million tuples and lists, each in the next.
    assert!(matches!(root(&[b")", &b"\x85".repeat(1_000_000)[..]].concat()).root, Value::Tuple(_)));
    assert_eq!(damage(&b"](".repeat(70_000)), deep);

    let memo: Vec<u8> =
        (0..=MEMO_MAX as u32).flat_map(|index| [b"r", &index.to_le_bytes()[..]].concat()).collect();
    assert_eq!(damage(&[b"N", &memo[..]].concat()), "the pickle memoizes more than 1048576 values");
    let opcodes = b"q\0".repeat(OPCODES_MAX);
    assert_eq!(damage(&[b"N", &opcodes[..]].concat()), "the pickle has more than 4194304 opcodes");
    let key = [b"X\x41\0\0\0", &[b'1'; 65][..]].concat();
    let id = [b"(X\x07\0\0\0storagectorch\nIntStorage\n", &key[..], b"X\0\0\0\0K\x01tQ"].concat();
    assert_eq!(damage(&id), "a storage's key has 65 bytes, expected at most 64");
    let mut text = b"X\0\0\0\x03".to_vec();
    text.resize(5 + (48 << 20), b'a');
    assert_eq!(damage(&text.repeat(2)), "the pickle has strings of more than 67108864 bytes");
}
