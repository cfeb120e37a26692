//! The order in which things happen that nothing orders: which warp runs next of those that are ready, and
//! which copy arrives first.

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

    /// The one of `count` whose turn it is; `None` where there is none.
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
