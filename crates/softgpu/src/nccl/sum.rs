//! Element types, and what the ranks' parts come to.

use half::{bf16, f16};

/// Element types with their `ncclDataType_t` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Element {
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}

impl Element {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::F16, Self::F32, Self::Bf16].into_iter().find(|e| *e as u32 == number)
    }

    pub(super) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// For sixteen bits: f32 holds so many more that the sum of two, rounded twice, is the sum rounded once.
    fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    fn write(self, value: f32, bytes: &mut [u8]) {
        match self {
            Self::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            Self::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// The parts one after another.
pub(super) fn concat(_: Element, parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The sum that every rank receives: chunk c of as many as there are ranks starts at rank c + 1 and goes round to rank c,
/// rounded at every hop. With two ranks either order is the same sum; with more, an element's sum depends on its chunk,
/// so on where it lies and on the count.
pub(super) fn ring_sum(element: Element, parts: &[&[u8]]) -> Vec<u8> {
    let (ranks, size) = (parts.len(), element.bytes());
    let mut out = vec![0u8; parts[0].len()];
    let chunk = (out.len() / size).div_ceil(ranks).max(1) * size;
    for (index, out) in out.chunks_mut(chunk).enumerate() {
        let from = index * chunk;
        let hop = |hop: usize| parts[(index + 1 + hop) % ranks][from..from + out.len()].chunks_exact(size);
        let mut sums: Vec<f32> = hop(0).map(|bytes| element.read(bytes)).collect();
        for rank in 1..ranks {
            for (sum, bytes) in sums.iter_mut().zip(hop(rank)) {
                *sum = element.round(*sum + element.read(bytes));
            }
        }
        for (bytes, sum) in out.chunks_exact_mut(size).zip(sums) {
            element.write(sum, bytes);
        }
    }
    out
}
