//! A barrier in shared memory, and the clocks by which its phases order accesses.

/// Warps of a block at most.
pub(super) const WARPS_MAX: usize = 32;
/// Barriers of a block at most.
pub(super) const MBARRIERS_MAX: usize = 64;
/// Writers: warps, and the copies of boxes that a barrier counts, which nothing else orders.
const WRITERS: usize = WARPS_MAX + MBARRIERS_MAX;
/// Bytes of a barrier.
pub(super) const BYTES: usize = 8;

/// Returns the writer that stands for the copies which the barrier of this index counts.
pub(super) fn copies_of(mbarrier: usize) -> u8 {
    (WARPS_MAX + mbarrier) as u8
}

/// Returns whether a writer is a copy; false for the value that stands for no writer.
pub(super) fn is_copy(writer: u8) -> bool {
    (WARPS_MAX..WRITERS).contains(&usize::from(writer))
}

/// For each writer, the tick before which its accesses are seen.
#[derive(Clone)]
pub(super) struct Clock(pub(super) [u32; WRITERS]);

impl Clock {
    /// No access is seen.
    pub(super) const NONE: Self = Self::at(0);

    /// All accesses before this tick are seen.
    pub(super) const fn at(tick: u32) -> Self {
        Self([tick; WRITERS])
    }

    /// Accesses of this writer before this tick are seen, and no others.
    pub(super) fn of(writer: u8, tick: u32) -> Self {
        let mut clock = Self::NONE;
        clock.0[usize::from(writer)] = tick;
        clock
    }

    /// Adds the accesses that the other clock sees.
    pub(super) fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine = theirs.max(*mine));
    }
}

/// A barrier.
#[derive(Clone)]
pub(super) struct Mbarrier {
    pub(super) at: usize,
    /// The warp that has initialised it, and when.
    pub(super) maker: u8,
    pub(super) made_at: u32,
    /// Arrivals of a phase.
    pub(super) expected: u32,
    /// Arrivals that are missing in the present phase.
    pub(super) missing: u32,
    /// Bytes that are missing in the present phase; negative where more have come than were expected.
    pub(super) bytes: i64,
    /// The number of the present phase.
    pub(super) phase: u32,
    /// All that has been done and seen by those who have arrived, and by those of completed phases.
    pub(super) arrived: Clock,
    pub(super) completed: Clock,
}

impl Mbarrier {
    /// Begins the next phase if nothing is missing.
    pub(super) fn advance(&mut self) {
        if self.missing == 0 && self.bytes == 0 {
            self.missing = self.expected;
            self.phase += 1;
            self.completed = self.arrived.clone();
        }
    }

    pub(super) fn overlaps(&self, at: usize, size: usize) -> bool {
        at < self.at + BYTES && self.at < at + size
    }

    /// Whether the phase of this parity is complete: the present one is not.
    pub(super) fn has_completed(&self, parity: u32) -> bool {
        self.phase & 1 != parity & 1
    }
}
