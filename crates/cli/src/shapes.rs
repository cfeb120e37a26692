//! The shapes of well-known models, for plans without files and measurements without weights.

use std::path::Path;

use clap::ValueEnum;
use serde_json::{Value, json};

use kudos::internals::config::ModelConfig;
use kudos::{Error, ErrorKind, Result};

/// A model whose shape is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShapeArg {
    /// Llama 3.1 and 3.3
    #[value(name = "llama-3.3-70b")]
    Llama33_70b,
    /// Llama 3.1
    #[value(name = "llama-3.1-8b")]
    Llama31_8b,
    /// Qwen3
    #[value(name = "qwen3-32b")]
    Qwen3_32b,
    /// Qwen3
    #[value(name = "qwen3-8b")]
    Qwen3_8b,
    /// Qwen2.5
    #[value(name = "qwen2.5-72b")]
    Qwen25_72b,
    /// Gemma 2
    #[value(name = "gemma-2-27b")]
    Gemma2_27b,
    /// Gemma 2
    #[value(name = "gemma-2-9b")]
    Gemma2_9b,
    /// Mistral 0.3
    #[value(name = "mistral-7b")]
    Mistral7b,
    /// SmolLM2
    #[value(name = "smollm2-135m")]
    SmolLm2_135m,
}

/// The sizes of a model.
#[derive(Debug)]
pub struct Shape {
    /// The name that options take.
    pub name: &'static str,
    hidden: usize,
    ffn: usize,
    layers: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    max_tokens: usize,
    family: Family,
}

/// A family, by which a `config.json` has fields beside sizes.
#[derive(Clone, Copy, Debug)]
enum Family {
    /// RoPE scaled as in Llama 3.1.
    Llama3,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2 {
        query_pre_attn_scalar: usize,
    },
}

static SHAPES: [Shape; 9] = {
    let llama3 = Shape {
        name: "llama-3.3-70b",
        hidden: 8192,
        ffn: 28_672,
        layers: 80,
        q_heads: 64,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        max_tokens: 131_072,
        family: Family::Llama3,
    };
    let qwen3 = Shape { vocab: 151_936, max_tokens: 40_960, family: Family::Qwen3, ..llama3 };
    let gemma2 = Shape { vocab: 256_000, max_tokens: 8192, ..llama3 };
    [
        Shape { ..llama3 },
        Shape { name: "llama-3.1-8b", hidden: 4096, ffn: 14_336, layers: 32, q_heads: 32, ..llama3 },
        Shape { name: "qwen3-32b", hidden: 5120, ffn: 25_600, layers: 64, ..qwen3 },
        Shape { name: "qwen3-8b", hidden: 4096, ffn: 12_288, layers: 36, q_heads: 32, ..qwen3 },
        Shape {
            name: "qwen2.5-72b",
            ffn: 29_568,
            vocab: 152_064,
            max_tokens: 32_768,
            family: Family::Qwen2,
            ..llama3
        },
        Shape {
            name: "gemma-2-27b",
            hidden: 4608,
            ffn: 36_864,
            layers: 46,
            q_heads: 32,
            kv_heads: 16,
            family: Family::Gemma2 { query_pre_attn_scalar: 144 },
            ..gemma2
        },
        Shape {
            name: "gemma-2-9b",
            hidden: 3584,
            ffn: 14_336,
            layers: 42,
            q_heads: 16,
            head_dim: 256,
            family: Family::Gemma2 { query_pre_attn_scalar: 256 },
            ..gemma2
        },
        Shape {
            name: "mistral-7b",
            hidden: 4096,
            ffn: 14_336,
            layers: 32,
            q_heads: 32,
            vocab: 32_768,
            max_tokens: 32_768,
            family: Family::Mistral,
            ..llama3
        },
        Shape {
            name: "smollm2-135m",
            hidden: 576,
            ffn: 1536,
            layers: 30,
            q_heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab: 49_152,
            max_tokens: 8192,
            family: Family::Llama,
        },
    ]
};

impl ShapeArg {
    /// The shape.
    pub fn shape(self) -> &'static Shape {
        &SHAPES[self as usize]
    }
}

impl Shape {
    /// The configuration of a model of this shape, or of its first `layers` layers, with so many
    /// token ids instead of the model's own.
    ///
    /// # Errors
    ///
    /// `Options` for more layers than the shape has.
    pub fn config(&self, layers: Option<usize>, vocab: Option<usize>) -> Result<ModelConfig> {
        ModelConfig::parse(&self.config_json(layers, vocab)?, Path::new(self.name))
    }

    /// Like [`config`](Self::config), as the content of a `config.json`.
    ///
    /// # Errors
    ///
    /// As [`config`](Self::config).
    pub fn config_json(&self, layers: Option<usize>, vocab: Option<usize>) -> Result<String> {
        let (name, all) = (self.name, self.layers);
        let layers = layers.unwrap_or(all);
        if layers > all {
            let message = format!("{name} has {all} layers; `--layers` asks for {layers}");
            return Err(Error::new(ErrorKind::Options, message).with_hint("leave out `--layers` for all"));
        }
        let mut config = json!({
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": layers,
            "num_attention_heads": self.q_heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": vocab.unwrap_or(self.vocab), "max_position_embeddings": self.max_tokens,
            "tie_word_embeddings": true, "dtype": "bfloat16",
        });
        let of_family = self.family.fields();
        config.as_object_mut().expect("an object").extend(of_family.as_object().expect("an object").clone());
        Ok(config.to_string())
    }
}

impl Family {
    fn fields(self) -> Value {
        let rope = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
        match self {
            Self::Llama3 => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "rms_norm_eps": 1e-5, "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
                },
            }),
            Self::Llama => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "rms_norm_eps": 1e-5, "rope_parameters": rope(100_000.0),
            }),
            Self::Mistral => json!({
                "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
                "rms_norm_eps": 1e-5, "rope_parameters": rope(1e6), "sliding_window": null,
            }),
            Self::Qwen2 => json!({
                "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
                "rms_norm_eps": 1e-6, "rope_parameters": rope(1e6), "use_sliding_window": false,
            }),
            Self::Qwen3 => json!({
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
                "rms_norm_eps": 1e-6, "rope_parameters": rope(1e6), "use_sliding_window": false,
            }),
            Self::Gemma2 { query_pre_attn_scalar } => json!({
                "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
                "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_parameters": rope(1e4),
                "sliding_window": 4096, "query_pre_attn_scalar": query_pre_attn_scalar,
                "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kudos::internals::shard::Shard;
    use kudos::internals::weights::{Dtype, WeightBytes};

    #[test]
    fn more_layers_than_the_shape_has_are_refused() {
        let error = ShapeArg::SmolLm2_135m.shape().config(Some(31), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Options);
    }

    /// The exact parameter counts of the published checkpoints.
    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        let published = [
            ("llama-3.3-70b", 70_553_706_496, false),
            ("llama-3.1-8b", 8_030_261_248, false),
            ("qwen3-32b", 32_762_123_264, false),
            ("qwen3-8b", 8_190_735_360, false),
            ("qwen2.5-72b", 72_706_203_648, false),
            ("gemma-2-27b", 27_227_128_320, true),
            ("gemma-2-9b", 9_241_705_984, true),
            ("mistral-7b", 7_248_023_552_usize, false),
            ("smollm2-135m", 134_515_008, true),
        ];
        assert_eq!(ShapeArg::value_variants().len(), published.len());
        for (arg, (name, parameters, tied)) in ShapeArg::value_variants().iter().zip(published) {
            let shape = arg.shape();
            assert_eq!((shape.name, arg.to_possible_value().unwrap().get_name()), (name, name));
            let config = shape.config(None, None).unwrap();
            let shard = Shard::new(&config, 0, 1).unwrap();
            let bytes = WeightBytes::of(&config, &shard, Dtype::BF16);
            // Only row 0 of the head is read.
            let unread = if tied { 0 } else { config.vocab * config.hidden };
            let read = (bytes.layers + bytes.head + bytes.embedding) / 2 - config.hidden;
            assert_eq!(read + unread, parameters, "{name}");
        }
    }
}
