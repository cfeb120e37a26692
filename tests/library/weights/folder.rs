//! Model folders put together by hand, so that they can also be wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kudos::internals::config::{Biases, Head, ModelConfig};
use kudos::internals::error::{Error, ErrorKind, Result};
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Checkpoint, ModelTensors};
use tempfile::TempDir;

/// A tensor to be written: dtype and shape as the header will say them, and its bytes, whatever
/// those are.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Tensors by name; the order of names is the order in the file.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A safetensors file, put together by hand.
pub(crate) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let offsets = [data.len(), data.len() + tensor.bytes.len()];
        let entry =
            serde_json::json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
        data.extend(&tensor.bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// A model with every size different, 4 query heads and 2 kv heads, two layers.
pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        hidden: 10,
        layers: 2,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 6,
        ffn: 8,
        vocab: 7,
        ..ModelConfig::tiny()
    }
}

pub(crate) fn biased() -> ModelConfig {
    ModelConfig { biases: Biases { qkv: true, o: true, mlp: true }, ..config() }
}

pub(crate) fn classifier(labels: usize) -> ModelConfig {
    ModelConfig { head: Head::Score { labels, labels_named: true, pad_token_id: None }, ..config() }
}

/// Value `index` of a tensor in these tests: small, exact in every dtype, and telling tensors
/// apart.
pub(crate) fn value(name: &str, index: usize) -> f32 {
    let seed = name.bytes().fold(7_usize, |hash, byte| (hash * 31 + usize::from(byte)) % 251);
    ((seed + 3 * index) % 251) as f32
}

pub(crate) fn tensor(name: &str, dtype: &'static str, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|index| value(name, index));
    let bytes = match dtype {
        "F32" => values.flat_map(|value| value.to_le_bytes()).collect(),
        "F16" => values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect(),
    };
    Tensor { dtype, shape: shape.to_vec(), bytes }
}

/// Names and shapes written out, so that the library's own table is not its own judge.
pub(crate) fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, q, kv, ffn) = (config.hidden, config.q_width(), config.kv_width(), config.ffn);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    match config.head {
        Head::LogitZero { tied: true } => {}
        Head::LogitZero { tied: false } => {
            shapes.push(("lm_head.weight".to_owned(), vec![config.vocab, hidden]))
        }
        Head::Score { labels, .. } => shapes.push(("score.weight".to_owned(), vec![labels, hidden])),
        Head::ScoreMlp { labels, .. } => shapes.extend([
            ("score.0.weight".to_owned(), vec![hidden, hidden]),
            ("score.0.bias".to_owned(), vec![hidden]),
            ("score.2.weight".to_owned(), vec![labels, hidden]),
            ("score.2.bias".to_owned(), vec![labels]),
        ]),
    }
    for layer in 0..config.layers {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()))
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, out, inner) in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)] {
            add(&format!("self_attn.{name}_proj.weight"), &[out, inner]);
            if if name == "o" { config.biases.o } else { config.biases.qkv } {
                add(&format!("self_attn.{name}_proj.bias"), &[out]);
            }
        }
        for (name, out, inner) in [("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)] {
            add(&format!("mlp.{name}_proj.weight"), &[out, inner]);
            if config.biases.mlp {
                add(&format!("mlp.{name}_proj.bias"), &[out]);
            }
        }
    }
    shapes
}

pub(crate) fn tensors(config: &ModelConfig, dtype: &'static str) -> Tensors {
    shapes(config).into_iter().map(|(name, shape)| (name.clone(), tensor(&name, dtype, &shape))).collect()
}

/// A model folder that is removed when this is dropped.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn with(tensors: &Tensors) -> Self {
        let folder = Self::empty();
        folder.write("model.safetensors", &safetensors(tensors));
        folder
    }

    /// Tensors dealt out to `shards` files in turn, with an index.
    pub(crate) fn sharded(tensors: &Tensors, shards: usize) -> Self {
        let folder = Self::empty();
        let mut map = serde_json::Map::new();
        for shard in 0..shards {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
            let dealt = tensors.iter().enumerate().filter(|(index, _)| index % shards == shard);
            let part: Tensors = dealt.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
            map.extend(part.keys().map(|name| (name.clone(), file.clone().into())));
            folder.write(&file, &safetensors(&part));
        }
        folder.write_index(map);
        folder
    }

    pub(crate) fn write_index(&self, map: serde_json::Map<String, serde_json::Value>) {
        let index = serde_json::json!({"metadata": {}, "weight_map": map});
        self.write("model.safetensors.index.json", index.to_string().as_bytes());
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn open(&self, config: &ModelConfig) -> Result<ModelTensors> {
        self.open_rank(config, 0, 1)
    }

    pub(crate) fn open_rank(&self, config: &ModelConfig, rank: usize, ranks: usize) -> Result<ModelTensors> {
        ModelTensors::open(&Checkpoint::open(self.0.path())?, config, &Shard::new(config, rank, ranks)?)
    }

    /// The printed error with the folder's path shortened to DIR, and its kind.
    pub(crate) fn refusal(&self, config: &ModelConfig) -> (ErrorKind, String) {
        let error = self.open(config).expect_err("the folder was accepted");
        (error.kind(), self.printed(&error))
    }

    pub(crate) fn printed(&self, error: &Error) -> String {
        error.report().replace(self.0.path().to_str().unwrap(), "DIR")
    }
}
