//! Shared memory of a block, with a shadow word for every four bytes.

use crate::check::Violation;
use crate::device::Access;

const NOBODY: u8 = u8::MAX;
const SEVERAL: u8 = u8::MAX - 1;

/// Who touched four bytes since the last barrier, and which of them hold a value.
#[derive(Clone, Copy)]
struct Shadow {
    write_epoch: u32,
    read_epoch: u32,
    writer: u8,
    reader: u8,
    /// One bit a byte.
    written: u8,
    /// One bit a byte: an asynchronous copy is on its way.
    in_flight: u8,
}

const FRESH: Shadow =
    Shadow { write_epoch: 0, read_epoch: 0, writer: NOBODY, reader: NOBODY, written: 0, in_flight: 0 };

/// The shared memory of one block.
pub(super) struct Shared {
    bytes: Vec<u8>,
    shadow: Vec<Shadow>,
    /// Barriers passed, from 1.
    pub(super) epoch: u32,
    checked: bool,
}

impl Shared {
    pub(super) fn new(size: usize, checked: bool) -> Self {
        // Four bytes more than asked for, so that a word always exists.
        let words = if checked { size.div_ceil(4) } else { 0 };
        Self { bytes: vec![0; size], shadow: vec![FRESH; words], epoch: 1, checked }
    }

    /// For the next block: contents are garbage again.
    pub(super) fn reset(&mut self) {
        self.shadow.fill(FRESH);
        self.epoch = 1;
    }

    /// Checks one lane's access of `size` bytes (a power of two) by `warp`, and notes it.
    #[inline]
    pub(super) fn lane(
        &mut self,
        at: u64,
        size: usize,
        warp: u8,
        access: Access,
    ) -> Result<usize, (Violation, String)> {
        if at & (size as u64 - 1) != 0 {
            return Err((Violation::Misaligned, format!("{size} bytes at shared byte {at}")));
        }
        if at.checked_add(size as u64).is_none_or(|end| end > self.bytes.len() as u64) {
            let detail = format!("{size} bytes at shared byte {at} of {}", self.bytes.len());
            return Err((Violation::OutOfBounds, detail));
        }
        let at = at as usize;
        if self.checked
            && !(access == Access::Read && size >= 4 && self.read_whole_words(at / 4, size / 4, warp))
        {
            let mut byte = at;
            while byte < at + size {
                let count = size.min(4);
                let mask = (((1u32 << count) - 1) << (byte & 3)) as u8;
                self.word(byte, mask, warp, access)?;
                byte += 4;
            }
        }
        Ok(at)
    }

    /// Notes a read of whole words if nothing speaks against it; false, with nothing noted, where `word` has to say what does.
    #[inline]
    fn read_whole_words(&mut self, first: usize, count: usize, warp: u8) -> bool {
        const ALL_BYTES: u8 = 0xF;
        let epoch = self.epoch;
        let words = &mut self.shadow[first..first + count];
        let clean = words.iter().fold(true, |clean, word| {
            let raced = (word.write_epoch == epoch) & (word.writer != warp);
            clean & (word.in_flight == 0) & (word.written == ALL_BYTES) & !raced
        });
        if clean {
            for word in words {
                let other = (word.read_epoch == epoch) & (word.reader != warp);
                word.reader = if other { SEVERAL } else { warp };
                word.read_epoch = epoch;
            }
        }
        clean
    }

    #[inline]
    fn word(&mut self, byte: usize, mask: u8, warp: u8, access: Access) -> Result<(), (Violation, String)> {
        let epoch = self.epoch;
        let shadow = &mut self.shadow[byte / 4];
        let other_wrote = shadow.write_epoch == epoch && shadow.writer != warp;
        let other_read = shadow.read_epoch == epoch && shadow.reader != warp;
        if shadow.in_flight & mask != 0 {
            return Err((
                Violation::InFlight,
                format!("shared byte {byte} before its cp.async was waited for"),
            ));
        }
        match access {
            Access::Read => {
                if other_wrote {
                    let detail =
                        format!("shared byte {byte} read by warp {warp}, written by warp {}", shadow.writer);
                    return Err((Violation::Race, detail));
                }
                if shadow.written & mask != mask {
                    return Err((Violation::Uninitialised, format!("shared byte {byte} was never written")));
                }
                shadow.reader = if other_read { SEVERAL } else { warp };
                shadow.read_epoch = epoch;
            }
            Access::Write => {
                if other_wrote || other_read {
                    let (verb, who) =
                        if other_wrote { ("written", shadow.writer) } else { ("read", shadow.reader) };
                    let who = if who == SEVERAL { "several warps".into() } else { format!("warp {who}") };
                    let detail = format!(
                        "shared byte {byte} written by warp {warp}, {verb} by {who}, no barrier between"
                    );
                    return Err((Violation::Race, detail));
                }
                shadow.writer = warp;
                shadow.write_epoch = epoch;
                shadow.written |= mask;
            }
        }
        Ok(())
    }

    /// Checks an atomic access: bounds, alignment, contents.
    pub(super) fn atomic(&mut self, at: u64, size: usize) -> Result<usize, (Violation, String)> {
        let checked = std::mem::replace(&mut self.checked, false);
        let found = self.lane(at, size, NOBODY, Access::Read);
        self.checked = checked;
        let at = found?;
        let word = if checked { self.shadow[at / 4].written & 0xF } else { 0xF };
        if word != 0xF {
            return Err((Violation::Uninitialised, format!("shared byte {at} was never written")));
        }
        Ok(at)
    }

    /// Marks bytes as the target of an asynchronous copy, or as arrived.
    pub(super) fn set_in_flight(&mut self, at: usize, size: usize, on: bool) {
        if self.checked {
            for byte in at..at + size {
                let bit = 1 << (byte & 3);
                let word = &mut self.shadow[byte / 4].in_flight;
                *word = if on { *word | bit } else { *word & !bit };
            }
        }
    }

    /// The bytes of a checked access.
    #[inline]
    pub(super) fn at(&mut self, at: usize, size: usize) -> &mut [u8] {
        &mut self.bytes[at..at + size]
    }
}
