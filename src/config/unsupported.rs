//! The fields that change the reward of some decoder and are not implemented, or not for all
//! families.
//!
//! transformers ignores most of them in the config of a family whose classes have no such feature.
//! Such a config was written for other code, and a reward that silently lacks a feature is worse
//! than none. A field that is not listed is taken to be harmless: a list of everything harmless
//! would refuse each config with a private note in it.

use serde_json::Value;

use super::architecture::Architecture;
use super::fields::{Fields, shown};
use crate::error::{ErrorKind, Result};

/// Values of a field without effect, beside null, false, and empty strings, lists and objects.
enum Neutral {
    /// Only those.
    Unset,
    /// Also this number.
    Number(f64),
    /// Also this string, or a list of nothing else.
    Word(&'static [&'static str]),
}
use Neutral::{Number, Unset, Word};

const UNIMPLEMENTED: &[(&str, Neutral)] = &[
    // Other arithmetic of the blocks.
    ("hidden_act", Word(&["silu", "swish"])),
    ("hidden_activation", Word(&["silu", "swish"])),
    ("activation_function", Word(&["silu", "swish"])),
    ("mlp_layer_types", Word(&["dense"])),
    ("parallel_residual", Unset),
    ("use_parallel_residual", Unset),
    ("block_configs", Unset),
    ("per_layer_config", Unset),
    ("pruned_heads", Unset),
    ("is_encoder_decoder", Unset),
    ("add_cross_attention", Unset),
    ("num_experts", Number(0.0)),
    ("num_local_experts", Number(0.0)),
    ("n_routed_experts", Number(0.0)),
    // Other attention.
    ("layer_types", Word(&["full_attention"])),
    ("attention_chunk_size", Unset),
    ("attn_temperature_tuning", Unset),
    ("use_bidirectional_attention", Unset),
    ("alibi", Unset),
    ("clip_qkv", Unset),
    ("qk_norm", Unset),
    ("use_qk_norm", Unset),
    ("qk_layernorm", Unset),
    ("query_pre_attn_scalar", Unset),
    ("attn_logit_softcapping", Unset),
    ("final_logit_softcapping", Unset),
    // Other positions.
    ("partial_rotary_factor", Number(1.0)),
    ("rotary_pct", Number(1.0)),
    ("rope_interleaved", Unset),
    ("no_rope_layers", Unset),
    ("no_rope_layer_interval", Unset),
    // Scalings of the residual stream and of logits (Granite, Cohere, MiniCPM).
    ("attention_multiplier", Unset),
    ("embedding_multiplier", Number(1.0)),
    ("residual_multiplier", Number(1.0)),
    ("logits_scaling", Number(1.0)),
    ("logit_scale", Number(1.0)),
    ("scale_emb", Number(1.0)),
    ("scale_depth", Unset),
    ("dim_model_base", Unset),
    // Other weights than those in model.safetensors, and other code than transformers' own.
    ("quantization_config", Unset),
    ("compression_config", Unset),
    ("transformers_weights", Unset),
    ("auto_map", Unset),
];

/// [`ErrorKind::Unsupported`], naming the first field of the list that has an effect.
pub(super) fn refuse_unimplemented(fields: &Fields, family: &Architecture) -> Result<()> {
    for (name, neutral) in UNIMPLEMENTED {
        let is_read = family.reads.contains(name) || *name == "auto_map" && super::head::names_class(fields);
        if !is_read && fields.value(name).is_some_and(|value| !neutral.covers(value)) {
            return Err(refusal(fields, name));
        }
    }
    if family.reads_windows() {
        return Ok(());
    }
    // A window is off when the flag beside it is false, whatever its width.
    let window_off = fields.value("use_sliding_window") == Some(&Value::Bool(false));
    if !window_off && fields.value("sliding_window").is_some_and(|value| !Unset.covers(value)) {
        return Err(refusal(fields, "sliding_window"));
    }
    Ok(())
}

fn refusal(fields: &Fields, name: &str) -> crate::error::Error {
    let value = fields.value(name).map(shown).unwrap_or_default();
    let error = fields.error(
        ErrorKind::Unsupported,
        format!("`{name}` is {value}: this changes rewards and is not implemented"),
    );
    match name {
        "quantization_config" | "compression_config" => {
            error.with_hint("use the bf16 or f16 weights of this model")
        }
        "auto_map" => error.with_hint(
            "the model brings its own code; remove `auto_map` if it computes what transformers does",
        ),
        _ => error,
    }
}

impl Neutral {
    fn covers(&self, value: &Value) -> bool {
        match (value, self) {
            (Value::Null | Value::Bool(false), _) => true,
            (Value::Object(map), _) => map.is_empty(),
            (Value::Array(items), Word(_)) => items.iter().all(|item| item.is_string() && self.covers(item)),
            (Value::Array(items), _) => items.is_empty(),
            (Value::String(text), Word(words)) => text.is_empty() || words.contains(&text.as_str()),
            (Value::String(text), _) => text.is_empty(),
            (Value::Number(number), Number(neutral)) => number.as_f64() == Some(*neutral),
            _ => false,
        }
    }
}
