//! [`Cursor`]: little-endian fields of untrusted bytes, one after the other.

use super::errors::damaged;
use crate::error::Result;

/// A place in a mapped file. Each byte is read once: a file that changes under its map gives other
/// values, but no value that differs from the one that was checked.
pub(super) struct Cursor<'a> {
    /// The name of these bytes in errors.
    part: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(part: &'static str, bytes: &'a [u8]) -> Self {
        Self { part, bytes, at: 0 }
    }

    /// Bytes that have been read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that have not been read.
    pub(super) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Returns the next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, _)) = self.bytes[self.at..].split_at_checked(count) else {
            return Err(self.too_short());
        };
        self.at += count;
        Ok(taken)
    }

    /// Returns the next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some(taken) = self.bytes[self.at..].first_chunk::<N>() else {
            return Err(self.too_short());
        };
        self.at += N;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Returns the bytes before the next line feed, and reads that, too.
    pub(super) fn line(&mut self, bytes_max: usize) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            match self.u8()? {
                b'\n' => return Ok(line),
                _ if line.len() == bytes_max => {
                    return Err(damaged(format!(
                        "the {} has a name of more than {bytes_max} bytes before byte {}",
                        self.part, self.at
                    )));
                }
                byte => line.push(byte),
            }
        }
    }

    fn too_short(&self) -> crate::error::Error {
        damaged(format!("the {} has {} bytes and ends too early", self.part, self.bytes.len()))
    }
}
