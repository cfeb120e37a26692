//! Arrow files and streams, message by message: what a message declares is checked before the
//! crate that decodes it believes it.
//!
//! Its flatbuffers are verified when they are read, which bounds the depth of a schema, too.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::vec;

use arrow_array::RecordBatch;
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::FileDecoder;
use arrow_ipc::{Block, CompressionType, Message, MessageHeader, root_as_footer, root_as_message};
use arrow_schema::Schema;
use kudos::Result;

use crate::errors::{broken, io, wrong};

/// Limit on the footer of a file.
const FOOTER_BYTES_MAX: u64 = 256 << 20;

/// Limit on what the compressed buffers of a message declare to hold, which is allocated at once.
const MESSAGE_BYTES_MAX: u64 = 4 << 30;

/// Bytes that a byte of lz4 decompresses to, at most: each byte of a match's length counts 255.
const LZ4_RATIO_MAX: u64 = 255;

/// The first bytes of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// The continuation, and the length of the metadata.
const PREFIX_BYTES: usize = 8;

/// The messages of a file or a stream.
pub(crate) struct Messages {
    file: BufReader<File>,
    /// Bytes of the file.
    bytes: u64,
    schema: Arc<Schema>,
    /// A file's messages that are left: dictionaries, then batches. `None` for a stream, whose
    /// messages follow each other.
    blocks: Option<vec::IntoIter<Block>>,
}

/// Batches of some columns, one after another.
pub(crate) struct ArrowBatches {
    messages: Messages,
    columns: Vec<usize>,
    /// Made for the first message.
    decoder: Option<FileDecoder>,
}

impl Messages {
    /// Opens a file, whose footer has its messages.
    pub(crate) fn of_file(file: &File, bytes: u64) -> Result<Self> {
        const MAGIC_BYTES: u64 = 6;
        const TAIL_BYTES: u64 = 4 + MAGIC_BYTES;
        let mut tail = [0; TAIL_BYTES as usize];
        if bytes < 8 + TAIL_BYTES {
            return Err(wrong(format!("the file has {bytes} bytes, fewer than any Arrow file")));
        }
        let mut file = reader(file)?;
        read_at(&mut file, bytes - TAIL_BYTES, &mut tail)?;
        let [a, b, c, d, magic @ ..] = tail;
        if &magic != b"ARROW1" {
            return Err(wrong("the file begins as an Arrow file, but does not end as one"));
        }
        let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
        if footer > (bytes - 8 - TAIL_BYTES).min(FOOTER_BYTES_MAX) {
            return Err(wrong(format!(
                "the end declares a footer of {footer} bytes in a file of {bytes} bytes"
            )));
        }
        let mut text = vec![0; footer as usize];
        read_at(&mut file, bytes - TAIL_BYTES - footer, &mut text)?;
        let footer = root_as_footer(&text).map_err(|error| broken(&error))?;
        let blocks = [footer.dictionaries(), footer.recordBatches()].into_iter().flatten();
        let blocks: Vec<Block> = blocks.flatten().copied().collect();
        for block in &blocks {
            let (start, metadata, body) =
                (block.offset(), i64::from(block.metaDataLength()), block.bodyLength());
            let end = start.checked_add(metadata).and_then(|end| end.checked_add(body));
            let is_within = [start, metadata, body].iter().all(|part| *part >= 0)
                && end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= bytes);
            if !is_within {
                return Err(wrong(format!(
                    "the footer declares a batch of {metadata} and {body} bytes at byte {start} of {bytes}"
                )));
            }
        }
        let schema = decoded(footer.schema())?;
        Ok(Self { file, bytes, schema, blocks: Some(blocks.into_iter()) })
    }

    /// Opens a stream, whose first message has its schema.
    pub(crate) fn of_stream(file: &File, bytes: u64) -> Result<Self> {
        let mut messages =
            Self { file: reader(file)?, bytes, schema: Arc::new(Schema::empty()), blocks: None };
        let Some((_, first)) = messages.next()? else { return Err(wrong("the stream has no messages")) };
        let message = parsed(&first)?;
        messages.schema = decoded(message.header_as_schema())?;
        Ok(messages)
    }

    /// Returns the schema.
    pub(crate) fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema)
    }

    /// Returns the batches of the columns with these indices, in ascending order.
    pub(crate) fn batches(self, columns: &[usize]) -> ArrowBatches {
        ArrowBatches { messages: self, columns: columns.to_vec(), decoder: None }
    }

    /// Reads the next message, with a block that has its lengths.
    fn next(&mut self) -> Result<Option<(Block, Buffer)>> {
        match &mut self.blocks {
            Some(blocks) => {
                let Some(block) = blocks.next() else { return Ok(None) };
                let len = block.metaDataLength() as usize + block.bodyLength() as usize;
                let mut buffer = MutableBuffer::from_len_zeroed(len);
                read_at(&mut self.file, block.offset() as u64, &mut buffer)?;
                Ok(Some((block, buffer.into())))
            }
            None => self.next_of_stream(),
        }
    }

    fn next_of_stream(&mut self) -> Result<Option<(Block, Buffer)>> {
        let start = self.file.stream_position().map_err(|error| io(&error))?;
        let left = self.bytes.saturating_sub(start);
        if left == 0 {
            return Ok(None);
        }
        let cut_off =
            |len: u64| wrong(format!("the message at byte {start} has {len} bytes, the file {left}"));
        let mut prefix = [0; PREFIX_BYTES];
        if left < prefix.len() as u64 {
            return Err(cut_off(prefix.len() as u64));
        }
        self.file.read_exact(&mut prefix).map_err(|error| io(&error))?;
        let [continuation @ .., a, b, c, d] = prefix;
        if continuation != CONTINUATION {
            return Err(wrong(format!("there is no message at byte {start}")));
        }
        let metadata = u64::from(u32::from_le_bytes([a, b, c, d])) + prefix.len() as u64;
        if metadata == prefix.len() as u64 {
            return Ok(None);
        }
        if metadata > left || i32::try_from(metadata).is_err() {
            return Err(cut_off(metadata));
        }
        let mut buffer = MutableBuffer::from_len_zeroed(metadata as usize);
        buffer[..PREFIX_BYTES].copy_from_slice(&prefix);
        self.file.read_exact(&mut buffer[PREFIX_BYTES..]).map_err(|error| io(&error))?;
        let body = parsed(&buffer)?.bodyLength();
        let len = u64::try_from(body).ok().and_then(|body| body.checked_add(metadata)).unwrap_or(u64::MAX);
        if len > left {
            return Err(cut_off(len));
        }
        buffer.resize(len as usize, 0);
        self.file.read_exact(&mut buffer[metadata as usize..]).map_err(|error| io(&error))?;
        Ok(Some((Block::new(start as i64, metadata as i32, body), buffer.into())))
    }
}

impl Iterator for ArrowBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.next_batch().transpose()
    }
}

impl ArrowBatches {
    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        while let Some((block, buffer)) = self.messages.next()? {
            let message = parsed(&buffer)?;
            check_buffers(&message, &buffer[block.metaDataLength() as usize..])?;
            // The version of a footer may be another one than that of its messages.
            let decoder = self.decoder.get_or_insert_with(|| {
                FileDecoder::new(self.messages.schema(), message.version())
                    .with_projection(self.columns.clone())
            });
            if message.header_type() == MessageHeader::DictionaryBatch {
                decoder.read_dictionary(&block, &buffer).map_err(|error| broken(&error))?;
                continue;
            }
            let batch = decoder.read_record_batch(&block, &buffer).map_err(|error| broken(&error))?;
            if batch.is_some() {
                return Ok(batch);
            }
        }
        Ok(None)
    }
}

/// Checks what the compressed buffers of a message declare to hold.
fn check_buffers(message: &Message<'_>, body: &[u8]) -> Result<()> {
    let dictionary = message.header_as_dictionary_batch().and_then(|batch| batch.data());
    let Some(batch) = message.header_as_record_batch().or(dictionary) else { return Ok(()) };
    let Some(compression) = batch.compression() else { return Ok(()) };
    let ratio_max = match compression.codec() {
        CompressionType::LZ4_FRAME => LZ4_RATIO_MAX,
        _ => u64::MAX,
    };
    let mut declared = 0_u64;
    for buffer in batch.buffers().into_iter().flatten().filter(|buffer| buffer.length() > 0) {
        let start = usize::try_from(buffer.offset()).unwrap_or(usize::MAX);
        let Some(prefix) = body.get(start..).and_then(|rest| rest.first_chunk()) else {
            return Err(wrong(format!("a buffer begins at byte {start} of {}", body.len())));
        };
        // A negative length marks a buffer that is not compressed.
        let Ok(size) = u64::try_from(i64::from_le_bytes(*prefix)) else { continue };
        if size > ratio_max.saturating_mul(buffer.length().unsigned_abs()) {
            let length = buffer.length();
            return Err(wrong(format!(
                "a buffer of {length} bytes declares to hold {size}, more than lz4 packs"
            )));
        }
        declared = declared.saturating_add(size);
    }
    if declared > MESSAGE_BYTES_MAX {
        return Err(wrong(format!(
            "the buffers of a batch declare to hold {declared} bytes, the limit is {MESSAGE_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// Parses the message at the start of `buffer`.
fn parsed(buffer: &[u8]) -> Result<Message<'_>> {
    // Old files have no continuation.
    let skipped = if buffer.starts_with(&CONTINUATION) { PREFIX_BYTES } else { 4 };
    let metadata = buffer.get(skipped..).ok_or_else(|| wrong("a message ends within its length"))?;
    root_as_message(metadata).map_err(|error| broken(&error))
}

fn decoded(schema: Option<arrow_ipc::Schema<'_>>) -> Result<Arc<Schema>> {
    let schema = schema.ok_or_else(|| wrong("the file has no schema"))?;
    if !schema.endianness().equals_to_target_endianness() {
        return Err(wrong("the file has the byte order of another machine"));
    }
    try_fb_to_schema(schema).map(Arc::new).map_err(|error| broken(&error))
}

/// Returns a reader from the start of the file.
fn reader(file: &File) -> Result<BufReader<File>> {
    let mut file = file.try_clone().map_err(|error| io(&error))?;
    file.rewind().map_err(|error| io(&error))?;
    Ok(BufReader::new(file))
}

fn read_at(file: &mut BufReader<File>, start: u64, buffer: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(buffer)).map_err(|error| io(&error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use arrow_array::{ArrayRef, StringArray};
    use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use arrow_schema::{DataType, Field};

    use super::*;
    use crate::{Container, Table};

    const LENGTH: u64 = 5003;

    fn batch() -> RecordBatch {
        let text = "a".repeat(LENGTH as usize);
        let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        RecordBatch::try_from_iter([("prompt", column(&text)), ("response", column("b"))]).unwrap()
    }

    /// Writes the batch twice, as a file and as a stream.
    fn written(batch: &RecordBatch, compression: Option<CompressionType>) -> [Vec<u8>; 2] {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let (mut file, mut stream) = (Vec::new(), Vec::new());
        let schema = batch.schema();
        let mut writer = FileWriter::try_new_with_options(&mut file, &schema, options.clone()).unwrap();
        writer.write(batch).and_then(|()| writer.write(batch)).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        let mut writer = StreamWriter::try_new_with_options(&mut stream, &schema, options).unwrap();
        writer.write(batch).and_then(|()| writer.write(batch)).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        [file, stream]
    }

    fn read(bytes: &[u8], columns: &[usize]) -> Result<Vec<RecordBatch>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Table::open(file, Container::of(bytes))?.batches(columns, None)?.collect()
    }

    fn replaced(bytes: &[u8], from: u64, to: u64) -> Vec<u8> {
        // The last one, for an offset may be equal.
        let start = bytes.windows(8).rposition(|window| window == from.to_le_bytes()).unwrap();
        [&bytes[..start], &to.to_le_bytes(), &bytes[start + 8..]].concat()
    }

    #[test]
    fn files_and_streams_have_the_columns_that_were_written() {
        let batch = batch();
        for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
            for bytes in written(&batch, compression) {
                assert_eq!(read(&bytes, &[0, 1]).unwrap(), [batch.clone(), batch.clone()]);
                let one = batch.project(&[1]).unwrap();
                assert_eq!(read(&bytes, &[1]).unwrap(), [one.clone(), one]);
            }
        }
        // A stream may end without its last marker, but not within a message.
        let [_, stream] = written(&batch, None);
        assert_eq!(read(&stream[..stream.len() - PREFIX_BYTES], &[0]).unwrap().len(), 2);
        for cut in [1, PREFIX_BYTES + 1, 3000] {
            let error = read(&stream[..stream.len() - cut], &[0]).unwrap_err().to_string();
            assert!(error.starts_with("the message at byte "), "{error}");
        }
    }

    /// Without the check, the allocation fails and the process ends.
    #[test]
    fn buffers_that_declare_more_than_the_limit_are_refused() {
        for (codec, size, message) in [
            (CompressionType::ZSTD, 1 << 46, "declare to hold 70368744"),
            (CompressionType::LZ4_FRAME, 1 << 46, "more than lz4 packs"),
            (CompressionType::LZ4_FRAME, 1 << 20, "more than lz4 packs"),
        ] {
            for bytes in written(&batch(), Some(codec)) {
                let error = read(&replaced(&bytes, LENGTH, size), &[0, 1]).unwrap_err().to_string();
                assert!(error.contains(message), "{error}");
            }
        }
    }

    #[test]
    fn a_schema_of_too_many_nested_fields_is_refused() {
        let write = |depth: usize| {
            let list = |inner, _| DataType::List(Arc::new(Field::new("item", inner, true)));
            let field = Field::new("prompt", (0..depth).fold(DataType::Utf8, list), true);
            let schema = Schema::new(vec![field]);
            written(&RecordBatch::new_empty(Arc::new(schema)), None)
        };
        for (depth, is_read) in [(20, true), (70, false), (2000, false)] {
            let writer = std::thread::Builder::new().stack_size(256 << 20).spawn(move || write(depth));
            for bytes in writer.unwrap().join().unwrap() {
                let read = read(&bytes, &[0]);
                assert_eq!(read.is_ok(), is_read, "{depth}");
                let error = read.err().map(|error| error.to_string()).unwrap_or_default();
                assert!(is_read || error.contains("depth limit reached"), "{error}");
            }
        }
    }
}
