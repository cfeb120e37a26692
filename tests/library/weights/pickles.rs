//! Files of `torch.save`: the same tensors and rewards as in safetensors, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use kudos::internals::config::ModelConfig;
use kudos::internals::error::ErrorKind;
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Checkpoint, ModelTensors};
use serde_json::Value;
use tempfile::TempDir;

use super::folder::{Folder, Tensor, Tensors, config, safetensors, tensor, tensors};
use super::reads::all;
use crate::common::{on_cpu, root};

/// The models of `tests/fixtures/pickles/models`, whose tensors are those of
/// `tests/fixtures/models`.
const MODELS: [&str; 3] = ["gqa8_hd64_tied_bf16", "seqcls_pad_hd36_f32", "seqcls_pad_llama3_bf16"];

const PICKLE: &str = "pytorch_model.bin";
const INDEX: &str = "pytorch_model.bin.index.json";

fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// A folder with a model's pickles, and the `config.json` of its safetensors.
fn pickled(model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut files = vec![fixtures().join("models").join(model).join("config.json")];
    let pickles = fs::read_dir(fixtures().join("pickles/models").join(model)).unwrap();
    files.extend(pickles.map(|entry| entry.unwrap().path()));
    for file in files {
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

fn open(dir: &Path) -> ModelTensors {
    let config = ModelConfig::read(dir).unwrap();
    let shard = Shard::new(&config, 0, 1).unwrap();
    ModelTensors::open(&Checkpoint::open(dir).unwrap(), &config, &shard).unwrap()
}

#[test]
fn pickles_hold_the_tensors_of_the_safetensors_bit_for_bit() {
    for model in MODELS {
        let (pickles, expected) = (pickled(model), open(&fixtures().join("models").join(model)));
        let found = open(pickles.path());
        assert_eq!(found.warnings, [""; 0], "{model}");
        assert_eq!(found.bytes(), expected.bytes(), "{model}");
        let (found, expected) = (all(&found), all(&expected));
        assert_eq!(found.len(), expected.len(), "{model}");
        for ((name, rows), (expected_name, expected_rows)) in found.iter().zip(&expected) {
            // The pickle of the tied model has its head by both names.
            let head = [&**name, &**expected_name] == ["lm_head.weight", "model.embed_tokens.weight"];
            assert!(name == expected_name || head, "{model}: {name} for {expected_name}");
            let bits = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(rows) == bits(expected_rows), "{model}: {name}");
        }
    }
}

#[test]
fn pickles_score_as_the_safetensors_bit_for_bit() {
    for model in MODELS {
        let (pickles, original) = (pickled(model), fixtures().join("models").join(model));
        let cases: Value = serde_json::from_slice(&fs::read(original.join("cases.json")).unwrap()).unwrap();
        let sequences: Vec<Vec<u32>> = cases["cases"].as_array().unwrap()[..5]
            .iter()
            .map(|case| serde_json::from_value(case["input_ids"].clone()).unwrap())
            .collect();
        let rewards = |dir: &Path| -> Vec<u32> {
            let scores = on_cpu(dir).open().unwrap().score(&sequences);
            scores.into_iter().map(|score| score.unwrap().reward.to_bits()).collect()
        };
        assert_eq!(rewards(pickles.path()), rewards(&original), "{model}");
    }
}

/// A file in PyTorch's legacy format, put together by hand; each tensor has its own storage.
fn legacy(tensors: &Tensors) -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let number = |number: usize| [&b"J"[..], &(number as u32).to_le_bytes()].concat();
    let numbers = |all: Vec<usize>| {
        let all: Vec<u8> = all.into_iter().flat_map(number).collect();
        [&b"("[..], &all, b"t"].concat()
    };
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    file.extend([&text("little_endian")[..], b"\x88s.\x80\x02}("].concat());
    let (mut keys, mut storages) = (b"\x80\x02](".to_vec(), Vec::new());
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let class = match tensor.dtype {
            "F64" => "DoubleStorage",
            "F32" => "FloatStorage",
            "F16" => "HalfStorage",
            _ => "BFloat16Storage",
        };
        let count: usize = tensor.shape.iter().product();
        let strides = (1..=tensor.shape.len()).map(|at| tensor.shape[at..].iter().product()).collect();
        let key = text(&index.to_string());
        let class = format!("ctorch\n{class}\n");
        file.extend([&text(name)[..], b"ctorch._utils\n_rebuild_tensor_v2\n(("].concat());
        file.extend(
            [&text("storage")[..], class.as_bytes(), &key, &text("cpu"), &number(count), b"NtQ"].concat(),
        );
        file.extend([number(0), numbers(tensor.shape.clone()), numbers(strides)].concat());
        file.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        keys.extend(key);
        storages.extend([&(count as u64).to_le_bytes()[..], &tensor.bytes].concat());
    }
    [&file[..], b"u.", &keys, b"e.", &storages].concat()
}

/// Writes tensors dealt out to two files in turn, with an index.
fn sharded(tensors: &Tensors) -> Folder {
    let folder = Folder::empty();
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let file = format!("pytorch_model-0000{}-of-00002.bin", shard + 1);
        let dealt = tensors.iter().enumerate().filter(|(index, _)| index % 2 == shard);
        let part: Tensors = dealt.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        map.extend(part.keys().map(|name| (name.clone(), file.clone().into())));
        folder.write(&file, &legacy(&part));
    }
    folder.write(INDEX, serde_json::json!({"weight_map": map}).to_string().as_bytes());
    folder
}

#[test]
fn one_pickle_and_many_give_the_same_weights_in_every_dtype() {
    for dtype in ["F32", "F16", "BF16"] {
        let tensors = tensors(&config(), dtype);
        let expected = all(&Folder::with(&tensors).open(&config()).unwrap());
        let folder = Folder::empty();
        folder.write(PICKLE, &legacy(&tensors));
        for folder in [folder, sharded(&tensors)] {
            let model = folder.open(&config()).unwrap();
            assert_eq!(model.warnings, [""; 0]);
            assert!(all(&model) == expected, "{dtype}");
        }
    }
}

#[test]
fn safetensors_go_before_pickles() {
    let good = tensors(&config(), "F32");
    let folder = sharded(&good);
    // Not read: the other file counts.
    folder.write(PICKLE, b"no pickle");
    let (_, text) = folder.refusal(&config());
    assert!(text.contains(&format!("DIR/{PICKLE}")), "{text}");
    folder.write("model.safetensors", &safetensors(&good));
    let model = folder.open(&config()).unwrap();
    assert_eq!(model.embedding.path(), folder.file("model.safetensors"));
    // Both formats side by side are usual; two ways to the weights of one are not.
    assert_eq!(model.warnings, [""; 0]);
    folder.write("model.safetensors.index.json", br#"{"weight_map": {}}"#);
    let model = folder.open(&config()).unwrap();
    let [warning] = &*model.warnings else { panic!("{:?}", model.warnings) };
    let ending =
        "holds model.safetensors and model.safetensors.index.json; the weights are read from the first";
    assert!(warning.ends_with(ending), "{warning}");
}

#[test]
fn errors_of_pickles_name_file_tensor_and_hint() {
    let printed = |message: &str, place: &str, hint: &str| format!("{message}\n  at {place}\n\nhint: {hint}");
    let folder = Folder::empty();
    let place = format!("DIR/{PICKLE}");
    let refused = |name: &str| {
        folder.write(PICKLE, &fs::read(fixtures().join("pickles/small/refused").join(name)).unwrap());
        folder.refusal(&config())
    };
    let hint = "no code of the file was run; if you trust it, load it with torch and save the model by \
                `save_pretrained`, which writes safetensors";
    let text = printed("the pickle wants `posix.system`, which is no plain tensor", &place, hint);
    assert_eq!(refused("code.bin"), (ErrorKind::Unsupported, text));
    let hint =
        "if the model is in there, save it alone: `torch.save(torch.load(file)[\"state_dict\"], file)`";
    let text = printed("the pickle has a dict as `state_dict`, expected a tensor", &place, hint);
    assert_eq!(refused("state_dict.bin"), (ErrorKind::Unsupported, text));

    // As in safetensors.
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut stored = tensors(&config(), "BF16");
    stored.insert(name.into(), Tensor { dtype: "F64", shape: vec![8, 10], bytes: vec![0; 640] });
    folder.write(PICKLE, &legacy(&stored));
    let hint = "quantised weights are not implemented; use the bf16 or f16 weights of this model";
    let message = format!("tensor `{name}` has dtype F64, expected BF16, F16 or F32");
    assert_eq!(folder.refusal(&config()), (ErrorKind::Unsupported, printed(&message, &place, hint)));
    stored.insert(name.into(), tensor(name, "BF16", &[10, 8]));
    folder.write(PICKLE, &legacy(&stored));
    let (kind, text) = folder.refusal(&config());
    let message = format!("tensor `{name}` has shape [10, 8], expected [8, 10]\n  at {place} (config.json: ");
    assert!(kind == ErrorKind::Weights && text.starts_with(&message), "{text}");
}

#[test]
fn shards_of_pickles_and_their_index_must_agree() {
    let folder = sharded(&tensors(&config(), "F32"));
    let index = fs::read_to_string(folder.file(INDEX)).unwrap();
    let norm = r#""model.norm.weight":"#;
    assert!(index.contains(norm), "{index}");
    folder.write(
        INDEX,
        index
            .replace(norm, r#""score.weight":"pytorch_model-00001-of-00002.bin","model.norm.weight":"#)
            .as_bytes(),
    );
    let (kind, text) = folder.refusal(&config());
    let message =
        "tensor `score.weight` is in none of the files, but the index says pytorch_model-00001-of-00002.bin";
    assert_eq!((kind, text.lines().next()), (ErrorKind::Weights, Some(message)));
    assert_eq!(text.lines().nth(1), Some(&*format!("  at DIR/{INDEX}")));

    fs::remove_file(folder.file("pytorch_model-00002-of-00002.bin")).unwrap();
    let (kind, text) = folder.refusal(&config());
    let message = "1 of 2 weight files are missing: pytorch_model-00002-of-00002.bin";
    assert_eq!((kind, text.lines().next()), (ErrorKind::Io, Some(message)));
}
