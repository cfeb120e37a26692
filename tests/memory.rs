//! Weights are used where they are mapped: opening and scoring makes no copy of them.
//!
//! One test in a binary of its own, because it measures the whole process.

mod common;

use std::fs;

use common::{cpu, ids};
use kudos::Engine;
use serde_json::json;

/// Anonymous memory of this process that is in RAM, in bytes; `None` where the system does not say.
fn anonymous_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

/// A model of about 200 MB in bf16: all weights 1/64, which is as good as any others here.
fn large_model(dir: &std::path::Path) -> usize {
    let (hidden, ffn, layers, vocab) = (1024, 4096, 6, 16_384);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8,
        "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[hidden, hidden]);
        }
        add("mlp.gate_proj", &[ffn, hidden]);
        add("mlp.up_proj", &[ffn, hidden]);
        add("mlp.down_proj", &[hidden, ffn]);
    }
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend([0x80, 0x3C].iter().cycle().take(offset));
    fs::write(dir.join("model.safetensors"), file).unwrap();
    offset
}

#[test]
fn anonymous_memory_stays_within_the_plan_and_32_mib() {
    let dir = tempfile::tempdir().unwrap();
    let weight_bytes = large_model(dir.path());
    assert!(weight_bytes > 200 << 20);
    let Some(before) = anonymous_bytes() else {
        eprintln!("not run: this system does not tell how much anonymous memory a process has");
        return;
    };
    let engine = Engine::open(dir.path(), cpu()).unwrap();
    let scores = engine.score_tokens(&[ids(1, 400, 16_384), ids(2, 33, 16_384)]);
    assert!(scores.iter().all(Result::is_ok), "{scores:?}");
    let grown = anonymous_bytes().unwrap().saturating_sub(before);
    let workspace = engine.plan().footprint.workspace;
    assert!(
        grown <= workspace + (32 << 20),
        "{grown} bytes grown, {workspace} planned, {weight_bytes} of weights"
    );
    // With a workspace of this size the bound above would hide a copy of the weights if it were not far below them.
    assert!(
        workspace + (32 << 20) < weight_bytes,
        "{workspace} planned: too much for this test to tell anything"
    );
}
