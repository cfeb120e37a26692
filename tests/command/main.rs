//! The `kudos` command, run as a process.

#[path = "../common/mod.rs"]
mod common;

mod eval;
mod eval_report;
mod folder;
mod hostile;
#[path = "../server/http.rs"]
mod http;
mod interruptions;
mod lines;
#[cfg(feature = "tables")]
mod outputs;
#[cfg(feature = "cuda")]
mod plan;
#[path = "../server/process.rs"]
mod process;
mod readme;
mod refusals;
mod scale;
mod select;
mod shards;
#[cfg(feature = "tables")]
mod tables;
mod terminal;
