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
    /// `num_key_value_heads` of absent fields; derived, it is as many as there are query heads.
    kv_heads: Absent,
    /// Whether the family takes null for `num_key_value_heads`: as many as there are query heads.
    kv_heads_null: bool,
    /// `head_dim` of absent fields; derived, it is the width divided by the query heads.
    head_dim: Absent,
    /// Whether the family takes null for `head_dim`, as it takes an absent field.
    head_dim_null: bool,
    /// Whether each query and key head has a norm.
    pub(super) head_norms: bool,
    /// Whether attention's and the MLP's outputs are normed before they join the residual stream.
    pub(super) branch_norms: bool,
    pub(super) norm: Norm,
    /// Whether embeddings are multiplied by the square root of the width.
    scaled_embeddings: bool,
    pub(super) gate: Gate,
    /// Whether scores are divided by the root of `query_pre_attn_scalar`, and scores and logits
    /// capped.
    caps: bool,
    /// `tie_word_embeddings` of absent fields.
    pub(super) tied: bool,
    /// `pad_token_id` of absent fields.
    pub(super) pad_token_id: Option<u32>,
    biases: BiasRule,
    windows: WindowRule,
    /// Fields that other families lack, and whose values are read for this one, or are ignored as
    /// transformers ignores them.
    pub(super) reads: &'static [&'static str],
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

/// The value of a size that a file does not name.
#[derive(Clone, Copy, Debug)]
enum Absent {
    /// Follows from other sizes.
    Derived,
    /// This.
    Is(usize),
    /// None: the file must name it.
    Refused,
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

/// Which layers have a sliding window, of the width `sliding_window`.
#[derive(Clone, Copy, Debug)]
enum WindowRule {
    /// None: the classes do not read the field. One that is set was written for other code.
    Unread,
    /// All of them, of this width where the field is absent; none where it is null.
    All(usize),
    /// Where `use_sliding_window` is true, those that `layer_types` names, or from
    /// `max_window_layers` on; of this width where the field is absent. None otherwise.
    Flag(usize),
    /// Those that `layer_types` names, or every other one from the first on.
    Alternating,
}

/// The values that most families share.
const PLAIN: Architecture = Architecture {
    model_type: "",
    classes: "",
    sizes: None,
    max_tokens: 32_768,
    kv_heads: Absent::Is(32),
    kv_heads_null: true,
    head_dim: Absent::Derived,
    head_dim_null: false,
    head_norms: false,
    branch_norms: false,
    norm: Norm::Scale,
    scaled_embeddings: false,
    gate: Gate::Silu,
    caps: false,
    tied: false,
    pad_token_id: None,
    biases: BiasRule::Flags,
    windows: WindowRule::Unread,
    reads: &[],
};

const ARCHITECTURES: [Architecture; 5] = [
    Architecture {
        model_type: "llama",
        classes: "Llama",
        sizes: Some(Sizes { hidden: 4096, layers: 32, q_heads: 32, ffn: 11_008, vocab: 32_000 }),
        max_tokens: 2048,
        kv_heads: Absent::Derived,
        head_dim_null: true,
        ..PLAIN
    },
    Architecture {
        model_type: "mistral",
        classes: "Mistral",
        max_tokens: 131_072,
        kv_heads: Absent::Is(8),
        kv_heads_null: false,
        head_dim_null: true,
        biases: BiasRule::Never,
        windows: WindowRule::All(4096),
        reads: &["layer_types"],
        ..PLAIN
    },
    Architecture {
        model_type: "qwen2",
        classes: "Qwen2",
        biases: BiasRule::QueriesKeysValues,
        windows: WindowRule::Flag(4096),
        reads: &["layer_types"],
        ..PLAIN
    },
    Architecture {
        model_type: "qwen3",
        classes: "Qwen3",
        head_dim: Absent::Is(128),
        head_norms: true,
        biases: BiasRule::AttentionFlag,
        windows: WindowRule::Flag(4096),
        reads: &["layer_types"],
        ..PLAIN
    },
    // transformers' defaults of absent sizes have changed from version to version.
    Architecture {
        model_type: "gemma2",
        classes: "Gemma2",
        max_tokens: 8192,
        kv_heads: Absent::Refused,
        kv_heads_null: false,
        head_dim: Absent::Refused,
        branch_norms: true,
        norm: Norm::OnePlus,
        scaled_embeddings: true,
        gate: Gate::GeluTanh,
        caps: true,
        tied: true,
        pad_token_id: Some(0),
        biases: BiasRule::AttentionFlag,
        windows: WindowRule::Alternating,
        reads: &[
            "layer_types",
            "hidden_act",
            "hidden_activation",
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ],
        ..PLAIN
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

/// The factor of an RMSNorm, with which the normed row is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norm {
    /// The weight.
    #[default]
    Scale,
    /// 1 + the weight.
    OnePlus,
}

/// The function of the MLP's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + exp(-x))`
    #[default]
    Silu,
    /// GELU by tanh: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`
    GeluTanh,
}

/// The scores of attention: `q . k / sqrt(query_scalar)`, or
/// `cap * tanh(q . k / sqrt(query_scalar) / cap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The square of what products are divided by: `head_dim` in most models.
    pub query_scalar: f64,
    /// The cap, if there is one.
    pub cap: Option<f32>,
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
            (None, Absent::Derived) => q_heads,
            (None, Absent::Is(default)) => default,
            (Some(Value::Null), _) if self.kv_heads_null => q_heads,
            _ => fields.count(NAME, None, HEADS_MAX)?,
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
        let named = || fields.count("head_dim", None, HEAD_DIM_MAX).map(Some);
        match (fields.value("head_dim"), self.head_dim) {
            (Some(Value::Null), _) if !self.head_dim_null => named(),
            (None | Some(Value::Null), Absent::Derived) => Ok(None),
            (None | Some(Value::Null), Absent::Is(default)) => Ok(Some(default)),
            _ => named(),
        }
    }

    /// The factor of embeddings.
    pub(super) fn embedding_scale(&self, hidden: usize) -> f32 {
        if self.scaled_embeddings { (hidden as f64).sqrt() as f32 } else { 1.0 }
    }

    /// Divisor and cap of scores.
    pub(super) fn scores(&self, fields: &Fields, head_dim: usize) -> Result<Scores> {
        if !self.caps {
            return Ok(Scores { query_scalar: head_dim as f64, cap: None });
        }
        let query_scalar = fields.positive("query_pre_attn_scalar", None)?;
        Ok(Scores { query_scalar, cap: cap(fields, "attn_logit_softcapping", 50.0)? })
    }

    /// The cap of a causal model's logits, if there is one.
    pub(super) fn logit_cap(&self, fields: &Fields) -> Result<Option<f32>> {
        if self.caps { cap(fields, "final_logit_softcapping", 30.0) } else { Ok(None) }
    }

    /// Checks that the activation function is the family's.
    pub(super) fn check_gate(&self, fields: &Fields) -> Result<()> {
        const NAME: &str = "hidden_activation";
        match (self.gate, fields.value(NAME)) {
            // `unsupported` has the list of names of SiLU.
            (Gate::Silu, _) | (Gate::GeluTanh, None) => Ok(()),
            (Gate::GeluTanh, Some(value)) if value == "gelu_pytorch_tanh" => Ok(()),
            (Gate::GeluTanh, Some(value)) => {
                let message = format!(
                    "`{NAME}` is {}: models of type `{}` are implemented with \"gelu_pytorch_tanh\" alone",
                    super::fields::shown(value),
                    self.model_type
                );
                Err(fields.error(ErrorKind::Unsupported, message))
            }
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

    /// The width of each layer's sliding window, where it has one that a sequence of `max_tokens`
    /// exceeds.
    pub(super) fn windows(
        &self,
        fields: &Fields,
        layers: usize,
        max_tokens: usize,
    ) -> Result<Vec<Option<usize>>> {
        const NAME: &str = "sliding_window";
        let of_width = |default| match fields.value(NAME) {
            Some(Value::Null) => Ok(None),
            _ => fields.count(NAME, default, TOKENS_MAX).map(Some),
        };
        let width = match self.windows {
            WindowRule::Unread => return Ok(vec![None; layers]),
            WindowRule::All(default) => of_width(Some(default))?,
            WindowRule::Flag(default) if fields.flag("use_sliding_window")? => of_width(Some(default))?,
            WindowRule::Flag(_) => None,
            WindowRule::Alternating => of_width(None)?,
        };
        let slides = |layer: usize| match self.windows {
            WindowRule::Flag(_) => max_window_layers(fields).map(|first| layer >= first),
            WindowRule::Alternating => Ok(layer.is_multiple_of(2)),
            WindowRule::Unread | WindowRule::All(_) => Ok(width.is_some()),
        };
        self.refuse_other_switches(fields, width)?;
        let by_rule = || (0..layers).map(slides).collect::<Result<Vec<bool>>>();
        let named = layer_types(fields, layers)?;
        let error = |message: &str| Err(fields.error(ErrorKind::Config, message));
        let sliding = match (named, self.windows) {
            (Some(named), WindowRule::All(_)) if named != by_rule()? => {
                return error(
                    "`layer_types` contradicts `sliding_window`, which alone counts for transformers",
                );
            }
            (Some(named), _) => named,
            (None, WindowRule::Flag(_)) if width.is_none() => vec![false; layers],
            (None, _) => by_rule()?,
        };
        match width {
            None if sliding.contains(&true) => {
                error("there are layers of type \"sliding_attention\", but no sliding window is set")
            }
            // One that no sequence exceeds hides nothing.
            Some(width) if width < max_tokens => {
                Ok(sliding.into_iter().map(|slides| slides.then_some(width)).collect())
            }
            _ => Ok(vec![None; layers]),
        }
    }

    /// Refuses fields of other families' windows that contradict this one's, which transformers
    /// would not read.
    fn refuse_other_switches(&self, fields: &Fields, width: Option<usize>) -> Result<()> {
        let unread = !matches!(self.windows, WindowRule::Flag(_)) && width.is_some();
        let is_off = unread && fields.value("use_sliding_window") == Some(&Value::Bool(false));
        let pattern = fields.value("sliding_window_pattern").filter(|pattern| !pattern.is_null());
        let is_other = pattern.is_some_and(|pattern| pattern.as_u64() != Some(2));
        let name = match () {
            () if is_off => "use_sliding_window",
            () if is_other => "sliding_window_pattern",
            () => return Ok(()),
        };
        let value = fields.value(name).map(super::fields::shown).unwrap_or_default();
        let message = format!(
            "`{name}` is {value}, which contradicts the windows of models of type `{}`",
            self.model_type
        );
        let hint = "transformers ignores the field: remove it, or set \"sliding_window\": null where no layer slides";
        Err(fields.error(ErrorKind::Config, message).with_hint(hint))
    }

    /// Whether the family's classes read the fields of windows.
    pub(super) fn reads_windows(&self) -> bool {
        !matches!(self.windows, WindowRule::Unread)
    }
}

/// A cap, which null turns off.
fn cap(fields: &Fields, name: &str, default: f64) -> Result<Option<f32>> {
    match fields.value(name) {
        Some(Value::Null) => Ok(None),
        _ => {
            let cap = fields.positive(name, Some(default))? as f32;
            if cap.is_normal() {
                Ok(Some(cap))
            } else {
                Err(fields.wrong(name, "a number in the range of f32"))
            }
        }
    }
}

/// The first layer with a window.
fn max_window_layers(fields: &Fields) -> Result<usize> {
    const NAME: &str = "max_window_layers";
    match fields.value(NAME) {
        None => Ok(28),
        Some(value) => {
            let layers = value.as_u64().and_then(|layers| usize::try_from(layers).ok());
            layers.ok_or_else(|| fields.wrong(NAME, "a number of layers"))
        }
    }
}

/// Whether each layer slides, where the file names the layers' types.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>> {
    const NAME: &str = "layer_types";
    let types = fields.texts(NAME)?;
    if fields.is_null(NAME) {
        return Ok(None);
    }
    if types.len() != layers {
        let message = format!("`{NAME}` names {} layers, but `num_hidden_layers` is {layers}", types.len());
        return Err(fields.error(ErrorKind::Config, message));
    }
    let slides = |name: &&str| match *name {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => {
            let message = format!("`{NAME}` names `{other}`: this changes rewards and is not implemented");
            Err(fields.error(ErrorKind::Unsupported, message))
        }
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}
