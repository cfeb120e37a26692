//! [`Cluster`]: this process's rank, where the ranks of an engine are in several processes.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// This process's rank among several processes that share a model, each with a GPU of its own.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The rank of this process, from 0. Rank 0 opens the engine, the others serve it.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// The address where rank 0 listens and the others find it, `HOST:PORT`.
    pub rendezvous: String,
    /// A secret that all ranks prove to know.
    pub secret: Option<Secret>,
    /// Index of this process among those of its machine, from 0: the index of its GPU where
    /// [`CudaOptions::devices`](crate::CudaOptions::devices) is empty and several GPUs are visible.
    pub local_rank: usize,
}

/// A secret that ranks prove to know to each other. Its bytes are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Makes a secret of bytes, at least one.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::Options, "the secret of the ranks is empty"));
        }
        Ok(Self(bytes))
    }

    /// Returns the secret's bytes.
    #[cfg(feature = "cluster")]
    pub(in crate::engine) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Cluster {
    /// Checks that the rank is one of the ranks.
    pub(in crate::engine) fn check(&self) -> Result<()> {
        if self.rank < self.world_size {
            return Ok(());
        }
        let (rank, world_size) = (self.rank, self.world_size);
        let message = format!("there is no rank {rank} among {world_size}");
        Err(Error::new(ErrorKind::Options, message).with_hint("ranks count from 0"))
    }
}
