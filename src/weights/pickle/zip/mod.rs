//! [`Archive`]: the entries of a zip file whose bytes are stored as they are.
//!
//! PyTorch writes its archives with the miniz library: neither compressed nor encrypted, with the
//! records of zip64, and with sizes in the directory and not in the entries' own headers. Readers
//! of zip files disagree about files that contradict themselves; here each such file is an error.
//! Checksums are not compared: that would read all weights, and PyTorch does not, either.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::errors::{damaged, shown, unsupported};
use crate::error::Result;

/// The first bytes of an archive, those of an entry's own header.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

const ENTRY: u32 = u32::from_le_bytes(*b"PK\x03\x04");
const DIRECTORY_ENTRY: u32 = u32::from_le_bytes(*b"PK\x01\x02");
const END: u32 = u32::from_le_bytes(*b"PK\x05\x06");
const END_64: u32 = u32::from_le_bytes(*b"PK\x06\x06");
const LOCATOR_64: u32 = u32::from_le_bytes(*b"PK\x06\x07");

const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_64_BYTES: usize = 20;

/// The longest directory that is read. An entry takes about 80 bytes.
const DIRECTORY_BYTES_MAX: usize = 64 << 20;

/// The newest version of zip that is known, as ten times its number: that of zip64.
const VERSION_MAX: u16 = 45;

/// Bits of an entry's flags: it is encrypted; sizes follow its bytes; its name is UTF-8.
const ENCRYPTED: u16 = 1 << 0;
const SIZES_FOLLOW: u16 = 1 << 3;
const UTF8: u16 = 1 << 11;

/// The extra field with the numbers that do not fit 32 bits.
const ZIP64_FIELD: u16 = 1;

const SAVE_AGAIN: &str = "write it with `torch.save` again, which stores tensors as they are";

/// The entries of an archive, each checked: its bytes lie inside the file and are its own.
#[derive(Debug)]
pub(super) struct Archive {
    entries: BTreeMap<String, Range<usize>>,
    /// The folder of the first entry, in which PyTorch puts all of them.
    folder: String,
}

impl Archive {
    /// Reads the directory of a whole file's bytes.
    pub(super) fn open(file: &[u8]) -> Result<Self> {
        let (directory, count) = directory(file)?;
        if directory.len() > DIRECTORY_BYTES_MAX {
            return Err(damaged(format!("the zip directory has {} bytes", directory.len())));
        }
        let mut records = Cursor::new("zip directory", &file[directory.clone()]);
        let (mut entries, mut places) = (BTreeMap::new(), Vec::new());
        let mut folder = None;
        while records.rest() > 0 {
            let record = Record::read(&mut records)?;
            let whole = record.range(&file[..directory.start])?;
            folder.get_or_insert_with(|| record.name.split('/').next().unwrap_or_default().to_owned());
            places.push((whole.start, whole.end, record.name.clone()));
            let bytes = whole.end - record.size..whole.end;
            if entries.insert(record.name.clone(), bytes).is_some() {
                return Err(damaged(format!("the zip archive has two entries `{}`", shown(&record.name))));
            }
        }
        if entries.len() as u64 != count {
            return Err(damaged(format!(
                "the zip archive has {} entries, its end claims {count}",
                entries.len()
            )));
        }
        places.sort();
        for pair in places.windows(2) {
            let [(_, end, name), (start, _, next)] = pair else { unreachable!("windows of two") };
            if end > start {
                return Err(damaged(format!(
                    "the zip entries `{}` and `{}` overlap",
                    shown(name),
                    shown(next)
                )));
            }
        }
        Ok(Self { entries, folder: folder.unwrap_or_default() })
    }

    /// The bytes of an entry of the archive's folder in the file.
    pub(super) fn find(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(&format!("{}/{name}", self.folder)).cloned()
    }
}

/// Returns the directory's bytes in the file, and the number of its entries.
fn directory(file: &[u8]) -> Result<(Range<usize>, u64)> {
    let no_end =
        || damaged("the file does not end as a zip archive does: it is truncated, or longer than it was");
    let at = file.len().checked_sub(END_BYTES).ok_or_else(no_end)?;
    let mut end = Cursor::new("zip end", &file[at..]);
    let (signature, disks, on_disk, count) = (end.u32()?, end.u32()?, end.u16()?, end.u16()?);
    let (bytes, start, comment) = (end.u32()?, end.u32()?, end.u16()?);
    if signature != END || comment != 0 {
        return Err(no_end());
    }
    let mut found = (at, u64::from(count), u64::from(bytes), u64::from(start));
    if disks != 0 || on_disk != count {
        return Err(several_disks());
    }
    if let Some((at, count_64, bytes_64, start_64)) = end_64(file, at)? {
        let short = |wide: u64, max: u64| wide.min(max);
        let expected = (
            short(count_64, u16::MAX.into()),
            short(bytes_64, u32::MAX.into()),
            short(start_64, u32::MAX.into()),
        );
        if (found.1, found.2, found.3) != expected {
            return Err(damaged("the zip archive's two ends contradict each other"));
        }
        found = (at, count_64, bytes_64, start_64);
    }
    let (at, count, bytes, start) = found;
    // The directory goes up to the records of its end.
    if start.checked_add(bytes) != Some(at as u64) {
        return Err(damaged(format!(
            "the zip directory has {bytes} bytes from byte {start}, expected up to {at}"
        )));
    }
    Ok((start as usize..at, count))
}

/// Returns the place of zip64's end record before the end at `end`, the number of entries, and the
/// directory's bytes and start; `None` where there is no such record.
fn end_64(file: &[u8], end: usize) -> Result<Option<(usize, u64, u64, u64)>> {
    let Some(locator_at) = end.checked_sub(LOCATOR_64_BYTES) else { return Ok(None) };
    let mut locator = Cursor::new("zip64 locator", &file[locator_at..end]);
    if locator.u32()? != LOCATOR_64 {
        return Ok(None);
    }
    let (disk, place, disks) = (locator.u32()?, locator.u64()?, locator.u32()?);
    if disk != 0 || disks > 1 {
        return Err(several_disks());
    }
    let misplaced = || damaged("the zip64 end of the archive is not before its locator");
    let at = locator_at.checked_sub(END_64_BYTES).filter(|at| *at as u64 == place).ok_or_else(misplaced)?;
    let mut record = Cursor::new("zip64 end", &file[at..locator_at]);
    let (signature, bytes, _made_by, version) = (record.u32()?, record.u64()?, record.u16()?, record.u16()?);
    if signature != END_64 || bytes != END_64_BYTES as u64 - 12 {
        return Err(misplaced());
    }
    refuse_version("the archive", version)?;
    let (disk, directory_disk, on_disk, count) = (record.u32()?, record.u32()?, record.u64()?, record.u64()?);
    if disk != 0 || directory_disk != 0 || on_disk != count {
        return Err(several_disks());
    }
    Ok(Some((at, count, record.u64()?, record.u64()?)))
}

fn several_disks() -> crate::error::Error {
    unsupported("the zip archive is a part of one over several disks", SAVE_AGAIN)
}

fn refuse_version(what: &str, version: u16) -> Result<()> {
    match version <= VERSION_MAX {
        true => Ok(()),
        false => Err(unsupported(
            format!("{what} needs version {}.{} of zip, expected at most 4.5", version / 10, version % 10),
            SAVE_AGAIN,
        )),
    }
}

/// An entry as the directory describes it.
struct Record {
    name: String,
    flags: u16,
    size: usize,
    /// Byte of its own header.
    start: usize,
}

impl Record {
    fn read(records: &mut Cursor) -> Result<Self> {
        if records.u32()? != DIRECTORY_ENTRY {
            return Err(damaged(format!("the zip directory has no entry before its byte {}", records.at())));
        }
        let (_made_by, version, flags, method) =
            (records.u16()?, records.u16()?, records.u16()?, records.u16()?);
        let (_time, _checksum, packed, size) =
            (records.u32()?, records.u32()?, records.u32()?, records.u32()?);
        let (name_bytes, extra_bytes, comment_bytes) = (records.u16()?, records.u16()?, records.u16()?);
        let (disk, _attributes, _more, start) =
            (records.u16()?, records.u16()?, records.u32()?, records.u32()?);
        let name = name(records, name_bytes)?;
        let mut extra = Cursor::new("zip entry", records.take(extra_bytes.into())?);
        records.take(comment_bytes.into())?;
        let shown = shown(&name);
        refuse_version(&format!("zip entry `{shown}`"), version)?;
        if flags & ENCRYPTED != 0 {
            return Err(unsupported(format!("zip entry `{shown}` is encrypted"), SAVE_AGAIN));
        }
        if method != 0 {
            return Err(unsupported(
                format!("zip entry `{shown}` is compressed (method {method})"),
                SAVE_AGAIN,
            ));
        }
        if flags & !(SIZES_FOLLOW | UTF8) != 0 {
            return Err(unsupported(
                format!("zip entry `{shown}` has unknown flags ({flags:#06x})"),
                SAVE_AGAIN,
            ));
        }
        if disk != 0 {
            return Err(several_disks());
        }
        let [size, packed, start] = wide([size, packed, start], &mut extra)?;
        if packed != size {
            return Err(damaged(format!("zip entry `{shown}` has {packed} stored bytes of {size}")));
        }
        let fits = |number: u64| {
            usize::try_from(number).map_err(|_| damaged(format!("zip entry `{shown}` claims {number} bytes")))
        };
        Ok(Self { size: fits(size)?, start: fits(start)?, flags, name })
    }

    /// Checks the entry's own header, and returns the bytes from there to the entry's last. `file`
    /// ends where the directory begins.
    fn range(&self, file: &[u8]) -> Result<Range<usize>> {
        let shown = shown(&self.name);
        let outside =
            || damaged(format!("zip entry `{shown}` goes past the directory: the file is truncated"));
        let mut header = Cursor::new("zip entry", file.get(self.start..).ok_or_else(outside)?);
        let (signature, _version, flags, method) =
            (header.u32()?, header.u16()?, header.u16()?, header.u16()?);
        let (_time, _checksum, packed, size) = (header.u32()?, header.u32()?, header.u32()?, header.u32()?);
        let (name_bytes, extra_bytes) = (header.u16()?, header.u16()?);
        let differs = |part: &str| {
            damaged(format!("zip entry `{shown}` has another {part} in the directory than before its bytes"))
        };
        if signature != ENTRY {
            return Err(damaged(format!("zip entry `{shown}` does not begin at byte {}", self.start)));
        }
        if name(&mut header, name_bytes)? != self.name {
            return Err(differs("name"));
        }
        if method != 0 {
            return Err(differs("method"));
        }
        if flags != self.flags {
            return Err(differs("flags"));
        }
        let mut extra = Cursor::new("zip entry", header.take(extra_bytes.into())?);
        let follow = flags & SIZES_FOLLOW != 0 && [packed, size] == [0, 0];
        if !follow && wide([size, packed], &mut extra)? != [self.size as u64; 2] {
            return Err(differs("size"));
        }
        // A slice's length: the sum cannot overflow.
        let end = self.start + header.at();
        let end = end.checked_add(self.size).filter(|end| *end <= file.len()).ok_or_else(outside)?;
        Ok(self.start..end)
    }
}

/// Returns a copy of an entry's name: the file might change under its map.
fn name(cursor: &mut Cursor, bytes: u16) -> Result<String> {
    let name = cursor.take(bytes.into())?.to_vec();
    String::from_utf8(name).map_err(|_| damaged("a zip entry's name is not UTF-8"))
}

/// Returns numbers of 32 bits, each that is at its limit replaced by the next one of zip64's extra
/// field.
fn wide<const N: usize>(narrow: [u32; N], extra: &mut Cursor) -> Result<[u64; N]> {
    let mut wide = narrow.map(u64::from);
    let is_replaced = |number: &u64| *number == u64::from(u32::MAX);
    if !wide.iter().any(is_replaced) {
        return Ok(wide);
    }
    while extra.rest() > 0 {
        let (kind, length) = (extra.u16()?, extra.u16()?);
        let field = extra.take(length.into())?;
        if kind == ZIP64_FIELD {
            let mut field = Cursor::new("zip64 field", field);
            for number in wide.iter_mut().filter(|number| is_replaced(number)) {
                *number = field.u64()?;
            }
            return Ok(wide);
        }
    }
    Ok(wide)
}

#[cfg(test)]
mod tests;
