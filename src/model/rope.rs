//! RoPE's frequencies: radians per position of each rotated pair of a head.

use std::f32::consts::PI;

use crate::config::{Rope, RopeScaling};

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
            let frequency = 1.0 / rope.theta.powf(f64::from(exponent)) as f32;
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

    #[test]
    fn llama_3_scales_frequencies_by_wavelength() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_tokens: 8192.0,
        };
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
