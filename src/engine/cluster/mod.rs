//! Ranks in several processes, on one machine or several: [`rendezvous`] connects them to rank 0,
//! and [`processes`] runs what rank 0 sends. Behind the feature `cluster`: without it every engine
//! is one process.

#[cfg(not(feature = "cluster"))]
mod disabled;
#[cfg(feature = "cluster")]
mod enabled;
#[cfg(feature = "cluster")]
mod processes;
#[cfg(feature = "cluster")]
mod rendezvous;

#[cfg(not(feature = "cluster"))]
pub(super) use disabled::{Link, gather, remote};
#[cfg(feature = "cluster")]
pub(super) use enabled::{gather, remote, serve};
#[cfg(feature = "cluster")]
pub(super) use rendezvous::Link;
