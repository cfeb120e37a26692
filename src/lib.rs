//! Rewards from reward models: an engine that reads a conversation and returns one number.
//!
//! A model folder in Hugging Face's layout is opened as an [`Engine`], which scores [`Input`]s: a prompt
//! with its response, a [`Conversation`], or token ids.
//!
//! ```
//! use kudos::Engine;
//!
//! # fn main() -> kudos::Result<()> {
//! let engine = Engine::open("demo/model")?;
//! let scores = engine.score([("What is 1+1?", "1+1=2"), ("What is 1+1?", "1+1=3")]);
//! assert!(scores[0].clone()?.reward > scores[1].clone()?.reward);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Score`] has the reward, which is the raw logit in f32, and that value rounded to bf16. A reward
//! does not depend by a single bit on what else is scored at the time (except with
//! [`AllReduce::Nccl`]); what inputs share from their start is computed once.
//!
//! # Devices
//!
//! [`Engine::builder`] takes a [`Device`] with its options: [`CpuOptions`] or [`CudaOptions`]. By default
//! the engine uses the GPUs that the build supports, or the CPU where CUDA cannot be used.
//! [`Engine::plan`] returns the memory that it takes.
//!
//! ```no_run
//! use kudos::{CudaOptions, Engine};
//!
//! # fn main() -> kudos::Result<()> {
//! let two_gpus = CudaOptions { ranks: Some(2), ..CudaOptions::default() };
//! let engine = Engine::builder("models/reward").device(two_gpus).max_tokens(8192).open()?;
//! println!("{}\n{}", engine.device(), engine.plan());
//! # Ok(())
//! # }
//! ```
//!
//! # Services
//!
//! Threads and tasks share one engine, and what they submit is batched together.
//! [`submit`](Engine::submit) returns a future that resolves, when the bounded queue has capacity, to the
//! [`Pending`] score, which is a future too; neither needs a runtime, and a thread can wait for both.
//! [`try_submit`](Engine::try_submit) refuses when the queue is full, and
//! [`score_iter`](Engine::score_iter) scores any number of inputs in bounded memory.
//! [`close`](Engine::close) scores what is queued and ends; [`abort`](Engine::abort) ends after the pass
//! that runs.
//!
//! # Errors
//!
//! An [`Error`] has a [kind](ErrorKind) to match on, and says what happened, where, and what to do.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `cuda` | NVIDIA GPUs; the build needs nvcc, running on them needs a driver, cuBLASLt 13, and NCCL 2 for several |
//! | `cluster` | ranks in several processes, on one machine or several |
//! | `clap` | `clap::ValueEnum` for the enums among the options |
#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "items that only the commands and tests use are exported by `internals`"
    )
)]

mod backend;
mod batch;
mod config;
mod conversation;
mod elementary;
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
#[cfg(feature = "internals")]
mod results;
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
    MemoryPlan, Pending, Placement, Replicas, Residency, Score, ScoreIter, Stats, Submit,
};
#[cfg(feature = "cluster")]
pub use engine::{Cluster, Secret};
pub use error::{Error, ErrorKind, Result};
pub use prompt::{Clock, DoubleBos, Prompt, PromptOptions, PromptTokens, RenderedBos, Truncate};
pub use weights::WeightBytes;

/// The README's examples, as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Internal modules for this project's commands, tests and fuzzers, without any stability.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    /// The version of nvcc and the targets of the GPU code that this build embeds.
    pub const MACHINE_CODE: Option<(&str, &str)> =
        match (option_env!("KUDOS_NVCC"), option_env!("KUDOS_CUDA_TARGETS")) {
            (Some(nvcc), Some(targets)) => Some((nvcc, targets)),
            _ => None,
        };

    macro_rules! modules {
        ($($module:ident)*) => {
            $(
                #[allow(missing_docs, reason = "the module has its own")]
                pub mod $module {
                    pub use crate::$module::*;
                }
            )*
        };
    }
    modules!(backend batch config conversation engine error files fuzzing model prompt random request results shard units weights);
}
