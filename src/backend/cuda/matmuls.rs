//! The matmuls of a model's layers, by shapes alone: all are prepared at load, and none in a pass.

use super::format::ActivationFormat;
use super::gemm::{MatmulShape, Out};
use super::heads::HeadLayout;
use super::weight::into_f32;
use crate::backend::{Capacity, Features, Geometry, Matrix};
use crate::weights::LayerTensors;

/// Which of a rank's matrices have biases.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Biases {
    qkv: bool,
    o: bool,
    gate_up: bool,
    down: bool,
}

impl Biases {
    /// The biases of a layer: those of all layers of a rank.
    pub(super) fn of(layer: &LayerTensors) -> Self {
        Self {
            qkv: layer.qkv_bias.is_some(),
            o: layer.o_bias.is_some(),
            gate_up: layer.gate_up_bias.is_some(),
            down: layer.down_bias.is_some(),
        }
    }
}

/// The shape of a weight, and of the rows that are multiplied with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightShape {
    pub(super) matrix: Matrix,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    /// Width of the rows that are multiplied.
    pub(super) x_stride: usize,
    pub(super) bias: bool,
}

impl WeightShape {
    /// The matmul of a linear layer with `count` features of its weight.
    pub(super) fn linear(&self, count: usize) -> MatmulShape {
        MatmulShape {
            features: count,
            width: self.in_features,
            x_stride: self.x_stride,
            out_stride: self.out_features,
            out: Out::Activation,
            bias: self.bias,
        }
    }

    /// The matmul of an output projection: added to the residual stream or, where it is all-reduced
    /// or normed first, written.
    pub(super) fn row_parallel(&self, format: ActivationFormat, adds_at_once: bool) -> MatmulShape {
        let out = match (into_f32(self.matrix, format), adds_at_once) {
            (true, true) => Out::AddF32,
            (false, true) => Out::AddActivation,
            (true, false) => Out::F32,
            (false, false) => Out::Activation,
        };
        MatmulShape { out, ..self.linear(self.out_features) }
    }
}

/// Every matmul of a pass, each once, with the most rows that it can have.
pub(super) fn of_layers(
    geometry: &Geometry,
    heads: &HeadLayout,
    capacity: &Capacity,
    format: ActivationFormat,
    biases: Biases,
) -> Vec<(MatmulShape, usize)> {
    let (hidden, shard) = (geometry.hidden, &geometry.shard);
    let wide = 2 * shard.ffn_local;
    let sizes = |matrix, out_features, in_features, x_stride, bias| WeightShape {
        matrix,
        out_features,
        in_features,
        x_stride,
        bias,
    };
    let qkv = sizes(Matrix::Qkv, heads.qkv_width(), hidden, hidden, biases.qkv);
    let o = sizes(Matrix::O, hidden, heads.q_width(), heads.q_width(), biases.o);
    let gate_up = sizes(Matrix::GateUp, wide, hidden, hidden, biases.gate_up);
    let down = sizes(Matrix::Down, hidden, shard.ffn_local, wide, biases.down);
    let linear = |features, rows| (qkv.linear(features_of(heads, features).len()), rows);
    let all = [
        linear(Features::All, capacity.tokens),
        linear(Features::KeysAndValues, capacity.tokens),
        linear(Features::Queries, capacity.sequences),
        (o.row_parallel(format, geometry.adds_at_once()), capacity.tokens),
        (gate_up.linear(wide), capacity.mlp_tokens),
        (down.row_parallel(format, geometry.adds_at_once()), capacity.mlp_tokens),
    ];
    let mut distinct: Vec<(MatmulShape, usize)> = Vec::new();
    for (shape, rows) in all {
        match distinct.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, known)) => *known = rows.max(*known),
            None => distinct.push((shape, rows)),
        }
    }
    distinct
}

/// Rows of a fused q, k and v with these features.
pub(super) fn features_of(heads: &HeadLayout, features: Features) -> std::ops::Range<usize> {
    match features {
        Features::All => 0..heads.qkv_width(),
        Features::Queries => 0..heads.q_width(),
        Features::KeysAndValues => heads.q_width()..heads.qkv_width(),
    }
}
