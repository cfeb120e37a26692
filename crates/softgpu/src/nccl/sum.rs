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

/// The sum that every rank receives.
pub(super) fn ring_sum(element: Element, parts: &[&[u8]]) -> Vec<u8> {
    let (ranks, size) = (parts.len(), element.bytes());
    let count = parts[0].len() / size;
    let chunk = count.div_ceil(ranks).max(1);
    let mut out = vec![0u8; parts[0].len()];
    for i in 0..count {
        let at = i * size..(i + 1) * size;
        let first = i / chunk + 1;
        let hop = |r: usize| element.read(&parts[(first + r) % ranks][at.clone()]);
        let mut held = vec![0u8; size];
        element.write(hop(0), &mut held);
        for r in 1..ranks {
            let sum = element.read(&held) + hop(r);
            element.write(sum, &mut held);
        }
        out[at].copy_from_slice(&held);
    }
    out
}
