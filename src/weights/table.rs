//! The table of tensors: the name of each, its shape, its split among ranks, and its target.
//!
//! Opening a model, checking it, slicing it for a rank and counting its bytes all walk this table.

use std::ops::Range;

use crate::config::{Head, ModelConfig};
use crate::shard::{Shard, Split};

/// A size that `config.json` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    Hidden,
    QWidth,
    KvWidth,
    HeadWidth,
    Ffn,
    Vocab,
    Labels,
}
use Dim::{Ffn, HeadWidth, Hidden, KvWidth, Labels, QWidth, Vocab};

/// The field of the model's tensors that a tensor becomes part of. Tensors with one target are
/// fused: stacked by output rows, in the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Embedding,
    FinalNorm,
    Head,
    HeadBias,
    HeadOut,
    HeadOutBias,
    InputNorm,
    Qkv,
    QkvBias,
    QNorm,
    KNorm,
    O,
    OBias,
    AttentionBranchNorm,
    MlpNorm,
    GateUp,
    GateUpBias,
    Down,
    DownBias,
    MlpBranchNorm,
}

/// Which models have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    QkvBias,
    OBias,
    MlpBias,
    HeadNorms,
    BranchNorms,
    NoBranchNorms,
    CausalHead,
    ScoreHead,
    ScoreMlpHead,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Entry {
    /// The whole name, or what follows `model.layers.N.`.
    pub(super) name: &'static str,
    pub(super) target: Target,
    /// `[out_features, in_features]`, or the one size of a vector.
    pub(super) shape: &'static [Dim],
    pub(super) split: Split,
    pub(super) when: When,
}

const fn entry(name: &'static str, target: Target, shape: &'static [Dim], split: Split, when: When) -> Entry {
    Entry { name, target, shape, split, when }
}

/// Prefix of all names but the heads'.
pub(super) const BASE_PREFIX: &str = "model.";
/// Prefix of the names of a layer's tensors, before the layer's index and a dot.
pub(super) const LAYER_PREFIX: &str = "model.layers.";

/// The causal head; with tied embeddings it may be missing.
pub(super) const LM_HEAD: &str = "lm_head.weight";
/// The classifier's head.
pub(super) const SCORE: &str = "score.weight";
/// The hidden layer of a classifier's head.
pub(super) const SCORE_HIDDEN: &str = "score.0.weight";
/// The embedding table.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

#[rustfmt::skip]
pub(super) const MODEL: &[Entry] = &[
    entry(EMBEDDING,           Target::Embedding, &[Vocab, Hidden],  Split::Whole, When::Always),
    entry("model.norm.weight", Target::FinalNorm, &[Hidden],         Split::Whole, When::Always),
    entry(LM_HEAD,             Target::Head,      &[Vocab, Hidden],  Split::Whole, When::CausalHead),
    entry(SCORE,               Target::Head,      &[Labels, Hidden], Split::Whole, When::ScoreHead),
    entry(SCORE_HIDDEN,        Target::Head,      &[Hidden, Hidden], Split::Whole, When::ScoreMlpHead),
    entry("score.0.bias",      Target::HeadBias,  &[Hidden],         Split::Whole, When::ScoreMlpHead),
    entry("score.2.weight",    Target::HeadOut,   &[Labels, Hidden], Split::Whole, When::ScoreMlpHead),
    entry("score.2.bias",      Target::HeadOutBias, &[Labels],       Split::Whole, When::ScoreMlpHead),
];

#[rustfmt::skip]
pub(super) const LAYER: &[Entry] = &[
    entry("input_layernorm.weight",          Target::InputNorm,         &[Hidden],          Split::Whole,        When::Always),
    entry("self_attn.q_proj.weight",         Target::Qkv,               &[QWidth, Hidden],  Split::QueryRows,    When::Always),
    entry("self_attn.k_proj.weight",         Target::Qkv,               &[KvWidth, Hidden], Split::KeyValueRows, When::Always),
    entry("self_attn.v_proj.weight",         Target::Qkv,               &[KvWidth, Hidden], Split::KeyValueRows, When::Always),
    entry("self_attn.q_proj.bias",           Target::QkvBias,           &[QWidth],          Split::QueryRows,    When::QkvBias),
    entry("self_attn.k_proj.bias",           Target::QkvBias,           &[KvWidth],         Split::KeyValueRows, When::QkvBias),
    entry("self_attn.v_proj.bias",           Target::QkvBias,           &[KvWidth],         Split::KeyValueRows, When::QkvBias),
    entry("self_attn.q_norm.weight",         Target::QNorm,             &[HeadWidth],       Split::Whole,        When::HeadNorms),
    entry("self_attn.k_norm.weight",         Target::KNorm,             &[HeadWidth],       Split::Whole,        When::HeadNorms),
    entry("self_attn.o_proj.weight",         Target::O,                 &[Hidden, QWidth],  Split::QueryColumns, When::Always),
    entry("self_attn.o_proj.bias",           Target::OBias,             &[Hidden],          Split::RankZero,     When::OBias),
    entry("post_attention_layernorm.weight", Target::MlpNorm,           &[Hidden],          Split::Whole,        When::NoBranchNorms),
    // The same name for a norm at another place.
    entry("post_attention_layernorm.weight", Target::AttentionBranchNorm, &[Hidden],        Split::Whole,        When::BranchNorms),
    entry("pre_feedforward_layernorm.weight", Target::MlpNorm,          &[Hidden],          Split::Whole,        When::BranchNorms),
    entry("mlp.gate_proj.weight",            Target::GateUp,            &[Ffn, Hidden],     Split::FfnRows,      When::Always),
    entry("mlp.up_proj.weight",              Target::GateUp,            &[Ffn, Hidden],     Split::FfnRows,      When::Always),
    entry("mlp.gate_proj.bias",              Target::GateUpBias,        &[Ffn],             Split::FfnRows,      When::MlpBias),
    entry("mlp.up_proj.bias",                Target::GateUpBias,        &[Ffn],             Split::FfnRows,      When::MlpBias),
    entry("mlp.down_proj.weight",            Target::Down,              &[Hidden, Ffn],     Split::FfnColumns,   When::Always),
    entry("mlp.down_proj.bias",              Target::DownBias,          &[Hidden],          Split::RankZero,     When::MlpBias),
    entry("post_feedforward_layernorm.weight", Target::MlpBranchNorm,   &[Hidden],          Split::Whole,        When::BranchNorms),
];

impl Dim {
    /// The size itself.
    pub(super) fn size(self, config: &ModelConfig) -> usize {
        match (self, config.head) {
            (Hidden, _) => config.hidden,
            (QWidth, _) => config.q_width(),
            (KvWidth, _) => config.kv_width(),
            (HeadWidth, _) => config.head_dim,
            (Ffn, _) => config.ffn,
            (Vocab, _) => config.vocab,
            (Labels, Head::Score { labels, .. } | Head::ScoreMlp { labels, .. }) => labels,
            (Labels, Head::LogitZero { .. }) => 1,
        }
    }

    /// The fields of `config.json` that give it, with their values.
    pub(super) fn words(self, config: &ModelConfig) -> String {
        match self {
            Hidden => format!("hidden_size {}", config.hidden),
            QWidth => format!("num_attention_heads {} * head_dim {}", config.q_heads, config.head_dim),
            KvWidth => format!("num_key_value_heads {} * head_dim {}", config.kv_heads, config.head_dim),
            HeadWidth => format!("head_dim {}", config.head_dim),
            Ffn => format!("intermediate_size {}", config.ffn),
            Vocab => format!("vocab_size {}", config.vocab),
            Labels => match config.head {
                Head::Score { labels, labels_named: false, .. }
                | Head::ScoreMlp { labels, labels_named: false, .. } => {
                    format!("num_labels {labels} by default")
                }
                _ => format!("num_labels {}", self.size(config)),
            },
        }
    }
}

impl When {
    pub(super) fn holds(self, config: &ModelConfig) -> bool {
        match self {
            Self::Always => true,
            Self::QkvBias => config.biases.qkv,
            Self::OBias => config.biases.o,
            Self::MlpBias => config.biases.mlp,
            Self::HeadNorms => config.head_norms,
            Self::BranchNorms => config.branch_norms,
            Self::NoBranchNorms => !config.branch_norms,
            Self::CausalHead => matches!(config.head, Head::LogitZero { .. }),
            Self::ScoreHead => matches!(config.head, Head::Score { .. }),
            Self::ScoreMlpHead => matches!(config.head, Head::ScoreMlp { .. }),
        }
    }
}

impl Entry {
    /// Returns the first row of a whole name, and the layer if it is a layer's; `None` for a name
    /// that no model has.
    pub(super) fn find(name: &str) -> Option<(&'static Self, Option<usize>)> {
        if let Some((layer, rest)) = name.strip_prefix(LAYER_PREFIX).and_then(|rest| rest.split_once('.')) {
            let entry = LAYER.iter().find(|entry| entry.name == rest)?;
            // `+1` and `01` spell no layer.
            let layer_index = layer.parse::<usize>().ok().filter(|index| index.to_string() == layer)?;
            return Some((entry, Some(layer_index)));
        }
        MODEL.iter().find(|entry| entry.name == name).map(|entry| (entry, None))
    }

    /// The rows of this table that a model has: those of the whole model first, then each layer's.
    pub(super) fn of(config: &ModelConfig) -> impl Iterator<Item = (String, &'static Entry)> {
        let has = |entry: &&Entry| entry.when.holds(config);
        let model = MODEL.iter().filter(has).map(|entry| (entry.name.to_owned(), entry));
        let layers = (0..config.layers).flat_map(move |layer| {
            LAYER
                .iter()
                .filter(has)
                .map(move |entry| (format!("{LAYER_PREFIX}{layer}.{}", entry.name), entry))
        });
        model.chain(layers)
    }

    /// Sizes of the whole tensor, as in its file.
    pub(super) fn sizes(&self, config: &ModelConfig) -> Vec<usize> {
        self.shape.iter().map(|dim| dim.size(config)).collect()
    }

    /// Returns the rank's rows and columns, a vector being one row; `None` when the rank has no
    /// part of it.
    pub(super) fn part(&self, config: &ModelConfig, shard: &Shard) -> Option<[Range<usize>; 2]> {
        if self.split == Split::RankZero && shard.rank != 0 {
            return None;
        }
        let range = shard.range(config, self.split);
        let sizes = self.sizes(config);
        let whole = |axis: usize| 0..sizes[axis];
        Some(match (sizes.len(), self.target, self.split) {
            // A vector has one value per output feature: where a weight is cut by rows, it is cut,
            // too.
            (1, ..) => [0..1, range.unwrap_or_else(|| whole(0))],
            // Logit 0 needs row 0 only.
            (_, Target::Head, _) if self.when == When::CausalHead => [0..1, whole(1)],
            (_, _, Split::QueryColumns | Split::FfnColumns) => [whole(0), range.unwrap_or_else(|| whole(1))],
            _ => [range.unwrap_or_else(|| whole(0)), whole(1)],
        })
    }

    /// Number of the tensor's values that a rank holds.
    pub(super) fn values(&self, config: &ModelConfig, shard: &Shard) -> usize {
        self.part(config, shard).map_or(0, |[rows, cols]| rows.len() * cols.len())
    }
}
