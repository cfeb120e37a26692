//! [`LayerWeights`]: one layer's weights on a device, and [`HostWeight`]: one of them on the host.

use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};

/// The matrix of the model that a weight is. Backends may choose the layout of heads by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Queries, keys and values, `[qkv_width, hidden]`.
    Qkv,
    /// From attention back to the residual stream, `[hidden, q_width]`.
    O,
    /// Gate and up, `[2 * ffn, hidden]`.
    GateUp,
    /// From the MLP back to the residual stream, `[hidden, ffn]`.
    Down,
    /// From the final norm to the logits, `[labels, hidden]`.
    Head,
}

/// One layer's weights on a device; matrices are this rank's shard.
#[derive(Debug)]
pub struct LayerWeights<W> {
    /// `[hidden]`
    pub input_norm: W,
    /// `[qkv_width, hidden]`
    pub qkv: W,
    /// `[head_dim]` each: the norms of query heads and of key heads, in models that have them.
    pub head_norms: Option<[W; 2]>,
    /// `[hidden, q_width]`
    pub o: W,
    /// The norm of attention's output, `[hidden]`, in models that have it.
    pub attention_branch_norm: Option<W>,
    /// `[hidden]`
    pub mlp_norm: W,
    /// `[2 * ffn, hidden]`
    pub gate_up: W,
    /// `[hidden, ffn]`
    pub down: W,
}

/// One weight of a layer in host memory.
#[derive(Clone, Copy, Debug)]
pub struct HostWeight<'a> {
    /// `None` for the weight of a norm.
    pub matrix: Option<Matrix>,
    /// Its rows, in pieces of `[piece_features, in_features]`. A norm's weight is one row.
    pub pieces: &'a [HostTensor],
    /// Its bias, if any: a vector per piece.
    pub bias: Option<&'a [HostTensor]>,
}

impl<'a> HostWeight<'a> {
    /// Returns the weights of a layer, in the order of [`LayerWeights`]' fields.
    pub fn all_of(layer: &'a LayerTensors) -> Vec<Self> {
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
        let mut all = vec![norm(&layer.input_norm), fused(Matrix::Qkv, &layer.qkv, &layer.qkv_bias)];
        all.extend(layer.head_norms.iter().flatten().map(norm));
        all.push(single(Matrix::O, &layer.o, &layer.o_bias));
        all.extend(layer.attention_branch_norm.iter().map(norm));
        all.extend([
            norm(&layer.mlp_norm),
            fused(Matrix::GateUp, &layer.gate_up, &layer.gate_up_bias),
            single(Matrix::Down, &layer.down, &layer.down_bias),
        ]);
        all
    }
}

impl<W> LayerWeights<W> {
    /// Calls `make` for each weight of a layer, in the order of the fields.
    pub fn make(layer: &LayerTensors, mut make: impl FnMut(HostWeight<'_>) -> Result<W>) -> Result<Self> {
        let mut weights = HostWeight::all_of(layer).into_iter();
        let mut next = || make(weights.next().expect("a weight for each field"));
        Ok(Self {
            input_norm: next()?,
            qkv: next()?,
            head_norms: if layer.head_norms.is_some() { Some([next()?, next()?]) } else { None },
            o: next()?,
            attention_branch_norm: layer.attention_branch_norm.is_some().then(&mut next).transpose()?,
            mlp_norm: next()?,
            gate_up: next()?,
            down: next()?,
        })
    }

    /// Returns the weights in the order of the fields.
    pub fn all(&self) -> Vec<&W> {
        let Self { input_norm, qkv, head_norms, o, attention_branch_norm, mlp_norm, gate_up, down } = self;
        let mut all = vec![input_norm, qkv];
        all.extend(head_norms.iter().flatten());
        all.push(o);
        all.extend(attention_branch_norm);
        all.extend([mlp_norm, gate_up, down]);
        all
    }
}
