//! The model's operations in f64, written as plainly as possible: the oracle of every backend's op
//! tests. Shares nothing with `src/`. Matrices are row-major slices; `[tokens, width]` has one row
//! per token.

/// x `[tokens, inputs]`, w `[outputs, inputs]`, bias `[outputs]` -> `[tokens, outputs]`: x · wᵀ +
/// bias.
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let outputs = w.len() / inputs;
    let mut out = Vec::with_capacity(x.len() / inputs * outputs);
    for row in x.chunks_exact(inputs) {
        for (output, weights) in w.chunks_exact(inputs).enumerate() {
            out.push(dot(row, weights) + bias.map_or(0.0, |bias| bias[output]));
        }
    }
    out
}

/// a · b.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// x `[tokens, width]`, weight `[width]` -> x / sqrt(mean(x²) + eps) · weight, row by row.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let norm_row = |row: &[f64]| {
        let scale = 1.0 / (dot(row, row) / row.len() as f64 + eps).sqrt();
        row.iter().zip(weight).map(move |(x, w)| x * scale * w).collect::<Vec<f64>>()
    };
    x.chunks_exact(weight.len()).flat_map(norm_row).collect()
}

/// Llama 3.1's scaling of RoPE.
#[derive(Clone, Copy, Debug)]
pub struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_tokens: f64,
}

/// The angle per position of each pair of a head, `[head_dim / 2]`: theta^(-2i / head_dim). With
/// `Llama3`, a pair that turns fewer than `low_freq_factor` times within the original context is
/// slowed by `factor`, one that turns more than `high_freq_factor` times is kept, and between the
/// two the result is blended linearly.
pub fn rope_frequencies(head_dim: usize, theta: f64, scaling: Option<Llama3>) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64));
    let Some(llama3) = scaling else { return plain.collect() };
    let scale = |frequency: f64| {
        let turns = llama3.original_max_tokens * frequency / std::f64::consts::TAU;
        let keep = (turns - llama3.low_freq_factor) / (llama3.high_freq_factor - llama3.low_freq_factor);
        let keep = keep.clamp(0.0, 1.0);
        keep * frequency + (1.0 - keep) * frequency / llama3.factor
    };
    plain.map(scale).collect()
}

/// Rotates every head of one token's row `[heads · head_dim]` in place. A pair is element i of the
/// head's first half with element i of its second half.
pub fn rope(row: &mut [f64], position: usize, frequencies: &[f64]) {
    let half = frequencies.len();
    for head in row.chunks_exact_mut(2 * half) {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[pair], head[pair + half]);
            head[pair] = a * cos - b * sin;
            head[pair + half] = b * cos + a * sin;
        }
    }
}

/// The scores of attention: divided by the root of `scalar`, then `cap * tanh(score / cap)`.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    pub scalar: f64,
    pub cap: Option<f64>,
}

impl Scores {
    /// Those of most models.
    pub fn plain(head_dim: usize) -> Self {
        Self { scalar: head_dim as f64, cap: None }
    }
}

/// Attention of one token over its path. q `[q_heads · head_dim]`; keys and values: the rows
/// `[kv_heads · head_dim]` of every token that it sees, up to and including itself, wherever they
/// lie -> `[q_heads · head_dim]`. Query head h reads kv head h / (q_heads / kv_heads).
pub fn attention(q: &[f64], keys: &[&[f64]], values: &[&[f64]], head_dim: usize, scores: Scores) -> Vec<f64> {
    let capped = |score: f64| scores.cap.map_or(score, |cap| cap * (score / cap).tanh());
    let group = q.len() / keys[0].len();
    let mut out = vec![0.0; q.len()];
    for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let kv = head / group * head_dim..(head / group + 1) * head_dim;
        let scores: Vec<f64> =
            keys.iter().map(|key| capped(dot(q, &key[kv.clone()]) / scores.scalar.sqrt())).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (weight, value) in weights.iter().zip(values) {
            for (out, value) in out.iter_mut().zip(&value[kv.clone()]) {
                *out += weight / total * value;
            }
        }
    }
    out
}

/// gate, up `[tokens, ffn]` -> silu(gate) · up, with silu(x) = x / (1 + e^-x).
pub fn silu_mul(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// gate, up `[tokens, ffn]` -> gelu(gate) · up, with GELU's approximation by tanh.
pub fn gelu_mul(gate: &[f64], up: &[f64]) -> Vec<f64> {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let gelu = |x: f64| 0.5 * x * (1.0 + (root * (x + 0.044_715 * x.powi(3))).tanh());
    gate.iter().zip(up).map(|(gate, up)| gelu(*gate) * up).collect()
}

/// residual += delta.
pub fn add(residual: &mut [f64], delta: &[f64]) {
    assert_eq!(residual.len(), delta.len());
    residual.iter_mut().zip(delta).for_each(|(residual, delta)| *residual += delta);
}
