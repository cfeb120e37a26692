//! A collective call and one rank's contribution to it.

use super::element::Element;
use std::sync::Arc;

/// The collectives.
pub(super) const NAMES: [&str; 3] = ["ncclAllReduce", "ncclAllGather", "ncclSend"];

/// A rank's call; all ranks must make equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// One of [`NAMES`].
    pub(super) name: &'static str,
    pub(super) element: Element,
    /// Elements of a rank; of an exchange, those for each other rank.
    pub(super) count: usize,
}

/// A rank's part of a round.
#[derive(Clone)]
pub(super) struct Contribution {
    pub(super) call: Call,
    /// The rank's input; of an exchange, those for the other ranks, in their order.
    pub(super) bytes: Arc<Vec<u8>>,
    /// The logical time at which the call could start.
    pub(super) ready: u64,
}
