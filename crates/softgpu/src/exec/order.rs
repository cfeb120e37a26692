//! The order of events that the program does not order: which of the ready warps runs next, and which copy
//! completes first.

/// By index, or at random.
pub(super) struct Order {
    /// The state of a xorshift generator, or 0.
    state: u64,
}

impl Order {
    /// At random by this seed; 0 is by index.
    pub(super) fn new(seed: u64) -> Self {
        // Seeds that are close together give sequences that are not.
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    pub(super) fn is_random(&self) -> bool {
        self.state != 0
    }

    /// Returns an index below `count`: 0, or a random one. `None` if `count` is 0.
    pub(super) fn choose(&mut self, count: usize) -> Option<usize> {
        if !self.is_random() || count == 0 {
            return (count > 0).then_some(0);
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Some((self.state >> 32) as usize % count)
    }
}
