//! The whole model in f64, from a folder and token ids to logits, by the functions in `naive.rs`.
//! It reads config.json and the weights itself, does not validate them, and panics at unknown
//! input.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::naive::{self, Llama3};

/// A checkpoint with every tensor widened to f64.
pub struct Oracle {
    config: Value,
    tensors: HashMap<String, Vec<f64>>,
}

impl Oracle {
    /// Reads `config.json` and every `*.safetensors` file in `folder`.
    pub fn open(folder: &Path) -> Self {
        let config = super::read_json(&folder.join("config.json"));
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let bytes = std::fs::read(&path).unwrap();
                for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                    tensors.insert(name, widen(view.data(), view.dtype()));
                }
            }
        }
        Self { config, tensors }
    }

    /// Every logit of the scored token: the labels of a classifier, the vocabulary of a causal
    /// model.
    pub fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let hidden = self.size("hidden_size");
        let embeddings = self.tensor("model.embed_tokens.weight");
        let mut residual: Vec<f64> = ids
            .iter()
            .flat_map(|&id| &embeddings[id as usize * hidden..(id as usize + 1) * hidden])
            .map(|element| if self.is_gemma() { element * (hidden as f64).sqrt() } else { *element })
            .collect();
        for layer in 0..self.size("num_hidden_layers") {
            self.layer(&format!("model.layers.{layer}"), self.window(layer), &mut residual);
        }
        let scored = self.scored_token(ids);
        let row = self.norm("model.norm", &residual[scored * hidden..(scored + 1) * hidden]);
        if self.tensors.contains_key("score.0.weight") {
            let hidden_layer = self.linear("score.0", &row, hidden);
            let rectified: Vec<f64> = hidden_layer.into_iter().map(|x| x.max(0.0)).collect();
            return self.linear("score.2", &rectified, hidden);
        }
        let head = ["score.weight", "lm_head.weight", "model.embed_tokens.weight"];
        let head = head.iter().find_map(|name| self.tensors.get(*name)).unwrap();
        let logits = naive::linear(&row, head, None, hidden);
        match self.config["final_logit_softcapping"].as_f64() {
            Some(cap) if !self.tensors.contains_key("score.weight") => {
                logits.into_iter().map(|logit| cap * (logit / cap).tanh()).collect()
            }
            _ => logits,
        }
    }

    fn is_gemma(&self) -> bool {
        self.config["model_type"] == "gemma2"
    }

    /// The keys that a query of this layer sees.
    fn window(&self, layer: usize) -> usize {
        let config = &self.config;
        let slides = match (config["model_type"].as_str().unwrap(), &config["layer_types"][layer]) {
            ("gemma2" | "qwen2" | "qwen3", Value::String(named)) => named == "sliding_attention",
            ("gemma2", _) => layer.is_multiple_of(2),
            ("mistral", _) => true,
            ("qwen2" | "qwen3", _) => {
                config["use_sliding_window"] == true && layer >= self.size("max_window_layers")
            }
            _ => false,
        };
        config["sliding_window"].as_u64().filter(|_| slides).map_or(usize::MAX, |width| width as usize)
    }

    /// The index of the scored token.
    pub fn scored_token(&self, ids: &[u32]) -> usize {
        let pad = self.config["pad_token_id"].as_u64();
        if self.tensors.contains_key("score.0.weight") {
            // As the code of these models has it: before the first pad token, where there is one.
            return match ids.iter().position(|&id| Some(u64::from(id)) == pad) {
                None | Some(0) => ids.len() - 1,
                Some(first) => first - 1,
            };
        }
        if !self.tensors.contains_key("score.weight") || pad.is_none() {
            return ids.len() - 1;
        }
        ids.iter().rposition(|&id| Some(u64::from(id)) != pad).unwrap_or(0)
    }

    fn layer(&self, name: &str, window: usize, residual: &mut [f64]) {
        let normed = self.norm(&format!("{name}.input_layernorm"), residual);
        let mut attended = self.attention(&format!("{name}.self_attn"), window, &normed);
        let before_mlp = if self.is_gemma() {
            attended = self.norm(&format!("{name}.post_attention_layernorm"), &attended);
            "pre_feedforward_layernorm"
        } else {
            "post_attention_layernorm"
        };
        naive::add(residual, &attended);
        let normed = self.norm(&format!("{name}.{before_mlp}"), residual);
        let gate = self.linear(&format!("{name}.mlp.gate_proj"), &normed, self.size("hidden_size"));
        let up = self.linear(&format!("{name}.mlp.up_proj"), &normed, self.size("hidden_size"));
        let product = if self.is_gemma() { naive::gelu_mul(&gate, &up) } else { naive::silu_mul(&gate, &up) };
        let mut out = self.linear(&format!("{name}.mlp.down_proj"), &product, self.size("intermediate_size"));
        if self.is_gemma() {
            out = self.norm(&format!("{name}.post_feedforward_layernorm"), &out);
        }
        naive::add(residual, &out);
    }

    fn attention(&self, name: &str, window: usize, normed: &[f64]) -> Vec<f64> {
        let (hidden, q_heads, kv_heads) =
            (self.size("hidden_size"), self.size("num_attention_heads"), self.size("num_key_value_heads"));
        // Qwen3's heads have this width where none is given.
        let default = if self.config["model_type"] == "qwen3" { 128 } else { hidden / q_heads };
        let head_dim = self.config["head_dim"].as_u64().map_or(default, |dim| dim as usize);
        let mut q = self.linear(&format!("{name}.q_proj"), normed, hidden);
        let mut k = self.linear(&format!("{name}.k_proj"), normed, hidden);
        let v = self.linear(&format!("{name}.v_proj"), normed, hidden);
        for (heads, of) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
            if self.tensors.contains_key(&format!("{name}.{of}.weight")) {
                *heads = self.norm(&format!("{name}.{of}"), heads);
            }
        }
        let frequencies = self.rope_frequencies(head_dim);
        let (q_width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
        for (position, row) in q.chunks_exact_mut(q_width).enumerate() {
            naive::rope(row, position, &frequencies);
        }
        for (position, row) in k.chunks_exact_mut(kv_width).enumerate() {
            naive::rope(row, position, &frequencies);
        }
        let scores = naive::Scores {
            scalar: self.config["query_pre_attn_scalar"].as_f64().unwrap_or(head_dim as f64),
            cap: self.config["attn_logit_softcapping"].as_f64(),
        };
        let keys: Vec<&[f64]> = k.chunks_exact(kv_width).collect();
        let values: Vec<&[f64]> = v.chunks_exact(kv_width).collect();
        let attended: Vec<f64> = q
            .chunks_exact(q_width)
            .enumerate()
            .flat_map(|(token, q)| {
                let seen = (token + 1).saturating_sub(window)..token + 1;
                naive::attention(q, &keys[seen.clone()], &values[seen], head_dim, scores)
            })
            .collect();
        self.linear(&format!("{name}.o_proj"), &attended, q_width)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let eps = self.config["rms_norm_eps"].as_f64().unwrap();
        let weight = self.tensor(&format!("{name}.weight"));
        if self.is_gemma() {
            let one_more: Vec<f64> = weight.iter().map(|weight| 1.0 + weight).collect();
            return naive::rms_norm(x, &one_more, eps);
        }
        naive::rms_norm(x, weight, eps)
    }

    /// With the bias whenever the checkpoint has one.
    fn linear(&self, name: &str, x: &[f64], inputs: usize) -> Vec<f64> {
        let bias = self.tensors.get(&format!("{name}.bias")).map(Vec::as_slice);
        naive::linear(x, self.tensor(&format!("{name}.weight")), bias, inputs)
    }

    /// Both spellings: `rope_parameters` (transformers 5), `rope_theta` beside `rope_scaling`
    /// (transformers 4).
    fn rope_frequencies(&self, head_dim: usize) -> Vec<f64> {
        let config = &self.config;
        let rope = config.get("rope_parameters").unwrap_or(&config["rope_scaling"]);
        let theta = config.get("rope_theta").unwrap_or(&rope["rope_theta"]).as_f64().unwrap();
        let number = |key: &str| rope[key].as_f64().unwrap();
        let scaling = match rope["rope_type"].as_str() {
            None | Some("default") => None,
            Some("llama3") => Some(Llama3 {
                factor: number("factor"),
                low_freq_factor: number("low_freq_factor"),
                high_freq_factor: number("high_freq_factor"),
                original_max_tokens: number("original_max_position_embeddings"),
            }),
            Some(other) => panic!("the oracle does not know rope type {other}"),
        };
        naive::rope_frequencies(head_dim, theta, scaling)
    }

    fn size(&self, field: &str) -> usize {
        self.config[field].as_u64().unwrap_or_else(|| panic!("config.json: {field}")) as usize
    }

    fn tensor(&self, name: &str) -> &[f64] {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

fn widen(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    match dtype {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
        }
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])).into())
            .collect(),
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16_to_f64(u16::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        other => panic!("the oracle does not read {other:?}"),
    }
}

/// IEEE half precision by its definition; infinities and NaN do not occur in weights.
fn f16_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff) / 1024.0);
    assert_ne!(exponent, 0x1f, "f16 weight is not finite");
    match exponent {
        0 => sign * fraction * 2f64.powi(-14),
        _ => sign * (1.0 + fraction) * 2f64.powi(exponent - 15),
    }
}
