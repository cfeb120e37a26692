//! `config.json` -> [`ModelConfig`]: every field that changes the reward, and nothing else.
//!
//! Defaults and spellings are those of transformers 5.23 (`LlamaConfig` and its like), which also
//! reads files of transformers 4 (`rope_scaling`, a top-level `rope_theta`). Families of models
//! differ in a few of them ([`architecture`]). Three rules decide about everything else in the
//! file:
//!
//! - a field that is read is checked: type, range, and that it agrees with the others. Two
//!   spellings that contradict each other are refused, although transformers would silently prefer
//!   one of them;
//! - a field that is known to change the reward of some decoder and is not implemented is
//!   refused by name, unless its value has no effect (`unsupported.rs` holds the list);
//! - any other field is ignored, as transformers ignores it. `dtype` and `torch_dtype` are among
//!   these: weights are used as they are stored. So is `pretraining_tp`, which transformers 5 no
//!   longer acts on.
//!
//! Every size has an upper bound, chosen so that products of sizes, in bytes, of one whole model
//! stay below 2^63: arithmetic on a parsed `ModelConfig` cannot overflow `usize` on a 64-bit
//! machine.

mod architecture;
mod fields;
mod generation;
mod head;
mod limits;
mod rope;
mod unsupported;

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::files::read_text;
use architecture::Architecture;
use fields::Fields;
use limits::{HEAD_DIM_MAX, Q_WIDTH_MAX};

pub use architecture::{Biases, Gate, Norm, Scores};
pub use generation::generation_warnings;
pub use head::{Head, Normalization};
pub use rope::{Rope, RopeScaling};

/// The largest `config.json` that is read. Real ones have a few kilobytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// A model's checked `config.json`. Sizes are those of the whole model, not of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Width of one head; need not be `hidden / q_heads`.
    pub head_dim: usize,
    /// Width of the MLP between gate/up and down.
    pub ffn: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// The epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The longest sequence that the model was trained for (`max_position_embeddings`).
    pub max_tokens: usize,
    /// The linear layers that have biases.
    pub biases: Biases,
    /// Whether each query and key head has an RMSNorm of its own, before it is rotated.
    pub head_norms: bool,
    /// Whether the outputs of attention and of the MLP have RMSNorms of their own, before they join
    /// the residual stream.
    pub branch_norms: bool,
    /// The factor of norms.
    pub norm: Norm,
    /// The factor of embeddings.
    pub embedding_scale: f32,
    /// The function of the MLP's gate.
    pub gate: Gate,
    /// The scores of attention.
    pub scores: Scores,
    /// For each layer, the number of keys that a query sees, its own included; `None` for all, as
    /// for layers past the end.
    pub windows: Vec<Option<usize>>,
    /// The cap of a causal model's logits, `cap * tanh(logit / cap)`, if there is one.
    pub logit_cap: Option<f32>,
    /// The head that computes the reward.
    pub head: Head,
    /// How rewards are normalised, where the config asks for that.
    pub normalization: Option<Normalization>,
}

impl ModelConfig {
    /// Reads and checks `dir/config.json`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when it cannot be read, [`ErrorKind::Config`] when it is not UTF-8, else
    /// as [`ModelConfig::parse`]. A folder that holds an adapter is [`ErrorKind::Unsupported`]:
    /// transformers would load the adapter's base model and add the adapter to it.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::Io, "there is no such model folder")
                .at(dir.display())
                .with_hint("point `--model` at a folder with config.json, tokenizer.json and the weights"));
        }
        let adapter = dir.join("adapter_config.json");
        if adapter.exists() {
            return Err(Error::new(ErrorKind::Unsupported, "the folder holds an adapter, not a whole model")
                .at(adapter.display())
                .with_hint(
                    "merge the adapter into its base model (PEFT: `merge_and_unload`) and save that",
                ));
        }
        let file = dir.join("config.json");
        Self::parse(&read_text(&file, CONFIG_BYTES_MAX, ErrorKind::Config)?, &file)
    }

    /// Checks the text of a `config.json`; `file` is only named in errors.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it is not JSON, a value is impossible or values contradict each
    /// other; [`ErrorKind::Unsupported`] when it sets something that changes the reward and is not
    /// implemented.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let values: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Config, "config.json is not a JSON object")
                .caused_by(error)
                .at(file.display())
        })?;
        let fields = Fields::new(&values, file);
        let family = Architecture::of(&fields)?;
        unsupported::refuse_unimplemented(&fields, family)?;

        let hidden = family.hidden(&fields)?;
        let q_heads = family.q_heads(&fields)?;
        let vocab = family.vocab(&fields)?;
        let max_tokens = family.max_tokens(&fields)?;
        let layers = family.layers(&fields)?;
        let head_dim = head_dim(&fields, family, hidden, q_heads)?;
        family.check_gate(&fields)?;
        let head = head::head(&fields, family, vocab)?;
        Ok(Self {
            hidden,
            layers,
            q_heads,
            kv_heads: family.kv_heads(&fields, q_heads)?,
            head_dim,
            ffn: family.ffn(&fields)?,
            vocab,
            rms_norm_eps: rms_norm_eps(&fields)?,
            rope: rope::rope(&fields, max_tokens)?,
            max_tokens,
            biases: family.biases(&fields)?,
            head_norms: family.head_norms,
            branch_norms: family.branch_norms,
            norm: family.norm,
            embedding_scale: family.embedding_scale(hidden),
            gate: family.gate,
            scores: family.scores(&fields, head_dim)?,
            windows: family.windows(&fields, layers, max_tokens)?,
            logit_cap: match head {
                Head::LogitZero { .. } => family.logit_cap(&fields)?,
                Head::Score { .. } | Head::ScoreMlp { .. } => None,
            },
            head,
            normalization: head::normalization(&fields)?,
        })
    }

    /// A small causal model for tests, which change the fields that they are about.
    #[cfg(any(test, feature = "internals"))]
    pub fn tiny() -> Self {
        Self {
            hidden: 64,
            layers: 2,
            q_heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            vocab: 50,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 1e4, scaling: RopeScaling::Default },
            max_tokens: 128,
            biases: Biases { qkv: false, o: false, mlp: false },
            head_norms: false,
            branch_norms: false,
            norm: Norm::Scale,
            embedding_scale: 1.0,
            gate: Gate::Silu,
            scores: Scores { query_scalar: 16.0, cap: None },
            windows: Vec::new(),
            logit_cap: None,
            head: Head::LogitZero { tied: false },
            normalization: None,
        }
    }

    /// The number of keys that a query of this layer sees, its own included; `None` for all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// Logits per sequence: 1 for a causal model, a classifier's labels.
    pub fn labels(&self) -> usize {
        match self.head {
            Head::LogitZero { .. } => 1,
            Head::Score { labels, .. } | Head::ScoreMlp { labels, .. } => labels,
        }
    }

    /// Rows of the matrix that the last hidden state is multiplied with.
    pub fn head_rows(&self) -> usize {
        if matches!(self.head, Head::ScoreMlp { .. }) { self.hidden } else { self.labels() }
    }

    /// Width of all query heads side by side.
    pub fn q_width(&self) -> usize {
        self.q_heads * self.head_dim
    }

    /// Width of all key heads (or all value heads) side by side.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Rotary embedding pairs the two halves of a head, so its width is even.
fn head_dim(fields: &Fields, family: &Architecture, hidden: usize, q_heads: usize) -> Result<usize> {
    let head_dim = if let Some(head_dim) = family.head_dim(fields)? {
        head_dim
    } else if hidden.is_multiple_of(q_heads) {
        hidden / q_heads
    } else {
        return Err(fields.error(
            ErrorKind::Config,
            format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {q_heads}, and there is no `head_dim`"),
        ));
    };
    if !head_dim.is_multiple_of(2) {
        let message =
            format!("the width of a head is {head_dim}, which is odd; rotary embedding needs pairs");
        return Err(fields.error(ErrorKind::Config, message));
    }
    if head_dim > HEAD_DIM_MAX || q_heads * head_dim > Q_WIDTH_MAX {
        let message = format!("{q_heads} heads of width {head_dim} are more than any model has");
        return Err(fields.error(ErrorKind::Config, message));
    }
    Ok(head_dim)
}

fn rms_norm_eps(fields: &Fields) -> Result<f32> {
    let eps = fields.positive("rms_norm_eps", Some(1e-6))?;
    // Too small for f32, it would be an epsilon of zero; too large, of infinity.
    let rounded = eps as f32;
    if rounded > 0.0 && rounded.is_finite() {
        return Ok(rounded);
    }
    Err(fields.error(ErrorKind::Config, format!("`rms_norm_eps` {eps:e} is outside the range of f32")))
}

#[cfg(test)]
mod tests;
