//! The families of models: what transformers' classes of a `model_type` read from `config.json`,
//! and their defaults.
//!
//! A family is known here alone. Everything above reads the values of
//! [`ModelConfig`](super::ModelConfig), which names none.

use serde_json::Value;

use super::fields::Fields;
use super::limits::{FFN_MAX, HEAD_DIM_MAX, HEADS_MAX, HIDDEN_MAX, LAYERS_MAX, TOKENS_MAX, VOCAB_MAX};
use crate::error::{ErrorKind, Result};

/// A family.
#[derive(Debug)]
pub(super) struct Architecture {
    /// The family's `model_type`.
    model_type: &'static str,
    /// The beginning of the names of its classes: `Llama` of `LlamaForCausalLM`.
    pub(super) classes: &'static str,
    /// Sizes that the config class gives to absent fields; `None` where a file must name them, as
    /// all published ones do.
    sizes: Option<Sizes>,
    /// `max_position_embeddings` of absent fields.
    max_tokens: usize,
    /// `num_key_value_heads` of absent fields; `None` for as many as there are query heads.
    kv_heads: Option<usize>,
    /// Whether the family takes null for `num_key_value_heads`: as many as there are query heads.
    kv_heads_null: bool,
    /// `head_dim` of absent fields; `None` for the width divided by the query heads.
    head_dim: Option<usize>,
    /// Whether the family takes null for `head_dim`, as it takes an absent field.
    head_dim_null: bool,
    /// Whether each query and key head has a norm.
    pub(super) head_norms: bool,
    biases: BiasRule,
    windows: WindowRule,
}

/// Sizes of absent fields.
#[derive(Debug)]
struct Sizes {
    hidden: usize,
    layers: usize,
    q_heads: usize,
    ffn: usize,
    vocab: usize,
}

/// Which linear layers have biases.
#[derive(Debug)]
enum BiasRule {
    /// Those that `attention_bias` (q, k, v and o) and `mlp_bias` name.
    Flags,
    /// q, k, v and o if `attention_bias` says so; never those of the MLP.
    AttentionFlag,
    /// q, k and v, whatever the fields say.
    QueriesKeysValues,
    /// None, whatever the fields say.
    Never,
}

/// Which layers have a sliding window.
#[derive(Debug)]
enum WindowRule {
    /// None: the classes do not read the field. One that is set was written for other code.
    Unread,
    /// All of them, of this width where `sliding_window` is absent; none where it is null.
    All(usize),
    /// Some of them where `use_sliding_window` is true, of this width where `sliding_window` is
    /// absent; none otherwise.
    Flag(usize),
}

const ARCHITECTURES: [Architecture; 4] = [
    Architecture {
        model_type: "llama",
        classes: "Llama",
        sizes: Some(Sizes { hidden: 4096, layers: 32, q_heads: 32, ffn: 11_008, vocab: 32_000 }),
        max_tokens: 2048,
        kv_heads: None,
        kv_heads_null: true,
        head_dim: None,
        head_dim_null: true,
        head_norms: false,
        biases: BiasRule::Flags,
        windows: WindowRule::Unread,
    },
    Architecture {
        model_type: "mistral",
        classes: "Mistral",
        sizes: None,
        max_tokens: 131_072,
        kv_heads: Some(8),
        kv_heads_null: false,
        head_dim: None,
        head_dim_null: true,
        head_norms: false,
        biases: BiasRule::Never,
        windows: WindowRule::All(4096),
    },
    Architecture {
        model_type: "qwen2",
        classes: "Qwen2",
        sizes: None,
        max_tokens: 32_768,
        kv_heads: Some(32),
        kv_heads_null: true,
        head_dim: None,
        head_dim_null: false,
        head_norms: false,
        biases: BiasRule::QueriesKeysValues,
        windows: WindowRule::Flag(4096),
    },
    Architecture {
        model_type: "qwen3",
        classes: "Qwen3",
        sizes: None,
        max_tokens: 32_768,
        kv_heads: Some(32),
        kv_heads_null: true,
        head_dim: Some(128),
        head_dim_null: false,
        head_norms: true,
        biases: BiasRule::AttentionFlag,
        windows: WindowRule::Flag(4096),
    },
];

/// Linear layers that have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// o.
    pub o: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

impl Architecture {
    /// The family of the file's `model_type`.
    pub(super) fn of(fields: &Fields) -> Result<&'static Self> {
        let Some(named) = fields.text("model_type")? else {
            return Err(fields
                .error(ErrorKind::Config, "`model_type` is missing")
                .with_hint("a config.json of transformers names it, such as \"model_type\": \"llama\""));
        };
        ARCHITECTURES.iter().find(|family| family.model_type == named).ok_or_else(|| {
            let known: Vec<String> =
                ARCHITECTURES.iter().map(|family| format!("`{}`", family.model_type)).collect();
            let message = format!("model_type `{named}` is not implemented ({} are)", known.join(", "));
            fields.error(ErrorKind::Unsupported, message)
        })
    }

    pub(super) fn hidden(&self, fields: &Fields) -> Result<usize> {
        fields.count("hidden_size", self.sizes.as_ref().map(|sizes| sizes.hidden), HIDDEN_MAX)
    }

    pub(super) fn layers(&self, fields: &Fields) -> Result<usize> {
        fields.count("num_hidden_layers", self.sizes.as_ref().map(|sizes| sizes.layers), LAYERS_MAX)
    }

    pub(super) fn q_heads(&self, fields: &Fields) -> Result<usize> {
        fields.count("num_attention_heads", self.sizes.as_ref().map(|sizes| sizes.q_heads), HEADS_MAX)
    }

    pub(super) fn ffn(&self, fields: &Fields) -> Result<usize> {
        fields.count("intermediate_size", self.sizes.as_ref().map(|sizes| sizes.ffn), FFN_MAX)
    }

    pub(super) fn vocab(&self, fields: &Fields) -> Result<usize> {
        fields.count("vocab_size", self.sizes.as_ref().map(|sizes| sizes.vocab), VOCAB_MAX)
    }

    pub(super) fn max_tokens(&self, fields: &Fields) -> Result<usize> {
        fields.count("max_position_embeddings", Some(self.max_tokens), TOKENS_MAX)
    }

    /// Key and value heads, which divide the query heads.
    pub(super) fn kv_heads(&self, fields: &Fields, q_heads: usize) -> Result<usize> {
        const NAME: &str = "num_key_value_heads";
        let kv_heads = match (fields.value(NAME), self.kv_heads) {
            (None, None) => q_heads,
            (None, Some(default)) => default,
            (Some(Value::Null), _) if self.kv_heads_null => q_heads,
            (Some(_), _) => fields.count(NAME, None, HEADS_MAX)?,
        };
        if q_heads.is_multiple_of(kv_heads) {
            return Ok(kv_heads);
        }
        let message = format!("`{NAME}` {kv_heads} does not divide `num_attention_heads` {q_heads}");
        Err(fields.error(ErrorKind::Config, message))
    }

    /// The width of a head that the file names, or that the family gives to an absent field; `None`
    /// for the width divided by the query heads.
    pub(super) fn head_dim(&self, fields: &Fields) -> Result<Option<usize>> {
        match fields.value("head_dim") {
            None => Ok(self.head_dim),
            Some(Value::Null) if self.head_dim_null => Ok(self.head_dim),
            Some(_) => fields.count("head_dim", None, HEAD_DIM_MAX).map(Some),
        }
    }

    /// The biases. A flag that the family's classes do not read must not contradict them.
    pub(super) fn biases(&self, fields: &Fields) -> Result<Biases> {
        let (attention, mlp) = (fields.flag("attention_bias")?, fields.flag("mlp_bias")?);
        let (biases, contradicted) = match self.biases {
            BiasRule::Flags => return Ok(Biases { qkv: attention, o: attention, mlp }),
            BiasRule::AttentionFlag => (Biases { qkv: attention, o: attention, mlp: false }, false),
            BiasRule::QueriesKeysValues => {
                let off = fields.value("attention_bias").is_some() && !attention;
                (Biases { qkv: true, ..Biases::default() }, off)
            }
            BiasRule::Never => (Biases::default(), attention),
        };
        let name = match () {
            () if contradicted => "attention_bias",
            () if mlp => "mlp_bias",
            () => return Ok(biases),
        };
        let value = fields.value(name).map(super::fields::shown).unwrap_or_default();
        let message = format!("`{name}` is {value}, which models of type `{}` do not have", self.model_type);
        Err(fields.error(ErrorKind::Config, message).with_hint("transformers ignores the field: remove it"))
    }

    /// The width of the sliding window that some layers have, if any.
    pub(super) fn window(&self, fields: &Fields) -> Result<Option<usize>> {
        const NAME: &str = "sliding_window";
        let of_width = |default| match fields.value(NAME) {
            Some(Value::Null) => Ok(None),
            _ => fields.count(NAME, Some(default), TOKENS_MAX).map(Some),
        };
        match self.windows {
            WindowRule::Unread => Ok(None),
            WindowRule::All(default) => of_width(default),
            WindowRule::Flag(default) if fields.flag("use_sliding_window")? => of_width(default),
            WindowRule::Flag(_) => Ok(None),
        }
    }

    /// Whether the family's classes read the fields of windows.
    pub(super) fn reads_windows(&self) -> bool {
        !matches!(self.windows, WindowRule::Unread)
    }
}
