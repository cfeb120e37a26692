//! Accepted and refused configs. Long because it holds three real configs and one line per refusal.

use serde_json::json;

use super::limits::*;
use super::*;

/// Llama-3.3-70B-Instruct, as transformers 4 wrote it.
const LLAMA_70B_V4: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 128, "hidden_act": "silu", "hidden_size": 8192,
  "initializer_range": 0.02, "intermediate_size": 28672, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.47.0", "use_cache": true, "vocab_size": 128256}"#;

/// The model of `LLAMA_70B_V4`, as transformers 5 writes it.
const LLAMA_70B_V5: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "dtype": "bfloat16", "eos_token_id": [128001, 128008, 128009], "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 8192, "initializer_range": 0.02, "intermediate_size": 28672, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80,
  "num_key_value_heads": 8, "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_parameters": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                      "original_max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_type": "llama3"},
  "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 128256}"#;

/// Skywork-Reward-Llama-3.1-8B: a classifier with one label and a vocabulary with one token more.
const SKYWORK_8B: &str = r#"{
  "architectures": ["LlamaForSequenceClassification"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
  "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02, "intermediate_size": 14336,
  "label2id": {"LABEL_0": 0}, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pad_token_id": 128256,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.4", "use_cache": false, "vocab_size": 128257}"#;

const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_tokens: 8192.0,
};

fn parse(text: &str) -> Result<ModelConfig> {
    ModelConfig::parse(text, Path::new("rm/config.json"))
}

/// The smallest config that is accepted, with fields of `changes` put in; null takes a field away.
fn parse_with(changes: Value) -> Result<ModelConfig> {
    let mut config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]});
    let values = config.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        values.insert(name.clone(), value.clone());
    }
    parse(&config.to_string())
}

fn refusal(changes: Value) -> (ErrorKind, String) {
    let error = match parse_with(changes.clone()) {
        Ok(config) => panic!("{changes} was accepted: {config:?}"),
        Err(error) => error,
    };
    assert_eq!(error.place(), Some("rm/config.json"), "{error}");
    (error.kind(), error.message().to_owned())
}

/// The values that are the same for every causal Llama with heads of 128.
fn llama() -> ModelConfig {
    ModelConfig { scores: Scores { query_scalar: 128.0, cap: None }, ..ModelConfig::tiny() }
}

#[test]
fn the_70b_config_reads_the_same_in_both_spellings() {
    let expected = ModelConfig {
        hidden: 8192,
        layers: 80,
        q_heads: 64,
        kv_heads: 8,
        head_dim: 128,
        ffn: 28672,
        vocab: 128256,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: LLAMA3 },
        max_tokens: 131_072,
        biases: Biases::default(),
        windows: vec![None; 80],
        ..llama()
    };
    assert_eq!(parse(LLAMA_70B_V4).unwrap(), expected);
    assert_eq!(parse(LLAMA_70B_V5).unwrap(), expected);
}

#[test]
fn the_skywork_config_is_a_classifier_with_one_label() {
    let config = parse(SKYWORK_8B).unwrap();
    assert_eq!(config.head, Head::Score { labels: 1, labels_named: true, pad_token_id: Some(128_256) });
    assert_eq!((config.vocab, config.head_dim, config.rope.scaling), (128_257, 128, LLAMA3));
}

#[test]
fn the_smollm2_config_is_accepted() {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000.0,
        "rope_scaling": null, "rope_interleaved": false, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": true, "vocab_size": 49152,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.041666666666666664,
        "pretraining_tp": 1, "use_cache": true, "torch_dtype": "bfloat16"}"#;
    let config = parse(text).unwrap();
    assert_eq!(config.rope, Rope { theta: 100_000.0, scaling: RopeScaling::Default });
    assert_eq!(config.head, Head::LogitZero { tied: true });
    assert_eq!((config.q_width(), config.kv_width()), (576, 192));
}

/// Checked against `LlamaConfig()` of transformers 5.23.0.
#[test]
fn missing_fields_have_the_defaults_of_transformers() {
    let expected = ModelConfig {
        hidden: 4096,
        layers: 32,
        q_heads: 32,
        kv_heads: 32,
        head_dim: 128,
        ffn: 11008,
        vocab: 32000,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        max_tokens: 2048,
        biases: Biases::default(),
        windows: vec![None; 32],
        ..llama()
    };
    assert_eq!(parse_with(json!({})).unwrap(), expected);
    let classifier = parse_with(json!({"architectures": ["LlamaForSequenceClassification"]})).unwrap();
    assert_eq!(classifier.head, Head::Score { labels: 2, labels_named: false, pad_token_id: None });
}

#[test]
fn rope_is_read_in_every_spelling() {
    let llama3 = |extra: Value| {
        let mut section = json!({"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4});
        section.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        section
    };
    let original = |tokens: f64| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_tokens: tokens,
    };
    let named = json!({"rope_type": "llama3", "original_max_position_embeddings": 512});
    let cases = [
        (json!({"rope_scaling": llama3(named.clone())}), 1e4, original(512.0)),
        (json!({"rope_scaling": llama3(json!({"type": "llama3"}))}), 1e4, original(2048.0)),
        (
            json!({"rope_scaling": llama3(json!({"type": "llama3"})), "original_max_position_embeddings": 99}),
            1e4,
            original(99.0),
        ),
        (json!({"rope_scaling": llama3(named.clone()), "rope_theta": 5e5}), 5e5, original(512.0)),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7e3, "partial_rotary_factor": 1.0}}),
            7e3,
            RopeScaling::Default,
        ),
        (json!({"rope_parameters": {"rope_theta": 7e3}, "rope_scaling": {}}), 7e3, RopeScaling::Default),
        (json!({"rope_theta": 3}), 3.0, RopeScaling::Default),
        (
            json!({"rope_theta": 5e5, "rope_scaling": llama3(named.clone()), "rope_parameters": llama3(named)}),
            5e5,
            original(512.0),
        ),
    ];
    for (changes, theta, scaling) in cases {
        assert_eq!(parse_with(changes.clone()).unwrap().rope, Rope { theta, scaling }, "{changes}");
    }
}

#[test]
fn unimplemented_fields_that_change_rewards_are_refused_by_name() {
    let cases = [
        (
            json!({"model_type": "gemma"}),
            "model_type `gemma` is not implemented (`llama`, `mistral`, `qwen2`, `qwen3`, `gemma2` are)",
        ),
        (
            json!({"architectures": ["LlamaForQuestionAnswering"]}),
            "architecture `LlamaForQuestionAnswering` is not implemented \
             (`LlamaForCausalLM`, `INFORMForSequenceClassification` and `LlamaForSequenceClassification` are)",
        ),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "rope type `dynamic` is not implemented (`default` and `llama3` are)",
        ),
        (
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
            "rope type `yarn` is not implemented (`default` and `llama3` are)",
        ),
        (
            json!({"rope_scaling": {"factor": 2.0}}),
            "`rope_scaling.factor` is 2.0, which rope type `default` does not read",
        ),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "attention_factor": 1.2}}),
            "`rope_parameters.attention_factor` is 1.2, which rope type `llama3` does not read",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`rope_parameters.full_attention` is {\"rope_type\":\"default\"}, which rope type `default` does not read",
        ),
    ];
    for (changes, message) in cases {
        assert_eq!(refusal(changes), (ErrorKind::Unsupported, message.to_owned()));
    }
    let fields = [
        ("hidden_act", json!("gelu")),
        ("sliding_window", json!(4096)),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_interleaved", json!(true)),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("attention_multiplier", json!(0.0078125)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("auto_map", json!({"AutoModel": "modeling_x.X"})),
        ("transformers_weights", json!("other.safetensors")),
    ];
    for (name, value) in fields {
        let message = format!("`{name}` is {value}: this changes rewards and is not implemented");
        assert_eq!(refusal(json!({name: value})), (ErrorKind::Unsupported, message));
    }
}

#[test]
fn the_same_fields_are_accepted_where_they_have_no_effect() {
    let harmless = json!({
        "hidden_act": "swish", "sliding_window": null, "partial_rotary_factor": 1.0, "rope_interleaved": false,
        "quantization_config": null, "embedding_multiplier": 1.0, "layer_types": ["full_attention"], "auto_map": {},
        "pruned_heads": {}, "num_local_experts": 0, "pretraining_tp": 2, "initializer_range": 0.02,
        "a_field_of_the_authors_own": [1, 2, 3]
    });
    assert_eq!(parse_with(harmless).unwrap(), parse_with(json!({})).unwrap());
    parse_with(json!({"sliding_window": 4096, "use_sliding_window": false})).unwrap();
}

#[test]
fn impossible_values_name_the_field_and_the_expectation() {
    let cases = [
        (json!({"model_type": 7}), "`model_type` is 7, expected a string"),
        (
            json!({"hidden_size": "big"}),
            "`hidden_size` is \"big\", expected a whole number from 1 to 1048576",
        ),
        (
            json!({"hidden_size": 4096.0}),
            "`hidden_size` is 4096.0, expected a whole number from 1 to 1048576",
        ),
        (json!({"vocab_size": -1}), "`vocab_size` is -1, expected a whole number from 1 to 268435456"),
        (json!({"num_hidden_layers": 0}), "`num_hidden_layers` is 0, expected a whole number from 1 to 4096"),
        (
            json!({"intermediate_size": u64::MAX}),
            "`intermediate_size` is 18446744073709551615, expected a whole number from 1 to 16777216",
        ),
        (
            json!({"max_position_embeddings": null}),
            "`max_position_embeddings` is null, expected a whole number from 1 to 2147483647",
        ),
        (
            json!({"num_key_value_heads": 5}),
            "`num_key_value_heads` 5 does not divide `num_attention_heads` 32",
        ),
        (
            json!({"num_attention_heads": 3}),
            "`hidden_size` 4096 is not a multiple of `num_attention_heads` 3, and there is no `head_dim`",
        ),
        (json!({"head_dim": 5}), "the width of a head is 5, which is odd; rotary embedding needs pairs"),
        (
            json!({"num_attention_heads": 65536, "head_dim": 8192}),
            "65536 heads of width 8192 are more than any model has",
        ),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0, expected a number above zero"),
        (json!({"rms_norm_eps": 1e-60}), "`rms_norm_eps` 1e-60 is outside the range of f32"),
        (json!({"attention_bias": "no"}), "`attention_bias` is \"no\", expected true or false"),
        (json!({"rope_theta": -1.0}), "`rope_theta` is -1.0, expected a number above zero"),
        (json!({"rope_theta": null}), "`rope_theta` is null, expected a number above zero"),
        (json!({"rope_scaling": "llama3"}), "`rope_scaling` is \"llama3\", expected an object"),
        (
            json!({"rope_scaling": {"rope_type": "llama3"}}),
            "`rope_scaling.low_freq_factor` is missing, expected a number above zero",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4.0}}),
            "`rope_scaling.high_freq_factor` 4 is not above `rope_scaling.low_freq_factor` 4",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default", "type": "linear"}}),
            "`rope_scaling.rope_type` is `default`, but `rope_scaling.type` is `linear`",
        ),
        (
            json!({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9.0}),
            "`rope_parameters.rope_theta` is 7, but `rope_theta` is 9",
        ),
        (
            json!({"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"rope_theta": 9.0}}),
            "`rope_scaling` and `rope_parameters` contradict each other",
        ),
        (
            json!({"architectures": []}),
            "`architectures` is missing, which names the head that computes the reward",
        ),
        (
            json!({"architectures": "LlamaForCausalLM"}),
            "`architectures` is \"LlamaForCausalLM\", expected a list of strings",
        ),
        (
            json!({"architectures": ["LlamaForCausalLM", "LlamaForSequenceClassification"]}),
            "`architectures` names 2 classes, expected one",
        ),
    ];
    for (changes, message) in cases {
        assert_eq!(refusal(changes), (ErrorKind::Config, message.to_owned()));
    }
}

#[test]
fn labels_and_padding_of_a_classifier_are_checked() {
    let with = |changes: Value| {
        let mut config = json!({"architectures": ["LlamaForSequenceClassification"], "vocab_size": 10});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config
    };
    let head = |changes: Value| parse_with(with(changes)).unwrap().head;
    assert_eq!(
        head(json!({"num_labels": 1})),
        Head::Score { labels: 1, labels_named: true, pad_token_id: None }
    );
    let three = json!({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3, "pad_token_id": 9});
    assert_eq!(head(three), Head::Score { labels: 3, labels_named: true, pad_token_id: Some(9) });
    assert_eq!(
        head(json!({"pad_token_id": -1, "id2label": null, "num_labels": null})),
        Head::Score { labels: 2, labels_named: false, pad_token_id: None }
    );
    assert_eq!(
        head(json!({"num_labels": 2})),
        Head::Score { labels: 2, labels_named: true, pad_token_id: None }
    );

    let cases = [
        (json!({"id2label": {"0": "a"}, "num_labels": 3}), "`id2label` has 1 entries, but `num_labels` is 3"),
        (json!({"id2label": {}}), "`id2label` is {}, expected an object with one entry per label"),
        (json!({"pad_token_id": 10}), "`pad_token_id` is 10, expected a token id below `vocab_size` 10"),
        (json!({"pad_token_id": 1.5}), "`pad_token_id` is 1.5, expected a token id below `vocab_size` 10"),
    ];
    for (changes, message) in cases {
        assert_eq!(refusal(with(changes)), (ErrorKind::Config, message.to_owned()));
    }
}

#[test]
fn a_head_with_a_hidden_layer_is_known_by_its_class() {
    let qwen = json!({"architectures": ["Qwen2ForRewardModel"], "auto_map": {"AutoModel": "m.X"},
        "id2label": "absent"});
    let config = family(&qwen2(qwen)).unwrap();
    assert_eq!(config.head, Head::ScoreMlp { labels: 1, labels_named: true, pad_token_id: Some(151_643) });
    assert_eq!((config.labels(), config.head_rows()), (1, 3584));
    let inform = |changes: Value| {
        let mut config = json!({"architectures": ["INFORMForSequenceClassification"], "vocab_size": 10});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parse_with(config)
    };
    let head = inform(json!({"num_labels": 1, "auto_map": {"AutoModel": "m.X"}})).unwrap().head;
    assert_eq!(head, Head::ScoreMlp { labels: 1, labels_named: true, pad_token_id: None });
    let head = inform(json!({})).unwrap().head;
    assert_eq!(head, Head::ScoreMlp { labels: 2, labels_named: false, pad_token_id: None });
    // A class of another family is not known; nor is a plain class's own code.
    assert!(family(&qwen2(json!({"architectures": ["INFORMForSequenceClassification"]}))).is_err());
    assert!(parse_with(json!({"auto_map": {"AutoModel": "m.X"}})).is_err());

    let head = Head::ScoreMlp { labels: 1, labels_named: true, pad_token_id: Some(7) };
    for (ids, scored) in [(&[1, 2, 3][..], 2), (&[1, 2, 7, 7], 1), (&[1, 7, 2, 7, 3], 0), (&[7, 1, 2], 2)] {
        assert_eq!(head.scored_token(ids), scored, "{ids:?}");
    }
}

#[test]
fn heads_of_other_kinds_are_refused_as_what_they_are() {
    for (class, what) in [
        ("LlamaForRewardModelWithGating", "a mixture of objectives"),
        ("LlamaForProcessRewardModel", "every step of a solution"),
        ("LlamaForTokenClassification", "every token"),
    ] {
        let own_code = json!({"AutoModel": "modeling.Model"});
        let error = parse_with(json!({"architectures": [class], "auto_map": own_code})).unwrap_err();
        let named = error.message().starts_with(&format!("architecture `{class}` is not implemented: "));
        assert!(error.kind() == ErrorKind::Unsupported && named, "{error}");
        assert!(error.message().contains(what), "{error}");
    }
}

#[test]
fn normalised_rewards_have_a_mean_and_a_deviation() {
    let of = |changes| parse_with(changes).map(|config| config.normalization);
    assert_eq!(of(json!({})).unwrap(), None);
    assert_eq!(of(json!({"normalize_reward": false, "mean": 1.0, "std": 2.0})).unwrap(), None);
    assert_eq!(
        of(json!({"normalize_reward": true, "mean": -1.5, "std": 2})).unwrap(),
        Some(Normalization { mean: -1.5, std: 2.0 })
    );
    assert_eq!(of(json!({"normalize_reward": true})).unwrap(), Some(Normalization { mean: 0.0, std: 1.0 }));
    for changes in [
        json!({"normalize_reward": true, "mean": 0.0, "std": 0.0}),
        json!({"normalize_reward": true, "mean": "0", "std": 1.0}),
        json!({"normalize_reward": true, "mean": 0.0, "std": 1e-60}),
        json!({"normalize_reward": true, "mean": 0.0}),
        json!({"normalize_reward": true, "std": 2.0}),
        json!({"normalize_reward": "yes"}),
    ] {
        assert_eq!(of(changes.clone()).unwrap_err().kind(), ErrorKind::Config, "{changes}");
    }
}

#[test]
fn text_that_is_not_a_json_object_is_an_error() {
    for text in ["", "[]", "{\"model_type\": \"llama\"", "{\"rms_norm_eps\": NaN}", "\u{0}", "{\"a\": 1}}"] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().starts_with("config.json is not a JSON object: "), "{error}");
    }
    assert_eq!(parse("{}").unwrap_err().message(), "`model_type` is missing");
    // Deep nesting neither overflows the stack nor is accepted.
    assert_eq!(parse(&"[".repeat(100_000)).unwrap_err().kind(), ErrorKind::Config);
}

/// Sizes at their limits: what later floors multiply stays below 2^63.
#[test]
fn products_of_the_largest_sizes_do_not_overflow() {
    let (bytes, fused) = (4, 3);
    let linear = HIDDEN_MAX * (fused * FFN_MAX + 4 * Q_WIDTH_MAX) * bytes;
    let total = linear
        .checked_mul(LAYERS_MAX)
        .and_then(|layers| layers.checked_add(2 * VOCAB_MAX * HIDDEN_MAX * bytes));
    assert!(total.is_some_and(|total| total < 1 << 63), "{total:?}");
    assert!(TOKENS_MAX.checked_mul(2 * FFN_MAX * bytes).is_some_and(|total| total < 1 << 63));
}

#[test]
fn a_missing_folder_or_file_and_an_adapter_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = ModelConfig::read(&dir.path().join("rm")).unwrap_err();
    assert_eq!((missing.kind(), missing.message()), (ErrorKind::Io, "there is no such model folder"));
    assert!(missing.hint().unwrap().contains("`--model`"), "{missing}");

    let no_file = ModelConfig::read(dir.path()).unwrap_err();
    assert_eq!(no_file.kind(), ErrorKind::Io);
    assert!(no_file.message().starts_with("the file cannot be read: "), "{no_file}");
    assert_eq!(no_file.place(), Some(dir.path().join("config.json").to_str().unwrap()));

    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert_eq!(ModelConfig::read(dir.path()).unwrap_err().message(), "this is not a file");

    std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    let adapter = ModelConfig::read(dir.path()).unwrap_err();
    assert_eq!(adapter.kind(), ErrorKind::Unsupported);
    assert_eq!(adapter.message(), "the folder holds an adapter, not a whole model");
}

/// transformers 5.24.0 refuses the first two, too; the third is what a clone without git-lfs holds.
#[test]
fn config_files_that_are_no_plain_text_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases = [
        (
            b"\xEF\xBB\xBF{}".to_vec(),
            "the file begins with a byte order mark, which JSON does not allow",
            "save it as UTF-8 without a byte order mark, or run `sed -i '1s/^\\xEF\\xBB\\xBF//'` on it",
        ),
        (
            utf16,
            "the file is UTF-16, expected UTF-8",
            "save it as UTF-8 without a byte order mark (`iconv -f UTF-16 -t UTF-8`)",
        ),
        (
            b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
            "this is a pointer of git-lfs, not the file itself",
            "run `git lfs pull` in its folder",
        ),
    ];
    for (bytes, message, hint) in cases {
        std::fs::write(&file, bytes).unwrap();
        let error = ModelConfig::read(dir.path()).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Config, message));
        assert_eq!((error.place(), error.hint()), (file.to_str(), Some(hint)));
    }
}

#[test]
fn a_file_that_is_far_too_long_is_not_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let error = ModelConfig::read(dir.path()).unwrap_err();
    assert_eq!(error.message(), "the file has more than 4194304 bytes");
}

/// Qwen2.5-7B-Instruct's config as a classifier's.
fn qwen2(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"], "hidden_act": "silu",
        "hidden_size": 3584, "intermediate_size": 18_944, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "max_position_embeddings": 32_768, "max_window_layers": 28,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "sliding_window": 131_072,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 152_064,
        "id2label": {"0": "LABEL_0"}, "pad_token_id": 151_643,
    });
    put(&mut config, changes);
    config
}

/// Mistral-7B-Instruct-v0.3's config.
fn mistral(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32_768,
    });
    put(&mut config, changes);
    config
}

/// Sets fields; those that become `"absent"` are removed.
fn put(config: &mut Value, changes: Value) {
    let config = config.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("absent") => drop(config.remove(name)),
            _ => drop(config.insert(name.clone(), value.clone())),
        }
    }
}

fn family(config: &Value) -> Result<ModelConfig> {
    parse(&config.to_string())
}

#[test]
fn qwen2_has_biases_on_q_k_and_v_alone() {
    let config = family(&qwen2(json!({}))).unwrap();
    assert_eq!(config.biases, Biases { qkv: true, o: false, mlp: false });
    assert_eq!((config.head_dim, config.kv_heads, config.max_tokens), (128, 4, 32_768));
    assert_eq!(config.head, Head::Score { labels: 1, labels_named: true, pad_token_id: Some(151_643) });
    family(&qwen2(json!({"attention_bias": true}))).unwrap();
    for (changes, message) in [
        (json!({"attention_bias": false}), "`attention_bias` is false, which models of type `qwen2`"),
        (json!({"mlp_bias": true}), "`mlp_bias` is true, which models of type `qwen2`"),
    ] {
        let error = family(&qwen2(changes)).unwrap_err();
        assert!(error.message().starts_with(message), "{error}");
    }
}

#[test]
fn qwen3_has_a_norm_of_each_head() {
    let qwen3 = |changes: Value| {
        let mut config = qwen2(json!({
            "model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"], "hidden_size": 1024,
            "num_attention_heads": 16, "num_key_value_heads": 8, "attention_bias": false,
        }));
        put(&mut config, changes);
        config
    };
    let config = family(&qwen3(json!({}))).unwrap();
    // Not 1024 / 16.
    assert_eq!((config.head_norms, config.head_dim, config.q_width()), (true, 128, 2048));
    assert_eq!(config.biases, Biases::default());
    assert_eq!(family(&qwen3(json!({"head_dim": 64}))).unwrap().head_dim, 64);
    assert!(family(&qwen3(json!({"head_dim": null}))).is_err());
    let biased = family(&qwen3(json!({"attention_bias": true}))).unwrap();
    assert_eq!(biased.biases, Biases { qkv: true, o: true, mlp: false });
    assert!(family(&qwen3(json!({"mlp_bias": true}))).is_err());
    assert!(!family(&qwen2(json!({}))).unwrap().head_norms);
}

#[test]
fn mistral_has_no_biases() {
    let config = family(&mistral(json!({}))).unwrap();
    assert_eq!((config.biases, config.head), (Biases::default(), Head::LogitZero { tied: false }));
    let error = family(&mistral(json!({"attention_bias": true}))).unwrap_err();
    assert!(error.message().starts_with("`attention_bias` is true, which models of type `mistral`"));
}

/// Checked against `MistralConfig()` and `Qwen2Config()` of transformers 5.23.0.
#[test]
fn absent_fields_have_the_defaults_of_their_family() {
    let mistral_of = |changes| family(&mistral(changes));
    let absent = mistral_of(json!({"num_key_value_heads": "absent", "max_position_embeddings": "absent"}));
    let absent = absent.unwrap();
    assert_eq!((absent.kv_heads, absent.max_tokens), (8, 131_072));
    assert!(mistral_of(json!({"num_key_value_heads": null})).is_err());
    let heads = json!({"num_attention_heads": 32, "hidden_size": 4096, "num_key_value_heads": "absent"});
    assert_eq!(family(&qwen2(heads)).unwrap().kv_heads, 32);
    assert_eq!(family(&qwen2(json!({"num_key_value_heads": null}))).unwrap().kv_heads, 28);
    assert!(family(&qwen2(json!({"head_dim": null}))).is_err());
    assert_eq!(mistral_of(json!({"head_dim": null})).unwrap().head_dim, 128);
    // Published configs name their sizes, and defaults of sizes have changed with versions.
    for name in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    {
        for config in [qwen2(json!({name: "absent"})), mistral(json!({name: "absent"}))] {
            let error = family(&config).unwrap_err();
            assert!(error.message().starts_with(&format!("`{name}` is missing")), "{error}");
        }
    }
}

/// The layers that slide, and how far.
fn windows(config: &Value) -> std::result::Result<Vec<Option<usize>>, String> {
    family(config).map(|config| config.windows).map_err(|error| error.message().to_owned())
}

/// `layers` layers, of which those from `first` on slide.
fn from(first: usize, layers: usize, width: usize) -> Vec<Option<usize>> {
    (0..layers).map(|layer| (layer >= first).then_some(width)).collect()
}

#[test]
fn every_layer_of_mistral_slides_unless_it_says_null() {
    let of = |changes| windows(&mistral(changes)).unwrap();
    assert_eq!(of(json!({"sliding_window": "absent"})), from(0, 32, 4096));
    // It has no other switch.
    assert_eq!(of(json!({"sliding_window": 8191})), from(0, 32, 8191));
    let contradicting = windows(&mistral(json!({"sliding_window": 8191, "use_sliding_window": false})));
    assert!(contradicting.unwrap_err().starts_with("`use_sliding_window` is false, which contradicts"));
    assert_eq!(of(json!({"sliding_window": null, "use_sliding_window": false})), vec![None; 32]);
    // No sequence exceeds these.
    assert_eq!(of(json!({"sliding_window": 32_768})), vec![None; 32]);
    assert_eq!(of(json!({"sliding_window": 4096, "max_position_embeddings": 4096})), vec![None; 32]);
    let sliding = vec!["sliding_attention"; 32];
    assert_eq!(of(json!({"sliding_window": 9, "layer_types": sliding})), from(0, 32, 9));
    let contradicting = windows(&mistral(json!({"sliding_window": null, "layer_types": sliding})));
    assert!(contradicting.unwrap_err().starts_with("`layer_types` contradicts `sliding_window`"));
}

#[test]
fn layers_of_qwen_slide_behind_a_switch() {
    let of = |changes| windows(&qwen2(changes));
    assert_eq!(of(json!({"sliding_window": 6, "use_sliding_window": "absent"})), Ok(vec![None; 28]));
    let on = json!({"sliding_window": 6, "use_sliding_window": true, "max_window_layers": 20});
    assert_eq!(of(on), Ok(from(20, 28, 6)));
    let all = json!({"sliding_window": 6, "use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(of(all), Ok(from(0, 28, 6)));
    // 28 where it is absent.
    let absent = json!({"sliding_window": 6, "use_sliding_window": true, "max_window_layers": "absent",
        "num_hidden_layers": 30});
    assert_eq!(of(absent), Ok(from(28, 30, 6)));
    assert_eq!(of(json!({"use_sliding_window": true, "max_window_layers": 0})), Ok(vec![None; 28]));
    let types: Vec<&str> =
        (0..28).map(|layer| if layer < 2 { "full_attention" } else { "sliding_attention" }).collect();
    let named = json!({"sliding_window": 6, "use_sliding_window": true, "layer_types": types});
    assert_eq!(of(named), Ok(from(2, 28, 6)));
    // transformers fails on these.
    let error = of(json!({"layer_types": types})).unwrap_err();
    assert!(error.contains("no sliding window is set"), "{error}");
    let error = of(json!({"layer_types": ["full_attention"]})).unwrap_err();
    assert_eq!(error, "`layer_types` names 1 layers, but `num_hidden_layers` is 28");
    let chunked = vec!["chunked_attention"; 28];
    assert!(of(json!({"layer_types": chunked})).unwrap_err().contains("`chunked_attention`"));
}

/// The config of google/gemma-2-9b-it, in the spelling of transformers 4.
fn gemma2(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584, "intermediate_size": 14_336, "max_position_embeddings": 8192,
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "vocab_size": 256_000,
    });
    put(&mut config, changes);
    config
}

#[test]
fn gemma2_has_its_own_norms_gate_and_scores() {
    let config = family(&gemma2(json!({}))).unwrap();
    assert_eq!((config.norm, config.gate), (Norm::OnePlus, Gate::GeluTanh));
    assert!(config.branch_norms && !config.head_norms);
    assert_eq!(config.biases, Biases::default());
    assert_eq!(config.embedding_scale, 3584f32.sqrt());
    assert_eq!(config.scores, Scores { query_scalar: 256.0, cap: Some(50.0) });
    assert_eq!((config.head, config.logit_cap), (Head::LogitZero { tied: true }, Some(30.0)));
    let windows: Vec<Option<usize>> = (0..42).map(|layer| (layer % 2 == 0).then_some(4096)).collect();
    assert_eq!(config.windows, windows);
    let classifier = json!({"architectures": ["Gemma2ForSequenceClassification"], "num_labels": 1,
        "pad_token_id": "absent"});
    let classifier = family(&gemma2(classifier)).unwrap();
    assert_eq!(classifier.head, Head::Score { labels: 1, labels_named: true, pad_token_id: Some(0) });
    assert_eq!(classifier.logit_cap, None);
}

/// Checked against `Gemma2Config()` of transformers 5.23.0.
#[test]
fn absent_fields_of_gemma2_are_its_defaults_or_refused() {
    let of = |changes| family(&gemma2(changes));
    let absent = json!({"attn_logit_softcapping": "absent", "final_logit_softcapping": "absent",
        "hidden_activation": "absent", "hidden_act": "relu", "max_position_embeddings": "absent"});
    assert_eq!(of(absent).unwrap(), of(json!({})).unwrap());
    let off = of(json!({"attn_logit_softcapping": null, "final_logit_softcapping": null})).unwrap();
    assert_eq!((off.scores.cap, off.logit_cap), (None, None));
    let null_pad = json!({"architectures": ["Gemma2ForSequenceClassification"], "pad_token_id": null});
    assert_eq!(
        of(null_pad).unwrap().head,
        Head::Score { labels: 2, labels_named: false, pad_token_id: None }
    );
    for name in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "query_pre_attn_scalar",
        "sliding_window",
    ] {
        let error = of(json!({name: "absent"})).unwrap_err();
        assert!(error.message().starts_with(&format!("`{name}` is missing")), "{error}");
    }
    for (changes, message) in [
        (json!({"hidden_activation": "gelu"}), "`hidden_activation` is \"gelu\": models of type `gemma2`"),
        (json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention` is true"),
        (json!({"sliding_window": null}), "there are layers of type \"sliding_attention\", but no"),
        (
            json!({"use_sliding_window": false}),
            "`use_sliding_window` is false, which contradicts the windows",
        ),
        (
            json!({"sliding_window_pattern": 6}),
            "`sliding_window_pattern` is 6, which contradicts the windows",
        ),
        (json!({"mlp_bias": true}), "`mlp_bias` is true, which models of type `gemma2`"),
        (json!({"attn_logit_softcapping": 0}), "`attn_logit_softcapping` is 0, expected a number above"),
        (json!({"attn_logit_softcapping": 1e-60}), "`attn_logit_softcapping` is 1e-60, expected a number"),
        (json!({"head_dim": null}), "`head_dim` is null, expected a whole number"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "rope type `yarn` is not implemented"),
    ] {
        let error = of(changes).unwrap_err();
        assert!(error.message().starts_with(message), "{error}");
    }
}

#[test]
fn the_class_is_of_the_family() {
    for config in [
        qwen2(json!({"architectures": ["LlamaForSequenceClassification"]})),
        mistral(json!({"architectures": ["Qwen2ForCausalLM"]})),
        qwen2(json!({"architectures": ["Qwen2ForMaskedLM"]})),
    ] {
        let error = family(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("ForCausalLM`"), "{error}");
    }
}
