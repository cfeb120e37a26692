//! The `kudos` command, run as people and scripts run it.

#[path = "../common/mod.rs"]
mod common;

mod hostile;
mod interruptions;
mod lines;
mod readme;
mod refusals;
mod scale;
mod terminal;
