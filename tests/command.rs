//! The command as people and scripts use it: lines in and out, in order, by id; rendering; names in the local cache.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::{demo_model, kudos};
use kudos::backend::cpu::Isa;
use kudos::backend::cpu::gemm::Math;
use serde_json::{Value, json};

fn demo() -> String {
    demo_model().to_str().unwrap().to_owned()
}

/// The lines of a run on the CPU that is expected to succeed.
#[track_caller]
fn scored(options: &[&str], input: &str) -> Vec<Value> {
    let model = demo();
    let run = kudos(&[&["score", "--device", "cpu", "--model", &model], options].concat(), input);
    assert_eq!(run.status, Some(0), "{run:?}");
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_three_ways_to_say_a_conversation_have_one_reward() {
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
    assert_eq!(names, [json!("b"), json!(2), json!(3)], "an empty line is passed over, but counted");
    assert_eq!(results[0]["reward"], results[2]["reward"]);
}

#[test]
fn files_in_and_out_are_the_same_as_standard_input_and_output() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines = "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7]}";
    fs::write(&input, lines).unwrap();
    let nothing = scored(&[input.to_str().unwrap(), "-o", output.to_str().unwrap()], "");
    assert!(nothing.is_empty());
    let written: Vec<Value> =
        fs::read_to_string(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written, scored(&["-"], lines));
}

#[test]
fn where_layers_are_changes_no_number() {
    let lines = "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7, 8, 9]}";
    let [auto, resident, streamed] =
        ["auto", "resident", "streamed"].map(|residency| scored(&["--residency", residency, "-"], lines));
    assert_eq!((&resident, &streamed), (&auto, &auto));
}

#[test]
fn a_reader_that_feeds_one_line_at_a_time_gets_each_result_at_once() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kudos"))
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
        // Would wait for ever if the command waited for the end of its input.
        stdout.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], id);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_has_had_enough_ends_the_command_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    fs::write(&input, "{\"input_ids\": [5, 6]}\n".repeat(20_000)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kudos"))
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
fn rendering_needs_no_weights_and_shows_what_is_scored() {
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
    assert_eq!(lines[1]["error"]["kind"], "conversation");
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
        Command::new(env!("CARGO_BIN_EXE_kudos"))
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
fn bf16_arithmetic_is_used_where_the_cpu_is_faster_with_it_and_f32_elsewhere() {
    let model = demo();
    let reward = |arithmetic: &str| {
        let arguments = ["score", "--device", "cpu", "--cpu-math", arithmetic, "--model", &model, "-"];
        let run = kudos(&arguments, "{\"input_ids\": [5, 6]}");
        assert_eq!(run.status, Some(0), "{run:?}");
        (run.stdout, run.stderr)
    };
    let ((f32, quiet), (bf16, said)) = (reward("f32"), reward("bf16"));
    let faster = Math::bf16(Isa::detect()).is_some();
    assert_eq!(said.contains("products are computed in f32, not bf16"), !faster, "{said}");
    assert!(!quiet.contains("bf16"), "{quiet}");
    assert_eq!(f32 == bf16, !faster, "{f32} and {bf16}");
}

#[test]
fn products_by_vector_instructions_alone_give_nearly_the_same_reward_and_the_same_bits_without_a_matrix_unit()
{
    let model = demo();
    let reward = |arithmetic: &str| {
        let arguments = ["score", "--device", "cpu", "--cpu-math", arithmetic, "--model", &model, "-"];
        let run = kudos(&arguments, "{\"input_ids\": [5, 6, 7, 8]}");
        assert_eq!(run.status, Some(0), "{run:?}");
        let line: Value = serde_json::from_str(&run.stdout).unwrap();
        line["reward"].as_f64().unwrap()
    };
    let (fastest, vector) = (reward("f32"), reward("f32-vector"));
    // Measured: 3.7e-7 with AMX.
    assert!((fastest - vector).abs() <= 1e-6 * fastest.abs().max(1.0), "{fastest} and {vector}");
    if Isa::detect().matrix_unit().is_none() {
        assert_eq!(fastest, vector);
    }
}

/// A checkpoint of the 70B's shapes, whose file is all hole: only its header is there.
#[cfg(feature = "cuda")]
fn sparse_70b(dir: &std::path::Path, (dtype, number_bytes): (&str, u64)) {
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
        let end = offset + number_bytes * shape.iter().product::<u64>();
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
fn plan_says_where_a_70b_fits_without_a_gpu_or_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    sparse_70b(dir.path(), ("BF16", 2));
    let plan = |arguments: &[&str]| {
        let all = [&["plan", "--model", dir.path().to_str().unwrap(), "--json"], arguments].concat();
        let run = kudos(&all, "");
        assert_eq!(run.status, Some(0), "{run:?}");
        run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    // What it is made for: all of it on one GPU of 141 GB, at the model's own limit of 131,072 tokens.
    let rows = plan(&[]);
    let of =
        |gpu: &str| rows.iter().find(|row| row["gpu"] == gpu).unwrap_or_else(|| panic!("{gpu}: {rows:?}"));
    let facts = |gpu: &str| {
        (of(gpu)["ranks"].as_u64(), of(gpu)["layers_resident"].as_u64(), of(gpu)["fits"].as_bool())
    };
    assert_eq!(facts("H200"), (Some(1), Some(80), Some(true)), "{rows:?}");
    assert_eq!(facts("H100"), (Some(2), Some(80), Some(true)), "{rows:?}");
    assert_eq!(facts("A100 40GB"), (Some(8), Some(80), Some(true)), "{rows:?}");
    let table = |gpus: &str| {
        let sized = ["--gpus", gpus, "--gpu-memory-gib", "80"];
        let run = kudos(&[&["plan", "--model", dir.path().to_str().unwrap()], &sized[..]].concat(), "");
        run.stdout.contains("NCCL")
    };
    assert_eq!((table("8"), table("1")), (true, false), "what several GPUs take besides is said");
    assert_eq!(of("H200")["tokens_that_hide_the_link"], Value::Null);
    assert_eq!(of("H200")["passes_per_million_tokens"], 1_000_000_u64.div_ceil(4096));
    assert_eq!(of("H200")["max_tokens"], 131_072);
    // 80 layers of 855,654,400 numbers, the final norm and one row of the head.
    assert_eq!(of("H200")["weight_bytes"], 2 * (80 * 855_654_400_u64 + 2 * 8192));
    for wrong in [["--gpus", "0"], ["--gpu-memory-gib", "nan"], ["--gpu-memory-gib", "much"]] {
        let run = kudos(&[&["plan", "--model", dir.path().to_str().unwrap()], &wrong[..]].concat(), "");
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.stderr.contains(wrong[0]), "{run:?}");
    }
    // What 12.6 GB/s of weights and 49 TFLOP/s come to: 2 * 80 * 855,638,016 operations a token, 2 bytes a weight and pass.
    let rows = plan(&["--gpus", "1", "--max-tokens", "8192"]);
    let row = rows.iter().find(|row| row["gpu"] == "T4").unwrap();
    let streamed = row["layers_streamed"].as_f64().unwrap();
    assert_eq!(row["streamed_bytes_per_pass"].as_f64().unwrap(), streamed * 2.0 * 855_654_400.0);
    let hiding = (streamed / 80.0) * (0.75 * 65e12) / (0.8 * 15.75e9);
    assert!((row["tokens_that_hide_the_link"].as_f64().unwrap() - hiding).abs() <= 2.0, "{row} {hiding}");
    assert_eq!(row["batch_tokens"], 16_384, "larger passes where layers are streamed: {row}");
    // One small GPU: layer after layer through it, with short conversations.
    let rows = plan(&["--gpus", "1", "--gpu-memory-gib", "15", "--max-tokens", "4096"]);
    assert_eq!((rows.len(), rows[0]["fits"].as_bool()), (1, Some(true)), "{rows:?}");
    assert!(rows[0]["layers_streamed"].as_u64().unwrap() > 70, "{rows:?}");
}

#[cfg(feature = "cuda")]
#[test]
fn a_checkpoint_in_f32_is_planned_for_as_the_same_one_in_16_bits() {
    let [wide, narrow] = [("F32", 4), ("BF16", 2)].map(|dtype| {
        let dir = tempfile::tempdir().unwrap();
        sparse_70b(dir.path(), dtype);
        let run = kudos(&["plan", "--model", dir.path().to_str().unwrap(), "--json"], "");
        assert_eq!(run.status, Some(0), "{run:?}");
        run.stdout
    });
    assert_eq!(wide, narrow);
}

#[test]
fn the_version_says_what_was_built_and_every_shell_and_man_are_served() {
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
    assert!(unknown.stderr.contains("there is no command `paint`"), "{unknown:?}");
}
