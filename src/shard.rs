//! One rank's part of the model in a tensor-parallel group: local sizes, and the column/row rule.
//!
//! q, k, v, gate and up are split by rows of their weights (output features), o and down by columns
//! (input features), so that ranks all-reduce only after o and after down. When there are more
//! ranks than kv heads, kv heads are replicated. Ranks are OS threads or processes; this module
//! only does the arithmetic.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::error::{Error, ErrorKind, Result};

/// One rank's place in a tensor-parallel group, with the sizes of its part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This rank, from 0.
    pub rank: usize,
    /// Number of ranks that share the model.
    pub ranks: usize,
    /// Query heads of this rank.
    pub q_heads_local: usize,
    /// Key and value heads of this rank, at least one.
    pub kv_heads_local: usize,
    /// Width of this rank's part of the MLP.
    pub ffn_local: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// The axis of `[out_features, in_features]` along which a weight is divided among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every rank holds the whole tensor.
    Whole,
    /// Rows of the query heads.
    QueryRows,
    /// Rows of the key/value heads, replicated when there are more ranks than heads.
    KeyValueRows,
    /// Rows of the MLP's inner width.
    FfnRows,
    /// Columns of the query heads (o_proj).
    QueryColumns,
    /// Columns of the MLP's inner width (down_proj).
    FfnColumns,
    /// A bias that is added once for all ranks: rank 0 holds it.
    RankZero,
}

impl Shard {
    /// Returns rank `rank` of `ranks` for this model; [`ErrorKind::Options`], with the allowed
    /// counts, when it does not divide.
    pub fn new(config: &ModelConfig, rank: usize, ranks: usize) -> Result<Self> {
        if !divides(config, ranks) {
            let allowed: Vec<String> = allowed_ranks(config).iter().map(usize::to_string).collect();
            return Err(Error::new(
                ErrorKind::Options,
                format!(
                    "the model cannot be divided among {ranks} ranks ({} query heads, {} kv heads, ffn {})",
                    config.q_heads, config.kv_heads, config.ffn
                ),
            )
            .with_hint(format!("rank counts that this model allows: {}", allowed.join(", "))));
        }
        assert!(rank < ranks, "rank {rank} of {ranks}");
        Ok(Self {
            rank,
            ranks,
            q_heads_local: config.q_heads / ranks,
            kv_heads_local: (config.kv_heads / ranks).max(1),
            ffn_local: config.ffn / ranks,
            head_dim: config.head_dim,
        })
    }

    /// Width of this rank's query heads.
    pub fn q_width_local(&self) -> usize {
        self.q_heads_local * self.head_dim
    }

    /// Width of this rank's key heads (or value heads).
    pub fn kv_width_local(&self) -> usize {
        self.kv_heads_local * self.head_dim
    }

    /// Width of this rank's q, k and v side by side.
    pub fn qkv_width_local(&self) -> usize {
        self.q_width_local() + 2 * self.kv_width_local()
    }

    /// The rows or columns of a whole tensor that this rank holds, along the axis that `split`
    /// divides; `None` when the tensor is not divided.
    pub fn range(&self, config: &ModelConfig, split: Split) -> Option<Range<usize>> {
        let part = |width: usize, index: usize| index * width..(index + 1) * width;
        match split {
            Split::Whole | Split::RankZero => None,
            Split::QueryRows | Split::QueryColumns => Some(part(self.q_width_local(), self.rank)),
            Split::KeyValueRows => {
                // With fewer kv heads than ranks, `ranks / kv_heads` neighbours hold the same head.
                let owner = self.rank * config.kv_heads.min(self.ranks) / self.ranks;
                Some(part(self.kv_width_local(), owner))
            }
            Split::FfnRows | Split::FfnColumns => Some(part(self.ffn_local, self.rank)),
        }
    }
}

/// The rank counts that this model can be divided among, ascending.
pub fn allowed_ranks(config: &ModelConfig) -> Vec<usize> {
    (1..=config.q_heads).filter(|&ranks| divides(config, ranks)).collect()
}

fn divides(config: &ModelConfig, ranks: usize) -> bool {
    ranks > 0
        && config.q_heads.is_multiple_of(ranks)
        && config.ffn.is_multiple_of(ranks)
        && (config.kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(config.kv_heads))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(q_heads: usize, kv_heads: usize, ffn: usize) -> ModelConfig {
        ModelConfig { q_heads, kv_heads, ffn, ..ModelConfig::tiny() }
    }

    #[test]
    fn every_rank_gets_its_part_and_the_parts_cover_the_whole() {
        let config = config(16, 4, 96);
        for ranks in [1, 2, 4, 8, 16] {
            let shards: Vec<Shard> =
                (0..ranks).map(|rank| Shard::new(&config, rank, ranks).unwrap()).collect();
            for (split, width) in [(Split::QueryRows, 256), (Split::FfnColumns, 96)] {
                let ranges: Vec<_> = shards.iter().map(|s| s.range(&config, split).unwrap()).collect();
                assert_eq!(ranges[0].start, 0);
                assert_eq!(ranges[ranks - 1].end, width);
                assert!(
                    ranges.windows(2).all(|pair| pair[0].end == pair[1].start),
                    "{ranks} ranks: {ranges:?}"
                );
            }
        }
    }

    #[test]
    fn a_query_head_finds_its_kv_head_on_its_own_rank() {
        let config = config(16, 4, 96);
        let group = config.q_heads / config.kv_heads;
        for ranks in [1, 2, 4, 8, 16] {
            for rank in 0..ranks {
                let shard = Shard::new(&config, rank, ranks).unwrap();
                let q = shard.range(&config, Split::QueryRows).unwrap();
                let kv = shard.range(&config, Split::KeyValueRows).unwrap();
                let group_local = shard.q_heads_local / shard.kv_heads_local;
                for local in 0..shard.q_heads_local {
                    let head = q.start / config.head_dim + local;
                    let kv_head = kv.start / config.head_dim + local / group_local;
                    assert_eq!(kv_head, head / group, "rank {rank} of {ranks}, query head {head}");
                }
            }
        }
    }

    #[test]
    fn refused_counts_name_the_allowed_ones() {
        let error = Shard::new(&config(16, 4, 96), 0, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Options);
        assert_eq!(error.hint(), Some("rank counts that this model allows: 1, 2, 4, 8, 16"));
    }

    #[test]
    fn kv_heads_are_neither_split_nor_shared_unevenly() {
        // 6 kv heads among 4 ranks: neither divides the other.
        assert_eq!(allowed_ranks(&config(12, 6, 48)), [1, 2, 3, 6, 12]);
    }
}
