//! Engines with the shape of a well-known model and random weights.

use crate::machine;
use kudos::internals::config::ModelConfig;
use kudos::internals::units::gib;
use kudos::internals::weights::RandomWeights;
use kudos::{Error, ErrorKind, MemoryPlan, Result};

/// Rows of the embedding table. No matmul runs over it: a batch gathers rows of it.
pub(super) const VOCAB: usize = 4096;

/// Seed of random weights: they are equal in every run.
pub(super) const SEED: u64 = 0;

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
}
