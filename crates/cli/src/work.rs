//! Tokens and FLOP of scoring sequences, for `kudos plan` and `bench`.

use kudos::internals::config::ModelConfig;
use kudos::internals::shard::Shard;

/// The formula of [`Work::flop`], in words.
pub const FLOP_FORMULA: &str = "2 * weights of the layers' matrices for each unique token, and 4 * heads * \
    head_dim * keys for its attention, causal and within the layer's window; of the last layer, keys and values for each unique token and the rest for \
    each sequence, for nothing else is computed; a shared prefix once; norms, RoPE, the gate's function and the head not counted";

/// Sequences of one length that begin with prefixes of one length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Number of sequences.
    pub sequences: f64,
    /// Tokens of each sequence, its prefix included.
    pub tokens: f64,
    /// Prefixes that are computed: one for all sequences that share it in a pass.
    pub prefixes: f64,
    /// Tokens of each prefix.
    pub prefix_tokens: f64,
}

impl Work {
    /// Returns the tokens that are computed.
    pub fn unique_tokens(&self) -> f64 {
        self.prefixes * self.prefix_tokens + self.sequences * (self.tokens - self.prefix_tokens)
    }

    /// Returns the FLOP of one rank: [`FLOP_FORMULA`].
    pub fn flop(&self, config: &ModelConfig, shard: &Shard) -> f64 {
        let (hidden, q_width, kv_width) = (config.hidden, shard.q_width_local(), shard.kv_width_local());
        let keys_and_values = (2 * hidden * 2 * kv_width) as f64;
        // Queries, the output projection, and the MLP.
        let others = (2 * (2 * hidden * q_width + 3 * hidden * shard.ffn_local)) as f64;
        let unique = self.unique_tokens();
        // Keys of all queries: those of positions 0..n have n * (n + 1) / 2, less what lies before
        // their windows.
        let keys_to = |tokens: f64, window: f64| {
            let before = (tokens - window).max(0.0);
            (tokens * (tokens + 1.0) - before * (before + 1.0)) / 2.0
        };
        let keys = |window| {
            let prefix = keys_to(self.prefix_tokens, window);
            self.prefixes * prefix + self.sequences * (keys_to(self.tokens, window) - prefix)
        };
        let attention = |keys: f64| 4.0 * q_width as f64 * keys;
        let window = |layer| config.window(layer).map_or(f64::INFINITY, |keys| keys as f64);
        let of_layer = |layer| unique * (keys_and_values + others) + attention(keys(window(layer)));
        let last = config.layers - 1;
        (0..last).map(of_layer).sum::<f64>()
            + unique * keys_and_values
            + self.sequences * (others + attention(self.tokens.min(window(last))))
    }
}
