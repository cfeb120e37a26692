//! [`UploadJob`]: weights that the thread of the [`uploader`](super::uploader) reads, and the
//! operation on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::CudaEvent;

use super::nccl::Group;
use super::weight::{Weight, WeightLayout, WeightRows};
use crate::backend::{HostWeight, LayerWeights};
use crate::error::{Error, ErrorKind};
use crate::weights::LayerTensors;

/// Names the operation in the errors of an upload.
pub(super) const DOING: &str = "copying weights to the GPU";

/// Rows of weights, and the operation on them.
pub(super) struct UploadJob {
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
        /// Kept while copies into it are yet to be queued.
        #[expect(dead_code, reason = "held, not read")]
        slot: Arc<LayerWeights<Weight>>,
        /// Recorded behind the last op that uses the slot's earlier contents.
        free: Arc<CudaEvent>,
        /// Recorded behind the last copy.
        filled: Arc<CudaEvent>,
    },
}

impl UploadJob {
    /// A check of all weights of a layer.
    pub(super) fn check(layout: WeightLayout, layer: &LayerTensors) -> Self {
        let parts = HostWeight::all_of(layer);
        let rows = parts.iter().flat_map(|part| WeightRows::to_check(layout, part)).collect();
        Self { rows, kind: JobKind::Check }
    }

    /// A load of `part` into `weight`.
    ///
    /// # Safety
    ///
    /// The weight must live until the job is completed, or its receipt says that it never will be.
    pub(super) unsafe fn load(weight: &Weight, part: &HostWeight<'_>, filled: Arc<CudaEvent>) -> Self {
        Self { rows: weight.rows_from(part), kind: JobKind::Load { filled } }
    }

    /// A layer to be put into a slot, behind `free`.
    pub(super) fn stage(
        slot: Arc<LayerWeights<Weight>>,
        layer: &LayerTensors,
        free: Arc<CudaEvent>,
        filled: Arc<CudaEvent>,
    ) -> Self {
        let parts = HostWeight::all_of(layer);
        let pairs = slot.all().into_iter().zip(&parts);
        let rows = pairs.flat_map(|(weight, part)| weight.rows_from(part)).collect();
        Self { rows, kind: JobKind::Stage { slot, free, filled } }
    }

    /// The rows to read.
    pub(super) fn rows(&self) -> &[WeightRows] {
        &self.rows
    }

    /// The operation on them.
    pub(super) fn kind(&self) -> &JobKind {
        &self.kind
    }
}

/// State that the uploader shares with its thread.
pub(super) struct UploadState {
    /// Set when jobs must end early.
    pub(super) stop: AtomicBool,
    /// The ranks, whose failure ends jobs early, too.
    pub(super) group: Option<Arc<Group>>,
    /// Weights that lost digits as f16.
    pub(super) subnormal: AtomicU64,
    /// Bytes of weights, as stored, that are loaded to stay: on the device or on their way.
    pub(super) brought: Arc<AtomicU64>,
}

impl UploadState {
    /// Why jobs must end early, if so.
    pub(super) fn ends(&self) -> Option<Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Some(Error::new(ErrorKind::Stopped, "the engine ended while weights were on their way"));
        }
        self.group.as_ref().and_then(|group| group.failure())
    }
}
