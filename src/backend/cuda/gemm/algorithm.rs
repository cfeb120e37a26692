//! [`Algorithm`]: an algorithm that cublasLt has proposed, and [`Config`], the library's
//! description of it.

use std::fmt;

use cudarc::cublaslt::sys;
use serde::{Deserialize, Serialize};

use super::library::LtLibrary;

/// An algorithm of the library for a matmul.
#[derive(Clone, Copy)]
pub struct Algorithm {
    raw: sys::cublasLtMatmulAlgo_t,
    config: Config,
}

/// The library's description of an algorithm, in its codes. It identifies one among the library's
/// proposals; an algorithm is never made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the library's names and codes")]
pub struct Config {
    pub id: u32,
    pub tile: u32,
    pub split_k: u32,
    pub reduction: u32,
    pub swizzle: u32,
    pub custom: u32,
    pub stages: u32,
    pub inner_shape: u32,
    pub cluster_shape: u32,
}

impl Algorithm {
    pub(super) fn new(lt: &LtLibrary, raw: sys::cublasLtMatmulAlgo_t) -> Self {
        Self { raw, config: Config::of(lt, &raw) }
    }

    /// The library's description.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn raw(&self) -> &sys::cublasLtMatmulAlgo_t {
        &self.raw
    }

    /// Whether one thread block computes each element. Where several do, their partial sums are
    /// added in an order that may change from run to run, and their count changes with the rows.
    pub fn sums_in_one_piece(&self) -> bool {
        self.config.split_k <= 1 && self.config.reduction == 0
    }
}

impl Config {
    fn of(lt: &LtLibrary, raw: &sys::cublasLtMatmulAlgo_t) -> Self {
        use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
        // The last two are of 16 bits, the others of 32.
        let attribute = |attribute, bytes: usize| {
            let (mut value, mut written) = (0_u32, 0);
            // SAFETY: the value holds `bytes` bytes, 4 at most, and the call writes no more.
            let status = unsafe {
                let value = (&raw mut value).cast();
                (lt.config_get)(raw, attribute, value, bytes, &mut written)
            };
            status.result().is_ok().then_some(value)
        };
        // An attribute that a library does not know is 0, except where 0 would admit the algorithm.
        let known = |name, bytes| attribute(name, bytes).unwrap_or(0);
        let needed = |name| attribute(name, 4).unwrap_or(u32::MAX);
        Self {
            id: known(Attribute::CUBLASLT_ALGO_CONFIG_ID, 4),
            tile: known(Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, 4),
            split_k: needed(Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
            reduction: needed(Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
            swizzle: known(Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4),
            custom: known(Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4),
            stages: known(Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, 4),
            inner_shape: known(Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2),
            cluster_shape: known(Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2),
        }
    }
}

impl fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}
