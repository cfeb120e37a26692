//! [`Engine`]: an open model, from conversations to rewards.
//!
//! `builder` collects options, `parts` checks config and weights, `plan` sizes memory, `platform`
//! is the device. `handle` has the open engine: `ranks` runs one thread per rank; rank 0 takes
//! batches from `queue`, which `scoring` fills.

mod builder;
mod cluster;
#[cfg(test)]
mod golden;
mod handle;
mod input;
mod oneshot;
mod options;
mod parts;
mod plan;
mod platform;
mod queue;
mod ranks;
mod residency;
mod score;
mod scoring;
mod stats;

pub use builder::EngineBuilder;
pub use handle::Engine;
pub use input::Input;
pub use options::{Batching, Cluster, CpuOptions, CudaOptions, Device, Replicas, Secret};
pub use plan::{BATCH_TOKENS, MemoryPlan, TOKENS_PER_SEQUENCE};
#[cfg(feature = "cuda")]
pub use platform::PlannedGpus;
pub use platform::{DeviceInfo, DeviceKind};
pub use queue::{Pending, Submit};
pub use residency::{Placement, Residency};
pub use score::Score;
pub use scoring::ScoreIter;
pub use stats::Stats;
