//! The command in use: lines in and out, in order, by id; rendering; names in the local cache;
//! plans.

use crate::common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{demo_model, kudos};
use kudos::internals::backend::cpu::Isa;
use kudos::internals::backend::cpu::gemm::Math;
use serde_json::{Value, json};

fn demo() -> String {
    demo_model().to_str().unwrap().to_owned()
}

/// Runs `kudos score` on the CPU, which must succeed, and returns its output lines.
#[track_caller]
fn scored(options: &[&str], input: &str) -> Vec<Value> {
    let model = demo();
    let run = kudos(&[&["score", "--device", "cpu", "--model", &model], options].concat(), input);
    assert_eq!(run.status, Some(0), "{run:?}");
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_three_forms_of_a_conversation_have_one_reward() {
    let messages = json!([
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "1+1=2"},
    ]);
    let render = kudos(&["render", "--model", &demo(), "-"], &json!({"messages": messages}).to_string());
    let rendered: Value = serde_json::from_str(&render.stdout).unwrap();
    let lines = [
        json!({"messages": messages}),
        json!({"prompt": "What is 1+1?", "response": "1+1=2"}),
        json!({"prompt": [messages[0]], "responses": ["1+1=2", "1+1=3"]}),
        json!({"input_ids": rendered["input_ids"]}),
    ];
    let input: Vec<String> = lines.iter().map(Value::to_string).collect();
    let results = scored(&["-"], &input.join("\n"));
    assert_eq!(results[0]["reward"], results[1]["reward"]);
    assert_eq!(results[0]["reward"], results[2]["rewards"][0]);
    assert_eq!(results[0]["reward"], results[3]["reward"]);
    assert_eq!(results[2]["best"], 0, "{}", results[2]);
    assert_eq!(results[0]["tokens"], rendered["input_ids"].as_array().unwrap().len());
    let inline = scored(&["--prompt", "What is 1+1?", "--response", "1+1=2", "--response", "1+1=3"], "");
    assert_eq!((&inline[0]["rewards"], &inline[0]["best"]), (&results[2]["rewards"], &json!(0)));
}

#[test]
fn lines_keep_their_order_and_their_names() {
    let input = "{\"id\": \"b\", \"input_ids\": [5, 6]}\n\n{\"input_ids\": [7]}\n{\"id\": 3, \"input_ids\": [5, 6]}\n";
    let results = scored(&["-"], input);
    let names: Vec<_> =
        results.iter().map(|line| line.get("id").or(line.get("index")).unwrap().clone()).collect();
    assert_eq!(names, [json!("b"), json!(2), json!(3)], "an empty line is skipped, but counted");
    assert_eq!(results[0]["reward"], results[2]["reward"]);
}

#[test]
fn files_give_the_results_of_standard_input_and_output() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines = "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7]}";
    fs::write(&input, lines).unwrap();
    let printed = scored(&[input.to_str().unwrap(), "-o", output.to_str().unwrap()], "");
    assert!(printed.is_empty());
    let written: Vec<Value> =
        fs::read_to_string(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written, scored(&["-"], lines));
}

#[test]
fn residency_changes_no_reward() {
    let lines = "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7, 8, 9]}";
    let [auto, resident, streamed] =
        ["auto", "resident", "streamed"].map(|residency| scored(&["--residency", residency, "-"], lines));
    assert_eq!((&resident, &streamed), (&auto, &auto));
}

#[test]
fn each_line_has_its_result_before_the_next_line_is_sent() {
    let mut child = Command::new(common::kudos_path())
        .args(["score", "--device", "cpu", "--model", &demo(), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    for id in 0..3 {
        writeln!(stdin, "{{\"id\": {id}, \"input_ids\": [5, {id}]}}").unwrap();
        let mut line = String::new();
        // Blocks for ever if the command waits for the end of its input.
        stdout.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], id);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_closed_output_pipe_ends_the_command_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    fs::write(&input, "{\"input_ids\": [5, 6]}\n".repeat(20_000)).unwrap();
    let mut child = Command::new(common::kudos_path())
        .args(["score", "--device", "cpu", "--model", &demo(), input.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
}

#[test]
fn render_shows_text_and_ids_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "model.safetensors" {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let input = "{\"id\": 1, \"prompt\": \"What is 1+1?\", \"responses\": [\"1+1=2\", \"1+1=3\"]}\n{\"id\": 2, \"messages\": []}";
    let run = kudos(&["render", "--model", dir.path().to_str().unwrap(), "-"], input);
    assert_eq!(run.status, Some(1), "{run:?}");
    let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts = lines[0]["text"].as_array().unwrap();
    assert_eq!((texts.len(), lines[0]["input_ids"].as_array().unwrap().len()), (2, 2));
    assert!(texts[0].as_str().unwrap().contains("1+1=2") && texts[1].as_str().unwrap().contains("1+1=3"));
    assert_eq!(lines[1]["error"]["kind"], "invalid_input");
}

/// OpenRLHF keeps the mean and the deviation of rewards in the model's config, and serves the
/// normalised reward; the raw one stays what it is.
#[test]
fn a_normalised_reward_stands_beside_the_raw_one() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (name, value) in [("normalize_reward", json!(true)), ("mean", json!(-1.5)), ("std", json!(4.0))] {
        config[name] = value;
    }
    fs::write(&file, config.to_string()).unwrap();
    let lines = [
        json!({"prompt": "What is 1+1?", "response": "1+1=2"}),
        json!({"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}),
    ];
    let input = format!("{}\n{}", lines[0], lines[1]);
    let plain = scored(&["-"], &input);
    let model = dir.path().to_str().unwrap();
    let run = kudos(&["score", "--device", "cpu", "--model", model, "-"], &input);
    assert_eq!(run.status, Some(0), "{run:?}");
    let normalised: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = |reward: &Value| (reward.as_f64().unwrap() as f32 + 1.5) / 4.0;
    let as_f32 = |reward: &Value| reward.as_f64().unwrap() as f32;
    assert_eq!(normalised[0]["reward"], plain[0]["reward"]);
    assert_eq!(as_f32(&normalised[0]["reward_normalized"]), expected(&plain[0]["reward"]));
    assert_eq!(normalised[1]["rewards"], plain[1]["rewards"]);
    for index in 0..2 {
        let reward = as_f32(&normalised[1]["rewards_normalized"][index]);
        assert_eq!(reward, expected(&plain[1]["rewards"][index]));
    }
    assert!(plain[0].get("reward_normalized").is_none() && plain[1].get("rewards_normalized").is_none());
}

#[test]
fn a_model_is_found_by_its_name_in_the_local_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("models--someone--a-model");
    let snapshot = repo.join("snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "0123abcd\n").unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    let run = |name: &str| {
        Command::new(common::kudos_path())
            .args(["score", "--device", "cpu", "--model", name, "--prompt", "a", "--response", "b"])
            .env("HF_HUB_CACHE", dir.path())
            .output()
            .unwrap()
    };
    assert!(run("someone/a-model").status.success());
    let missing = run("someone/another-model");
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("models--someone--another-model"));
}

#[test]
fn bf16_is_used_only_where_the_cpu_is_faster_with_it() {
    let model = demo();
    let reward = |arithmetic: &str| {
        let arguments = ["score", "--device", "cpu", "--cpu-math", arithmetic, "--model", &model, "-"];
        let run = kudos(&arguments, "{\"input_ids\": [5, 6]}");
        assert_eq!(run.status, Some(0), "{run:?}");
        (run.stdout, run.stderr)
    };
    let ((f32, quiet), (bf16, warned)) = (reward("f32"), reward("bf16"));
    let faster = Math::bf16(Isa::detect()).is_some();
    assert_eq!(warned.contains("matmuls are computed in f32, not bf16"), !faster, "{warned}");
    assert!(!quiet.contains("bf16"), "{quiet}");
    assert_eq!(f32 == bf16, !faster, "{f32} and {bf16}");
}

#[test]
fn f32_vector_gives_the_reward_of_f32() {
    let model = demo();
    let reward = |arithmetic: &str| {
        let arguments = ["score", "--device", "cpu", "--cpu-math", arithmetic, "--model", &model, "-"];
        let run = kudos(&arguments, "{\"input_ids\": [5, 6, 7, 8]}");
        assert_eq!(run.status, Some(0), "{run:?}");
        let line: Value = serde_json::from_str(&run.stdout).unwrap();
        line["reward"].as_f64().unwrap()
    };
    let (fastest, vector) = (reward("f32"), reward("f32-vector"));
    // Measured: 3.7e-7 with AMX. Without a matrix unit both are the same arithmetic.
    assert!((fastest - vector).abs() <= 1e-6 * fastest.abs().max(1.0), "{fastest} and {vector}");
    if Isa::detect().matrix_unit().is_none() {
        assert_eq!(fastest, vector);
    }
}

/// Writes a checkpoint of the 70B's shapes as a sparse file, of which only the header is stored.
#[cfg(feature = "cuda")]
fn sparse_70b(dir: &std::path::Path, (dtype, element_bytes): (&str, u64)) {
    let (hidden, ffn, kv, layers, vocab) = (8192_u64, 28_672_u64, 1024_u64, 80, 128_256_u64);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131_072,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
        ("lm_head".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = offset + element_bytes * shape.iter().product::<u64>();
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        header.insert(format!("{name}.weight"), entry);
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + offset).unwrap();
}

#[cfg(feature = "cuda")]
#[test]
fn plan_shows_where_a_70b_fits_without_a_gpu_or_weights() {
    let dir = tempfile::tempdir().unwrap();
    sparse_70b(dir.path(), ("BF16", 2));
    let plan = |arguments: &[&str]| {
        let all = [&["plan", "--model", dir.path().to_str().unwrap(), "--json"], arguments].concat();
        let run = kudos(&all, "");
        assert_eq!(run.status, Some(0), "{run:?}");
        run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    // All of it on one GPU of 141 GB, at the model's own limit of 131,072 tokens.
    let rows = plan(&[]);
    let of =
        |gpu: &str| rows.iter().find(|row| row["gpu"] == gpu).unwrap_or_else(|| panic!("{gpu}: {rows:?}"));
    let fit = |gpu: &str| {
        (of(gpu)["ranks"].as_u64(), of(gpu)["layers_resident"].as_u64(), of(gpu)["fits"].as_bool())
    };
    assert_eq!(fit("H200"), (Some(1), Some(80), Some(true)), "{rows:?}");
    assert_eq!(fit("H100"), (Some(2), Some(80), Some(true)), "{rows:?}");
    // On four of 40 GB not at the model's limit, but far above the least.
    assert_eq!(fit("A100 40GB"), (Some(4), Some(80), Some(true)), "{rows:?}");
    assert_eq!(of("A100 40GB")["limited_by_memory"], true);
    assert!((65_536..131_072).contains(&of("A100 40GB")["max_tokens"].as_u64().unwrap()), "{rows:?}");
    let mentions_nccl = |gpus: &str| {
        let sized = ["--gpus", gpus, "--gpu-memory-gib", "80"];
        let run = kudos(&[&["plan", "--model", dir.path().to_str().unwrap()], &sized[..]].concat(), "");
        run.stdout.contains("NCCL")
    };
    assert_eq!((mentions_nccl("8"), mentions_nccl("1")), (true, false));
    assert_eq!(of("H200")["tokens_that_hide_the_link"], Value::Null);
    assert_eq!(of("H200")["passes_per_million_tokens"], 1_000_000_u64.div_ceil(4096));
    assert_eq!(
        (&of("H200")["max_tokens"], &of("H200")["limited_by_memory"]),
        (&131_072.into(), &false.into())
    );
    // 80 layers of 855,654,400 elements, the final norm and one row of the head.
    assert_eq!(of("H200")["weight_bytes"], 2 * (80 * 855_654_400_u64 + 2 * 8192));
    for wrong in [["--gpus", "0"], ["--gpu-memory-gib", "nan"], ["--gpu-memory-gib", "much"]] {
        let run = kudos(&[&["plan", "--model", dir.path().to_str().unwrap()], &wrong[..]].concat(), "");
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.stderr.contains(wrong[0]), "{run:?}");
    }
    // 12.6 GB/s of weights and 49 TFLOP/s, with 2 * 80 * 855,638,016 operations per token, and 2
    // bytes per weight and pass.
    let rows = plan(&["--gpus", "1", "--max-tokens", "8192"]);
    let row = rows.iter().find(|row| row["gpu"] == "T4").unwrap();
    let streamed = row["layers_streamed"].as_f64().unwrap();
    assert_eq!(row["streamed_bytes_per_pass"].as_f64().unwrap(), streamed * 2.0 * 855_654_400.0);
    let hiding = (streamed / 80.0) * (0.75 * 65e12) / (0.8 * 15.75e9);
    assert!((row["tokens_that_hide_the_link"].as_f64().unwrap() - hiding).abs() <= 2.0, "{row} {hiding}");
    assert_eq!(row["batch_tokens"], 16_384, "larger passes where layers are streamed: {row}");
    // One small GPU: streamed layers, with short conversations.
    let rows = plan(&["--gpus", "1", "--gpu-memory-gib", "15", "--max-tokens", "4096"]);
    assert_eq!((rows.len(), rows[0]["fits"].as_bool()), (1, Some(true)), "{rows:?}");
    assert!(rows[0]["layers_streamed"].as_u64().unwrap() > 70, "{rows:?}");
}

#[cfg(feature = "cuda")]
#[test]
fn a_checkpoint_in_f32_has_the_plan_of_one_in_bf16() {
    let [wide, narrow] = [("F32", 4), ("BF16", 2)].map(|dtype| {
        let dir = tempfile::tempdir().unwrap();
        sparse_70b(dir.path(), dtype);
        let run = kudos(&["plan", "--model", dir.path().to_str().unwrap(), "--json"], "");
        assert_eq!(run.status, Some(0), "{run:?}");
        run.stdout
    });
    assert_eq!(wide, narrow);
}

#[cfg(feature = "cuda")]
#[test]
fn a_known_shape_has_the_plan_of_its_model() {
    let dir = tempfile::tempdir().unwrap();
    sparse_70b(dir.path(), ("BF16", 2));
    let folder = ["--model", dir.path().to_str().unwrap()];
    let [stored, known] = [folder, ["--shape", "llama-3.3-70b"]].map(|model| {
        let run = kudos(&[&["plan", "--json"], &model[..]].concat(), "");
        assert_eq!(run.status, Some(0), "{run:?}");
        run.stdout
    });
    assert_eq!(known, stored);
    for (shape, ranks) in [
        ("qwen3-32b", 1),
        ("qwen3-8b", 1),
        ("qwen2.5-72b", 4),
        ("gemma-2-27b", 1),
        ("gemma-2-9b", 1),
        ("mistral-7b", 1),
    ] {
        let run = kudos(&["plan", "--json", "--shape", shape, "--gpu-memory-gib", "60"], "");
        assert_eq!(run.status, Some(0), "{run:?}");
        let plan: Value = serde_json::from_str(&run.stdout).unwrap();
        let fits = (plan["ranks"].as_u64(), plan["fits"].as_bool());
        assert_eq!(fits, (Some(ranks), Some(true)), "{shape}: {plan}");
    }
    let none = kudos(&["plan"], "");
    assert!(none.status == Some(2) && none.stderr.contains("--shape"), "{none:?}");
}

#[test]
fn version_completions_and_manual_pages_are_printed() {
    let short = kudos(&["-V"], "");
    assert_eq!(short.stdout, format!("kudos {}\n", env!("CARGO_PKG_VERSION")));
    let long = kudos(&["--version"], "").stdout;
    let cuda = if cfg!(feature = "cuda") { "CUDA: kernels by nvcc 1" } else { "CUDA: not in this build" };
    assert!(long.starts_with(&short.stdout) && long.contains(cuda), "{long}");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef kudos"), ("fish", "complete -c kudos")] {
        let script = kudos(&["completions", shell], "");
        assert_eq!(script.status, Some(0), "{script:?}");
        assert!(
            script.stdout.contains(word) && script.stdout.contains("resume"),
            "{shell}: {}",
            script.stdout
        );
    }
    let pages = [kudos(&["man"], ""), kudos(&["man", "score"], "")].map(|run| run.stdout);
    assert!(pages[0].contains(".TH kudos 1") && pages[0].contains("kudos\\-score(1)"), "{}", pages[0]);
    assert!(pages[1].contains(".TH kudos-score 1") && pages[1].contains("\\-\\-resume"), "{}", pages[1]);
    let unknown = kudos(&["man", "paint"], "");
    assert_eq!(unknown.status, Some(2));
    assert!(unknown.stderr.contains("there is no command `paint`\n\nhint: "), "{unknown:?}");
}

/// Compares rewards with those of transformers 5.24 in float32.
#[track_caller]
fn assert_rewards(found: &Value, expected: &[f64]) {
    let found: Vec<f64> = match found {
        Value::Array(all) => all.iter().map(|reward| reward.as_f64().unwrap()).collect(),
        one => vec![one.as_f64().unwrap_or_else(|| panic!("no reward: {one}"))],
    };
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} and {expected}");
    }
}

#[test]
fn responses_after_messages_have_their_own_rewards() {
    let lines = r#"{"messages": [{"role": "user", "content": "What is 1+1?"}], "responses": ["1+1=2", "1+1=3"]}
{"messages": [{"role": "user", "content": "What is 1+1?"}], "response": "1+1=2"}
{"prompt": "What is 1+1?", "response": "1+1=2", "responses": null}
{"prompt": "What is 1+1?", "response": null, "responses": ["1+1=2"]}"#;
    let results = scored(&["-"], lines);
    assert_rewards(&results[0]["rewards"], &[4.225343704223633, -5.799875259399414]);
    assert_rewards(&results[1]["reward"], &[4.225343704223633]);
    assert_rewards(&results[2]["reward"], &[4.225343704223633]);
    assert_rewards(&results[3]["rewards"], &[4.225343704223633]);
}

#[test]
fn padding_does_not_change_the_reward_of_ids() {
    let (ids, pads) = ("1008, 1014, 306, 1015, 280, 261, 257, 220, 16, 10, 16, 30, 1017", "1012, 1012, 1012");
    let (ones, zeros) = ("1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1", "0, 0, 0");
    let lines = [
        format!(r#"{{"input_ids": [{ids}]}}"#),
        format!(r#"{{"input_ids": [{pads}, {ids}], "attention_mask": [{zeros}, {ones}]}}"#),
        format!(r#"{{"input_ids": [{ids}, {pads}], "attention_mask": [{ones}, {zeros}]}}"#),
        format!(r#"{{"input_ids": [{pads}, {ids}, {pads}], "attention_mask": [{zeros}, {ones}, {zeros}]}}"#),
        format!(r#"{{"input_ids": [{pads}, {ids}]}}"#),
    ];
    let results = scored(&["-"], &lines.join("\n"));
    for result in &results[..4] {
        assert_rewards(&result["reward"], &[-5.669580459594727]);
        assert_eq!((&result["reward"], &result["tokens"]), (&results[0]["reward"], &json!(13)));
    }
    assert_rewards(&results[4]["reward"], &[-5.966976642608643]);
}

#[test]
fn text_that_begins_with_a_dash_is_text() {
    let of = |text: &str| scored(&["--prompt", "What is 1-3?", "--response", text], "")[0]["rewards"].clone();
    assert_rewards(&of("-2"), &[-5.114875316619873]);
    for text in ["- red\n- blue", "--json", "--", "-"] {
        let line = json!({"prompt": "What is 1-3?", "responses": [text]}).to_string();
        assert_eq!(of(text), scored(&["-"], &line)[0]["rewards"], "{text}");
    }
    let prompt = scored(&["--prompt", "-o is what?", "--response", "a"], "");
    assert_eq!(prompt, scored(&["--prompt=-o is what?", "--response", "a"], ""));
}

#[test]
fn an_id_keeps_its_spelling_also_when_a_run_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let ids = [
        "340282366920938463463374607431768211455",
        "[340282366920938463463374607431768211454, {\"a\":  1.0}]",
        "\"\\u00e9\\/\\ud83d\"",
    ];
    let line = |id: &str| format!("{{\"id\": {id}, \"input_ids\": [5, 6]}}\n");
    fs::write(&input, ids.map(line).concat()).unwrap();
    let options = [input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    scored(&options, "");
    let written = fs::read_to_string(&output).unwrap();
    for (line, id) in written.lines().zip(ids) {
        assert!(line.starts_with(&format!("{{\"id\":{id},\"reward\":")), "{line}");
    }
    let first = written.lines().next().unwrap();
    fs::write(&output, format!("{first}\n")).unwrap();
    scored(&[&options[..], &["--resume"]].concat(), "");
    assert_eq!(fs::read_to_string(&output).unwrap(), written);
}

#[test]
fn byte_order_marks_of_concatenated_files_are_skipped() {
    let line = "{\"id\": 1, \"input_ids\": [5, 6]}\n";
    let results = scored(&["-"], &format!("\u{feff}{line}\u{feff}\n\u{feff}{line}\u{feff}"));
    assert_eq!(results.len(), 2);
    assert_eq!(results, scored(&["-"], &line.repeat(2)));
}

#[test]
fn render_names_the_scored_token_and_the_reason() {
    let rendered = |model: &Path, line: &str| {
        let run = kudos(&["render", "--model", model.to_str().unwrap(), "-"], line);
        assert_eq!(run.status, Some(0), "{run:?}");
        serde_json::from_str::<Value>(&run.stdout).unwrap()["scored"].clone()
    };
    let line = "{\"input_ids\": [5, 6, 7, 7]}";
    let expected = json!({"position": 3, "token": 7, "reason": "last token", "text": "("});
    assert_eq!(rendered(&demo_model(), line), expected);
    let each = rendered(&demo_model(), "{\"prompt\": \"a\", \"responses\": [\"b\", \"c d e\"]}");
    let positions: Vec<u64> =
        each.as_array().unwrap().iter().map(|one| one["position"].as_u64().unwrap()).collect();
    assert!(positions[0] < positions[1], "{each}");
    // The token that ends the turn, and its place in the text.
    let spans: Vec<(&Value, u64)> =
        each.as_array().unwrap().iter().map(|one| (&one["text"], one["span"][0].as_u64().unwrap())).collect();
    assert!(spans[0].0 == "<|eot_id|>" && spans[1].1 == spans[0].1 + 4, "{each}");

    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let config = dir.path().join("config.json");
    let mut values: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    values["architectures"] = json!(["LlamaForSequenceClassification"]);
    (values["num_labels"], values["pad_token_id"]) = (json!(1), json!(7));
    fs::write(&config, values.to_string()).unwrap();
    let reason = "rightmost token that is not the pad token 7";
    assert_eq!(rendered(dir.path(), line), json!({"position": 1, "token": 6, "reason": reason, "text": "'"}));
    let reason = "first token: all are the pad token 7";
    assert_eq!(
        rendered(dir.path(), "{\"input_ids\": [7, 7]}"),
        json!({"position": 0, "token": 7, "reason": reason, "text": "("})
    );
}

/// Runs `kudos score` with the arguments and redirections `rest` in a shell, in a folder.
#[cfg(unix)]
fn shell(folder: &Path, rest: &str) -> common::Run {
    let command = format!("exec \"$0\" score --device cpu --model \"$1\" {rest}");
    let output = Command::new("sh")
        .args(["-c", &command, common::kudos_path().to_str().unwrap(), &demo()])
        .current_dir(folder)
        .output()
        .unwrap();
    common::Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[cfg(unix)]
#[test]
fn an_output_that_is_an_input_by_any_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let line = "{\"input_ids\": [5, 6]}\n";
    fs::write(dir.path().join("in.jsonl"), line).unwrap();
    fs::write(dir.path().join("secret"), "a secret").unwrap();
    fs::hard_link(dir.path().join("in.jsonl"), dir.path().join("hard.jsonl")).unwrap();
    std::os::unix::fs::symlink("in.jsonl", dir.path().join("soft.jsonl")).unwrap();
    for rest in [
        "in.jsonl -o in.jsonl",
        "in.jsonl -o ./in.jsonl",
        "in.jsonl -o hard.jsonl",
        "in.jsonl -o soft.jsonl",
        "soft.jsonl -o hard.jsonl",
        "in.jsonl -o /dev/fd/3 3>>in.jsonl",
        "- <in.jsonl -o in.jsonl",
        "- <in.jsonl -o hard.jsonl",
        "- <in.jsonl >>hard.jsonl",
        "in.jsonl >>in.jsonl",
        "in.jsonl -o - 1<>soft.jsonl",
        "in.jsonl -o hard.jsonl --resume",
        "in.jsonl -o secret --rank 0 --world-size 2 --rendezvous 127.0.0.1:1 --rendezvous-secret-file secret",
    ] {
        let run = shell(dir.path(), rest);
        assert_eq!(run.status, Some(2), "{rest}: {run:?}");
        assert!(run.stderr.contains("hint: write to another file"), "{rest}: {run:?}");
        let same = run.stderr.contains("is the input and the output at once");
        assert!(same || run.stderr.contains("is the same file as"), "{rest}: {run:?}");
        assert_eq!(fs::read_to_string(dir.path().join("in.jsonl")).unwrap(), line, "{rest}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "a secret");
    let rendered = format!("\"$0\" render --model {} in.jsonl >>in.jsonl", demo());
    let rendered = Command::new("sh")
        .args(["-c", &rendered, common::kudos_path().to_str().unwrap()])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(rendered.status.code(), Some(2), "{rendered:?}");
    assert_eq!(fs::read_to_string(dir.path().join("in.jsonl")).unwrap(), line);
    // The files of the model are inputs as well.
    for entry in fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let model = dir.path().to_str().unwrap();
    for name in ["config.json", "model.safetensors", "chat_template.jinja", "tokenizer.json"] {
        let path = dir.path().join(name);
        let before = fs::read(&path).unwrap();
        let run = kudos(&["score", "--model", model, "-", "-o", path.to_str().unwrap()], line);
        assert_eq!(run.status, Some(2), "{name}: {run:?}");
        assert!(run.stderr.contains("is the input and the output at once"), "{name}: {run:?}");
        assert_eq!(fs::read(&path).unwrap(), before, "{name}");
    }
    // A file beside the model's own is accepted.
    let beside = dir.path().join("rewards.json");
    for _ in 0..2 {
        let run = kudos(&["score", "--model", model, "-", "-o", beside.to_str().unwrap()], line);
        assert_eq!(run.status, Some(0), "{run:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_standard_stream_closed_from_the_start_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("in.jsonl"), "{\"input_ids\": [5, 6]}\n").unwrap();
    for (rest, name) in
        [("in.jsonl >&-", "output"), ("- <&- >out.jsonl", "input"), ("in.jsonl -o - >&-", "output")]
    {
        let run = shell(dir.path(), rest);
        assert_eq!(run.status, Some(2), "{rest}: {run:?}");
        assert!(run.stderr.contains(&format!("error: standard {name} is closed\n\nhint: ")), "{run:?}");
    }
    for rest in
        ["in.jsonl -o out.jsonl >&- <&-", "in.jsonl >/dev/null", "in.jsonl 1<>/dev/null", "- </dev/null"]
    {
        let run = shell(dir.path(), rest);
        assert_eq!(run.status, Some(0), "{rest}: {run:?}");
    }
    assert!(
        fs::read_to_string(dir.path().join("out.jsonl")).unwrap().starts_with("{\"index\":0,\"reward\":")
    );
}

#[test]
fn other_input_formats_are_named_before_anything_is_scored() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let utf16: Vec<u8> = "{\"input_ids\": [5]}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = [&[0xff, 0xfe][..], &utf16].concat();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (bytes, words, hint) in [
        (&b"BZh91AY"[..], "is compressed by bzip2, expected JSON lines", "bzip2 -dc"),
        (b"PK\x03\x04\n", "is a zip archive", "unzip -p"),
        (&marked, "is written in UTF-16", "iconv -f UTF-16"),
        (&utf16, "is written in UTF-16", "iconv -f UTF-16"),
        (pointer, "is a pointer of git-lfs, not the file itself", "git lfs pull"),
    ] {
        fs::write(&input, bytes).unwrap();
        let by_name = kudos(&["score", "--model", &demo(), input.to_str().unwrap()], "");
        let piped = Command::new("sh")
            .args([
                "-c",
                "\"$0\" score --model \"$1\" - <\"$2\"",
                common::kudos_path().to_str().unwrap(),
                &demo(),
            ])
            .arg(&input)
            .output()
            .unwrap();
        let piped = (piped.status.code(), String::from_utf8(piped.stderr).unwrap());
        for (status, stderr) in [(by_name.status, by_name.stderr), piped] {
            assert_eq!(status, Some(2), "{stderr}");
            assert!(stderr.contains(words) && stderr.contains("hint: ") && stderr.contains(hint), "{stderr}");
        }
    }
    let array =
        kudos(&["score", "--model", &demo(), "-"], "[{\"input_ids\": [5]},\n {\"input_ids\": [6]}]\n");
    assert_eq!(array.status, Some(1));
    assert!(array.stdout.lines().next().unwrap().contains("a JSON array is not JSON lines"), "{array:?}");
}

/// Returns the lines of the code blocks of a language in docs/cli.md.
fn page_blocks(language: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(common::root().join("docs/cli.md")).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| block.lines().map(str::to_owned).collect()).collect()
}

/// Returns whether values are equal, and their keys in one order, but for the last digits of f32
/// numbers: from one kind of CPU to another they differ.
fn agree(found: &Value, shown: &Value) -> bool {
    match (found, shown) {
        (Value::Number(found), Value::Number(shown)) => {
            (found.as_f64().unwrap() - shown.as_f64().unwrap()).abs() <= 1e-5
        }
        (Value::Array(found), Value::Array(shown)) => {
            found.len() == shown.len() && found.iter().zip(shown).all(|(found, shown)| agree(found, shown))
        }
        (Value::Object(found), Value::Object(shown)) => {
            found.keys().eq(shown.keys())
                && found.values().zip(shown.values()).all(|(found, shown)| agree(found, shown))
        }
        (found, shown) => found == shown,
    }
}

#[test]
fn the_page_of_the_command_shows_its_output() {
    let blocks = page_blocks("json");
    let [input, output, best, pairs] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    let check = |found: &[Value], shown: &[String]| {
        let shown: Vec<Value> = shown.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(
            found.len() == shown.len() && found.iter().zip(&shown).all(|(found, shown)| agree(found, shown)),
            "{found:?}"
        );
    };
    let found = scored(&["-"], &input.join("\n"));
    check(&found, output);
    // The second line has several responses.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (row, result) = (file("row", &input[1]), file("result", &format!("{}\n", found[1])));
    for (selection, shown) in [("best", best), ("pairs", pairs)] {
        let selected = kudos(&["select", selection, &row, "--rewards", &result], "");
        assert_eq!(selected.status, Some(0), "{selected:?}");
        check(&[serde_json::from_str(&selected.stdout).unwrap()], shown);
    }
}
