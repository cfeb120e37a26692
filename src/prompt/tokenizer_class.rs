//! The warning for tokenizers that transformers 5 builds anew, where kudos uses tokenizer.json
//! unchanged.
//!
//! transformers 5 takes only the vocabulary and the merges out of tokenizer.json when
//! `tokenizer_class` names one of its classes, and puts the class's own normalizer and
//! pre-tokenizer beside them; where those differ, so do ids. transformers 4, and tokenizers alone,
//! use the file unchanged, and so does kudos, with a warning. Known are the classes that language
//! models name; `tests/fixtures/prompt/classes.py` holds them to transformers 5.24.

use std::path::Path;

use serde_json::{Map, Value as Json, json};
use tokenizers::ModelWrapper;

/// The regular expression by which Qwen2's pre-tokenizer splits words.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The parts of a tokenizer, beside vocabulary, merges and added tokens, on which ids depend.
#[derive(Debug, PartialEq)]
struct Pipeline {
    normalizer: Json,
    pre_tokenizer: Json,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    dropout: bool,
}

/// Returns the warning for a tokenizer that transformers 5 would build with another pipeline.
/// `config` is tokenizer_config.json, `dir` has config.json, whose `model_type` counts, too.
pub(super) fn warning(
    dir: &Path,
    config: &Map<String, Json>,
    tokenizer: &tokenizers::Tokenizer,
) -> Option<String> {
    let model = model_config(dir);
    let text = |value: Option<&Json>| value.and_then(Json::as_str).map(str::to_owned);
    let model_type = text(model.get("model_type")).unwrap_or_default();
    let named = text(config.get("tokenizer_class")).or_else(|| text(model.get("tokenizer_class")));
    let class = match (model_type.as_str(), named) {
        ("mistral", _) => return None,
        ("qwen2", _) | ("qwen3", None) => "Qwen2Tokenizer".to_owned(),
        ("gemma2", None) => "GemmaTokenizer".to_owned(),
        (_, named) => named?,
    };
    let name = class.strip_suffix("Fast").unwrap_or(&class);
    let own = own_pipeline(tokenizer);
    if name == "LlamaTokenizer" && names_byte_level(tokenizer) {
        return None;
    }
    let (built, tokens) = built(name, config)?;
    let added = tokenizer.get_added_tokens_decoder();
    let is_added = |content: &str| added.values().any(|token| token.content == content);
    let lacks = tokens.iter().any(|(key, content)| !config.contains_key(*key) && !is_added(content));
    let what = match (own.as_ref() == Some(&built), lacks) {
        (true, false) => return None,
        (false, _) => "another normalizer, pre-tokenizer or model",
        (true, true) => "special tokens of its own",
    };
    Some(format!(
        "transformers 5 builds a `{class}` with {what} than tokenizer.json has, and may give other ids; tokenizer.json is \
         used as it stands, as transformers 4 does"
    ))
}

/// Returns the pipeline of tokenizer.json; `None` if its model is not BPE.
fn own_pipeline(tokenizer: &tokenizers::Tokenizer) -> Option<Pipeline> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let mut pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
    forget_offsets(&mut pre_tokenizer);
    Some(Pipeline {
        normalizer: serde_json::to_value(tokenizer.get_normalizer()).ok()?,
        pre_tokenizer,
        fuse_unk: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
        dropout: model.dropout.is_some(),
    })
}

/// Removes the settings that change offsets only.
fn forget_offsets(pre_tokenizer: &mut Json) {
    match pre_tokenizer {
        Json::Object(fields) => {
            fields.remove("trim_offsets");
            fields.values_mut().for_each(forget_offsets);
        }
        Json::Array(items) => items.iter_mut().for_each(forget_offsets),
        _ => {}
    }
}

/// Returns true if a part of tokenizer.json is byte-level: transformers 5 then uses the file
/// unchanged for the class `LlamaTokenizer`.
fn names_byte_level(tokenizer: &tokenizers::Tokenizer) -> bool {
    let parts = [
        serde_json::to_string(&tokenizer.get_pre_tokenizer()),
        serde_json::to_string(&tokenizer.get_decoder()),
        serde_json::to_string(&tokenizer.get_post_processor()),
    ];
    parts.into_iter().flatten().any(|part| part.contains("\"ByteLevel\""))
}

/// The name of a special token that the config cannot set.
const UNNAMED: &str = "";

/// The names and texts of special tokens.
type Tokens = &'static [(&'static str, &'static str)];

/// Returns the pipeline that transformers 5 builds for a class, with the class's default special
/// tokens; `None` for a class that uses tokenizer.json unchanged, or that no language model names.
fn built(name: &str, config: &Map<String, Json>) -> Option<(Pipeline, Tokens)> {
    let flag = |key: &str| config.get(key).and_then(Json::as_bool);
    let byte_level = |use_regex: bool| {
        let spaced = flag("add_prefix_space").unwrap_or(false);
        json!({"type": "ByteLevel", "add_prefix_space": spaced, "use_regex": use_regex})
    };
    let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let pipeline = |normalizer: Json, pre_tokenizer: Json, falls_back: bool| Pipeline {
        normalizer,
        pre_tokenizer,
        fuse_unk: falls_back,
        byte_fallback: falls_back,
        ignore_merges: false,
        dropout: false,
    };
    let nfc = || json!({"type": "NFC"});
    let metaspace = || {
        let scheme = match (flag("add_prefix_space").unwrap_or(true), flag("legacy").unwrap_or(false)) {
            (false, _) => "never",
            (true, true) if name == "LlamaTokenizer" => "always",
            (true, _) => "first",
        };
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false})
    };
    const LLAMA: Tokens = &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];
    const CODE_LLAMA: Tokens = &[
        ("unk_token", "<unk>"),
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        (UNNAMED, "\u{2581}<PRE>"),
        (UNNAMED, "\u{2581}<MID>"),
        (UNNAMED, "\u{2581}<SUF>"),
        (UNNAMED, "\u{2581}<EOT>"),
        (UNNAMED, "<FILL_ME>"),
    ];
    const GPT2: Tokens =
        &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")];
    const GPT_NEOX: Tokens = &[
        ("unk_token", "<|endoftext|>"),
        ("bos_token", "<|endoftext|>"),
        ("eos_token", "<|endoftext|>"),
        ("pad_token", "<|padding|>"),
    ];
    const QWEN2_TOKENS: Tokens =
        &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];
    const COHERE: Tokens = &[
        ("bos_token", "<BOS_TOKEN>"),
        ("eos_token", "<|END_OF_TURN_TOKEN|>"),
        ("unk_token", "<UNK>"),
        ("sep_token", "<SEP>"),
        ("pad_token", "<PAD>"),
        ("cls_token", "<CLS>"),
        ("mask_token", "<MASK_TOKEN>"),
    ];
    const ROBERTA: Tokens = &[
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("sep_token", "</s>"),
        ("cls_token", "<s>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ];
    const GEMMA: Tokens = &[
        ("unk_token", "<unk>"),
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ];
    Some(match name {
        "LlamaTokenizer" => (pipeline(Json::Null, metaspace(), true), LLAMA),
        "CodeLlamaTokenizer" => (pipeline(Json::Null, metaspace(), true), CODE_LLAMA),
        "GPT2Tokenizer" => (pipeline(Json::Null, byte_level(true), false), GPT2),
        "RobertaTokenizer" => (pipeline(Json::Null, byte_level(true), false), ROBERTA),
        "GPTNeoXTokenizer" => (pipeline(nfc(), byte_level(true), false), GPT_NEOX),
        "CohereTokenizer" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (pipeline(nfc(), sequence(digits, byte_level(true)), false), COHERE)
        }
        "Qwen2Tokenizer" => {
            let words = json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
            (pipeline(nfc(), sequence(words, byte_level(false)), false), QWEN2_TOKENS)
        }
        "GemmaTokenizer" => {
            let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
            let split = json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
            });
            (pipeline(spaces, split, true), GEMMA)
        }
        _ => return None,
    })
}

/// Reads config.json of the model, empty if it cannot be read: it is checked when the model is
/// loaded, and only decides on a warning here.
fn model_config(dir: &Path) -> Map<String, Json> {
    let bytes = std::fs::read(dir.join("config.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
