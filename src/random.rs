//! Random numbers for weights, trials and benches: the same in every run, of modest quality.

/// Xorshift, 64 bits.
pub struct Random(u64);

impl Random {
    /// Starts the sequence of a seed; near seeds have sequences that are far apart.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 64 random bits, not all of them zero.
    pub fn next_bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
