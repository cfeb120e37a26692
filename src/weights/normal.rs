//! Normally distributed bf16 elements: how a device makes them itself, and a buffer of them on the host.

use std::fmt;
use std::sync::OnceLock;
use std::thread;

use half::bf16;

use super::dtype::Dtype;
use crate::random::Random;

/// The standard deviation of weights, as models are initialised.
pub(super) const DEVIATION: f32 = 0.02;

/// The number format of all of them.
pub(super) const DTYPE: Dtype = Dtype::BF16;

/// Numbers that one thread makes at a time, from a seed of their own.
const BLOCK: usize = 1 << 16;

/// How a device is to make a tensor's numbers: normally distributed around 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// Of this tensor.
    pub seed: u64,
    /// The standard deviation.
    pub deviation: f32,
}

/// Numbers in the host's memory, from the moment when somebody asks for them.
pub(super) struct HostNumbers {
    count: usize,
    /// Nothing for ones.
    seed: Option<u64>,
    bytes: OnceLock<Vec<u8>>,
}

impl HostNumbers {
    /// Elements that are made when they are first read; all ones without a seed.
    pub(super) fn new(count: usize, seed: Option<u64>) -> Self {
        Self { count, seed, bytes: OnceLock::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All of them, little-endian bf16; made by the first who asks, while others who ask wait.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get_or_init(|| match self.seed {
            None => bf16::ONE.to_le_bytes().repeat(self.count),
            Some(seed) => normal(self.count, seed),
        })
    }
}

impl fmt::Debug for HostNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostNumbers").field("count", &self.count).finish_non_exhaustive()
    }
}

/// `count` numbers of mean 0 and [`DEVIATION`]. By threads of its own: callers may be workers of a pool whose other
/// workers wait for these very numbers.
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

/// A weight out of 64 random bits: four uniform numbers add up to one that is nearly normal.
fn number_of(bits: u64) -> bf16 {
    /// The mean of the sum of four numbers that are each uniform over 2^16.
    const MEAN: i32 = 2 * 65_535;
    /// One over its deviation, 2^16 / sqrt(3).
    const UNIT: f32 = 1.732_050_8 / 65_536.0;
    let sum: i32 = (0..4).map(|part| (bits >> (16 * part) & 0xFFFF) as i32).sum();
    bf16::from_f32((sum - MEAN) as f32 * (UNIT * DEVIATION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_deviation_that_models_begin_with() {
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
