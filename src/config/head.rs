//! The head that computes the reward: the one that `architectures` names, and a classifier's labels
//! and padding.

use serde_json::Value;

use super::architecture::Architecture;
use super::fields::Fields;
use crate::error::{ErrorKind, Result};

/// Classes of published reward models whose heads are something else, and what they are.
const OTHER_HEADS: [(&str, &str); 8] = [
    (
        "LlamaForRewardModelWithGating",
        "its reward is a mixture of objectives, which a gate weighs by the prompt",
    ),
    (
        "LlamaForRewardModelWithGating31",
        "its reward is a mixture of quantiles, which a gate weighs by the prompt",
    ),
    (
        "Gemma2ForRewardModelWithGating",
        "its reward is a mixture of objectives, which a gate weighs by the prompt",
    ),
    ("Qwen2ForProcessRewardModel", "it scores every step of a solution, not the whole"),
    ("LlamaForProcessRewardModel", "it scores every step of a solution, not the whole"),
    ("LlamaForTokenClassification", "it scores every token, not the conversation"),
    ("Qwen2ForTokenClassification", "it scores every token, not the conversation"),
    ("Qwen3ForTokenClassification", "it scores every token, not the conversation"),
];

const LABELS_MAX: usize = 1 << 16;

/// Labels of a classifier whose config does not give their number.
const LABELS_DEFAULT: usize = 2;

/// The head that computes the reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A causal language model: row 0 of `lm_head`, or of the embeddings when they are tied, at the
    /// last token.
    LogitZero {
        /// True if `lm_head` is the embedding table.
        tied: bool,
    },
    /// A sequence classifier: `score.weight` `[labels, hidden]` at the rightmost token that is not
    /// `pad_token_id`.
    Score {
        /// Rows of `score.weight`.
        labels: usize,
        /// True if the config gives their number; otherwise it is 2, as for transformers.
        labels_named: bool,
        /// Padding, which is never the scored token, if the config names it.
        pad_token_id: Option<u32>,
    },
    /// A sequence classifier with a hidden layer, `score.2 * relu(score.0 * x)` with biases, at the
    /// token before the first that is `pad_token_id`.
    ScoreMlp {
        /// Rows of `score.2.weight`.
        labels: usize,
        /// True if the config gives their number, or the class does.
        labels_named: bool,
        /// Padding, before which the scored token lies, if the config names it.
        pad_token_id: Option<u32>,
    },
}

/// Mean and deviation of rewards, by which one is normalised: `(reward - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// The mean of rewards.
    pub mean: f32,
    /// Their standard deviation.
    pub std: f32,
}

impl Head {
    /// Returns the index of the token whose logits are the reward, in a sequence of at least one:
    /// the last one; for a classifier the rightmost one that is not padding, or the first if all
    /// are padding, as in transformers. For one with a hidden layer, whose code is older, that
    /// before the first padding, or the last one where the first token is padding, or none is.
    pub fn scored_token(&self, ids: &[u32]) -> usize {
        match self {
            Self::Score { pad_token_id: Some(pad), .. } => ids.iter().rposition(|id| id != pad).unwrap_or(0),
            Self::ScoreMlp { pad_token_id: Some(pad), .. } => {
                let first = ids.iter().position(|id| id == pad).unwrap_or(0);
                first.checked_sub(1).unwrap_or(ids.len() - 1)
            }
            Self::Score { pad_token_id: None, .. }
            | Self::ScoreMlp { pad_token_id: None, .. }
            | Self::LogitZero { .. } => ids.len() - 1,
        }
    }

    /// True for a head other than that of a language model.
    pub fn is_classifier(&self) -> bool {
        !matches!(self, Self::LogitZero { .. })
    }

    /// Padding, if the reward depends on it.
    pub fn pad_token_id(&self) -> Option<u32> {
        match *self {
            Self::LogitZero { .. } => None,
            Self::Score { pad_token_id, .. } | Self::ScoreMlp { pad_token_id, .. } => pad_token_id,
        }
    }
}

/// Classes that are no part of transformers, whose code is known: the family that they extend, and
/// their number of labels, where that is theirs and not the config's.
const KNOWN_CLASSES: [(&str, &str, Option<usize>); 2] =
    [("Qwen2ForRewardModel", "Qwen2", Some(1)), ("INFORMForSequenceClassification", "Llama", None)];

/// Whether the config names one of [`KNOWN_CLASSES`], whose code need not be read, or of
/// [`OTHER_HEADS`], which are refused as what they are.
pub(super) fn names_class(fields: &Fields) -> bool {
    let names = fields.texts("architectures").unwrap_or_default();
    let known = KNOWN_CLASSES.iter().map(|(class, ..)| class);
    known.chain(OTHER_HEADS.iter().map(|(class, _)| class)).any(|class| names == [*class])
}

/// Reads how rewards are normalised, which OpenRLHF keeps in a model's config.
pub(super) fn normalization(fields: &Fields) -> Result<Option<Normalization>> {
    if fields.is_null("normalize_reward") || !fields.flag("normalize_reward")? {
        return Ok(None);
    }
    if fields.value("mean").is_none() != fields.value("std").is_none() {
        let message = "`normalize_reward` needs both of `mean` and `std`, or neither, for 0 and 1";
        return Err(fields.error(ErrorKind::Config, message));
    }
    let mean = match fields.value("mean") {
        None => 0.0,
        Some(value) => value.as_f64().ok_or_else(|| fields.wrong("mean", "a number"))?,
    };
    let (mean, std) = (mean as f32, fields.positive("std", Some(1.0))? as f32);
    if mean.is_finite() && std.is_normal() {
        return Ok(Some(Normalization { mean, std }));
    }
    Err(fields.error(ErrorKind::Config, "`mean` and `std` are outside the range of f32"))
}

/// Reads the head from `architectures`. The two heads give different rewards, and a checkpoint can
/// hold the tensors of both: a config that names neither is refused.
pub(super) fn head(fields: &Fields, family: &Architecture, vocab: usize) -> Result<Head> {
    let classes = family.classes;
    let hint = format!(
        "set \"architectures\": [\"{classes}ForCausalLM\"] when the reward is logit 0 of the last token, \
         [\"{classes}ForSequenceClassification\"] when it comes from `score.weight`"
    );
    let names = fields.texts("architectures")?;
    let known = KNOWN_CLASSES.iter().find(|(class, of, _)| names == [*class] && *of == classes);
    if let Some((_, _, fixed)) = known {
        let named = fixed.map_or_else(|| labels(fields), |labels| Ok(Some(labels)))?;
        return Ok(Head::ScoreMlp {
            labels: named.unwrap_or(LABELS_DEFAULT),
            labels_named: named.is_some(),
            pad_token_id: pad_token_id(fields, family.pad_token_id, vocab)?,
        });
    }
    let kinds: Vec<&str> = names.iter().map(|name| name.strip_prefix(classes).unwrap_or_default()).collect();
    match kinds.as_slice() {
        ["ForCausalLM"] => {
            let absent = family.tied && fields.value("tie_word_embeddings").is_none();
            Ok(Head::LogitZero { tied: absent || fields.flag("tie_word_embeddings")? })
        }
        ["ForSequenceClassification"] => {
            let named = labels(fields)?;
            Ok(Head::Score {
                labels: named.unwrap_or(LABELS_DEFAULT),
                labels_named: named.is_some(),
                pad_token_id: pad_token_id(fields, family.pad_token_id, vocab)?,
            })
        }
        [] => {
            let message = "`architectures` is missing, which names the head that computes the reward";
            Err(fields.error(ErrorKind::Config, message).with_hint(hint))
        }
        [_] => {
            let mut known = vec![format!("`{classes}ForCausalLM`")];
            let of_family = KNOWN_CLASSES.iter().filter(|(_, of, _)| *of == classes);
            known.extend(of_family.map(|(class, ..)| format!("`{class}`")));
            let mut message = format!(
                "architecture `{}` is not implemented ({} and `{classes}ForSequenceClassification` are)",
                names[0],
                known.join(", ")
            );
            if let Some((_, what)) = OTHER_HEADS.iter().find(|(class, _)| *class == names[0]) {
                message = format!("architecture `{}` is not implemented: {what}", names[0]);
            }
            Err(fields.error(ErrorKind::Unsupported, message))
        }
        several => {
            let message = format!("`architectures` names {} classes, expected one", several.len());
            Err(fields.error(ErrorKind::Config, message).with_hint(hint))
        }
    }
}

/// Returns the number of labels, if the config gives it. transformers stores no `num_labels`, and
/// counts `id2label`.
fn labels(fields: &Fields) -> Result<Option<usize>> {
    let named = match fields.value("id2label") {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) if (1..=LABELS_MAX).contains(&map.len()) => Some(map.len()),
        Some(_) => return Err(fields.wrong("id2label", "an object with one entry per label")),
    };
    let counted = match fields.is_null("num_labels") {
        true => None,
        false => Some(fields.count("num_labels", None, LABELS_MAX)?),
    };
    match (named, counted) {
        (Some(named), Some(counted)) if named != counted => Err(fields.error(
            ErrorKind::Config,
            format!("`id2label` has {named} entries, but `num_labels` is {counted}"),
        )),
        (named, counted) => Ok(named.or(counted)),
    }
}

/// Reads `pad_token_id`; `absent` where there is no such field. A negative id (-1 in old configs)
/// names no token.
fn pad_token_id(fields: &Fields, absent: Option<u32>, vocab: usize) -> Result<Option<u32>> {
    let Some(value) = fields.value("pad_token_id") else { return Ok(absent) };
    if value.is_null() {
        return Ok(None);
    }
    match value.as_i64() {
        Some(id) if id < 0 => Ok(None),
        Some(id) if (id as u64) < vocab as u64 => Ok(Some(id as u32)),
        _ => Err(fields.wrong("pad_token_id", &format!("a token id below `vocab_size` {vocab}"))),
    }
}
