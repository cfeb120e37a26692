#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "what only the commands and tests use goes through `internals`"
    )
)]

mod backend;
mod batch;
mod config;
mod conversation;
mod engine;
mod error;
mod files;
#[cfg(feature = "internals")]
mod fuzzing;
mod lock;
mod model;
mod prompt;
mod random;
mod request;
mod shard;
mod units;
mod weights;

pub use backend::cpu::CpuMath;
pub use backend::tier::CudaTier;
pub use backend::{AllReduce, Footprint, GemmTuning, Loading, Overlap};
pub use batch::Sharing;
pub use conversation::{Conversation, Message};
#[cfg(feature = "cuda")]
pub use engine::PlannedGpus;
pub use engine::{
    Batching, CpuOptions, CudaOptions, Device, DeviceInfo, DeviceKind, Engine, EngineBuilder, Input,
    MemoryPlan, Pending, Placement, Residency, Score, ScoreIter, Stats, Submit,
};
#[cfg(feature = "cluster")]
pub use engine::{Cluster, Secret};
pub use error::{Error, ErrorKind, Result};
pub use prompt::{Clock, DoubleBos, Prompt, PromptOptions, PromptTokens, Truncate};
pub use weights::WeightBytes;

/// The door to the inside, for this project's own commands, tests and fuzzers. Nothing here is stable.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    /// The machine code for GPUs that this build embeds: the version of nvcc, and the targets.
    pub const MACHINE_CODE: Option<(&str, &str)> =
        match (option_env!("KUDOS_NVCC"), option_env!("KUDOS_CUDA_TARGETS")) {
            (Some(nvcc), Some(targets)) => Some((nvcc, targets)),
            _ => None,
        };

    macro_rules! rooms {
        ($($room:ident)*) => {
            $(
                #[allow(missing_docs, reason = "the room has its own")]
                pub mod $room {
                    pub use crate::$room::*;
                }
            )*
        };
    }
    rooms!(backend batch config conversation engine error files fuzzing model prompt random request shard units weights);
}
