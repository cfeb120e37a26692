//! Ranks in several processes, on one machine or several: they find each other ([`rendezvous`]), and rank 0 passes on
//! what the others do ([`processes`]). Behind the feature `cluster`: without it every engine is of one process.

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
