//! Well-known models' shapes, and checkpoints of random weights in them.
//!
//! Power and with it speed depend on the numbers that are multiplied: these are normally distributed, as in a model
//! before training, and not zeros.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::{env, process};

use clap::ValueEnum;
use half::bf16;
use serde_json::{Map, Value, json};

use crate::bench::machine;
use crate::bench::random::Random;
use crate::cli::say;
use crate::error::{Error, ErrorKind, Result};

/// Rows of the embedding table, which is not computed over: a batch gathers rows of it, however many there are.
const VOCAB: usize = 4096;

/// The standard deviation of weights, as models are initialised.
const DEVIATION: f64 = 0.02;

const GIB: f64 = (1_u64 << 30) as f64;

/// A model whose shape is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShapeArg {
    #[value(name = "llama-3.3-70b")]
    Llama33_70b,
    #[value(name = "llama-3.1-8b")]
    Llama31_8b,
    #[value(name = "smollm2-135m")]
    SmolLm2_135m,
}

/// The sizes of a model.
pub(super) struct Shape {
    pub(super) name: &'static str,
    hidden: usize,
    ffn: usize,
    layers: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_tokens: usize,
    rope: Value,
}

impl ShapeArg {
    pub(super) fn shape(self) -> Shape {
        let llama3 = json!({
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        });
        match self {
            Self::Llama33_70b => Shape {
                name: "llama-3.3-70b",
                hidden: 8192,
                ffn: 28_672,
                layers: 80,
                q_heads: 64,
                kv_heads: 8,
                head_dim: 128,
                max_tokens: 131_072,
                rope: llama3,
            },
            Self::Llama31_8b => Shape {
                name: "llama-3.1-8b",
                hidden: 4096,
                ffn: 14_336,
                layers: 32,
                q_heads: 32,
                kv_heads: 8,
                head_dim: 128,
                max_tokens: 131_072,
                rope: llama3,
            },
            Self::SmolLm2_135m => Shape {
                name: "smollm2-135m",
                hidden: 576,
                ffn: 1536,
                layers: 30,
                q_heads: 9,
                kv_heads: 3,
                head_dim: 64,
                max_tokens: 8192,
                rope: json!({"rope_type": "default", "rope_theta": 100_000.0}),
            },
        }
    }
}

impl Shape {
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
            "num_attention_heads": self.q_heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_parameters": self.rope,
            "max_position_embeddings": self.max_tokens, "tie_word_embeddings": true, "dtype": "bfloat16",
        })
    }

    /// Every tensor's name and sizes.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, ffn, head_dim, .. } = *self;
        let (q_width, kv_width) = (self.q_heads * head_dim, self.kv_heads * head_dim);
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.layers {
            for (name, sizes) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q_width, hidden]),
                ("self_attn.k_proj", vec![kv_width, hidden]),
                ("self_attn.v_proj", vec![kv_width, hidden]),
                ("self_attn.o_proj", vec![hidden, q_width]),
                ("mlp.gate_proj", vec![ffn, hidden]),
                ("mlp.up_proj", vec![ffn, hidden]),
                ("mlp.down_proj", vec![hidden, ffn]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), sizes));
            }
        }
        tensors
    }
}

/// A folder with random weights, for as long as this lives.
pub(super) struct RandomModel {
    dir: PathBuf,
}

impl RandomModel {
    /// Writes a model of that shape, or of its first `layers` layers, into the temporary folder.
    ///
    /// # Errors
    ///
    /// `Options` for more layers than the shape has; `Memory` where its weights have no room on the disk or in memory.
    pub(super) fn write(shape: &Shape, layers: Option<usize>) -> Result<Self> {
        let (name, all) = (shape.name, shape.layers);
        let layers = layers.unwrap_or(all);
        if layers > all {
            let message = format!("{name} has {all} layers, and {layers} were asked for");
            return Err(Error::new(ErrorKind::Options, message).with_hint("leave out `--layers` for all"));
        }
        let shape = Shape { layers, rope: shape.rope.clone(), ..*shape };
        let tensors = shape.tensors();
        let bytes = tensors.iter().map(|(_, sizes)| 2 * sizes.iter().product::<usize>() as u64).sum();
        let temporary = env::temp_dir();
        let what = format!("the weights of {layers} of {all} layers of {name}");
        refuse_larger(&what, bytes, machine::free_disk_bytes(&temporary), "free on the disk")
            .and_then(|()| refuse_larger(&what, bytes, machine::available_memory_bytes(), "free in memory"))
            .map_err(|error| error.at(temporary.display()))?;
        say(&format!("writing {what}, {:.2} GiB, below {}", bytes as f64 / GIB, temporary.display()));
        let dir = temporary.join(format!("kudos-bench-{}", process::id()));
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, format!("cannot write {what}: {error}"))
                .at(dir.display())
                .with_hint("TMPDIR names another temporary folder")
        };
        fs::create_dir(&dir).map_err(failed)?;
        let model = Self { dir: dir.clone() };
        model.fill(&shape, &tensors).map_err(failed)?;
        Ok(model)
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn fill(&self, shape: &Shape, tensors: &[(String, Vec<usize>)]) -> io::Result<()> {
        fs::write(self.dir.join("config.json"), shape.config().to_string())?;
        let (mut header, mut offset) = (Map::new(), 0);
        for (name, sizes) in tensors {
            let end = offset + 2 * sizes.iter().product::<usize>();
            let entry = json!({"dtype": "BF16", "shape": sizes, "data_offsets": [offset, end]});
            header.insert(name.clone(), entry);
            offset = end;
        }
        let header = Value::Object(header).to_string();
        let mut file = BufWriter::with_capacity(1 << 20, File::create(self.dir.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut random = Random::new(0);
        for (_, sizes) in tensors {
            match sizes[..] {
                // Norms.
                [width] => file.write_all(&bf16::ONE.to_le_bytes().repeat(width))?,
                _ => {
                    for _ in 0..sizes.iter().product() {
                        file.write_all(&weight(random.next()).to_le_bytes())?;
                    }
                }
            }
        }
        file.flush()
    }
}

impl Drop for RandomModel {
    fn drop(&mut self) {
        // Where mapped files cannot be removed, they stay.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A weight out of 64 random bits: four uniform numbers add up to one that is nearly normal.
fn weight(bits: u64) -> bf16 {
    let sum: i64 = (0..4).map(|part| (bits >> (16 * part) & 0xFFFF) as i64).sum();
    // The sum's mean, and the deviation of four numbers that are each uniform over 2^16.
    let (mean, deviation) = (2.0 * 65_535.0, 65_536.0 / 3.0_f64.sqrt());
    bf16::from_f64((sum as f64 - mean) / deviation * DEVIATION)
}

fn refuse_larger(what: &str, bytes: u64, free: Option<u64>, place: &str) -> Result<()> {
    let Some(free) = free.filter(|&free| bytes > free) else { return Ok(()) };
    let gib = |bytes: u64| bytes as f64 / GIB;
    let message = format!("{what} are {:.2} GiB, and {:.2} GiB are {place}", gib(bytes), gib(free));
    Err(Error::new(ErrorKind::Memory, message)
        .with_hint("ask for fewer layers (`--layers`); TMPDIR names another temporary folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_deviation_that_models_begin_with() {
        let mut random = Random::new(0);
        let weights: Vec<f64> = (0..100_000).map(|_| weight(random.next()).to_f64()).collect();
        let mean = weights.iter().sum::<f64>() / 1e5;
        let deviation = (weights.iter().map(|weight| (weight - mean).powi(2)).sum::<f64>() / 1e5).sqrt();
        assert!(mean.abs() < 5e-4 && (deviation / DEVIATION - 1.0).abs() < 0.02, "{mean} {deviation}");
    }

    #[test]
    fn what_has_no_room_is_refused_with_both_sizes() {
        let error = refuse_larger("the weights", 3 << 30, Some(1 << 30), "free in memory").unwrap_err();
        assert_eq!(error.message(), "the weights are 3.00 GiB, and 1.00 GiB are free in memory");
        assert!(refuse_larger("the weights", 1, Some(1), "free in memory").is_ok());
        assert!(refuse_larger("the weights", 1, None, "free in memory").is_ok());
    }

    #[test]
    fn a_shape_has_no_more_layers_than_it_has() {
        let error = RandomModel::write(&ShapeArg::SmolLm2_135m.shape(), Some(31)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Options);
    }
}
