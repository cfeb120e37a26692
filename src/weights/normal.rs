//! Normally distributed bf16 elements: how a device makes them itself, and a buffer of them on the
//! host.

use std::fmt;
use std::sync::OnceLock;
use std::thread;

use half::bf16;

use super::dtype::Dtype;
use crate::random::Random;

/// The standard deviation of weights, as models are initialised.
pub(super) const DEVIATION: f32 = 0.02;

/// The dtype of random weights.
pub(super) const DTYPE: Dtype = Dtype::BF16;

/// Elements that one thread makes from one seed.
const BLOCK: usize = 1 << 16;

/// Seed and deviation by which a device makes a tensor's elements, normally distributed around 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// The tensor's seed.
    pub seed: u64,
    /// The standard deviation.
    pub deviation: f32,
}

/// The distribution of elements.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elements {
    /// Every element has this value.
    Constant(f32),
    /// Normally distributed around 0, made from this seed.
    Normal(u64),
}

/// Elements in the host's memory, which are made when they are first read.
pub(super) struct HostElements {
    count: usize,
    elements: Elements,
    bytes: OnceLock<Vec<u8>>,
}

impl HostElements {
    /// Elements that are made when they are first read.
    pub(super) fn new(count: usize, elements: Elements) -> Self {
        Self { count, elements, bytes: OnceLock::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All elements, little-endian bf16. The first caller makes them; others wait for it.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get_or_init(|| match self.elements {
            Elements::Constant(value) => bf16::from_f32(value).to_le_bytes().repeat(self.count),
            Elements::Normal(seed) => normal(self.count, seed),
        })
    }
}

impl fmt::Debug for HostElements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostElements").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Returns `count` elements of mean 0 and [`DEVIATION`], made by threads of its own: callers may be
/// workers of a pool whose other workers wait for these elements.
fn normal(count: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; count * DTYPE.size()];
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let blocks = count.div_ceil(BLOCK).div_ceil(threads);
    thread::scope(|scope| {
        for (share, bytes) in bytes.chunks_mut(blocks.max(1) * BLOCK * DTYPE.size()).enumerate() {
            scope.spawn(move || {
                let first = (share * blocks) as u64;
                for (block, bytes) in (first..).zip(bytes.chunks_mut(BLOCK * DTYPE.size())) {
                    fill(bytes, seed.wrapping_add(block));
                }
            });
        }
    });
    bytes
}

fn fill(bytes: &mut [u8], seed: u64) {
    let mut random = Random::new(seed);
    for number in bytes.as_chunks_mut::<{ DTYPE.size() }>().0 {
        *number = number_of(random.next_bits()).to_le_bytes();
    }
}

/// Returns a weight made of 64 random bits: the sum of four uniform numbers is nearly normal.
fn number_of(bits: u64) -> bf16 {
    /// The mean of the sum of four numbers that are each uniform over 2^16.
    const MEAN: i32 = 2 * 65_535;
    /// The inverse of its deviation, 2^16 / sqrt(3).
    const UNIT: f32 = 1.732_050_8 / 65_536.0;
    let sum: i32 = (0..4).map(|part| (bits >> (16 * part) & 0xFFFF) as i32).sum();
    bf16::from_f32((sum - MEAN) as f32 * (UNIT * DEVIATION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_deviation_of_initialised_models() {
        // More than one block, the last one not whole.
        let bytes = normal(100_001, 7);
        let numbers: Vec<f64> =
            bytes.as_chunks::<2>().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f64()).collect();
        let (count, deviation) = (numbers.len() as f64, f64::from(DEVIATION));
        let mean = numbers.iter().sum::<f64>() / count;
        let found = (numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 5e-4 && (found / deviation - 1.0).abs() < 0.02, "{mean} {found}");
        assert_ne!(numbers[..1000], numbers[BLOCK..BLOCK + 1000]);
    }
}
