//! [`UploadJob`]: weights that the thread of the [`uploader`](super::uploader) reads, and the
//! operation on them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::CudaEvent;

use super::nccl::Group;
use super::weight::{Weight, WeightLayout, WeightRows};
use crate::backend::{HostWeight, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{HostTensor, LayerTensors, Prefetcher};

/// Names the operation in the errors of an upload.
pub(super) const DOING: &str = "copying weights to the GPU";

/// Bytes of a chunk of pinned memory, which a reader fills at a time: the fastest link takes some
/// 80 us to copy it, far longer than starting a copy, and a reader 0.4 to 0.8 ms to fill it out of
/// the page cache. Calls that read less at a time from a disk were slower: 128 KiB by 30 %.
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// Rows of weights, and the operation on them.
pub(super) struct UploadJob {
    /// They keep the memory on the device that they are copied to.
    rows: Vec<WeightRows>,
    kind: JobKind,
}

/// The operation on the rows of a job.
pub(super) enum JobKind {
    /// Convert them, to find what cannot be converted, and copy nothing.
    Check,
    /// Copy them into a weight that is loaded once.
    Load {
        /// Recorded behind the last copy.
        filled: Arc<CudaEvent>,
    },
    /// Copy them into a slot, in place of other weights.
    Stage {
        /// Recorded behind the last op that uses the slot's earlier contents.
        free: Arc<CudaEvent>,
        /// Recorded behind the last copy.
        filled: Arc<CudaEvent>,
    },
}

/// Some of a job's rows, which fit into a chunk.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Index of the rows among the job's.
    index: usize,
    rows: Range<usize>,
}

impl UploadJob {
    /// A check of all weights of a layer.
    pub(super) fn check(layout: WeightLayout, layer: &LayerTensors) -> Self {
        let parts = HostWeight::all_of(layer);
        let rows = parts.iter().flat_map(|part| WeightRows::to_check(layout, part)).collect();
        Self { rows, kind: JobKind::Check }
    }

    /// A load of `part` into `weight`.
    pub(super) fn load(weight: &Weight, part: &HostWeight<'_>, filled: Arc<CudaEvent>) -> Self {
        Self { rows: weight.rows_from(part), kind: JobKind::Load { filled } }
    }

    /// A layer to be put into a slot, behind `free`.
    pub(super) fn stage(
        slot: &LayerWeights<Weight>,
        layer: &LayerTensors,
        free: Arc<CudaEvent>,
        filled: Arc<CudaEvent>,
    ) -> Self {
        let parts = HostWeight::all_of(layer);
        let pairs = slot.all().into_iter().zip(&parts);
        let rows = pairs.flat_map(|(weight, part)| weight.rows_from(part)).collect();
        Self { rows, kind: JobKind::Stage { free, filled } }
    }

    /// The operation on the rows.
    pub(super) fn kind(&self) -> &JobKind {
        &self.kind
    }

    /// The tensors that are read where they are mapped, in this order.
    pub(super) fn mapped(&self) -> impl Iterator<Item = &HostTensor> {
        self.rows.iter().flat_map(WeightRows::mapped)
    }

    /// The piece behind `last`, or the first one; `None` behind the last.
    pub(super) fn piece_after(&self, last: Option<&Piece>) -> Option<Piece> {
        let (mut index, mut first) = last.map_or((0, 0), |piece| (piece.index, piece.rows.end));
        loop {
            let rows = self.rows.get(index)?;
            if first < rows.count {
                let count = (CHUNK_BYTES / rows.row_bytes.max(1)).max(1);
                return Some(Piece { index, rows: first..rows.count.min(first + count) });
            }
            (index, first) = (index + 1, 0);
        }
    }

    /// The rows that a piece is of.
    pub(super) fn rows_of(&self, piece: &Piece) -> &WeightRows {
        &self.rows[piece.index]
    }
}

impl Piece {
    /// Which of the rows.
    pub(super) fn rows(&self) -> &Range<usize> {
        &self.rows
    }
}

/// State that the uploader shares with its threads.
pub(super) struct UploadState {
    /// Set when jobs must end early.
    pub(super) stop: AtomicBool,
    /// The ranks, whose failure ends jobs early, too.
    pub(super) group: Option<Arc<Group>>,
    /// Weights that lost digits as f16.
    pub(super) subnormal: AtomicU64,
    /// Bytes of weights, as stored, that are loaded to stay: on the device or on their way.
    pub(super) brought: Arc<AtomicU64>,
    /// Reads what queued jobs use where it is mapped before the readers get there.
    pub(super) prefetcher: Prefetcher,
}

impl UploadState {
    /// The error with which jobs must end early, if so.
    pub(super) fn ended(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            let message = "the engine ended while weights were on their way";
            return Err(Error::new(ErrorKind::Stopped, message));
        }
        self.group.as_ref().and_then(|group| group.failure()).map_or(Ok(()), Err)
    }
}
