//! Checks a checkpoint against `config.json`: every needed tensor is there with its shape and
//! dtype, and no other.
//!
//! A tensor that the model does not use is refused, where transformers would only warn: a norm on
//! q, an adapter, a scale or a second head means that the model computes something else. Exceptions
//! are an `lm_head` beside a classifier's head, and the tensors that `names` ignores.

use std::collections::BTreeSet;

use super::checkpoint::Checkpoint;
use super::dtype::Dtype;
use super::header::Stored;
use super::map::MappedFile;
use super::names::foreign_prefix;
use super::table::{Dim, EMBEDDING, Entry, LM_HEAD, SCORE, SCORE_HIDDEN};
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
    if let Some(error) = missing.iter().find_map(|name| checkpoint.absent_error(name)) {
        return Err(
            error.with_hint("the index is of another download than the files; download the model again")
        );
    }
    let extra: Vec<&str> = checkpoint.names().filter(|name| !needed.contains(*name)).collect();
    if let Some(name) = missing.first() {
        return Err(missing_error(checkpoint, config, name, missing.len(), &extra));
    }
    // An index may list tied tensors that were saved once, or a head that is not used.
    let mut absent =
        checkpoint.absent().filter(|name| !needed.contains(*name) && ![LM_HEAD, EMBEDDING].contains(name));
    if let Some(error) = absent.find_map(|name| checkpoint.absent_error(name)) {
        return Err(error.with_hint(
            "download the model again; if the tensor was left out on purpose, remove it from the index, too",
        ));
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

/// Returns the name by which a tensor is read. With tied embeddings, `lm_head` and the embedding
/// table each stand in for the other when one is missing. When both are there, both are used, as in
/// transformers 5, which ties them only if they are equal.
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
    let mut message = format!("tensor `{}` is missing", checkpoint.spelled(name));
    if count > 1 {
        message += &format!(", and {} more that config.json calls for", count - 1);
    }
    let prefix = extra.iter().find_map(|extra| foreign_prefix(extra, name));
    let hint = match (name, config.head) {
        _ if let Some(prefix) = prefix => prefix_hint(checkpoint, prefix),
        (SCORE, _) if extra.contains(&SCORE_HIDDEN) => {
            "the reward head has a hidden layer: name its own class as \"architectures\" in config.json \
             (\"Qwen2ForRewardModel\" for qwen2 and \"INFORMForSequenceClassification\" for llama are implemented)"
                .to_owned()
        }
        (SCORE_HIDDEN, _) if extra.contains(&SCORE) => format!(
            "the reward head `{}` has no hidden layer: name the `...ForSequenceClassification` class as \
             \"architectures\" in config.json",
            checkpoint.spelled(SCORE)
        ),
        (SCORE | SCORE_HIDDEN, _) => {
            "the checkpoint has no reward head, and one is never made up; if the reward is logit 0 of the last token, \
             name the `...ForCausalLM` class as \"architectures\" in config.json"
                .to_owned()
        }
        (LM_HEAD, _) if extra.contains(&SCORE) => format!(
            "the reward head is `{}`: name the `...ForSequenceClassification` class as \"architectures\" in config.json",
            checkpoint.spelled(SCORE)
        ),
        (LM_HEAD, _) if extra.contains(&SCORE_HIDDEN) => format!(
            "the reward head is `{}`, with a hidden layer: name its own class as \"architectures\" in config.json",
            checkpoint.spelled(SCORE_HIDDEN)
        ),
        (LM_HEAD, _) => {
            "the checkpoint has no reward head, and one is never made up; if the embeddings are the head, set \
             \"tie_word_embeddings\": true in config.json"
                .to_owned()
        }
        _ => match extra.first() {
            Some(extra) => {
                format!("{OTHER_MODEL} (they hold `{}`, which no such model has)", checkpoint.spelled(extra))
            }
            None => OTHER_MODEL.to_owned(),
        },
    };
    Error::new(ErrorKind::Weights, message).at(checkpoint.dir().display()).with_hint(hint)
}

/// Returns the hint for names of the model behind a prefix that transformers does not strip.
fn prefix_hint(checkpoint: &Checkpoint, prefix: &str) -> String {
    let stored = || checkpoint.names().map(|name| checkpoint.spelled(name));
    let (with, all) = (stored().filter(|name| name.starts_with(prefix)).count(), stored().count());
    let names = match with == all {
        true => format!("every name begins with `{prefix}`"),
        false => format!("{with} of {all} names begin with `{prefix}`"),
    };
    format!("{names}: rename the tensors without it, or save the model without the wrapper that adds it")
}

/// Refuses a tensor that the model does not need, unless it is known to be harmless.
fn refuse_extra(checkpoint: &Checkpoint, config: &ModelConfig, name: &str) -> Result<()> {
    if name == LM_HEAD {
        return Ok(());
    }
    let place = checkpoint.find(name).map_or(checkpoint.dir(), |(file, _)| file.path());
    let error = |kind, message: String| Error::new(kind, message).at(place.display());
    let stored_name = checkpoint.spelled(name);
    if name == SCORE || name == SCORE_HIDDEN {
        let named = if config.head.is_classifier() { "another head" } else { "a causal model" };
        let message = format!("there is a classifier's head, `{stored_name}`, but config.json names {named}");
        let hint = "if the reward comes from it, name its class as \"architectures\" (`...ForSequenceClassification` \
                    for a head without a hidden layer); if not, remove it from the checkpoint";
        return Err(error(ErrorKind::Weights, message).with_hint(hint));
    }
    let message = match Entry::find(name) {
        Some((_, Some(layer))) if layer >= config.layers => Some(format!(
            "tensor `{stored_name}` is of layer {layer}, but config.json says num_hidden_layers {}",
            config.layers
        )),
        Some(_) if name.ends_with(".bias") => {
            Some(format!("there is a bias `{stored_name}`, but config.json says that there is none"))
        }
        _ => None,
    };
    if let Some(message) = message {
        return Err(error(ErrorKind::Weights, message).with_hint(OTHER_MODEL));
    }
    let message = format!(
        "tensor `{stored_name}` is of no model of this type: its effect on the reward is not implemented"
    );
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
        (
            Head::Score { labels_named: false, .. } | Head::ScoreMlp { labels_named: false, .. },
            [labels @ 1..=usize::MAX, width],
            [_, expected_width],
        ) if entry.shape[0] == Dim::Labels && width == expected_width => {
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
    let spelled = |name| checkpoint.spelled(name);
    match (config.head, checkpoint.find(LM_HEAD), checkpoint.find(EMBEDDING)) {
        (Head::Score { .. } | Head::ScoreMlp { .. }, Some(_), _) => warnings.push(format!(
            "`{}` is not used: the reward comes from `{}`",
            spelled(LM_HEAD),
            spelled(if matches!(config.head, Head::Score { .. }) { SCORE } else { SCORE_HIDDEN })
        )),
        (Head::LogitZero { tied: true }, Some(head), Some(embedding))
            if row_zero(config, head) != row_zero(config, embedding) =>
        {
            warnings.push(format!(
                "config.json says tie_word_embeddings, but `{name}` differs from the embeddings; `{name}` is \
                 used, as transformers 5 does (transformers 4 used the embeddings)",
                name = spelled(LM_HEAD)
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
