//! [`LayerWeights`]: one layer's weights on a device, and [`Part`]: what each of them is made of on the host.

use crate::backend::{Backend, Matrix};
use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};

/// One layer's weights on a device; matrices are this rank's part.
#[derive(Debug)]
pub struct LayerWeights<W> {
    /// `[hidden]`
    pub input_norm: W,
    /// `[qkv_width, hidden]`
    pub qkv: W,
    /// `[hidden, q_width]`
    pub o: W,
    /// `[hidden]`
    pub mlp_norm: W,
    /// `[2 * ffn, hidden]`
    pub gate_up: W,
    /// `[hidden, ffn]`
    pub down: W,
}

/// One weight of a layer where it lies on the host.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Which matrix it is; `None` for the weight of a norm.
    pub matrix: Option<Matrix>,
    /// Its rows, piece after piece: each `[piece_features, in_features]`. A norm's is one row.
    pub pieces: &'a [HostTensor],
    /// Its bias, if any: a vector for each piece.
    pub bias: Option<&'a [HostTensor]>,
}

impl<'a> Part<'a> {
    /// The weights of a layer, in the order of [`LayerWeights`]' fields.
    pub fn of_layer(layer: &'a LayerTensors) -> [Self; 6] {
        let one = std::slice::from_ref;
        let norm = |tensor| Self { matrix: None, pieces: one(tensor), bias: None };
        let fused = |matrix, pieces, bias: &'a Option<Vec<HostTensor>>| Self {
            matrix: Some(matrix),
            pieces,
            bias: bias.as_deref(),
        };
        let single = |matrix, tensor, bias: &'a Option<HostTensor>| Self {
            matrix: Some(matrix),
            pieces: one(tensor),
            bias: bias.as_ref().map(one),
        };
        [
            norm(&layer.input_norm),
            fused(Matrix::Qkv, &layer.qkv, &layer.qkv_bias),
            single(Matrix::O, &layer.o, &layer.o_bias),
            norm(&layer.mlp_norm),
            fused(Matrix::GateUp, &layer.gate_up, &layer.gate_up_bias),
            single(Matrix::Down, &layer.down, &layer.down_bias),
        ]
    }
}

impl<W> LayerWeights<W> {
    /// Gives one layer to the backend, to keep.
    pub fn load<B: Backend<Weight = W>>(backend: &mut B, layer: &LayerTensors) -> Result<Self> {
        Self::make(layer, |part| match part.matrix {
            Some(matrix) => backend.matrix(matrix, part.pieces, part.bias),
            None => backend.vector(&part.pieces[0]),
        })
    }

    /// A layer of what `make` makes of each part, in the order of the fields.
    pub fn make(layer: &LayerTensors, mut make: impl FnMut(Part<'_>) -> Result<W>) -> Result<Self> {
        let [input_norm, qkv, o, mlp_norm, gate_up, down] = Part::of_layer(layer);
        Ok(Self {
            input_norm: make(input_norm)?,
            qkv: make(qkv)?,
            o: make(o)?,
            mlp_norm: make(mlp_norm)?,
            gate_up: make(gate_up)?,
            down: make(down)?,
        })
    }

    /// All of them, in the order of the fields.
    pub fn all(&self) -> [&W; 6] {
        let Self { input_norm, qkv, o, mlp_norm, gate_up, down } = self;
        [input_norm, qkv, o, mlp_norm, gate_up, down]
    }
}
