//! Errors of the command and their messages: each case is the demo model with one fault.

use crate::common;

use std::fs;
use std::path::Path;

use common::{Run, demo_model, kudos, rewrite_tensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Returns a copy of the demo model, for a test to damage.
fn copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn edit_config(edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = copy();
    edit_json(&dir.path().join("config.json"), edit);
    dir
}

fn score(dir: &Path) -> Run {
    kudos(&["score", "--model", dir.to_str().unwrap(), "--prompt", "What is 1+1?", "--response", "1+1=2"], "")
}

fn score_lines(dir: &Path, options: &[&str], input: &str) -> Run {
    let arguments = [&["score", "--model", dir.to_str().unwrap(), "-"], options].concat();
    kudos(&arguments, input)
}

/// Asserts that the run failed with status 2, wrote no data, and reported all of `words`.
#[track_caller]
fn assert_refused(run: &Run, words: &[&str]) {
    assert_eq!(run.status, Some(2), "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    assert!(run.stderr.contains("error: "), "{run:?}");
    assert!(!run.stderr.contains("panicked"), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "`{word}` is not in: {}", run.stderr);
    }
}

/// Asserts that line `index` of the output is an error of `kind` with all of `words`, and the
/// status 1.
#[track_caller]
fn assert_line_refused(run: &Run, index: usize, kind: &str, words: &[&str]) {
    assert_eq!(run.status, Some(1), "{run:?}");
    let line: Value = serde_json::from_str(run.stdout.lines().nth(index).expect("a line")).unwrap();
    assert_eq!(line["error"]["kind"], kind, "{line}");
    let text = line["error"].to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    assert_refused(&score(Path::new("no/such/folder/here")), &["no/such/folder/here", "hint: "]);
    assert_refused(&score(Path::new("owner/unknown-model")), &["owner/unknown-model", "hint: "]);
}

#[test]
fn a_missing_config_is_named() {
    let dir = copy();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_refused(&score(dir.path()), &["config.json"]);
}

#[test]
fn missing_weights_are_named() {
    let dir = copy();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_refused(&score(dir.path()), &["model.safetensors", "hint: "]);
}

#[test]
fn a_missing_shard_is_named() {
    let dir = copy();
    let names = rewrite_tensors(&dir.path().join("model.safetensors"), |_| {});
    fs::rename(dir.path().join("model.safetensors"), dir.path().join("model-00001-of-00002.safetensors"))
        .unwrap();
    let last = names.len() - 1;
    let map: serde_json::Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            (
                name.clone(),
                json!(format!("model-0000{}-of-00002.safetensors", 1 + usize::from(index == last))),
            )
        })
        .collect();
    fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string())
        .unwrap();
    assert_refused(&score(dir.path()), &["model-00002-of-00002.safetensors"]);
}

#[test]
fn a_truncated_file_is_named() {
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    assert_refused(&score(dir.path()), &["model.safetensors", "hint: "]);
}

#[test]
fn a_wrong_shape_is_reported_with_the_expected_one() {
    let dir = edit_config(|config| {
        config["intermediate_size"] = json!(config["intermediate_size"].as_u64().unwrap() * 2)
    });
    assert_refused(&score(dir.path()), &["gate_proj.weight", "expected [", "model.safetensors", "hint: "]);
}

#[test]
fn a_wrong_dtype_names_the_tensor() {
    let dir = copy();
    rewrite_tensors(&dir.path().join("model.safetensors"), |header| {
        header["model.norm.weight"]["dtype"] = json!("I16");
    });
    assert_refused(&score(dir.path()), &["model.norm.weight", "I16"]);
}

#[test]
fn an_unknown_architecture_is_named() {
    let dir = edit_config(|config| {
        config["architectures"] = json!(["MambaForCausalLM"]);
        config["model_type"] = json!("mamba");
    });
    assert_refused(&score(dir.path()), &["mamba", "config.json"]);
}

#[test]
fn an_unknown_rope_type_is_named() {
    for key in ["rope_scaling", "rope_parameters"] {
        let dir = edit_config(|config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config[key] = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0});
        });
        assert_refused(&score(dir.path()), &["yarn", "config.json"]);
    }
}

#[test]
fn a_missing_head_is_refused() {
    let dir = edit_config(|config| {
        config["architectures"] = json!(["LlamaForSequenceClassification"]);
        config["id2label"] = json!({"0": "LABEL_0"});
    });
    assert_refused(&score(dir.path()), &["score.weight"]);
}

#[test]
fn a_missing_chat_template_is_named() {
    let dir = copy();
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    edit_json(&dir.path().join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    assert_refused(&score(dir.path()), &["chat template", "hint: ", "chat_template.jinja"]);
}

#[test]
fn token_ids_are_scored_without_tokenizer_and_template() {
    let dir = copy();
    for name in ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let run = score_lines(dir.path(), &[], "{\"input_ids\": [1, 2, 3]}\n");
    assert_eq!(run.status, Some(0), "{run:?}");
    let run = score_lines(dir.path(), &[], "{\"prompt\": \"a\", \"response\": \"b\"}\n");
    assert_refused(&run, &["chat template"]);
}

#[test]
fn nan_weights_are_an_error_of_the_conversation() {
    let dir = copy();
    rewrite_tensors(&dir.path().join("model.safetensors"), |_| {});
    common::poison_tensor(&dir.path().join("model.safetensors"), "model.norm.weight");
    let run = score_lines(dir.path(), &[], "{\"prompt\": \"a\", \"response\": \"b\"}\n");
    assert_line_refused(&run, 0, "non_finite", &["NaN"]);
}

#[test]
fn a_missing_input_is_named_with_a_hint() {
    let run = kudos(&["score", "--model", demo_model().to_str().unwrap(), "no-such-file.jsonl"], "");
    assert_refused(&run, &["cannot open the input", "no-such-file.jsonl", "hint: name files"]);
}

#[test]
fn bad_lines_are_errors_and_the_others_are_scored() {
    let lines = [
        r#"{"id": "good", "prompt": "What is 1+1?", "response": "1+1=2"}"#,
        r#"{"id": "torn", "prompt": "#,
        r#"[1, 2]"#,
        r#"{"id": "nothing"}"#,
        r#"{"id": "both", "messages": [], "prompt": "x"}"#,
        r#"{"id": "empty", "messages": []}"#,
        r#"{"id": "no role", "messages": [{"content": "x"}]}"#,
        r#"{"id": "number", "messages": [{"role": "user", "content": 7}]}"#,
        r#"{"id": "ids", "input_ids": [1, -1]}"#,
        r#"{"id": "vocabulary", "input_ids": [1, 4000000]}"#,
        r#"{"id": "no ids", "input_ids": []}"#,
        r#"{"id": "good too", "prompt": "What is 1+1?", "responses": ["1+1=3", "1+1=2"]}"#,
    ];
    let run = score_lines(&demo_model(), &[], &lines.join("\n"));
    assert_eq!(run.stdout.lines().count(), lines.len(), "{run:?}");
    let expected = [
        (1, "not JSON", "input line 2"),
        (2, "a list", "line 3"),
        (3, "neither", "line 4"),
        (4, "`messages` does not begin with `prompt`", "line 5"),
        (5, "message", "line 6"),
        (6, "message 0", "line 7"),
        (7, "message 0", "line 8"),
        (8, "input_ids", "line 9"),
        (9, "4000000", "vocabulary"),
        (10, "no tokens", ""),
    ];
    assert_line_refused(&run, 1, "invalid_input", &["hint", "each line holds one whole JSON object"]);
    for (index, word, place) in expected {
        assert_line_refused(&run, index, "invalid_input", &[word, place]);
    }
    assert!(run.stderr.contains("10 of 12 lines"), "{run:?}");
    let last: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["id"], &last["best"]), (&json!("good too"), &json!(1)));
}

#[test]
fn an_over_long_conversation_is_refused_or_truncated() {
    let line = r#"{"prompt": "What is 1+1?", "response": "1+1=2"}"#;
    let run = score_lines(&demo_model(), &["--max-tokens", "9"], line);
    assert_line_refused(&run, 0, "too_long", &["9", "tokens"]);
    let run = score_lines(&demo_model(), &["--max-tokens", "9", "--truncate", "left"], line);
    let result: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&result["tokens"], &result["truncated"]), (&json!(9), &json!(true)), "{run:?}");
}

#[test]
fn a_doubled_bos_is_refused() {
    let dir = copy();
    let template = fs::read_to_string(dir.path().join("chat_template.jinja")).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), format!("{{{{ bos_token }}}}{template}")).unwrap();
    let run = score_lines(dir.path(), &[], r#"{"prompt": "a", "response": "b"}"#);
    assert_line_refused(&run, 0, "invalid_input", &["beginning-of-text", "twice"]);
}

#[test]
fn impossible_options_are_refused() {
    let model = demo_model();
    let one = r#"{"input_ids": [1]}"#;
    assert_refused(&score_lines(&model, &["--ranks", "3"], one), &["3 ranks", "1, 2, 4"]);
    assert_refused(&score_lines(&model, &["--ranks", "0"], one), &["0 ranks"]);
    assert_refused(&score_lines(&model, &["--threads", "0"], one), &["0 were requested"]);
    let of_gpus = score_lines(&model, &["--device", "cpu", "--devices", "0"], one);
    let message = "`--devices` is an option of GPUs, and `--device cpu` was given";
    assert_refused(&of_gpus, &[message, "hint: leave out one of the two"]);
    let of_cpu = score_lines(&model, &["--device", "cuda", "--threads", "1"], one);
    let message = "`--threads` is an option of the CPU, and `--device cuda` was given";
    assert_refused(&of_cpu, &[message, "hint: leave out one of the two"]);
    assert_refused(&score_lines(&model, &["--batch-tokens", "0"], one), &["at least 1 token"]);
    assert_refused(&score_lines(&model, &["--device", "cuda"], one), &["CUDA"]);
}

#[test]
fn a_model_that_cannot_be_opened_keeps_earlier_results() {
    let (dir, results) = (copy(), tempfile::NamedTempFile::new().unwrap());
    fs::write(results.path(), "earlier results").unwrap();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let options = ["-o", results.path().to_str().unwrap()];
    assert_refused(&score_lines(dir.path(), &options, r#"{"input_ids": [1]}"#), &["model.safetensors"]);
    assert_eq!(fs::read_to_string(results.path()).unwrap(), "earlier results");
    let run = score_lines(&demo_model(), &options, r#"{"input_ids": [1]}"#);
    assert_eq!(run.status, Some(0), "{run:?}");
    let written = fs::read_to_string(results.path()).unwrap();
    assert!(written.starts_with('{') && written.lines().count() == 1, "{written}");
}

#[test]
fn an_unwritable_output_is_an_error_before_scoring() {
    let run = score_lines(&demo_model(), &["-o", "no/such/folder/out.jsonl"], r#"{"input_ids": [1]}"#);
    assert_refused(&run, &["cannot write `no/such/folder/out.jsonl`", "hint: name a file"]);
    let empty = tempfile::tempdir().unwrap();
    let run =
        kudos(&["score", "--model", demo_model().to_str().unwrap(), empty.path().to_str().unwrap()], "");
    assert_refused(&run, &["the folder has no files", "hint: folders within it"]);
    assert!(!run.stderr.contains("running on"), "the model was opened first: {run:?}");
}
