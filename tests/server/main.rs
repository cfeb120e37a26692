//! `kudos serve`, run as a process, as its clients see it.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod faults;
mod http;
mod load;
mod native;
mod process;
mod safety;
