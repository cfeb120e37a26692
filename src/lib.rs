#![doc = include_str!("../README.md")]

pub mod backend;
pub mod batch;
pub mod bench;
pub mod cli;
pub mod config;
pub mod conversation;
pub mod engine;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod model;
pub mod prompt;
mod random;
mod request;
pub mod shard;
pub mod weights;

pub use backend::cpu::CpuMath;
pub use backend::tier::CudaTier;
pub use backend::{GemmTuning, Loading, Overlap, RankSums};
pub use batch::Sharing;
pub use conversation::{Conversation, Message};
#[cfg(feature = "cuda")]
pub use engine::PlannedGpus;
pub use engine::{Device, Engine, Options, Pending, Plan, ProcessRank, Residency, Score, Secret, Stats};
pub use error::{Error, ErrorKind, Result};
pub use prompt::{Prompt, PromptOptions, PromptTokens, Truncate};
