//! The `kudos` command, run as a process.

#[path = "../common/mod.rs"]
mod common;

mod hostile;
mod interruptions;
mod lines;
mod readme;
mod refusals;
mod scale;
mod terminal;
