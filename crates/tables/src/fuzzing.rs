//! An entry point for untrusted files: for the fuzzer in `fuzz/` and the seeded test below. Not
//! part of the interface.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use kudos::Result;
use serde::de::IgnoredAny;

use crate::{Container, RowWriter, Table, lines};

/// Rows that are read of a file, which may declare any number of them.
const ROWS_MAX: usize = 1000;

/// Bytes that are read of compressed lines.
const LINES_BYTES_MAX: u64 = 16 << 20;

/// Reads a file of any container, and returns true if it was accepted. It may not panic, nor take
/// much memory or time.
///
/// # Panics
///
/// Where a row is no JSON.
pub fn file(mut file: File) -> bool {
    let mut start = Vec::new();
    let is_read = file.by_ref().take(Container::START_BYTES as u64).read_to_end(&mut start);
    is_read.and_then(|_| file.rewind()).expect("a file in memory or on a disk");
    match Container::of(&start) {
        container if container.is_table() => rows(file, container).is_ok(),
        container => {
            let read = lines(container, BufReader::new(file));
            read.and_then(|lines| io::copy(&mut lines.take(LINES_BYTES_MAX), &mut io::sink())).is_ok()
        }
    }
}

fn rows(file: File, container: Container) -> Result<()> {
    let table = Table::open(file, container)?;
    let writer = RowWriter::whole(table.schema());
    let columns: Vec<usize> = writer.columns().collect();
    let mut left = ROWS_MAX;
    for batch in table.batches(&columns, None)? {
        let batch = batch?;
        for row in 0..batch.num_rows().min(left) {
            let text = writer.object(&batch, row)?;
            serde_json::from_slice::<IgnoredAny>(&text).expect("a row is an object");
        }
        left = left.saturating_sub(batch.num_rows());
        if left == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::panic::catch_unwind;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use arrow_array::builder::{ListBuilder, StringBuilder, StringDictionaryBuilder};
    use arrow_array::types::Int32Type;
    use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, StructArray};
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use arrow_schema::{DataType, Field};
    use kudos::internals::random::Random;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::{WriterProperties, WriterVersion};

    use super::*;

    /// Mutations of each file.
    const ROUNDS: usize = 400;

    /// Limit on one of them, on a busy machine. Measured: at most 0.1 s.
    const CALL_MAX: Duration = Duration::from_secs(20);

    /// Limit on the memory of the process. Measured: 27 MiB.
    const MEMORY_MAX_KIB: u64 = 1 << 20;

    /// Rows with text, nulls, numbers, lists, structs and a dictionary.
    fn batch() -> RecordBatch {
        let (mut lists, mut words) =
            (ListBuilder::new(StringBuilder::new()), StringDictionaryBuilder::<Int32Type>::new());
        for row in 0..40 {
            match row % 3 {
                0 => lists.append_null(),
                count => lists.append_value((0..count).map(|item| Some(format!("response {row} {item}")))),
            }
            words.append_value(["user", "assistant"][row % 2]);
        }
        let text = |name: &str| {
            let rows = (0..40).map(|row| (row % 5 > 0).then(|| format!("{name} {row} \u{1f600}")));
            Arc::new(StringArray::from_iter(rows)) as ArrayRef
        };
        let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
        let turns =
            StructArray::from(vec![(field("role"), text("role")), (field("content"), text("content"))]);
        let numbers = (0..40).map(|row| (row % 4 > 0).then_some(f64::from(row) / 3.0));
        let columns: [(&str, ArrayRef); 5] = [
            ("prompt", text("What is")),
            ("responses", Arc::new(lists.finish())),
            ("turn", Arc::new(turns)),
            ("role", Arc::new(words.finish())),
            ("score", Arc::new(Float64Array::from_iter(numbers))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    fn parquet(compression: Compression, version: WriterVersion) -> Vec<u8> {
        let properties = WriterProperties::builder().set_compression(compression);
        let properties = properties.set_writer_version(version).set_max_row_group_row_count(Some(20));
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch().schema(), Some(properties.build())).unwrap();
        writer.write(&batch()).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// Returns a file and a stream.
    fn arrow(compression: Option<CompressionType>) -> [Vec<u8>; 2] {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let (mut file, mut stream) = (Vec::new(), Vec::new());
        let (batch, schema) = (batch(), batch().schema());
        let mut writer = FileWriter::try_new_with_options(&mut file, &schema, options.clone()).unwrap();
        writer.write(&batch).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        let mut writer = StreamWriter::try_new_with_options(&mut stream, &schema, options).unwrap();
        writer.write(&batch).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        [file, stream]
    }

    fn files() -> Vec<Vec<u8>> {
        let text = "{\"input_ids\": [5]}\n".repeat(50);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let mut files = vec![gzip.finish().unwrap(), zstd::encode_all(text.as_bytes(), 3).unwrap()];
        files.extend(
            [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)].map(arrow).concat(),
        );
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(Default::default()),
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4_RAW,
        ] {
            files.push(parquet(compression, WriterVersion::PARQUET_1_0));
            files.push(parquet(compression, WriterVersion::PARQUET_2_0));
        }
        files
    }

    /// Changes some bytes, half of the times near the start or the end, where metadata is.
    fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
        let mut bytes = good.to_vec();
        let mut below = |bound: usize| (random.next_bits() % bound.max(1) as u64) as usize;
        for _ in 0..1 + below(4) {
            let near = 600.min(bytes.len());
            let at = match below(4) {
                0 => below(near),
                1 => bytes.len() - below(near),
                _ => below(bytes.len() + 1),
            };
            match below(6) {
                0 if below(4) == 0 => bytes.truncate(at),
                1 => bytes.insert(at, below(256) as u8),
                2 => drop(bytes.drain(at..(at + below(16)).min(bytes.len()))),
                3 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
                4 if at + 8 <= bytes.len() => {
                    let value = [i64::MAX, i64::from(i32::MAX), -1, 1 << 40][below(4)];
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ if at < bytes.len() => bytes[at] = below(256) as u8,
                _ => {}
            }
        }
        bytes
    }

    /// Returns the most memory that this process had.
    fn memory_kib() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
    }

    #[test]
    fn mutated_files_are_errors_and_no_more() {
        let mut accepted = 0;
        for (index, good) in files().iter().enumerate() {
            let mut random = Random::new(index as u64);
            for round in 0..ROUNDS {
                let bytes = if round == 0 { good.clone() } else { mutated(good, &mut random) };
                let mut on_disk = tempfile::tempfile().unwrap();
                on_disk.write_all(&bytes).and_then(|()| on_disk.rewind()).unwrap();
                let began = Instant::now();
                let is_accepted = catch_unwind(|| file(on_disk));
                let is_accepted = is_accepted.unwrap_or_else(|_| panic!("file {index}, round {round}"));
                assert!(began.elapsed() < CALL_MAX, "file {index}, round {round}: {:?}", began.elapsed());
                assert!(round > 0 || is_accepted, "file {index} is refused");
                accepted += usize::from(is_accepted);
            }
        }
        assert!(accepted > 2 * files().len(), "{accepted} accepted, so little is tested");
        match memory_kib() {
            Some(kib) => assert!(kib < MEMORY_MAX_KIB, "{kib} KiB"),
            None => eprintln!("not run: the process's memory is not known on this system"),
        }
    }
}
