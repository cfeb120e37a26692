//! Numbers of f32 in the 16-bit format of weights, many at a time: a model whose layers are
//! streamed through a GPU without bf16 converts all of them in every pass.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::format::WeightFormat;

/// Numbers that are converted at once.
const BLOCK: usize = 256;

/// The least size that f16 rounds to infinity: half a step above its greatest number, 65504.
const BEYOND_F16: f32 = 65_520.0;

/// f16's subnormal numbers are multiples of the inverse of this.
const SUBNORMAL_STEPS: f32 = 16_777_216.0; // 2^24

/// In these steps, the least size that rounds to a normal number: half a step below the first.
const NORMAL_FROM: f32 = 1_023.5;

/// Numbers that f16 loses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Losses {
    /// The first finite number that it rounds to infinity.
    pub(super) beyond: Option<f32>,
    /// Numbers that it rounds to subnormal ones, or to zero, of another value.
    pub(super) subnormal: u64,
}

/// Writes numbers in a format, little-endian.
pub(super) fn write(values: &[f32], format: WeightFormat, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), values.len() * format.bytes());
    let mut bits = [0_u16; BLOCK];
    for (values, bytes) in values.chunks(BLOCK).zip(bytes.chunks_mut(BLOCK * format.bytes())) {
        let bits = &mut bits[..values.len()];
        match format {
            WeightFormat::Bf16 => bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
            WeightFormat::F16 => bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
        }
        for (bytes, bits) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(bits) {
            *bytes = bits.to_le_bytes();
        }
    }
}

/// Returns what f16 loses of numbers.
pub(super) fn losses(values: &[f32]) -> Losses {
    // Blocks without branches, for vectors: the counts of one fit.
    let mut losses = Losses::default();
    for values in values.chunks(BLOCK) {
        let (mut is_beyond, mut subnormal) = (0_u32, 0_u32);
        for value in values.iter().map(|value| value.abs()) {
            is_beyond |= u32::from((BEYOND_F16..f32::INFINITY).contains(&value));
            let steps = value * SUBNORMAL_STEPS;
            // To an integer, exactly: steps that count are few.
            let whole = (steps + 8_388_608.0) - 8_388_608.0;
            subnormal = subnormal.wrapping_add(u32::from((steps < NORMAL_FROM) & (whole != steps)));
        }
        losses.subnormal += u64::from(subnormal);
        if is_beyond > 0 && losses.beyond.is_none() {
            losses.beyond =
                values.iter().copied().find(|value| value.is_finite() && value.abs() >= BEYOND_F16);
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every exponent and sign: ends of f16's ranges, their neighbours, halfway points,
    /// and those that no finite number is.
    fn numbers() -> Vec<f32> {
        let ends = [0.0, 1.0, 65_504.0, 65_519.996, 65_520.0, 65_536.0, f32::MAX, f32::INFINITY, f32::NAN];
        let steps = [0.5, 1.0, 1.5, 2.0, 1_022.5, 1_023.0, 1_023.25, 1_023.499_9, 1_023.5, 1_024.0, 1_024.5];
        let steps = steps.map(|steps: f32| steps / SUBNORMAL_STEPS);
        let powers = (0..=254).map(|exponent| f32::from_bits(exponent << 23 | 0x35_4321));
        let all = ends.into_iter().chain(steps).chain(powers).chain([f32::from_bits(1), f32::MIN_POSITIVE]);
        let neighbours = all.flat_map(|value| [value, value.next_up(), value.next_down()]);
        neighbours.flat_map(|value| [value, -value]).collect()
    }

    #[test]
    fn every_number_is_rounded_as_alone() {
        let numbers = numbers();
        assert!(numbers.len() > 3 * BLOCK && !numbers.len().is_multiple_of(BLOCK));
        for format in [WeightFormat::Bf16, WeightFormat::F16] {
            let mut bytes = vec![0; 2 * numbers.len()];
            write(&numbers, format, &mut bytes);
            for (&number, bytes) in numbers.iter().zip(bytes.as_chunks::<2>().0) {
                let expected = match format {
                    WeightFormat::Bf16 => bf16::from_f32(number).to_bits(),
                    WeightFormat::F16 => f16::from_f32(number).to_bits(),
                };
                assert_eq!(u16::from_le_bytes(*bytes), expected, "{number:e} in {format:?}");
            }
        }
    }

    #[test]
    fn losses_are_those_of_the_rounded_numbers() {
        let mut all = Losses::default();
        for number in numbers() {
            let short = f16::from_f32(number);
            let is_beyond = short.is_infinite() && number.is_finite();
            let is_small = short.to_f32().abs() < f16::MIN_POSITIVE.to_f32();
            let expected = Losses {
                beyond: is_beyond.then_some(number),
                subnormal: u64::from(is_small && short.to_f32() != number),
            };
            assert_eq!(losses(&[number]), expected, "{number:e}");
            all = Losses {
                beyond: all.beyond.or(expected.beyond),
                subnormal: all.subnormal + expected.subnormal,
            };
        }
        assert_eq!(losses(&numbers()), all);
        assert!(all.subnormal > 100, "{all:?}");
    }
}
