//! Shared memory of a block, with a shadow word for every four bytes.

use super::phase::{Clock, Mbarrier, WARPS_MAX, is_copy};
use crate::check::Violation;
use crate::device::Access;

const NO_LANE: u8 = u8::MAX;
const SEVERAL: u8 = u8::MAX - 1;
const ALL_BYTES: u8 = 0xF;

/// The warp and lane of an access to shared memory.
#[derive(Clone, Copy)]
pub(super) struct Actor {
    pub(super) warp: u8,
    pub(super) lane: u8,
}

impl Actor {
    pub(super) fn lane(warp: u8, lane: usize) -> Self {
        Self { warp, lane: lane as u8 }
    }

    /// The whole warp at once: a broadcast, or rows that one lane names and all lanes get.
    pub(super) fn lanes(warp: u8) -> Self {
        Self { warp, lane: SEVERAL }
    }
}

/// The last accesses to four bytes, and which of them hold a value.
#[derive(Clone, Copy)]
struct Shadow {
    written_at: u32,
    read_at: u32,
    writer: u8,
    reader: u8,
    /// One bit a byte.
    written: u8,
    /// One bit a byte: it is the target of an asynchronous copy in flight.
    in_flight: u8,
    /// The writer's lane for each byte since the warp's last sync; meaningless where `written_at`
    /// is before it.
    writer_lanes: [u8; 4],
    /// Like the writers', for readers.
    reader_lanes: [u8; 4],
}

const FRESH: Shadow = Shadow {
    written_at: 0,
    read_at: 0,
    writer: NO_LANE,
    reader: NO_LANE,
    written: 0,
    in_flight: 0,
    writer_lanes: [NO_LANE; 4],
    reader_lanes: [NO_LANE; 4],
};

/// The shared memory of one block.
pub(super) struct Shared {
    bytes: Vec<u8>,
    shadow: Vec<Shadow>,
    /// Ticks at every barrier and at every instruction that writes, from 1.
    now: u32,
    /// The tick at which the block last passed a barrier.
    block_sync: u32,
    /// The tick at which each warp last passed `bar.warp.sync` or a barrier of the block.
    warp_syncs: [u32; WARPS_MAX],
    /// The tick at which each warp last made its writes visible to matmuls of warpgroups.
    proxy_fences: [u32; WARPS_MAX],
    /// The tick at which each warp last made mbarriers that it has initialised visible to copies.
    pub(super) mbarrier_fences: [u32; WARPS_MAX],
    /// How many matmuls in flight read each word, where the kernel has such matmuls.
    matmuls: Vec<u8>,
    checked: bool,
    /// Barriers that have been initialised.
    pub(super) mbarriers: Vec<Mbarrier>,
    /// For each warp of a kernel with mbarriers, the accesses of others that it sees.
    seen: Vec<Clock>,
    /// For each word of such a kernel, the tick at which each warp last read it.
    reads: Vec<u32>,
}

impl Shared {
    /// `ordered`: the number of warps of a kernel with mbarriers, 0 for others.
    pub(super) fn new(size: usize, checked: bool, has_matmuls: bool, ordered: usize) -> Self {
        // Four bytes more than asked for, so that a word always exists.
        let words = if checked { size.div_ceil(4) } else { 0 };
        let (bytes, shadow) = (vec![0; size], vec![FRESH; words]);
        let matmuls = if has_matmuls { vec![0; words] } else { Vec::new() };
        let (warp_syncs, proxy_fences, mbarrier_fences) = ([1; WARPS_MAX], [0; WARPS_MAX], [0; WARPS_MAX]);
        Self {
            bytes,
            shadow,
            now: 1,
            block_sync: 1,
            warp_syncs,
            proxy_fences,
            mbarrier_fences,
            matmuls,
            checked,
            mbarriers: Vec::new(),
            seen: vec![Clock::at(1); ordered],
            reads: vec![0; words * ordered],
        }
    }

    /// Prepares for the next block: all contents are uninitialised again.
    pub(super) fn reset(&mut self) {
        self.shadow.fill(FRESH);
        (self.now, self.block_sync, self.warp_syncs) = (1, 1, [1; WARPS_MAX]);
        self.proxy_fences = [0; WARPS_MAX];
        self.mbarrier_fences = [0; WARPS_MAX];
        self.matmuls.fill(0);
        self.mbarriers.clear();
        self.seen.fill(Clock::at(1));
        self.reads.fill(0);
    }

    /// Counts an event of its own.
    pub(super) fn tick(&mut self) -> u32 {
        self.now += 1;
        self.now
    }

    /// Whether `warp` sees what `other` did at this tick.
    #[inline]
    pub(super) fn sees(&self, warp: u8, other: u8, tick: u32) -> bool {
        let seen = self.seen.get(warp as usize).and_then(|seen| seen.0.get(other as usize));
        tick < *seen.unwrap_or(&self.block_sync)
    }

    /// Returns all that `warp` has seen, and up to now has done.
    pub(super) fn clock_after(&mut self, warp: u8) -> Clock {
        let now = self.tick();
        let mut clock = self.seen[warp as usize].clone();
        clock.0[warp as usize] = now;
        clock
    }

    pub(super) fn see(&mut self, warp: u8, clock: &Clock) {
        self.seen[warp as usize].join(clock);
    }

    /// A warp other than `warp` that has read the word since `warp` has last seen it.
    fn unseen_reader(&self, word: usize, warp: u8) -> Option<u8> {
        let warps = self.seen.len();
        let mut reads = self.reads[word * warps..][..warps].iter().zip(0..);
        let found = reads.find(|&(&read, other)| read > 0 && other != warp && !self.sees(warp, other, read));
        found.map(|(_, other)| other)
    }

    /// The block passes a barrier.
    pub(super) fn sync_block(&mut self) {
        self.now += 1;
        self.block_sync = self.now;
        self.warp_syncs = [self.now; WARPS_MAX];
        self.seen.fill(Clock::at(self.now));
    }

    /// A warp passes `bar.warp.sync`. One of some of the lanes counts as one of all: that misses
    /// races and invents none.
    pub(super) fn sync_warp(&mut self, warp: u8) {
        self.now += 1;
        self.warp_syncs[warp as usize] = self.now;
    }

    /// An instruction begins to write: what its lanes write, they write at one time.
    pub(super) fn begin_write(&mut self) {
        self.now += 1;
    }

    /// Checks an access of `size` bytes (a power of two), and notes it.
    #[inline]
    pub(super) fn access(
        &mut self,
        at: u64,
        size: usize,
        actor: Actor,
        access: Access,
    ) -> Result<usize, (Violation, String)> {
        let at = self.place(at, size)?;
        if access == Access::Write && !self.matmuls.is_empty() {
            self.not_of_matmuls(at, size)?;
        }
        self.not_of_mbarriers(at, size)?;
        let settled = !self.checked
            || size >= 4
                && self.seen.is_empty()
                && match access {
                    Access::Read => self.read_whole_words(at / 4, size / 4, actor),
                    Access::Write => self.write_whole_words(at / 4, size / 4, actor),
                };
        if !settled {
            let mut byte = at;
            while byte < at + size {
                let count = size.min(4);
                let mask = (((1u32 << count) - 1) << (byte & 3)) as u8;
                self.word(byte, mask, actor, access)?;
                byte += 4;
            }
        }
        Ok(at)
    }

    /// Checks alignment and bounds.
    #[inline]
    pub(super) fn place(&self, at: u64, size: usize) -> Result<usize, (Violation, String)> {
        if at & (size as u64 - 1) != 0 {
            return Err((Violation::Misaligned, format!("{size} bytes at shared byte {at}")));
        }
        if at.checked_add(size as u64).is_none_or(|end| end > self.bytes.len() as u64) {
            let detail = format!("{size} bytes at shared byte {at} of {}", self.bytes.len());
            return Err((Violation::OutOfBounds, detail));
        }
        Ok(at as usize)
    }

    /// Records a read of whole words that is plainly allowed; otherwise returns false and records
    /// nothing: `word` then decides.
    #[inline]
    fn read_whole_words(&mut self, first: usize, count: usize, actor: Actor) -> bool {
        let (now, block_sync, warp_sync) = (self.now, self.block_sync, self.warp_syncs[actor.warp as usize]);
        let one_lane = [actor.lane; 4];
        let words = &mut self.shadow[first..first + count];
        let clean = words.iter().fold(true, |clean, word| {
            let raced = (word.written_at >= block_sync) & (word.writer != actor.warp);
            let own = (word.writer_lanes == one_lane) & (actor.lane != SEVERAL);
            let settled = (word.written_at < warp_sync) | own;
            clean & (word.in_flight == 0) & (word.written == ALL_BYTES) & !raced & settled
        });
        if clean {
            for word in words {
                let other = (word.read_at >= block_sync) & (word.reader != actor.warp);
                word.reader = if other { SEVERAL } else { actor.warp };
                if word.read_at < warp_sync {
                    word.reader_lanes = one_lane;
                } else if word.reader_lanes != one_lane {
                    note(&mut word.reader_lanes, ALL_BYTES, actor.lane);
                }
                word.read_at = now;
            }
        }
        clean
    }

    /// Like the read of whole words, for a write.
    #[inline]
    fn write_whole_words(&mut self, first: usize, count: usize, actor: Actor) -> bool {
        let (now, block_sync, warp_sync) = (self.now, self.block_sync, self.warp_syncs[actor.warp as usize]);
        let one_lane = [actor.lane; 4];
        let words = &mut self.shadow[first..first + count];
        let clean = words.iter().fold(true, |clean, word| {
            let raced = (word.written_at >= block_sync) & (word.writer != actor.warp)
                | (word.read_at >= block_sync) & (word.reader != actor.warp);
            let settled = ((word.written_at < warp_sync) | (word.writer_lanes == one_lane))
                & ((word.read_at < warp_sync) | (word.reader_lanes == one_lane));
            clean & (word.in_flight == 0) & !raced & settled
        });
        if clean {
            for word in words {
                (word.writer, word.writer_lanes) = (actor.warp, one_lane);
                (word.written_at, word.written) = (now, ALL_BYTES);
            }
        }
        clean
    }

    #[inline]
    fn word(
        &mut self,
        byte: usize,
        mask: u8,
        actor: Actor,
        access: Access,
    ) -> Result<(), (Violation, String)> {
        let (now, warp_sync) = (self.now, self.warp_syncs[actor.warp as usize]);
        let Shadow { writer, written_at, reader, read_at, .. } = self.shadow[byte / 4];
        let other_wrote = writer != actor.warp && !self.sees(actor.warp, writer, written_at);
        let has_mbarriers = !self.seen.is_empty();
        let unseen_reader = match has_mbarriers {
            true => self.unseen_reader(byte / 4, actor.warp),
            false => Some(reader).filter(|_| reader != actor.warp && read_at >= self.block_sync),
        };
        let other_read = unseen_reader.is_some();
        if let Some(reads) = self.reads.get_mut(byte / 4 * self.seen.len() + actor.warp as usize)
            && access == Access::Read
        {
            *reads = now;
        }
        let shadow = &mut self.shadow[byte / 4];
        if shadow.in_flight & mask != 0 {
            return Err((
                Violation::InFlight,
                format!("shared byte {byte} before its cp.async has completed"),
            ));
        }
        // Where mbarriers order warps, lanes are noted of the last warp alone.
        let is_noted = |last: u8| !has_mbarriers || last == actor.warp;
        let wrote = is_noted(writer) && written_at >= warp_sync;
        let read = is_noted(reader) && read_at >= warp_sync;
        // Lanes of one instruction may write one byte; the last of them is undefined, but this is
        // not a race.
        let (after_write, after_read) = match access {
            Access::Read => (wrote, false),
            Access::Write => (wrote && shadow.written_at != now, read),
        };
        if other_wrote || access == Access::Write && other_read {
            let other = if other_wrote { Some(writer) } else { unseen_reader };
            return Err((Violation::Race, between_warps(byte, actor.warp, access, other_wrote, other)));
        }
        if after_write && let Some(other) = clash(shadow.writer_lanes, mask, actor.lane) {
            return Err((Violation::Race, between_lanes(byte, actor, access, "written", other)));
        }
        if after_read && let Some(other) = clash(shadow.reader_lanes, mask, actor.lane) {
            return Err((Violation::Race, between_lanes(byte, actor, access, "read", other)));
        }
        match access {
            Access::Read => {
                if shadow.written & mask != mask {
                    return Err((Violation::Uninitialised, format!("shared byte {byte} was never written")));
                }
                shadow.reader = if other_read && !has_mbarriers { SEVERAL } else { actor.warp };
                if !read {
                    shadow.reader_lanes = [NO_LANE; 4];
                }
                note(&mut shadow.reader_lanes, mask, actor.lane);
                shadow.read_at = now;
            }
            Access::Write => {
                shadow.writer = actor.warp;
                if !wrote {
                    shadow.writer_lanes = [NO_LANE; 4];
                }
                note(&mut shadow.writer_lanes, mask, actor.lane);
                shadow.written_at = now;
                shadow.written |= mask;
            }
        }
        Ok(())
    }

    /// A warp passes `fence.proxy.async`.
    pub(super) fn fence_proxy(&mut self, warp: u8) {
        self.now += 1;
        self.proxy_fences[warp as usize] = self.now;
        self.mbarrier_fences[warp as usize] = self.now;
    }

    /// A lane of a warp passes `fence.mbarrier_init`.
    pub(super) fn fence_mbarriers(&mut self, warp: u8) {
        self.mbarrier_fences[warp as usize] = self.tick();
    }

    /// A copy, the `writer`, brings sixteen bytes.
    pub(super) fn receive(&mut self, at: usize, data: &[u8; 16], writer: u8, tick: u32) {
        self.bytes[at..at + 16].copy_from_slice(data);
        if self.checked {
            self.set_in_flight(at, 16, false);
            for word in &mut self.shadow[at / 4..at / 4 + 4] {
                (word.writer, word.writer_lanes) = (writer, [NO_LANE; 4]);
                (word.written_at, word.written) = (tick, ALL_BYTES);
            }
        }
    }

    /// Checks that a matmul of `warp` may read sixteen bytes from now on, and that nothing writes them
    /// until [`end_matmul`](Self::end_matmul).
    pub(super) fn begin_matmul(&mut self, at: u64, warp: u8) -> Result<usize, (Violation, String)> {
        let at = self.access(at, 16, Actor::lanes(warp), Access::Read)?;
        if self.checked {
            for word in at / 4..at / 4 + 4 {
                let Shadow { writer, written_at, .. } = self.shadow[word];
                if !is_copy(writer) && self.proxy_fences[writer as usize] <= written_at {
                    let byte = 4 * word;
                    let detail = format!(
                        "shared byte {byte} was written by warp {writer} with no fence.proxy.async after it"
                    );
                    return Err((Violation::Unfenced, detail));
                }
                self.matmuls[word] += 1;
            }
        }
        Ok(at)
    }

    /// A matmul of `warp` has read sixteen bytes.
    pub(super) fn end_matmul(&mut self, at: usize, warp: u8) -> Result<(), (Violation, String)> {
        if self.checked {
            self.matmuls[at / 4..at / 4 + 4].iter_mut().for_each(|count| *count -= 1);
        }
        self.access(at as u64, 16, Actor::lanes(warp), Access::Read).map(|_| ())
    }

    fn not_of_matmuls(&self, at: usize, size: usize) -> Result<(), (Violation, String)> {
        match (at / 4..(at + size).div_ceil(4)).find(|&word| self.matmuls[word] > 0) {
            None => Ok(()),
            Some(word) => {
                let detail = format!("shared byte {} is read by a matmul that was not waited for", 4 * word);
                Err((Violation::InMatmul, detail))
            }
        }
    }

    /// Checks an atomic access: bounds, alignment, contents.
    pub(super) fn atomic(&mut self, at: u64, size: usize) -> Result<usize, (Violation, String)> {
        let at = self.place(at, size)?;
        let word = if self.checked { self.shadow[at / 4].written & 0xF } else { 0xF };
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

/// Notes that a lane touched the bytes of `mask`.
#[inline]
fn note(lanes: &mut [u8; 4], mask: u8, lane: u8) {
    for (byte, noted) in lanes.iter_mut().enumerate() {
        if mask >> byte & 1 == 1 {
            *noted = if *noted == NO_LANE || *noted == lane { lane } else { SEVERAL };
        }
    }
}

/// Another lane than `lane` (perhaps `SEVERAL`) that is noted for a byte of `mask`.
#[inline]
fn clash(lanes: [u8; 4], mask: u8, lane: u8) -> Option<u8> {
    let of_mask = (0..4).filter(|byte| mask >> byte & 1 == 1).map(|byte| lanes[byte]);
    of_mask.into_iter().find(|&noted| noted != NO_LANE && (noted != lane || noted == SEVERAL))
}

#[cold]
fn between_warps(byte: usize, warp: u8, access: Access, other_wrote: bool, other: Option<u8>) -> String {
    let verb = if other_wrote { "written" } else { "read" };
    let actor = match other {
        Some(other) if is_copy(other) => "a copy".into(),
        Some(other) if other != SEVERAL => format!("warp {other}"),
        _ => "several warps".into(),
    };
    let done = if access == Access::Read { "read" } else { "written" };
    format!("shared byte {byte} {done} by warp {warp}, {verb} by {actor}, no barrier between")
}

#[cold]
fn between_lanes(byte: usize, actor: Actor, access: Access, verb: &str, other: u8) -> String {
    let name = |lane: u8| if lane == SEVERAL { "several lanes".into() } else { format!("lane {lane}") };
    let done = if access == Access::Read { "read" } else { "written" };
    format!(
        "shared byte {byte} {done} by {}, {verb} by {} within warp {}, no bar.warp.sync between",
        name(actor.lane),
        name(other),
        actor.warp
    )
}
