//! Prompts under real templates and with real tokenizers, which we may not redistribute:
//! `tests/real/prompts.py` (Llama) and `tests/real/families.py` (Qwen3, Gemma 2 and 3) fill the
//! folder `KUDOS_REAL_DIR`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use kudos::internals::conversation::Conversation;
use kudos::internals::error::ErrorKind;
use kudos::internals::prompt::{Clock, Prompt, PromptOptions};
use serde_json::Value;

fn real_dir() -> PathBuf {
    PathBuf::from(
        std::env::var_os("KUDOS_REAL_DIR").expect("KUDOS_REAL_DIR is not set; run `make test-real`"),
    )
}

fn read_json(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(real_dir().join(name)).unwrap()).unwrap()
}

fn open(model: &str, sanitize_control_tokens: bool) -> Prompt {
    // The fixed time of prompts.py.
    let clock = Clock::Fixed { year: 2024, month: 7, day: 6, hour: 9, minute: 5 };
    let options = PromptOptions { clock, sanitize_control_tokens, ..Default::default() };
    Prompt::open(&real_dir().join("models").join(model), options).unwrap()
}

fn conversation(case: &Value) -> Conversation {
    Conversation::from_json(case["messages"].clone())
        .and_then(|conversation| conversation.with_tools(case["tools"].clone()))
        .and_then(|conversation| conversation.with_documents(case["documents"].clone()))
        .and_then(|conversation| {
            conversation.with_template_vars(case["template_vars"].as_object().cloned().unwrap_or_default())
        })
        .unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
#[ignore = "needs KUDOS_REAL_DIR, made by tests/real/prompts.py"]
fn odd_conversations_equal_transformers_under_real_templates() {
    let counts = compare_with("goldens.json");
    assert!(counts.len() >= 4 && counts.values().all(|(equal, _)| *equal > 80), "{counts:?}");
}

#[test]
#[ignore = "needs KUDOS_REAL_DIR, made by tests/real/families.py"]
fn qwen3_and_gemma_have_the_text_and_ids_of_transformers() {
    let counts = compare_with("families.json");
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["gemma2", "gemma3", "qwen3"]);
    // Gemma's templates refuse system messages (2) and roles out of turn, and know no tools.
    let enough = |(equal, refused): &(usize, usize)| *equal > 35 && equal + refused > 80;
    assert!(counts.values().all(enough), "{counts:?}");
}

/// Compares every row of a file of transformers' results; returns per model how many are equal, and
/// how many both sides refuse.
fn compare_with(file: &str) -> BTreeMap<String, (usize, usize)> {
    let mut prompts = BTreeMap::new();
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for row in read_json(file) {
        let (model, name) = (row["model"].as_str().unwrap(), row["name"].as_str().unwrap());
        let [plain, sanitizing] = prompts
            .entry(model.to_owned())
            .or_insert_with(|| [false, true].map(|sanitize| open(model, sanitize)));
        let conversation = conversation(&row["case"]);
        let count = counts.entry(model.to_owned()).or_default();
        let Some(text) = row["text"].as_str() else {
            let error =
                plain.render(&conversation).expect_err(&format!("{model} {name}: {}", row["refused"]));
            assert_eq!(error.kind(), ErrorKind::Template, "{model} {name}: {error}");
            count.1 += 1;
            continue;
        };
        let rendered = plain.render(&conversation).unwrap_or_else(|error| panic!("{model} {name}: {error}"));
        assert_eq!(rendered, text, "{model} {name}");
        assert_eq!(plain.tokens(&conversation, 1 << 20).unwrap().ids, ids(&row["ids"]), "{model} {name}");
        let sanitized = sanitizing.tokens(&conversation, 1 << 20).unwrap().ids;
        assert_eq!(sanitized, ids(&row["sanitized"]), "{model} {name}, sanitized");
        count.0 += 1;
    }
    println!("equal, refused by both: {counts:?}");
    counts
}

#[test]
#[ignore = "needs KUDOS_REAL_DIR, made by tests/real/prompts.py"]
fn recorded_llama_conversations_have_the_ids_of_transformers() {
    let models = [("llama-3.3", "meta-llama-Llama-3.3-70B-Instruct"), ("llama-3.0", "llama-3.0-instruct")];
    let rows = read_json("llama3_chat_ids.json");
    for (key, model) in models {
        let start = Instant::now();
        let prompt = open(model, false);
        let load = start.elapsed();
        for row in &rows {
            let conversation = conversation(row);
            assert_eq!(prompt.render(&conversation).unwrap(), row[key]["text"].as_str().unwrap());
            assert_eq!(prompt.tokens(&conversation, 1 << 20).unwrap().ids, ids(&row[key]["input_ids"]));
        }
        let text: String = rows.iter().filter_map(|row| row[key]["text"].as_str()).collect();
        let (start, mut tokens) = (Instant::now(), 0);
        for _ in 0..20 {
            tokens += prompt.encode(&text).unwrap().len();
        }
        let seconds = start.elapsed().as_secs_f64();
        let megabytes = 20.0 * text.len() as f64 / 1e6;
        println!(
            "{model}: {} of {} equal; opened in {load:.2?}; {:.2} MB/s, {:.0} tokens/s",
            rows.len(),
            rows.len(),
            megabytes / seconds,
            tokens as f64 / seconds
        );
    }
    assert_eq!(rows.len(), 10);
}
