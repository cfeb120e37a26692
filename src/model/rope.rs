//! RoPE's frequencies: radians per position of each rotated pair of a head.

use std::f32::consts::PI;

use crate::config::{Rope, RopeScaling};
use crate::elementary;

/// Returns `[head_dim / 2]` radians per position, in f32 and by the same steps as Transformers.
///
/// They are `theta^(-2i / head_dim)`, then Llama 3.1's rule by wavelength `2 pi / frequency`: below
/// `original / high_freq_factor` kept, above `original / low_freq_factor` divided by `factor`,
/// between the two a linear blend.
pub fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            // In f64 and rounded once: f32 powers differ by a unit in the last place between
            // libraries.
            let frequency = 1.0 / elementary::pow(rope.theta, f64::from(exponent)) as f32;
            scaled(frequency, &rope.scaling)
        })
        .collect()
}

fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    let &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_tokens } = scaling
    else {
        return frequency;
    };
    let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
    let original = original_max_tokens as f32;
    let wavelength = 2.0 * PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_tokens: 8192.0,
    };

    /// FNV-1a over the bits of all cosines and sines.
    fn digest(rope: &Rope, head_dim: usize) -> u64 {
        let frequencies = frequencies(rope, head_dim);
        let angles = (0..131_072).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        angles.fold(0xCBF2_9CE4_8422_2325, |hash, angle| {
            let values = [elementary::cos(angle), elementary::sin(angle)];
            values.into_iter().fold(hash, |hash: u64, value| {
                (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01B3)
            })
        })
    }

    /// Digests that were made with glibc's functions, before these took their place.
    #[test]
    fn tables_have_the_same_bits_on_every_platform() {
        for (theta, scaling, head_dim, expected) in [
            (1e4, RopeScaling::Default, 64, 0xC49C_67E8_0292_4D12),
            (1e4, RopeScaling::Default, 256, 0xD0E0_2C9D_C5B0_327A),
            (5e5, LLAMA_3, 128, 0xA37E_5B3D_76E4_1108),
            (1e6, RopeScaling::Default, 128, 0x0744_EDBE_3CE2_9A28),
        ] {
            let found = digest(&Rope { theta, scaling }, head_dim);
            assert_eq!(found, expected, "theta {theta}, head_dim {head_dim}: {found:#018x}");
        }
    }

    #[test]
    fn llama_3_scales_frequencies_by_wavelength() {
        let scaling = LLAMA_3;
        let plain = frequencies(&Rope { theta: 5e5, scaling: RopeScaling::Default }, 128);
        let llama3 = frequencies(&Rope { theta: 5e5, scaling }, 128);
        assert_eq!(plain[0], 1.0);
        let mut seen = [0; 3];
        for (&before, &after) in plain.iter().zip(&llama3) {
            let wavelength = 2.0 * PI / before;
            if wavelength < 2048.0 {
                seen[0] += 1;
                assert_eq!(after, before);
            } else if wavelength > 8192.0 {
                seen[1] += 1;
                assert_eq!(after, before / 8.0);
            } else {
                seen[2] += 1;
                assert!(after < before && after > before / 8.0);
            }
        }
        // Pairs 29 to 34 have wavelengths between 2,048 and 8,192 at theta 500,000.
        assert_eq!(seen, [29, 29, 6]);
    }
}
