use super::*;
use crate::error::ErrorKind;

/// An entry to be written, with the fields that tests change.
#[derive(Clone)]
struct Entry {
    name: &'static str,
    bytes: &'static [u8],
    version: u16,
    flags: u16,
    method: u16,
    /// The size in the directory.
    size: u32,
    /// The name, method and sizes of the entry's own header.
    local: (&'static str, u16, u32),
    extra: Vec<u8>,
}

fn entry(name: &'static str, bytes: &'static [u8]) -> Entry {
    let size = bytes.len() as u32;
    Entry { name, bytes, version: 20, flags: 0, method: 0, size, local: (name, 0, size), extra: Vec::new() }
}

/// A writer of the formats' fields.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(&mut self, number: u16) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
}

/// The offset of an entry's header that the directory has, by its index and true offset.
type Offset = fn(usize, usize) -> u32;

/// The archive's entries and directory, with the directory's start.
fn body(entries: &[Entry], offset: Offset) -> (Fields, usize) {
    let (mut file, mut directory) = (Fields::default(), Fields::default());
    for (index, entry) in entries.iter().enumerate() {
        let start = file.0.len();
        let (name, method, size) = entry.local;
        file.u32(ENTRY).u16(entry.version).u16(entry.flags).u16(method).u32(0).u32(0).u32(size).u32(size);
        // An extra field of padding, as PyTorch writes.
        file.u16(name.len() as u16).u16(6).bytes(name.as_bytes()).bytes(b"FB\x02\0ZZ").bytes(entry.bytes);
        directory.u32(DIRECTORY_ENTRY).u16(30).u16(entry.version).u16(entry.flags).u16(entry.method);
        directory.u32(0).u32(0).u32(entry.size).u32(entry.size);
        directory.u16(entry.name.len() as u16).u16(entry.extra.len() as u16).u16(0).u16(0).u16(0).u32(0);
        directory.u32(offset(index, start)).bytes(entry.name.as_bytes()).bytes(&entry.extra);
    }
    let start = file.0.len();
    file.bytes(&directory.0);
    (file, start)
}

fn archive(entries: &[Entry], offset: Offset) -> Vec<u8> {
    let (mut file, start) = body(entries, offset);
    let (count, bytes) = (entries.len() as u16, (file.0.len() - start) as u32);
    file.u32(END).u32(0).u16(count).u16(count).u32(bytes).u32(start as u32).u16(0);
    file.0
}

/// With zip64's end, which claims `count` entries; the usual end has `short` as its numbers.
fn archive_64(entries: &[Entry], count: u64, short: Option<(u16, u32, u32)>, version: u16) -> Vec<u8> {
    let (mut file, start) = body(entries, |_, start| start as u32);
    let (at, bytes) = (file.0.len(), (file.0.len() - start) as u64);
    file.u32(END_64)
        .u64(44)
        .u16(0)
        .u16(version)
        .u32(0)
        .u32(0)
        .u64(count)
        .u64(count)
        .u64(bytes)
        .u64(start as u64);
    file.u32(LOCATOR_64).u32(0).u64(at as u64).u32(1);
    let (count, bytes, start) = short.unwrap_or((count as u16, bytes as u32, start as u32));
    file.u32(END).u32(0).u16(count).u16(count).u32(bytes).u32(start).u16(0);
    file.0
}

fn in_order(entries: &[Entry]) -> Vec<u8> {
    archive(entries, |_, start| start as u32)
}

fn two() -> [Entry; 2] {
    [entry("m/a", b"abcd"), entry("m/data/b", b"efg")]
}

#[track_caller]
fn refusal(file: &[u8], kind: ErrorKind) -> String {
    let error = Archive::open(file).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.hint().is_some(), "{error}");
    error.message().to_owned()
}

#[test]
fn entries_are_ranges_of_the_file() {
    let files = [
        in_order(&two()),
        archive_64(&two(), 2, None, 45),
        in_order(&two().map(|entry| Entry {
            flags: SIZES_FOLLOW | UTF8,
            local: (entry.name, 0, 0),
            ..entry
        })),
    ];
    for file in files {
        let archive = Archive::open(&file).unwrap();
        let bytes = |name| archive.find(name).map(|range| &file[range]);
        assert_eq!((bytes("a"), bytes("data/b")), (Some(&b"abcd"[..]), Some(&b"efg"[..])));
        assert_eq!((bytes("b"), bytes("")), (None, None));
    }
    // Numbers of the directory in zip64's field, between others.
    let mut extra = Fields::default();
    extra.u16(7).u16(1).bytes(b"x").u16(ZIP64_FIELD).u16(24).u64(4).u64(4).u64(0);
    let wide = Entry { size: u32::MAX, extra: extra.0, ..entry("m/a", b"abcd") };
    let file = archive(&[wide], |_, _| u32::MAX);
    assert_eq!(&file[Archive::open(&file).unwrap().find("a").unwrap()], b"abcd");
}

#[test]
fn entries_in_another_form_than_stored_are_refused() {
    let [first, other] = two();
    let cases = [
        (Entry { method: 8, ..first.clone() }, "zip entry `m/a` is compressed (method 8)"),
        (Entry { flags: 1, ..first.clone() }, "zip entry `m/a` is encrypted"),
        (Entry { flags: 1 << 13, ..first.clone() }, "zip entry `m/a` has unknown flags (0x2000)"),
        (
            Entry { version: 63, ..first.clone() },
            "zip entry `m/a` needs version 6.3 of zip, expected at most 4.5",
        ),
    ];
    for (entry, message) in cases {
        assert_eq!(refusal(&in_order(&[entry, other.clone()]), ErrorKind::Unsupported), message);
    }
    let message = "the archive needs version 6.3 of zip, expected at most 4.5";
    assert_eq!(refusal(&archive_64(&two(), 2, None, 63), ErrorKind::Unsupported), message);
}

#[test]
fn archives_that_contradict_themselves_are_refused() {
    let [first, other] = two();
    let differs =
        |part: &str| format!("zip entry `m/a` has another {part} in the directory than before its bytes");
    let cases = [
        (Entry { local: ("m/x", 0, 4), ..first.clone() }, differs("name")),
        (Entry { local: ("m/a", 8, 4), ..first.clone() }, differs("method")),
        (Entry { local: ("m/a", 0, 3), ..first.clone() }, differs("size")),
        (Entry { local: ("m/a", 0, 0), ..first.clone() }, differs("size")),
        (
            Entry { name: "m/data/b", local: ("m/data/b", 0, 4), ..first.clone() },
            "the zip archive has two entries `m/data/b`".to_owned(),
        ),
        (
            Entry { size: 5, local: ("m/a", 0, 5), ..first.clone() },
            "the zip entries `m/a` and `m/data/b` overlap".to_owned(),
        ),
        (
            Entry { size: 1 << 30, local: ("m/a", 0, 1 << 30), ..first.clone() },
            "zip entry `m/a` goes past the directory: the file is truncated".to_owned(),
        ),
    ];
    for (entry, message) in cases {
        assert_eq!(refusal(&in_order(&[entry, other.clone()]), ErrorKind::Weights), message);
    }
    // One header for two entries.
    let same = [first.clone(), Entry { name: "m/b", ..first.clone() }];
    assert_eq!(
        refusal(&archive(&same, |_, _| 0), ErrorKind::Weights),
        "zip entry `m/b` has another name in the directory than before its bytes"
    );
    let offsets: [(Offset, &str); 3] = [
        (|_, start| start as u32 + 1, "zip entry `m/a` does not begin at byte 1"),
        (|_, _| 1 << 30, "zip entry `m/a` goes past the directory: the file is truncated"),
        (|_, _| u32::MAX, "zip entry `m/a` goes past the directory: the file is truncated"),
    ];
    for (offset, message) in offsets {
        assert_eq!(refusal(&archive(&two(), offset), ErrorKind::Weights), message);
    }
    let mut extra = Fields::default();
    extra.u16(ZIP64_FIELD).u16(16).u64(u64::MAX).u64(u64::MAX);
    let huge = Entry { size: u32::MAX, extra: extra.0, ..first };
    assert_eq!(
        refusal(&in_order(&[huge]), ErrorKind::Weights),
        "zip entry `m/a` has another size in the directory than before its bytes"
    );
}

#[test]
fn the_end_of_an_archive_is_checked() {
    let good = in_order(&two());
    let no_end = "the file does not end as a zip archive does: it is truncated, or longer than it was";
    for file in [&good[..good.len() - 1], &[&good[..], b"x"].concat(), &good[..21], b""] {
        assert_eq!(refusal(file, ErrorKind::Weights), no_end);
    }
    let at = good.len() - END_BYTES;
    let with = |index: usize, byte: u8| {
        let mut file = good.clone();
        file[at + index] = byte;
        file
    };
    assert_eq!(
        refusal(&with(4, 1), ErrorKind::Unsupported),
        "the zip archive is a part of one over several disks"
    );
    assert_eq!(
        refusal(&with(8, 1), ErrorKind::Unsupported),
        "the zip archive is a part of one over several disks"
    );
    let mut three = with(8, 3);
    three[at + 10] = 3;
    assert_eq!(refusal(&three, ErrorKind::Weights), "the zip archive has 2 entries, its end claims 3");
    let directory = refusal(&with(12, 1), ErrorKind::Weights);
    assert!(directory.starts_with("the zip directory has 1 bytes from byte "), "{directory}");

    let contradict = "the zip archive's two ends contradict each other";
    assert_eq!(refusal(&archive_64(&two(), 2, Some((1, 0, 0)), 45), ErrorKind::Weights), contradict);
    let mut moved = archive_64(&two(), 2, None, 45);
    let locator = moved.len() - END_BYTES - LOCATOR_64_BYTES;
    moved[locator + 8] ^= 1;
    let misplaced = "the zip64 end of the archive is not before its locator";
    assert_eq!(refusal(&moved, ErrorKind::Weights), misplaced);
}
