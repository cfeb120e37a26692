//! Spellings of the table's names in checkpoints, as transformers reads them.
//!
//! A checkpoint that was saved from the inner model lacks the table's `model.`, one that was saved
//! from a wrapper has it once more; transformers (`rename_source_key`) loads all three, and tensor
//! by tensor, so that one checkpoint may mix them. With any other prefix it warns and initialises
//! the weights at random; here that is an error.

use super::header::Stored;
use super::table::{BASE_PREFIX, Entry};

/// A spelling of the table's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `norm.weight`, `lm_head.weight`: without the prefix of the table.
    Bare,
    /// `model.norm.weight`, `lm_head.weight`: as in the table.
    Table,
    /// `model.model.norm.weight`, `model.lm_head.weight`: with the prefix once more.
    Wrapped,
}

impl Spelling {
    /// A name of the table in this spelling.
    pub(super) fn of(self, name: &str) -> String {
        match self {
            Self::Bare => name.strip_prefix(BASE_PREFIX).unwrap_or(name).to_owned(),
            Self::Table => name.to_owned(),
            Self::Wrapped => format!("{BASE_PREFIX}{name}"),
        }
    }
}

/// Returns the table's name for a tensor of a checkpoint, and its spelling there; `None` when no
/// model has it.
pub(super) fn resolve(stored: &str) -> Option<(String, Spelling)> {
    let known = |name: String, spelling| Entry::find(&name).map(|_| (name, spelling));
    known(stored.to_owned(), Spelling::Table)
        .or_else(|| known(stored.strip_prefix(BASE_PREFIX)?.to_owned(), Spelling::Wrapped))
        .or_else(|| known(format!("{BASE_PREFIX}{stored}"), Spelling::Bare))
}

/// Returns the part of a stored name before some spelling of the table's `name`, with its dot;
/// `None` where it ends in no such spelling.
pub(super) fn foreign_prefix<'a>(stored: &'a str, name: &str) -> Option<&'a str> {
    let ends = stored.match_indices('.').map(|(dot, _)| dot + 1);
    ends.map(|end| stored.split_at(end))
        .find(|(_, rest)| resolve(rest).is_some_and(|(found, _)| found == name))
        .map(|(prefix, _)| prefix)
}

/// Returns true for a tensor that is ignored, as by transformers: it follows from `config.json`, or
/// is empty.
pub(super) fn is_ignored(stored: &Stored) -> bool {
    follows_from_config(&stored.name) || (is_extra_state(&stored.name) && stored.bytes.is_empty())
}

/// Like [`is_ignored`], for a tensor that an index lists and no file holds.
pub(super) fn is_ignored_if_absent(name: &str) -> bool {
    follows_from_config(name) || is_extra_state(name)
}

/// Buffers that old versions of transformers stored with the weights: the frequencies, sines and
/// cosines of the rotary embedding, the positions from 0, and the constant of masked attention
/// scores.
fn follows_from_config(name: &str) -> bool {
    let mut components = name.rsplit('.');
    match components.next() {
        Some("inv_freq" | "original_inv_freq" | "cos_cached" | "sin_cached") => {
            components.next() == Some("rotary_emb")
        }
        Some("masked_bias" | "position_ids") => true,
        _ => false,
    }
}

/// The state that Transformer Engine keeps with a module; empty unless it computes in 8 bits.
fn is_extra_state(name: &str) -> bool {
    name.rsplit('.').next() == Some("_extra_state")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_as_transformers_renames_them() {
        use Spelling::{Bare, Table, Wrapped};
        let cases = [
            ("model.norm.weight", Some(("model.norm.weight", Table))),
            ("norm.weight", Some(("model.norm.weight", Bare))),
            ("model.model.norm.weight", Some(("model.norm.weight", Wrapped))),
            ("layers.11.mlp.up_proj.bias", Some(("model.layers.11.mlp.up_proj.bias", Bare))),
            ("model.model.layers.0.mlp.up_proj.weight", Some(("model.layers.0.mlp.up_proj.weight", Wrapped))),
            ("lm_head.weight", Some(("lm_head.weight", Table))),
            ("model.lm_head.weight", Some(("lm_head.weight", Wrapped))),
            ("model.score.weight", Some(("score.weight", Wrapped))),
            ("model.model.model.norm.weight", None),
            ("model.model.lm_head.weight", None),
            ("module.model.norm.weight", None),
            ("layers.0.self_attn.q_norm.weight", Some(("model.layers.0.self_attn.q_norm.weight", Bare))),
            ("layers.0.self_attn.sinks", None),
            ("layers.00.mlp.up_proj.weight", None),
            ("layers.+1.mlp.up_proj.weight", None),
            ("layers.mlp.up_proj.weight", None),
            ("model.", None),
            ("", None),
        ];
        for (stored, expected) in cases {
            let expected = expected.map(|(name, spelling)| (name.to_owned(), spelling));
            assert_eq!(resolve(stored), expected, "{stored}");
            if let Some((name, spelling)) = expected {
                assert_eq!(spelling.of(&name), *stored);
            }
        }
    }

    #[test]
    fn the_prefix_before_a_known_name_is_found_without_a_list() {
        const NORM: &str = "model.norm.weight";
        let cases = [
            ("module.model.norm.weight", NORM, Some("module.")),
            ("module.norm.weight", NORM, Some("module.")),
            ("_orig_mod.model.norm.weight", NORM, Some("_orig_mod.")),
            ("base_model.model.model.norm.weight", NORM, Some("base_model.")),
            ("model.language_model.norm.weight", NORM, Some("model.language_model.")),
            ("a.b.c.score.weight", "score.weight", Some("a.b.c.")),
            ("a.score.weight", NORM, None),
            ("norm.weight", NORM, None),
            ("a.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight", None),
            ("post_norm.weight", NORM, None),
        ];
        for (stored, name, prefix) in cases {
            assert_eq!(foreign_prefix(stored, name), prefix, "{stored}");
        }
    }

    #[test]
    fn only_buffers_and_empty_states_are_ignored() {
        let ignored = |name: &str, bytes: usize| {
            let dtype = safetensors::Dtype::U8;
            is_ignored(&Stored { name: name.to_owned(), dtype, shape: vec![bytes], bytes: 8..8 + bytes })
        };
        let names = [
            "rotary_emb.inv_freq",
            "model.rotary_emb.original_inv_freq",
            "layers.0.self_attn.rotary_emb.cos_cached",
            "model.layers.0.self_attn.rotary_emb.sin_cached",
            "model.layers.0.self_attn.masked_bias",
            "model.position_ids",
        ];
        for name in names {
            assert!(ignored(name, 4) && is_ignored_if_absent(name), "{name}");
        }
        let others = [
            "model.layers.0.self_attn.bias",
            "model.layers.0.self_attn.masked_bias.weight",
            "model.layers.0.self_attn.unmasked_bias",
            "model.layers.0.self_attn.inv_freq",
            "model.local_rotary_emb.inv_freq",
            "model.rotary_emb.weight",
            "model.rotary_emb.inv_freq.scale",
            "model.position_ids.weight",
        ];
        for name in others {
            assert!(!ignored(name, 4) && !ignored(name, 0) && !is_ignored_if_absent(name), "{name}");
        }
        let state = "model.layers.0.self_attn._extra_state";
        assert!(ignored(state, 0) && !ignored(state, 1) && is_ignored_if_absent(state));
    }
}
