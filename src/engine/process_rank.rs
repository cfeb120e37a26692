//! [`ProcessRank`]: which rank a process is, where the ranks of an engine are in several processes.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// One rank of several processes that share a model, each on a GPU of its own.
#[derive(Clone, Debug)]
pub struct ProcessRank {
    /// The rank of this process, from 0. Rank 0 opens the engine, the others serve it.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// The address where rank 0 listens and the others find it, `HOST:PORT`.
    pub rendezvous: String,
    /// A secret that all ranks prove to know, if one is given.
    pub secret: Option<Secret>,
    /// Which of the machine's GPUs is this process's, from 0, when [`Options::devices`](crate::Options::devices) names
    /// none. Where only one is to be seen it is that one.
    pub local_rank: usize,
}

/// A secret that ranks prove to each other that they know. Its bytes are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these bytes, at least one.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::Options, "the secret of the ranks is empty"));
        }
        Ok(Self(bytes))
    }

    /// The secret itself.
    #[cfg(feature = "cluster")]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl ProcessRank {
    /// An error where the numbers make no sense.
    pub(super) fn check(&self) -> Result<()> {
        if self.rank < self.world_size {
            return Ok(());
        }
        let (rank, world_size) = (self.rank, self.world_size);
        let message = format!("there is no rank {rank} among {world_size}");
        Err(Error::new(ErrorKind::Options, message).with_hint("ranks count from 0"))
    }
}
