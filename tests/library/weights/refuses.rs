//! Bad checkpoints, each with the whole text that is printed.

use std::path::Path;

use kudos::internals::config::{Head, ModelConfig};
use kudos::internals::error::ErrorKind;
use kudos::internals::weights::Checkpoint;

use super::folder::{Folder, Tensor, Tensors, classifier, config, safetensors, tensor, tensors};

const OTHER_MODEL: &str =
    "the weights and config.json are from different models; point `--model` at the folder they came from";

fn printed(message: &str, place: &str, hint: &str) -> String {
    format!("{message}\n  at {place}\n\nhint: {hint}")
}

#[test]
fn a_missing_head_is_refused_and_never_made_up() {
    let mut causal = tensors(&config(), "F32");
    causal.remove("lm_head.weight");
    let hint = "the checkpoint has no reward head, and one is never made up; if the embeddings are the head, set \
                \"tie_word_embeddings\": true in config.json";
    let text = printed("tensor `lm_head.weight` is missing", "DIR", hint);
    assert_eq!(Folder::with(&causal).refusal(&config()), (ErrorKind::Weights, text));

    // The known trap: a causal reward model opened as a classifier.
    let hint = "the checkpoint has no reward head, and one is never made up; if the reward is logit 0 of the last \
                token, name the `...ForCausalLM` class as \"architectures\" in config.json";
    let text = printed("tensor `score.weight` is missing", "DIR", hint);
    let causal = Folder::with(&tensors(&config(), "F32"));
    assert_eq!(causal.refusal(&classifier(1)), (ErrorKind::Weights, text));

    // And vice versa.
    let hint = "the reward head is `score.weight`: name the `...ForSequenceClassification` class as \"architectures\" in \
                config.json";
    let text = printed("tensor `lm_head.weight` is missing", "DIR", hint);
    let scored = Folder::with(&tensors(&classifier(1), "F32"));
    assert_eq!(scored.refusal(&config()), (ErrorKind::Weights, text));
}

#[test]
fn missing_tensors_are_counted_and_the_first_is_named() {
    let mut tensors = tensors(&config(), "F32");
    tensors.remove("model.layers.1.self_attn.k_proj.weight");
    let text = printed("tensor `model.layers.1.self_attn.k_proj.weight` is missing", "DIR", OTHER_MODEL);
    assert_eq!(Folder::with(&tensors).refusal(&config()), (ErrorKind::Weights, text));

    let name = "model.layers.0.self_attn.qkv_proj.weight";
    tensors.retain(|name, _| !name.contains("_proj"));
    tensors.insert(name.into(), tensor(name, "F32", &[48, 10]));
    let message =
        "tensor `model.layers.0.self_attn.q_proj.weight` is missing, and 13 more that config.json calls for";
    let hint = format!("{OTHER_MODEL} (they hold `{name}`, which no such model has)");
    assert_eq!(
        Folder::with(&tensors).refusal(&config()),
        (ErrorKind::Weights, printed(message, "DIR", &hint))
    );
}

#[test]
fn a_wrong_shape_names_file_tensor_and_config_sizes() {
    let cases: [(&str, &[usize], &str, &str); 5] = [
        (
            "model.layers.0.self_attn.q_proj.weight",
            &[10, 24],
            "[24, 10]",
            "num_attention_heads 4 * head_dim 6, hidden_size 10",
        ),
        (
            "model.layers.1.self_attn.v_proj.weight",
            &[24, 10],
            "[12, 10]",
            "num_key_value_heads 2 * head_dim 6, hidden_size 10",
        ),
        ("model.layers.0.mlp.down_proj.weight", &[80], "[10, 8]", "hidden_size 10, intermediate_size 8"),
        ("model.embed_tokens.weight", &[8, 10], "[7, 10]", "vocab_size 7, hidden_size 10"),
        ("model.norm.weight", &[10, 1], "[10]", "hidden_size 10"),
    ];
    for (name, shape, expected, words) in cases {
        let mut tensors = tensors(&config(), "BF16");
        tensors.insert(name.into(), tensor(name, "BF16", shape));
        let message = format!("tensor `{name}` has shape {shape:?}, expected {expected}");
        let place = format!("DIR/model.safetensors (config.json: {words})");
        let refusal = Folder::with(&tensors).refusal(&config());
        assert_eq!(refusal, (ErrorKind::Weights, printed(&message, &place, OTHER_MODEL)));
    }
}

#[test]
fn a_classifier_with_other_labels_than_the_config_is_refused() {
    let folder = Folder::with(&tensors(&classifier(1), "F32"));
    let message = "tensor `score.weight` has shape [1, 10], expected [2, 10]";
    let place = "DIR/model.safetensors (config.json: num_labels 2, hidden_size 10)";
    assert_eq!(folder.refusal(&classifier(2)), (ErrorKind::Weights, printed(message, place, OTHER_MODEL)));
}

#[test]
fn a_config_without_labels_is_refused_with_their_count() {
    let unnamed = Head::Score { labels: 2, labels_named: false, pad_token_id: None };
    let unnamed = ModelConfig { head: unnamed, ..config() };
    let place = "DIR/model.safetensors (config.json: num_labels 2 by default, hidden_size 10)";
    for labels in [1, 5] {
        let folder = Folder::with(&tensors(&classifier(labels), "F32"));
        let message = format!("tensor `score.weight` has shape [{labels}, 10], expected [2, 10]");
        let hint = format!("config.json names no labels, which means 2; set \"num_labels\": {labels} in it");
        assert_eq!(folder.refusal(&unnamed), (ErrorKind::Weights, printed(&message, place, &hint)));
    }
    assert!(Folder::with(&tensors(&classifier(2), "F32")).open(&unnamed).is_ok());

    // Where more than the number of labels differs, the number does not help.
    for shape in [vec![1, 11], vec![0, 10], vec![10]] {
        let mut tensors = tensors(&classifier(1), "F32");
        tensors.insert("score.weight".into(), tensor("score.weight", "F32", &shape));
        let message = format!("tensor `score.weight` has shape {shape:?}, expected [2, 10]");
        let text = printed(&message, place, OTHER_MODEL);
        assert_eq!(Folder::with(&tensors).refusal(&unnamed), (ErrorKind::Weights, text));
    }
}

/// `tensors` under other names.
fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(stored, tensor)| (name(stored), tensor.clone())).collect()
}

/// transformers 5.24.0 leaves such tensors out and makes others up.
#[test]
fn a_prefix_that_transformers_does_not_strip_is_named() {
    let (hint, message) = (
        "rename the tensors without it, or save the model without the wrapper that adds it",
        "tensor `model.embed_tokens.weight` is missing",
    );
    let prefixes = ["module.", "transformer.", "base_model.", "_orig_mod.", "language_model.", "a.b."];
    for prefix in prefixes {
        for (config, count) in [(config(), 21), (classifier(1), 21)] {
            let stored = renamed(&tensors(&config, "F32"), |name| format!("{prefix}{name}"));
            let hint = format!("every name begins with `{prefix}`: {hint}");
            let message = format!("{message}, and {} more that config.json calls for", count - 1);
            let text = printed(&message, "DIR", &hint);
            assert_eq!(Folder::with(&stored).refusal(&config), (ErrorKind::Weights, text), "{prefix}");
        }
    }
    // One `model.` more than transformers strips.
    let stored = renamed(&tensors(&config(), "F32"), |name| format!("model.model.{name}"));
    let (_, text) = Folder::with(&stored).refusal(&config());
    assert!(text.ends_with(&format!("\n\nhint: every name begins with `model.`: {hint}")), "{text}");
    // Without `model.` behind it.
    let stored = renamed(&tensors(&config(), "F32"), |name| {
        name.strip_prefix("model.").map_or(name.to_owned(), |rest| format!("backbone.{rest}"))
    });
    let (_, text) = Folder::with(&stored).refusal(&config());
    assert!(text.ends_with(&format!("\n\nhint: 20 of 21 names begin with `backbone.`: {hint}")), "{text}");
    // Of the head alone.
    let stored = renamed(&tensors(&classifier(1), "F32"), |name| match name {
        "score.weight" => "critic.score.weight".to_owned(),
        _ => name.to_owned(),
    });
    let text = printed(
        "tensor `score.weight` is missing",
        "DIR",
        &format!("1 of 21 names begin with `critic.`: {hint}"),
    );
    assert_eq!(Folder::with(&stored).refusal(&classifier(1)), (ErrorKind::Weights, text));
}

#[test]
fn a_tensor_under_two_names_is_refused() {
    let hint = "remove one of them from the checkpoint";
    let names = [
        ("model.norm.weight", "norm.weight"),
        ("model.layers.1.mlp.up_proj.weight", "model.model.layers.1.mlp.up_proj.weight"),
        ("lm_head.weight", "model.lm_head.weight"),
    ];
    for (name, other) in names {
        let mut stored = tensors(&config(), "F32");
        stored.insert(other.into(), stored[name].clone());
        let message =
            |first, second| format!("`{first}` and `{second}` are two names of one tensor of the model");
        let text = printed(&message(name, other), "DIR/model.safetensors", hint);
        assert_eq!(Folder::with(&stored).refusal(&config()), (ErrorKind::Weights, text));

        let second: Tensors = [(other.to_owned(), stored.remove(other).unwrap())].into();
        let folder = Folder::empty();
        folder.write("a.safetensors", &safetensors(&second));
        folder.write("b.safetensors", &safetensors(&stored));
        folder.write_index(
            [("x".into(), "a.safetensors".into()), ("y".into(), "b.safetensors".into())]
                .into_iter()
                .collect(),
        );
        let text = printed(&message(other, name), "DIR/a.safetensors and DIR/b.safetensors", hint);
        assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, text));
    }
}

#[test]
fn errors_name_tensors_as_the_file_does() {
    let bare = |config: &ModelConfig| {
        renamed(&tensors(config, "F32"), |name| name.strip_prefix("model.").unwrap_or(name).to_owned())
    };
    type Edit = fn(&mut Tensors);
    let cases: [(Edit, &str); 6] = [
        (
            |tensors| drop(tensors.remove("layers.1.self_attn.k_proj.weight")),
            "tensor `layers.1.self_attn.k_proj.weight` is missing",
        ),
        (
            |tensors| drop(tensors.insert("norm.weight".into(), tensor("", "F32", &[11]))),
            "tensor `norm.weight` has shape [11], expected [10]",
        ),
        (
            |tensors| {
                drop(tensors.insert(
                    "norm.weight".into(),
                    Tensor { dtype: "F64", shape: vec![5], bytes: vec![0; 40] },
                ))
            },
            "tensor `norm.weight` has dtype F64, expected BF16, F16 or F32",
        ),
        (
            |tensors| drop(tensors.insert("layers.0.mlp.up_proj.bias".into(), tensor("", "F32", &[8]))),
            "there is a bias `layers.0.mlp.up_proj.bias`, but config.json says that there is none",
        ),
        (
            |tensors| drop(tensors.insert("layers.2.mlp.up_proj.weight".into(), tensor("", "F32", &[8, 10]))),
            "tensor `layers.2.mlp.up_proj.weight` is of layer 2, but config.json says num_hidden_layers 2",
        ),
        (
            |tensors| drop(tensors.insert("model.score.weight".into(), tensor("", "F32", &[1, 10]))),
            "there is a classifier's head, `model.score.weight`, but config.json names a causal model",
        ),
    ];
    for (edit, message) in cases {
        let mut stored = bare(&config());
        edit(&mut stored);
        let (_, text) = Folder::with(&stored).refusal(&config());
        assert_eq!(text.lines().next(), Some(message));
    }

    let mut wrapped = renamed(&tensors(&config(), "F32"), |name| format!("model.{name}"));
    wrapped.remove("model.lm_head.weight");
    let (_, text) = Folder::with(&wrapped).refusal(&config());
    assert_eq!(text.lines().next(), Some("tensor `model.lm_head.weight` is missing"));
}

#[test]
fn other_dtypes_are_refused_by_name() {
    for (dtype, size) in [("I8", 1), ("F8_E4M3", 1), ("F64", 8), ("U8", 1)] {
        let name = "model.layers.1.mlp.up_proj.weight";
        let mut tensors = tensors(&config(), "BF16");
        tensors.insert(name.into(), Tensor { dtype, shape: vec![8, 10], bytes: vec![0; 80 * size] });
        let message = format!("tensor `{name}` has dtype {dtype}, expected BF16, F16 or F32");
        let hint = "quantised weights are not implemented; use the bf16 or f16 weights of this model";
        let text = printed(&message, "DIR/model.safetensors", hint);
        assert_eq!(Folder::with(&tensors).refusal(&config()), (ErrorKind::Unsupported, text));
    }
}

#[test]
fn tensors_that_config_or_architecture_exclude_are_refused() {
    let unknown = |name: &str| {
        let message = format!(
            "tensor `{name}` is of no model of this type: its effect on the reward is not implemented"
        );
        (
            ErrorKind::Unsupported,
            message,
            "if the reward does not depend on it, remove it from the checkpoint",
        )
    };
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let layer = "model.layers.2.mlp.up_proj.weight";
    let score_hint = "if the reward comes from it, name its class as \"architectures\" (`...ForSequenceClassification` for a \
                      head without a hidden layer); if not, remove it from the checkpoint";
    let score = "there is a classifier's head, `score.weight`, but config.json names a causal model";
    let named = |name: &'static str, message: String, hint| (name, (ErrorKind::Weights, message, hint));
    let mut cases = vec![
        named(
            bias,
            format!("there is a bias `{bias}`, but config.json says that there is none"),
            OTHER_MODEL,
        ),
        named(
            layer,
            format!("tensor `{layer}` is of layer 2, but config.json says num_hidden_layers 2"),
            OTHER_MODEL,
        ),
        named("score.weight", score.to_owned(), score_hint),
    ];
    for name in [
        "lm_head.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "v_head.summary.weight",
        "model.layers.0.self_attn.bias",
        "model.layers.0.self_attn._extra_state",
        "model.layers.0.self_attn.inv_freq",
        "model.layers.00.mlp.up_proj.weight",
        "model.norm.bias",
    ] {
        cases.push((name, unknown(name)));
    }
    for (name, (kind, message, hint)) in cases {
        let mut tensors = tensors(&config(), "F32");
        tensors.insert(name.into(), tensor(name, "F32", &[1]));
        let text = printed(&message, "DIR/model.safetensors", hint);
        assert_eq!(Folder::with(&tensors).refusal(&config()), (kind, text));
    }
}

#[test]
fn a_folder_without_weights_gets_a_hint_by_its_files() {
    let message = "there is no model.safetensors or pytorch_model.bin, and no index of such files";
    let cases = [
        (&["config.json"][..], "the download is incomplete; fetch the safetensors files into this folder"),
        (
            &["pytorch_model-00001-of-00002.bin", "training_args.bin"],
            "the PyTorch files here need pytorch_model.bin.index.json beside them, or the name pytorch_model.bin",
        ),
        (
            &["consolidated.00.pth"],
            "the folder holds PyTorch files in another layout than that of transformers; convert them: \
             `AutoModel...from_pretrained(dir).save_pretrained(new_dir)` of transformers writes safetensors",
        ),
        (&["m.gguf"], "the folder holds a GGUF file, which is not read; use the model's safetensors files"),
        (
            &["model-00001-of-00030.safetensors"],
            "the safetensors files here need model.safetensors.index.json beside them, or the name model.safetensors",
        ),
    ];
    for (files, hint) in cases {
        let folder = Folder::empty();
        files.iter().for_each(|file| folder.write(file, b""));
        assert_eq!(folder.refusal(&config()), (ErrorKind::Io, printed(message, "DIR", hint)));
    }
    let error = Checkpoint::open(Path::new("no/such/folder")).unwrap_err();
    assert_eq!((error.kind(), error.place()), (ErrorKind::Io, Some("no/such/folder")));
}

#[test]
fn missing_shards_are_all_named_and_counted() {
    let folder = Folder::sharded(&tensors(&config(), "F32"), 4);
    for shard in [2, 4] {
        std::fs::remove_file(folder.file(&format!("model-0000{shard}-of-00004.safetensors"))).unwrap();
    }
    let message =
        "2 of 4 weight files are missing: model-00002-of-00004.safetensors, model-00004-of-00004.safetensors";
    let hint = "the download is incomplete; fetch these files into the same folder";
    let text = printed(message, "DIR/model.safetensors.index.json", hint);
    assert_eq!(folder.refusal(&config()), (ErrorKind::Io, text));
}

#[test]
fn index_and_files_that_contradict_each_other_are_refused() {
    const NORM: &str = "model.norm.weight";
    let all = tensors(&config(), "F32");
    let hint = "the index is of another download than the files; download the model again";
    let index = "DIR/model.safetensors.index.json";
    let map = |shard: &str| -> serde_json::Map<_, _> {
        all.keys().map(|name| (name.clone(), shard.into())).collect()
    };

    let without: Tensors = all.clone().into_iter().filter(|(name, _)| name != NORM).collect();
    let folder = Folder::empty();
    folder.write("a.safetensors", &safetensors(&without));
    folder.write_index(map("a.safetensors"));
    let message = format!("tensor `{NORM}` is in none of the files, but the index says a.safetensors");
    assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, printed(&message, index, hint)));

    // By another spelling.
    let mut other = map("a.safetensors");
    other.remove(NORM);
    other.insert("norm.weight".into(), "a.safetensors".into());
    folder.write_index(other);
    let message = "tensor `norm.weight` is in none of the files, but the index says a.safetensors";
    assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, printed(message, index, hint)));

    let norm: Tensors = [(NORM.to_owned(), all[NORM].clone())].into();
    folder.write("b.safetensors", &safetensors(&norm));
    for extra in
        ["model.layers.0.self_attn.q_norm.weight", "model.layers.2.mlp.up_proj.weight", "score.weight"]
    {
        let mut more = map("a.safetensors");
        more.insert(NORM.into(), "b.safetensors".into());
        more.insert(extra.into(), "b.safetensors".into());
        folder.write_index(more);
        let message = format!("tensor `{extra}` is in none of the files, but the index says b.safetensors");
        let hint =
            "download the model again; if the tensor was left out on purpose, remove it from the index, too";
        assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, printed(&message, index, hint)));
    }

    folder.write("a.safetensors", &safetensors(&all));
    let hint = "the files are of different downloads; download the model again into an empty folder";
    let text =
        printed(&format!("tensor `{NORM}` is in two files"), "DIR/a.safetensors and DIR/b.safetensors", hint);
    assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, text));
}

#[test]
fn an_index_that_is_no_plain_text_is_named() {
    let folder = Folder::empty();
    let index = "DIR/model.safetensors.index.json";
    folder.write("model.safetensors.index.json", b"version https://git-lfs.example/spec/v1\noid sha256:0\n");
    let text = printed(
        "this is a pointer of git-lfs, not the file itself",
        index,
        "run `git lfs pull` in its folder",
    );
    assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, text));
    folder.write("model.safetensors.index.json", "\u{feff}{}".as_bytes());
    let (kind, text) = folder.refusal(&config());
    let message = "the file begins with a byte order mark, which JSON does not allow";
    assert_eq!((kind, text.lines().next()), (ErrorKind::Weights, Some(message)));
}

#[test]
fn an_index_cannot_reach_outside_its_folder() {
    let folder = Folder::empty();
    folder.write_index(
        [("model.norm.weight".to_owned(), "../secret.safetensors".into())].into_iter().collect(),
    );
    let message = "the index places tensor `model.norm.weight` in `../secret.safetensors`, expected the name of a file in \
                   the same folder";
    let text =
        printed(message, "DIR/model.safetensors.index.json", "the index is damaged; download it again");
    assert_eq!(folder.refusal(&config()), (ErrorKind::Weights, text));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_is_cut() {
    let whole = safetensors(&tensors(&config(), "F32"));
    let folder = Folder::empty();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header - 1, header, header + 1, whole.len() - 1] {
        folder.write("model.safetensors", &whole[..length]);
        let (kind, text) = folder.refusal(&config());
        assert_eq!(kind, ErrorKind::Weights, "{text}");
        assert!(text.ends_with("\n\nhint: the file is damaged or incomplete; download it again"), "{text}");
        assert!(text.contains("\n  at DIR/model.safetensors\n"), "{text}");
    }
    let (_, text) = folder.refusal(&config());
    let message = text.lines().next().unwrap();
    assert!(message.starts_with("tensor `model.norm.weight` ends at byte "), "{text}");
    assert!(message.ends_with("it is truncated"), "{text}");
}

#[test]
fn a_folder_in_the_place_of_a_file_is_refused() {
    let folder = Folder::empty();
    std::fs::create_dir(folder.file("model.safetensors")).unwrap();
    let error = folder.open(&config()).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Io, "this is not a file"));
}

/// A header may claim anything; memory is only taken for what is there.
#[test]
fn huge_claims_in_a_small_file_are_refused() {
    let claims = [
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}"#,
    ];
    for header in claims {
        let folder = Folder::empty();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        folder.write("model.safetensors", &file);
        assert_eq!(folder.refusal(&config()).0, ErrorKind::Weights);
    }
}
