//! The shapes of well-known models.

use std::path::Path;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::machine;
use kudos::internals::config::ModelConfig;
use kudos::internals::units::gib;
use kudos::internals::weights::RandomWeights;
use kudos::{Error, ErrorKind, MemoryPlan, Result};

/// Rows of the embedding table. No matmul runs over it: a batch gathers rows of it.
const VOCAB: usize = 4096;

/// Seed of random weights: they are equal in every run.
pub(super) const SEED: u64 = 0;

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
    /// The configuration of a model of this shape, or of its first `layers` layers.
    ///
    /// # Errors
    ///
    /// `Options` for more layers than the shape has.
    pub(super) fn config(&self, layers: Option<usize>) -> Result<ModelConfig> {
        ModelConfig::parse(&self.config_json(layers)?, Path::new(self.name))
    }

    /// Like [`config`](Self::config), as the content of a `config.json`.
    pub(super) fn config_json(&self, layers: Option<usize>) -> Result<String> {
        let (name, all) = (self.name, self.layers);
        let layers = layers.unwrap_or(all);
        if layers > all {
            let message = format!("{name} has {all} layers; `--layers` asks for {layers}");
            return Err(Error::new(ErrorKind::Options, message).with_hint("leave out `--layers` for all"));
        }
        let text = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": layers,
            "num_attention_heads": self.q_heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_parameters": self.rope,
            "max_position_embeddings": self.max_tokens, "tie_word_embeddings": true, "dtype": "bfloat16",
        });
        Ok(text.to_string())
    }
}

/// Refuses random weights that the host must hold and has no memory for.
pub(super) fn refuse_crowded(config: &ModelConfig, plan: &MemoryPlan) -> Result<()> {
    let on_host = plan.footprint.weights == 0 || plan.placement.streamed > 0;
    let bytes = RandomWeights::new(config, SEED).host_bytes() as u64;
    refuse_larger(if on_host { bytes } else { 0 }, machine::available_memory_bytes())
}

fn refuse_larger(bytes: u64, free: Option<u64>) -> Result<()> {
    let Some(free) = free.filter(|&free| bytes > free) else { return Ok(()) };
    let gib = |bytes: u64| gib(bytes as usize);
    let message =
        format!("the weights take {:.2} GiB of memory, and {:.2} GiB are free", gib(bytes), gib(free));
    Err(Error::new(ErrorKind::Memory, message).with_hint("ask for fewer layers (`--layers`)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_free_memory_are_refused_with_both_sizes() {
        let error = refuse_larger(3 << 30, Some(1 << 30)).unwrap_err();
        assert_eq!(error.message(), "the weights take 3.00 GiB of memory, and 1.00 GiB are free");
        assert!(refuse_larger(1, Some(1)).is_ok());
        assert!(refuse_larger(1, None).is_ok());
    }

    #[test]
    fn more_layers_than_the_shape_has_are_refused() {
        let error = ShapeArg::SmolLm2_135m.shape().config(Some(31)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Options);
    }

    #[test]
    fn shapes_are_models_that_can_be_run() {
        for shape in ShapeArg::value_variants() {
            let config = shape.shape().config(None).unwrap();
            assert_eq!(config.layers, shape.shape().layers);
        }
    }
}
