//! The layout of heads on the device: as in the model, or, where a head's width does not suit
//! 16-byte accesses, padded with zeros.
//!
//! A padded head keeps its halves apart, as RoPE needs them: `[first half, zeros, second half,
//! zeros]`. Zeros add nothing to a score and come out of attention as zeros, so only the layout of
//! weights and the sizes change; the values do not.

use crate::backend::{Geometry, Matrix};

/// Head widths are whole multiples of this on the device: RoPE's halves are whole 16-byte words.
const HEAD_DIM_STEP: usize = 16;

/// This rank's heads on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub q_heads: usize,
    /// Key heads, and value heads.
    pub kv_heads: usize,
    /// Width of a head in the model.
    pub head_dim: usize,
    /// Width of a head on the device.
    pub padded: usize,
}

impl HeadLayout {
    /// The layout of a rank's heads.
    pub fn new(geometry: &Geometry) -> Self {
        let shard = &geometry.shard;
        Self {
            q_heads: shard.q_heads_local,
            kv_heads: shard.kv_heads_local,
            head_dim: shard.head_dim,
            padded: shard.head_dim.next_multiple_of(HEAD_DIM_STEP),
        }
    }

    /// Width of the query heads.
    pub fn q_width(&self) -> usize {
        self.q_heads * self.padded
    }

    /// Width of q, k and v side by side.
    pub fn qkv_width(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.padded
    }

    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// RoPE's frequencies of a padded head: padding is not rotated.
    pub fn frequencies(&self, frequencies: &[f32]) -> Vec<f32> {
        let mut padded = frequencies.to_vec();
        padded.resize(self.padded / 2, 0.0);
        padded
    }

    /// The model's feature at `feature` on the device, counted over heads; `None` for padding.
    pub fn source(&self, feature: usize) -> Option<usize> {
        let (head, at) = (feature / self.padded, feature % self.padded);
        let (half, within) = (at / (self.padded / 2), at % (self.padded / 2));
        (within < self.head_dim / 2).then_some(head * self.head_dim + half * (self.head_dim / 2) + within)
    }

    /// Output features on the device of a matrix that has `features` in the model.
    pub fn out_features(&self, matrix: Matrix, features: usize) -> usize {
        if matrix == Matrix::Qkv { features / self.head_dim * self.padded } else { features }
    }

    /// Input features on the device of a matrix that has `features` in the model.
    pub fn in_features(&self, matrix: Matrix, features: usize) -> usize {
        if matrix == Matrix::O { features / self.head_dim * self.padded } else { features }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(head_dim: usize) -> HeadLayout {
        let padded = head_dim.next_multiple_of(HEAD_DIM_STEP);
        HeadLayout { q_heads: 4, kv_heads: 2, head_dim, padded }
    }

    #[test]
    fn a_width_that_suits_is_left_alone() {
        for head_dim in [16, 64, 128] {
            let layout = layout(head_dim);
            assert_eq!(layout.padded, head_dim);
            assert!((0..layout.q_width()).all(|feature| layout.source(feature) == Some(feature)));
        }
    }

    #[test]
    fn a_padded_head_has_every_feature_once_and_its_halves_apart() {
        for head_dim in [2, 20, 36, 100] {
            let layout = layout(head_dim);
            let sources: Vec<_> =
                (0..layout.q_width()).filter_map(|feature| layout.source(feature)).collect();
            assert_eq!(sources, (0..4 * head_dim).collect::<Vec<_>>());
            for pair in 0..head_dim / 2 {
                let (first, second) = (layout.source(pair), layout.source(pair + layout.padded / 2));
                assert_eq!((first, second), (Some(pair), Some(pair + head_dim / 2)));
            }
        }
    }
}
