//! [`Platform`]: the interface between the engine and a kind of device.

use std::sync::Arc;

use super::device::DeviceInfo;
use crate::backend::profile::Profile;
use crate::backend::{Capacity, Footprint, Geometry, Loading};
use crate::config::ModelConfig;
use crate::engine::ranks::Rank;
use crate::engine::residency::Residency;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{ModelTensors, WeightBytes};

/// A kind of device, with its options. Ranks are the engine's ranks on it, in this process.
pub(in crate::engine) trait Platform: Send + Sync {
    /// Returns the device's description.
    fn device(&self) -> DeviceInfo;

    /// Returns the number of ranks of a replica: as requested, or the fewest that the model fits
    /// on, or the most there can be where it fits on none. `footprint(ranks)` is what one of so
    /// many ranks will allocate.
    fn ranks(
        &self,
        config: &ModelConfig,
        residency: Residency,
        footprint: &dyn Fn(usize) -> Result<Footprint>,
    ) -> Result<usize>;

    /// Returns the number of replicas of `ranks` ranks: as requested, or as many as there are
    /// devices for.
    fn replicas(&self, ranks: usize) -> Result<usize>;

    /// Sets the numbers of replicas, and of ranks of each, before any is opened.
    fn divide(&mut self, replicas: usize, ranks: usize) -> Result<()>;

    /// Returns the rows that go through the MLP at a time, in passes of up to `tokens` rows.
    fn mlp_tokens(&self, geometry: &Geometry, tokens: usize) -> usize;

    /// Returns the bytes of a rank's weights on the device: none where they are used as mapped.
    fn weight_bytes(&self, geometry: &Geometry, tensors: &ModelTensors) -> WeightBytes;

    /// Returns the bytes that one rank will allocate, where its weights take `weights` bytes on the
    /// device.
    fn footprint(&self, geometry: &Geometry, capacity: &Capacity, weights: usize) -> Footprint;

    /// Returns the bytes that are free on the device, the least of several; `None` where weights
    /// need no device memory.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Opens one rank, on the thread that will run it.
    fn open_rank(&self, rank: RankSetup<'_>) -> Result<Box<dyn Rank>>;

    /// Returns what the caller should know of the choice of devices.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns a function that aborts the collectives in which a replica's ranks wait for each
    /// other.
    fn abort(&self, replica: usize) -> Arc<dyn Fn() + Send + Sync>;

    /// Returns the name of the kernels, which must be equal on all ranks.
    #[cfg(feature = "cluster")]
    fn kernels(&self) -> &'static str {
        "none"
    }

    /// Returns the id by which ranks in other processes connect to this one; empty where there are
    /// none.
    fn nccl_id(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Sets the id that [`nccl_id`](Self::nccl_id) returned at rank 0.
    #[cfg(feature = "cluster")]
    fn set_nccl_id(&self, _nccl_id: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// The parts of one rank, to be opened.
pub(in crate::engine) struct RankSetup<'a> {
    pub(in crate::engine) config: &'a ModelConfig,
    /// The replica, from 0, that the rank is one of.
    pub(in crate::engine) replica: usize,
    pub(in crate::engine) geometry: Geometry,
    pub(in crate::engine) capacity: Capacity,
    pub(in crate::engine) tensors: &'a ModelTensors,
    /// Layers that stay on the device.
    pub(in crate::engine) resident_layers: usize,
    /// The planned allocations.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the CPU uses weights where they are"))]
    pub(in crate::engine) footprint: &'a Footprint,
    /// Counts the weights that reach the device.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the CPU uses weights where they are"))]
    pub(in crate::engine) loading: &'a Loading,
    /// Records times of passes on request.
    pub(in crate::engine) profile: Option<&'a Profile>,
    /// Receives warnings.
    pub(in crate::engine) warn: &'a dyn Fn(String),
}

/// Refuses a request for no replica.
pub(super) fn at_least_one(replicas: usize) -> Result<usize> {
    if replicas > 0 {
        return Ok(replicas);
    }
    let error = Error::new(ErrorKind::Options, "a model needs at least one replica, and 0 were requested");
    Err(error.with_hint("leave the number of replicas out (`--replicas`) for one"))
}
