//! [`ModelTensors`]: one rank's part of every tensor of a model, checked against `config.json`
//! before any is used.

use std::sync::Arc;

use super::check::{check, head_source};
use super::checkpoint::Checkpoint;
use super::dtype::Dtype;
use super::random::RandomWeights;
use super::table::{Entry, LAYER, LAYER_PREFIX, MODEL, Target};
use super::tensor::HostTensor;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::shard::Shard;

/// One rank's part of a model's weights, in their files. Cloning it copies no weights.
#[derive(Clone, Debug)]
pub struct ModelTensors {
    /// `[vocab, hidden]`, whole on every rank.
    pub embedding: HostTensor,
    /// One per layer, first to last.
    pub layers: Vec<LayerTensors>,
    /// The norms of the outputs of MLPs, `[hidden]` each, one per layer, in models that have them.
    /// Apart from the layers, because each is used by the first op of the next layer.
    pub mlp_branch_norms: Vec<HostTensor>,
    /// `[hidden]`.
    pub final_norm: HostTensor,
    /// `[1, hidden]`, row 0 of `lm_head` or of the embeddings; `[labels, hidden]` for a classifier,
    /// or `[hidden, hidden]` for one whose head has a hidden layer. Whole on every rank.
    pub head: HostTensor,
    /// The rest of a head whose first matmul, by `head`, is a hidden layer, in models with such a
    /// head.
    pub head_out: Option<HeadOut>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The rest of a head with a hidden layer, whole on every rank.
#[derive(Clone, Debug)]
pub struct HeadOut {
    /// `[hidden]`: the hidden layer's bias.
    pub hidden_bias: HostTensor,
    /// `[labels, hidden]`.
    pub weight: HostTensor,
    /// `[labels]`.
    pub bias: HostTensor,
}

/// One rank's part of a layer. A fused weight is a list of pieces that are stacked by output
/// rows, each `[rows, hidden]`; they are not contiguous, and may be in different files and
/// dtypes. A fused bias is a list of vectors that follow each other. Biases of a model without
/// biases are empty or `None`.
#[derive(Clone, Debug)]
pub struct LayerTensors {
    /// `[hidden]`.
    pub input_norm: HostTensor,
    /// q `[q_width_local, hidden]`, k and v `[kv_width_local, hidden]`.
    pub qkv: Vec<HostTensor>,
    /// q `[q_width_local]`, k and v `[kv_width_local]`.
    pub qkv_bias: Option<Vec<HostTensor>>,
    /// The norms of query heads and of key heads, `[head_dim]` each, in models that have them.
    pub head_norms: Option<[HostTensor; 2]>,
    /// `[hidden, q_width_local]`, a range of columns: its rows are `q_width` apart.
    pub o: HostTensor,
    /// `[hidden]`, on rank 0 only: it is added once to the all-reduced sum.
    pub o_bias: Option<HostTensor>,
    /// The norm of attention's output, `[hidden]`, in models that have it.
    pub attention_branch_norm: Option<HostTensor>,
    /// `[hidden]`.
    pub mlp_norm: HostTensor,
    /// gate and up, each `[ffn_local, hidden]`.
    pub gate_up: Vec<HostTensor>,
    /// gate and up, each `[ffn_local]`.
    pub gate_up_bias: Option<Vec<HostTensor>>,
    /// `[hidden, ffn_local]`, a range of columns: its rows are `ffn` apart.
    pub down: HostTensor,
    /// `[hidden]`, on rank 0 only.
    pub down_bias: Option<HostTensor>,
}

/// Bytes of one rank's weights, as they are stored or as a device holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// All layers.
    pub layers: usize,
    /// The largest single layer.
    pub layer_max: usize,
    /// The final norm, the norms of the outputs of MLPs, and the rows of the head that are read.
    pub head: usize,
    /// The embedding table.
    pub embedding: usize,
}

impl ModelTensors {
    /// Checks every tensor that the model needs, on all ranks alike, and then takes this rank's
    /// part. Reads headers only, but for one row of embeddings and head where both are there and
    /// `config.json` calls them tied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Weights`](crate::error::ErrorKind::Weights) when a tensor is missing, has
    /// another shape, or `config.json` denies it;
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) for a dtype or a tensor
    /// that no model has.
    pub fn open(checkpoint: &Checkpoint, config: &ModelConfig, shard: &Shard) -> Result<Self> {
        let warnings = check(checkpoint, config)?;
        let find = |name: &str| whole(checkpoint, &head_source(checkpoint, config, name));
        Ok(Self { warnings, ..Self::collect(config, shard, find) })
    }

    /// Takes this rank's part of random weights, which were made for a model of this `config`.
    pub fn random(weights: &RandomWeights, config: &ModelConfig, shard: &Shard) -> Self {
        Self::collect(config, shard, |name| weights.tensor(name))
    }

    /// Takes this rank's part of the whole tensors that `find` returns by name.
    fn collect(config: &ModelConfig, shard: &Shard, find: impl Fn(&str) -> HostTensor) -> Self {
        let parts = |prefix: &str, table: &'static [Entry], target: Target| -> Vec<HostTensor> {
            table
                .iter()
                .filter(|entry| entry.target == target && entry.when.holds(config))
                .filter_map(|entry| {
                    let [rows, cols] = entry.part(config, shard)?;
                    let whole = find(&format!("{prefix}{}", entry.name));
                    Some(whole.row_range(rows).column_range(cols))
                })
                .collect()
        };
        let prefix = |layer: usize| format!("{LAYER_PREFIX}{layer}.");
        let layers = (0..config.layers)
            .map(|layer| LayerTensors::collect(|target| parts(&prefix(layer), LAYER, target)));
        let mlp_branch_norms =
            (0..config.layers).flat_map(|layer| parts(&prefix(layer), LAYER, Target::MlpBranchNorm));
        Self {
            embedding: only(parts("", MODEL, Target::Embedding)),
            layers: layers.collect(),
            mlp_branch_norms: mlp_branch_norms.collect(),
            final_norm: only(parts("", MODEL, Target::FinalNorm)),
            head: only(parts("", MODEL, Target::Head)),
            head_out: parts("", MODEL, Target::HeadOut).pop().map(|weight| HeadOut {
                hidden_bias: only(parts("", MODEL, Target::HeadBias)),
                weight,
                bias: only(parts("", MODEL, Target::HeadOutBias)),
            }),
            warnings: Vec::new(),
        }
    }

    /// Bytes of these tensors, as they are stored.
    pub fn bytes(&self) -> WeightBytes {
        let layers = self.layers.iter().map(LayerTensors::size_bytes);
        WeightBytes {
            layers: layers.clone().sum(),
            layer_max: layers.max().unwrap_or(0),
            head: self.outside_layers().map(HostTensor::size_bytes).sum(),
            embedding: self.embedding.size_bytes(),
        }
    }

    /// Every tensor outside of the layers that is brought to devices.
    pub fn outside_layers(&self) -> impl Iterator<Item = &HostTensor> {
        self.mlp_branch_norms.iter().chain([&self.final_norm, &self.head])
    }
}

impl LayerTensors {
    fn collect(parts: impl Fn(Target) -> Vec<HostTensor>) -> Self {
        let fused = |target| Some(parts(target)).filter(|pieces| !pieces.is_empty());
        Self {
            input_norm: only(parts(Target::InputNorm)),
            qkv: parts(Target::Qkv),
            qkv_bias: fused(Target::QkvBias),
            head_norms: parts(Target::QNorm).pop().zip(parts(Target::KNorm).pop()).map(<[_; 2]>::from),
            o: only(parts(Target::O)),
            o_bias: parts(Target::OBias).pop(),
            attention_branch_norm: parts(Target::AttentionBranchNorm).pop(),
            mlp_norm: only(parts(Target::MlpNorm)),
            gate_up: parts(Target::GateUp),
            gate_up_bias: fused(Target::GateUpBias),
            down: only(parts(Target::Down)),
            down_bias: parts(Target::DownBias).pop(),
        }
    }

    /// Every tensor of the layer that this rank holds.
    pub fn tensors(&self) -> impl Iterator<Item = &HostTensor> {
        let single = [&self.input_norm, &self.o, &self.mlp_norm, &self.down];
        let fused =
            [Some(&self.qkv), self.qkv_bias.as_ref(), Some(&self.gate_up), self.gate_up_bias.as_ref()];
        let optional = [&self.o_bias, &self.attention_branch_norm, &self.down_bias];
        let some = fused.into_iter().flatten().flatten().chain(self.head_norms.iter().flatten());
        single.into_iter().chain(some).chain(optional.into_iter().flatten())
    }

    /// Bytes of the layer's tensors.
    pub fn size_bytes(&self) -> usize {
        self.tensors().map(HostTensor::size_bytes).sum()
    }
}

impl WeightBytes {
    /// Bytes of a rank's weights if all are stored as `dtype`; needs no files.
    pub fn of(config: &ModelConfig, shard: &Shard, dtype: Dtype) -> Self {
        let bytes = |table: &[Entry], counted: fn(Target) -> bool| -> usize {
            let entries = table.iter().filter(|entry| entry.when.holds(config) && counted(entry.target));
            entries.map(|entry| entry.values(config, shard) * dtype.size()).sum()
        };
        let layer = bytes(LAYER, |target| target != Target::MlpBranchNorm);
        let branch_norms = bytes(LAYER, |target| target == Target::MlpBranchNorm) * config.layers;
        Self {
            layers: layer * config.layers,
            layer_max: layer,
            head: branch_norms + bytes(MODEL, |target| matches!(target, Target::FinalNorm | Target::Head)),
            embedding: bytes(MODEL, |target| target == Target::Embedding),
        }
    }
}

/// Returns a whole tensor that [`check`] has checked.
fn whole(checkpoint: &Checkpoint, name: &str) -> HostTensor {
    let (file, stored) = checkpoint.find(name).expect("checked: the tensor is there");
    let dtype = Dtype::from_stored(stored.dtype).expect("checked: the dtype is known");
    let shape = match *stored.shape {
        [cols] => [1, cols],
        [rows, cols] => [rows, cols],
        _ => unreachable!("checked: the shape is the table's"),
    };
    HostTensor::new(file.clone(), Arc::from(stored.name.as_str()), dtype, stored.bytes.start, shape)
}

fn only(mut parts: Vec<HostTensor>) -> HostTensor {
    assert_eq!(parts.len(), 1, "the target of one tensor: {parts:?}");
    parts.remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(rank: usize, ranks: usize) -> WeightBytes {
        let llama_70b = ModelConfig {
            hidden: 8192,
            layers: 80,
            q_heads: 64,
            kv_heads: 8,
            head_dim: 128,
            ffn: 28672,
            vocab: 128_256,
            ..ModelConfig::tiny()
        };
        WeightBytes::of(&llama_70b, &Shard::new(&llama_70b, rank, ranks).unwrap(), Dtype::BF16)
    }

    #[test]
    fn the_70b_model_has_the_published_sizes() {
        let whole = bytes(0, 1);
        assert_eq!(whole.layer_max, 2 * 855_654_400);
        assert_eq!(whole.layers, 80 * whole.layer_max);
        assert_eq!(whole.embedding, 2 * 128_256 * 8192);
        assert_eq!(whole.head, 2 * (8192 + 8192));
    }

    #[test]
    fn ranks_share_the_linear_weights_and_each_hold_the_norms() {
        let norms = 2 * 2 * 8192;
        for ranks in [2, 4, 8] {
            for rank in 0..ranks {
                let part = bytes(rank, ranks);
                assert_eq!(part.layer_max - norms, (bytes(0, 1).layer_max - norms) / ranks);
                assert_eq!((part.head, part.embedding), (bytes(0, 1).head, bytes(0, 1).embedding));
            }
        }
        // 16 ranks, 8 kv heads: k and v are held twice.
        let kv = 2 * 2 * 1024 * 8192;
        let part = bytes(3, 16);
        assert_eq!(part.layer_max - norms - kv / 8, (bytes(0, 1).layer_max - norms - kv) / 16);
    }
}
