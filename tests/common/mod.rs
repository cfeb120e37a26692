//! Shared by several test binaries: paths of models, running the command, making a model, damaging
//! a safetensors file.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use kudos::{Batching, CpuOptions, Engine, EngineBuilder};
use serde_json::{Value, json};

/// Returns the folder that holds `tests/fixtures` and `demo`: the repository, or the value of
/// `KUDOS_TEST_ROOT` on a machine without one. The packages whose tests are here have other
/// folders.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = package.ancestors().find(|folder| folder.join("tests/fixtures").is_dir());
    env::var_os("KUDOS_TEST_ROOT").map_or_else(|| repository.unwrap_or(package).to_owned(), PathBuf::from)
}

/// The `kudos` command: the one that cargo built, or `KUDOS_TEST_BIN` where that is elsewhere.
pub(crate) fn kudos_path() -> PathBuf {
    const BUILT: Option<&str> = option_env!("CARGO_BIN_EXE_kudos");
    let built = || BUILT.unwrap_or_else(|| panic!("this package builds no `kudos` command")).into();
    env::var_os("KUDOS_TEST_BIN").unwrap_or_else(built).into()
}

/// Returns a builder on the CPU, for tests that need no other device: the same one on a machine with a GPU.
pub(crate) fn on_cpu(dir: impl AsRef<Path>) -> EngineBuilder {
    Engine::builder(dir).device(CpuOptions::default())
}

/// Returns options of so many ranks on the CPU, with a thread each.
pub(crate) fn cpu_ranks(ranks: usize) -> CpuOptions {
    CpuOptions { ranks: Some(ranks), threads: Some(ranks), ..CpuOptions::default() }
}

/// Returns options for passes of up to `tokens` unique tokens.
pub(crate) fn batches_of(tokens: usize) -> Batching {
    Batching { batch_tokens: Some(tokens), ..Batching::default() }
}

/// The reward model that the repository ships.
pub(crate) fn demo_model() -> PathBuf {
    root().join("demo/model")
}

/// The tiny random checkpoints of Llama with Transformers' rewards.
pub(crate) fn fixtures() -> Vec<PathBuf> {
    fixtures_in("models", 12)
}

/// Those of several families.
pub(crate) fn families() -> Vec<PathBuf> {
    fixtures_in("families", 9)
}

fn fixtures_in(folder: &str, least: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tests/fixtures").join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = paths.filter(|path| path.join("config.json").exists()).collect();
    dirs.sort();
    assert!(dirs.len() >= least, "fixtures are missing: {dirs:?}");
    dirs
}

/// `len` random token ids below `vocab`; equal seeds give equal ids.
pub(crate) fn ids(seed: u64, len: usize, vocab: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(vocab)) as u32
    };
    (0..len).map(|_| next()).collect()
}

/// Sequences that share prefixes in every way: a shared start, a duplicate, a prefix of another,
/// one token, none shared.
pub(crate) fn family(vocab: u32) -> Vec<Vec<u32>> {
    let prompt = ids(1, 70, vocab);
    let with = |tail: &[u32]| [prompt.as_slice(), tail].concat();
    vec![
        with(&ids(2, 13, vocab)),
        ids(3, 129, vocab),
        with(&ids(4, 64, vocab)),
        prompt.clone(),
        with(&ids(2, 13, vocab)),
        vec![5],
        with(&[&ids(2, 6, vocab)[..], &ids(6, 30, vocab)[..]].concat()),
        ids(7, 2, vocab),
    ]
}

/// The result of a run of the command.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the `kudos` command with `input` on its standard input.
pub(crate) fn kudos(arguments: &[&str], input: &str) -> Run {
    kudos_in(&[], arguments, input)
}

/// Like [`kudos`], with variables set in the environment, or removed where the value is `None`.
pub(crate) fn kudos_in(variables: &[(&str, Option<&str>)], arguments: &[&str], input: &str) -> Run {
    let mut command = Command::new(kudos_path());
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that fails early does not read its input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Rewrites a safetensors file with an edited header and returns its tensors' names.
pub(crate) fn rewrite_tensors(path: &Path, edit: impl FnOnce(&mut Value)) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    edit(&mut header);
    let text = header.to_string();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&bytes[8 + header_len..]);
    fs::write(path, out).unwrap();
    header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").cloned().collect()
}

/// Makes the first value of a bf16 tensor NaN.
pub(crate) fn poison_tensor(path: &Path, tensor: &str) {
    overwrite_tensor(path, tensor, "BF16", &0x7FC0_u16.to_le_bytes());
}

/// Replaces the first bytes of a tensor, which must hold `dtype`.
pub(crate) fn overwrite_tensor(path: &Path, tensor: &str, dtype: &str, first: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    assert_eq!(header[tensor]["dtype"], dtype);
    let start = 8 + header_len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + first.len()].copy_from_slice(first);
    fs::write(path, bytes).unwrap();
}

/// Stores the elements of a safetensors file of bf16 tensors in f32.
pub(crate) fn widen_to_f32(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, elements) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    for (_, tensor) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__")
    {
        assert_eq!(tensor["dtype"], "BF16");
        let [begin, end] = [0, 1].map(|index| 2 * tensor["data_offsets"][index].as_u64().unwrap());
        (tensor["dtype"], tensor["data_offsets"]) = (json!("F32"), json!([begin, end]));
    }
    let header = header.to_string();
    let wide = elements.chunks_exact(2).flat_map(|element| [0, 0, element[0], element[1]]);
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], header.as_bytes(), &wide.collect::<Vec<_>>()].concat()).unwrap();
}

/// The sizes of a model whose heads have 1/8 of its width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelSizes {
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) vocab: usize,
}

/// Writes a model with random bf16 weights between 1/32 and 1/16 and of either sign, and returns
/// their bytes. It has no tokenizer.
pub(crate) fn random_model(dir: &Path, sizes: ModelSizes) -> usize {
    let ModelSizes { hidden, ffn, layers, vocab } = sizes;
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
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(fs::File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..offset / 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The exponent of 1/32; sign and mantissa at random.
        let bits = 0x3D00 | (state >> 32) as u16 & 0x807F;
        file.write_all(&bits.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    offset
}

/// Every file in a folder and its subfolders, ordered by path.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}
