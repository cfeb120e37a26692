//! Formats, by their first bytes.

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Lines, as they are.
    Lines,
    /// Lines compressed by gzip.
    Gzip,
    /// Lines compressed by zstd.
    Zstd,
    /// A Parquet file.
    Parquet,
    /// An Arrow file, of which Feather is another name.
    ArrowFile,
    /// An Arrow stream, as `datasets` keeps in its cache.
    ArrowStream,
}

/// The first bytes of each format.
const MAGIC: [(&[u8], Container); 6] = [
    (b"\x1f\x8b", Container::Gzip),
    (b"\x28\xb5\x2f\xfd", Container::Zstd),
    (b"PAR1", Container::Parquet),
    (b"ARROW1", Container::ArrowFile),
    // A marker of continuation, and the length of a schema, which is below 16 MiB.
    (b"\xff\xff\xff\xff", Container::ArrowStream),
    (b"PARE", Container::Parquet),
];

impl Container {
    /// Bytes that decide.
    pub const START_BYTES: usize = 6;

    /// Returns the format of a file that starts with these bytes.
    pub fn of(start: &[u8]) -> Self {
        // A frame of zstd to be skipped, of 16 kinds.
        if matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
            return Self::Zstd;
        }
        let format = MAGIC.iter().find(|(magic, _)| start.starts_with(magic));
        format.map_or(Self::Lines, |(_, container)| *container)
    }

    /// Returns whether it is read as a table, which needs a file.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Parquet | Self::ArrowFile | Self::ArrowStream)
    }
}
