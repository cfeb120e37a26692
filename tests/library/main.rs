//! The library through its own interfaces: rewards against Transformers and against themselves, prompts, checkpoints, the
//! queue; and what the tree and the records say of themselves.

// Its tests are in `build_script.rs`; cargo alone calls its `main`.
#[cfg(feature = "cuda")]
#[allow(dead_code)]
#[path = "../../build.rs"]
mod build;
#[path = "../common/mod.rs"]
mod common;
#[path = "../oracle/mod.rs"]
mod oracle;

mod circles;
mod engine;
mod floors;
mod invariants;
mod language;
mod naive;
mod parity;
mod prompt;
mod records;
mod service;
mod serving;
mod surface;
mod weights;
