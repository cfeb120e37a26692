//! `generation_config.json`: not applied, with a warning where transformers would apply it.
//!
//! The reference reads a causal model's reward from `generate(..., output_scores=True)["scores"]`,
//! and `scores` are logits after the processors that this file switches on. A reward here is always
//! the raw logit.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::shown;
use super::head::Head;
use crate::error::ErrorKind;
use crate::files::read_text;

const GENERATION_BYTES_MAX: u64 = 4 << 20;

/// Processors that run whenever these fields are set, and the value without effect on scores, if
/// there is one.
const ALWAYS: &[(&str, Option<f64>)] = &[
    ("guidance_scale", Some(1.0)),
    ("sequence_bias", None),
    ("repetition_penalty", Some(1.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("bad_words_ids", None),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("exponential_decay_length_penalty", None),
    ("suppress_tokens", None),
    ("begin_suppress_tokens", None),
    ("watermarking_config", None),
    ("renormalize_logits", None),
    // Beam search turns logits into log-probabilities first.
    ("num_beams", Some(1.0)),
];

/// Processors that run only with `do_sample`.
const SAMPLING: &[(&str, Option<f64>)] = &[
    ("temperature", Some(1.0)),
    ("top_k", Some(0.0)),
    ("top_p", Some(1.0)),
    ("min_p", None),
    ("top_h", None),
    ("typical_p", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
];

/// transformers' `top_k` when sampling is on and the file does not set it.
const TOP_K_DEFAULT: u64 = 50;

/// Returns warnings about `dir/generation_config.json`: none, or one that names the fields with
/// which transformers' `scores` may differ from the reward. No reward depends on that file, so it
/// causes no error.
pub fn generation_warnings(dir: &Path, head: &Head) -> Vec<String> {
    let file = dir.join("generation_config.json");
    // A classifier's reward does not come from `generate`.
    if head.is_classifier() || !file.exists() {
        return Vec::new();
    }
    let text = match read_text(&file, GENERATION_BYTES_MAX, ErrorKind::Config) {
        Ok(text) => text,
        Err(error) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            return vec![format!("{} is ignored: {}{hint}", file.display(), error.message())];
        }
    };
    let Ok(values) = serde_json::from_str::<Map<String, Value>>(&text) else {
        return vec![format!("{} is ignored: it is not a JSON object", file.display())];
    };
    let effective = effective(&values);
    if effective.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "rewards are raw logits; with {} transformers' `generate` may return other `scores` (not applied here: {})",
        file.display(),
        effective.join(", ")
    )]
}

/// The fields that switch a processor on, as `name value`.
fn effective(values: &Map<String, Value>) -> Vec<String> {
    let set = |&(name, neutral): &(&str, Option<f64>)| {
        let value = values.get(name)?;
        let off = value.is_null()
            || *value == Value::Bool(false)
            || neutral.is_some_and(|neutral| value.as_f64() == Some(neutral));
        (!off).then(|| format!("{name} {}", shown(value)))
    };
    let mut found: Vec<String> = ALWAYS.iter().filter_map(set).collect();
    if values.get("do_sample") == Some(&Value::Bool(true)) {
        let mut sampling: Vec<String> = SAMPLING.iter().filter_map(set).collect();
        if values.get("top_k").is_none_or(Value::is_null) {
            sampling.push(format!("top_k {TOP_K_DEFAULT} by default"));
        }
        if !sampling.is_empty() {
            found.push("do_sample true".to_owned());
            found.append(&mut sampling);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generation_settings_that_alter_scores_are_warned_of_once() {
        let causal = Head::LogitZero { tied: false };
        let warnings = |settings: Value| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("generation_config.json");
            std::fs::write(&file, settings.to_string()).unwrap();
            let replaced = |text: String| text.replace(file.to_str().unwrap(), "FILE");
            generation_warnings(dir.path(), &causal).into_iter().map(replaced).collect::<Vec<_>>()
        };
        let silent = [
            json!({"bos_token_id": 128000, "do_sample": false, "eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9}),
            json!({"do_sample": true, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
            json!({"repetition_penalty": 1.0, "min_length": 0, "num_beams": 1, "suppress_tokens": null}),
        ];
        for settings in silent {
            assert_eq!(warnings(settings.clone()), [""; 0], "{settings}");
        }
        let warning = "rewards are raw logits; with FILE transformers' `generate` may return other `scores` (not applied here: ";
        let cases = [
            (
                json!({"do_sample": true, "temperature": 0.6, "top_k": 0, "top_p": 0.9}),
                "do_sample true, temperature 0.6, top_p 0.9)",
            ),
            (json!({"do_sample": true}), "do_sample true, top_k 50 by default)"),
            (
                json!({"repetition_penalty": 1.1, "suppress_tokens": [0]}),
                "repetition_penalty 1.1, suppress_tokens [0])",
            ),
            (json!({"forced_eos_token_id": 0}), "forced_eos_token_id 0)"),
        ];
        for (settings, fields) in cases {
            assert_eq!(warnings(settings), [format!("{warning}{fields}")]);
        }
        assert_eq!(warnings(json!([])), ["FILE is ignored: it is not a JSON object"]);

        // transformers 5.24.0 does not follow such a file either.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), "\u{feff}{}").unwrap();
        let warning = generation_warnings(dir.path(), &causal).remove(0);
        assert!(warning.contains(" is ignored: the file begins with a byte order mark, "), "{warning}");

        let dir = tempfile::tempdir().unwrap();
        assert!(generation_warnings(dir.path(), &causal).is_empty());
        std::fs::write(dir.path().join("generation_config.json"), r#"{"do_sample": true}"#).unwrap();
        assert!(
            generation_warnings(
                dir.path(),
                &Head::Score { labels: 1, labels_named: true, pad_token_id: None }
            )
            .is_empty()
        );
    }
}
