//! A checkpoint against `config.json`: every tensor that is needed is there as needed, and nothing else that counts.
//!
//! A tensor that nobody reads is refused, too, where transformers would warn and go on: a norm on q, an adapter, a
//! scale or a second head means that the model computes something else than we would. Excepted are the rotary
//! frequencies that old checkpoints store (they follow from `config.json`) and an `lm_head` beside a classifier's head.

use std::collections::BTreeSet;

use super::checkpoint::Checkpoint;
use super::header::Stored;
use super::table::{EMBEDDING, Entry, LAYER, LAYER_PREFIX, LM_HEAD, SCORE, When};
use super::{Dtype, MappedFile};
use crate::config::{Head, ModelConfig};
use crate::error::{Error, ErrorKind, Result};

const OTHER_MODEL: &str =
    "the weights and config.json are from different models; point `--model` at the folder they came from";

/// Checks names, then types, then shapes; returns warnings.
pub(super) fn check(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Vec<String>> {
    let mut needed: BTreeSet<String> = BTreeSet::new();
    let mut missing: Vec<String> = Vec::new();
    for (name, _) in Entry::of(config) {
        let source = head_source(checkpoint, config, &name);
        if checkpoint.find(&source).is_none() {
            missing.push(name);
        }
        needed.insert(source);
    }
    let extra: Vec<&str> = checkpoint.names().filter(|name| !needed.contains(*name)).collect();
    if let Some(name) = missing.first() {
        return Err(missing_error(checkpoint, config, name, missing.len(), &extra));
    }
    for name in extra {
        refuse_extra(checkpoint, config, name)?;
    }
    for (name, entry) in Entry::of(config) {
        let source = head_source(checkpoint, config, &name);
        let (file, stored) = checkpoint.find(&source).expect("checked above");
        check_dtype(file, stored)?;
        check_shape(config, entry, file, stored)?;
    }
    Ok(warnings(checkpoint, config))
}

/// Where a tensor is really read from. With tied embeddings, `lm_head` and the embedding table each stand in for the
/// other when one is missing. When both are there, both are used: transformers 5 ties them only if they are equal,
/// and then it makes no difference.
pub(super) fn head_source(checkpoint: &Checkpoint, config: &ModelConfig, name: &str) -> String {
    let there = |name: &str| checkpoint.find(name).is_some();
    let tied = config.head == Head::LogitZero { tied: true };
    match name {
        LM_HEAD if tied && !there(LM_HEAD) => EMBEDDING.to_owned(),
        EMBEDDING if tied && !there(EMBEDDING) && there(LM_HEAD) => LM_HEAD.to_owned(),
        _ => name.to_owned(),
    }
}

fn missing_error(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    name: &str,
    count: usize,
    extra: &[&str],
) -> Error {
    let mut message = format!("tensor `{name}` is missing");
    if count > 1 {
        message += &format!(", and {} more that config.json calls for", count - 1);
    }
    let hint = match (name, config.head) {
        (SCORE, _) => {
            "the checkpoint has no reward head, and one is never made up; if the reward is logit 0 of the last token, \
             set \"architectures\": [\"LlamaForCausalLM\"] in config.json"
                .to_owned()
        }
        (LM_HEAD, _) if extra.contains(&SCORE) => {
            "the reward head is `score.weight`: set \"architectures\": [\"LlamaForSequenceClassification\"] in config.json"
                .to_owned()
        }
        (LM_HEAD, _) => {
            "the checkpoint has no reward head, and one is never made up; if the embeddings are the head, set \
             \"tie_word_embeddings\": true in config.json"
                .to_owned()
        }
        _ => match extra.first() {
            Some(extra) => format!("{OTHER_MODEL} (they hold `{extra}`, which no such model has)"),
            None => OTHER_MODEL.to_owned(),
        },
    };
    Error::new(ErrorKind::Weights, message).at(checkpoint.dir().display()).with_hint(hint)
}

/// A tensor that the model does not need: an error, unless it is known to be harmless.
fn refuse_extra(checkpoint: &Checkpoint, config: &ModelConfig, name: &str) -> Result<()> {
    if name.ends_with("rotary_emb.inv_freq") || name == LM_HEAD {
        return Ok(());
    }
    let place = checkpoint.find(name).map_or(checkpoint.dir(), |(file, _)| file.path());
    let error = |kind, message: String| Error::new(kind, message).at(place.display());
    if name == SCORE {
        let message =
            format!("there is a classifier's head, `{SCORE}`, but config.json says `LlamaForCausalLM`");
        let hint = "if the reward comes from it, set \"architectures\": [\"LlamaForSequenceClassification\"]; \
                    if not, remove it from the checkpoint";
        return Err(error(ErrorKind::Weights, message).with_hint(hint));
    }
    let in_layer = name.strip_prefix(LAYER_PREFIX).and_then(|rest| rest.split_once('.'));
    if let Some((layer, rest)) = in_layer
        && let Some(entry) = LAYER.iter().find(|entry| entry.name == rest)
        && let Ok(layer) = layer.parse::<usize>()
    {
        let message = if entry.when.holds(config) {
            format!(
                "tensor `{name}` is of layer {layer}, but config.json says num_hidden_layers {}",
                config.layers
            )
        } else {
            format!("there is a bias `{name}`, but config.json says that there is none")
        };
        return Err(error(ErrorKind::Weights, message).with_hint(OTHER_MODEL));
    }
    let message =
        format!("tensor `{name}` is of no Llama model: its effect on the reward is not implemented");
    Err(error(ErrorKind::Unsupported, message)
        .with_hint("if the reward does not depend on it, remove it from the checkpoint"))
}

fn check_dtype(file: &MappedFile, stored: &Stored) -> Result<()> {
    if Dtype::from_stored(stored.dtype).is_some() {
        return Ok(());
    }
    let message = format!("tensor `{}` has dtype {}, expected BF16, F16 or F32", stored.name, stored.dtype);
    Err(Error::new(ErrorKind::Unsupported, message)
        .at(file.path().display())
        .with_hint("quantised weights are not implemented; use the bf16 or f16 weights of this model"))
}

fn check_shape(config: &ModelConfig, entry: &Entry, file: &MappedFile, stored: &Stored) -> Result<()> {
    let expected = entry.sizes(config);
    if stored.shape == expected {
        return Ok(());
    }
    let message = format!("tensor `{}` has shape {:?}, expected {expected:?}", stored.name, stored.shape);
    let words: Vec<String> = entry.shape.iter().map(|dim| dim.words(config)).collect();
    let hint = match (config.head, &*stored.shape, &*expected) {
        (Head::Score { labels_named: false, .. }, [labels @ 1..=usize::MAX, width], [_, expected_width])
            if entry.when == When::ScoreHead && width == expected_width =>
        {
            format!("config.json names no labels, which means 2; set \"num_labels\": {labels} in it")
        }
        _ => OTHER_MODEL.to_owned(),
    };
    Err(Error::new(ErrorKind::Weights, message)
        .at(format_args!("{} (config.json: {})", file.path().display(), words.join(", ")))
        .with_hint(hint))
}

fn warnings(checkpoint: &Checkpoint, config: &ModelConfig) -> Vec<String> {
    let mut warnings = checkpoint.warnings().to_vec();
    match (config.head, checkpoint.find(LM_HEAD), checkpoint.find(EMBEDDING)) {
        (Head::Score { .. }, Some(_), _) => {
            warnings.push(format!("`{LM_HEAD}` is not used: the reward comes from `{SCORE}`"));
        }
        (Head::LogitZero { tied: true }, Some(head), Some(embedding))
            if row_zero(config, head) != row_zero(config, embedding) =>
        {
            warnings.push(format!(
                "config.json says tie_word_embeddings, but `{LM_HEAD}` differs from the embeddings; `{LM_HEAD}` is \
                 used, as transformers 5 does (transformers 4 used the embeddings)"
            ));
        }
        _ => {}
    }
    warnings
}

/// The stored bytes of row 0 of a `[vocab, hidden]` matrix.
fn row_zero<'a>(
    config: &ModelConfig,
    (file, stored): (&'a std::sync::Arc<MappedFile>, &'a Stored),
) -> &'a [u8] {
    &file.bytes()[stored.bytes.clone()][..config.hidden * stored.dtype.bitsize() / 8]
}
