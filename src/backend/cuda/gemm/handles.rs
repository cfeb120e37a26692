//! cublasLt's descriptors, each destroyed with its owner, and its errors as the library's.

use std::fmt;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;

use super::shape::Alignments;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that cublasLt may use beside its operands: NVIDIA's advice for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`, which is in a header that the bindings of cublasLt leave out.
const TRANSPOSED: i32 = 1;

/// A matmul's types, transpositions and epilogue.
pub(super) struct Desc(pub(super) sys::cublasLtMatmulDesc_t);

impl Desc {
    pub(super) fn new(bias: bool) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let desc = Self(lt::create_matmul_desc(compute, scale)?);
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            desc.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        }
        Ok(desc)
    }

    pub(super) fn set_bias(&mut self, address: u64) -> Result<(), CublasError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), CublasError> {
        // SAFETY: the descriptor is alive; the library copies the value, whose size it checks
        // against the attribute's.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: made by create_matmul_desc and destroyed here only.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// A matrix in cublasLt's terms: columns of `rows` elements, `stride` apart.
pub(super) struct MatrixLayout(pub(super) sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    pub(super) fn new(
        element: sys::cudaDataType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, CublasError> {
        lt::create_matrix_layout(element, rows as u64, cols as u64, stride as i64).map(Self)
    }

    pub(super) fn set_cols(&mut self, cols: usize) -> Result<(), CublasError> {
        let (attribute, cols) =
            (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, cols as u64);
        // SAFETY: the layout is alive; the attribute is a 64-bit integer, which the library copies.
        unsafe {
            lt::set_matrix_layout_attribute(self.0, attribute, (&raw const cols).cast(), size_of::<u64>())
        }
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by create_matrix_layout and destroyed here only.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// Requirements for proposed algorithms: no reduction among thread blocks, no more than the
/// workspace, and these alignments of operands. Without them, the library assumes an alignment of
/// 256 bytes.
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new(aligned: Alignments) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(lt::create_matmul_pref()?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES as u64)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0_u32)?;
        let Alignments { weight, x, out } = aligned;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out)?;
        Ok(preference)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), CublasError> {
        // SAFETY: the preference is alive; the library copies the value, whose size it checks
        // against the attribute's.
        unsafe { lt::set_matmul_pref_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by create_matmul_pref and destroyed here only.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

/// Turns cublasLt's errors into errors that name the operation.
pub(super) trait OrFault<T> {
    fn or_fault(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T> OrFault<T> for Result<T, CublasError> {
    fn or_fault(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|CublasError(code)| {
            let kind = match code {
                sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => ErrorKind::Memory,
                _ => ErrorKind::Device,
            };
            Error::new(kind, format!("{doing} failed: {code:?}"))
        })
    }
}
