//! Upper bounds of sizes: products of sizes, in bytes, of one whole model stay below 2^63.

pub(super) const HIDDEN_MAX: usize = 1 << 20;
pub(super) const LAYERS_MAX: usize = 1 << 12;
pub(super) const HEADS_MAX: usize = 1 << 16;
pub(super) const HEAD_DIM_MAX: usize = 1 << 13;
pub(super) const Q_WIDTH_MAX: usize = 1 << 24;
pub(super) const FFN_MAX: usize = 1 << 24;
pub(super) const VOCAB_MAX: usize = 1 << 28;
pub(super) const TOKENS_MAX: usize = (1 << 31) - 1;
