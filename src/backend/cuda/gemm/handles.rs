//! cublasLt's descriptors, each destroyed with its owner, and its errors as the library's.

use std::fmt;
use std::ptr;

use cudarc::cublaslt::sys;

use super::library::{LtLibrary, Status};
use super::shape::Alignments;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that cublasLt may use beside its operands: NVIDIA's advice for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`, which is in a header that the bindings of cublasLt leave out.
const TRANSPOSED: i32 = 1;

/// A matmul's types, transpositions and epilogue.
pub(super) struct Desc {
    pub(super) raw: sys::cublasLtMatmulDesc_t,
    lt: &'static LtLibrary,
}

impl Desc {
    /// A matmul whose bias, where it has one, is aligned to `bias` bytes.
    pub(super) fn new(lt: &'static LtLibrary, bias: Option<u32>) -> Result<Self, Status> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let mut raw = ptr::null_mut();
        // SAFETY: the out parameter is a local.
        unsafe { (lt.desc_create)(&mut raw, compute, scale) }.result()?;
        let mut desc = Self { raw, lt };
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if let Some(alignment) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            desc.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            // The library derives the bias's alignment from the address that it has when it
            // proposes algorithms, and takes none for the best. Nothing is read there.
            desc.set_bias(alignment.into())?;
        }
        Ok(desc)
    }

    pub(super) fn set_bias(&mut self, address: u64) -> Result<(), Status> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }

    /// Sets how many multiprocessors the matmul may expect for itself; 0 for all.
    pub(super) fn set_multiprocessors(&mut self, count: i32) -> Result<(), Status> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, count)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), Status> {
        // SAFETY: the descriptor is alive; the library copies the value, whose size it checks
        // against the attribute's.
        unsafe { (self.lt.desc_set)(self.raw, attribute, (&raw const value).cast(), size_of::<T>()) }.result()
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: made by the same library and destroyed here only.
        let _ = unsafe { (self.lt.desc_destroy)(self.raw) };
    }
}

/// A matrix in cublasLt's terms: columns of `rows` elements, `stride` apart.
pub(super) struct MatrixLayout {
    pub(super) raw: sys::cublasLtMatrixLayout_t,
    lt: &'static LtLibrary,
}

impl MatrixLayout {
    pub(super) fn new(
        lt: &'static LtLibrary,
        element: sys::cudaDataType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, Status> {
        let mut raw = ptr::null_mut();
        // SAFETY: the out parameter is a local.
        unsafe { (lt.layout_create)(&mut raw, element, rows as u64, cols as u64, stride as i64) }.result()?;
        Ok(Self { raw, lt })
    }

    pub(super) fn set_cols(&mut self, cols: usize) -> Result<(), Status> {
        let (attribute, cols) =
            (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, cols as u64);
        let value = (&raw const cols).cast();
        // SAFETY: the layout is alive; the attribute is a 64-bit integer, which the library copies.
        unsafe { (self.lt.layout_set)(self.raw, attribute, value, size_of::<u64>()) }.result()
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by the same library and destroyed here only.
        let _ = unsafe { (self.lt.layout_destroy)(self.raw) };
    }
}

/// Requirements for proposed algorithms: no reduction among thread blocks, no more than the
/// workspace, and these alignments of operands. Without them, the library assumes an alignment of
/// 256 bytes.
pub(super) struct Preference {
    pub(super) raw: sys::cublasLtMatmulPreference_t,
    lt: &'static LtLibrary,
}

impl Preference {
    pub(super) fn new(lt: &'static LtLibrary, aligned: Alignments) -> Result<Self, Status> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut raw = ptr::null_mut();
        // SAFETY: the out parameter is a local.
        unsafe { (lt.preference_create)(&mut raw) }.result()?;
        let preference = Self { raw, lt };
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES as u64)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0_u32)?;
        let Alignments { weight, x, out, bias: _ } = aligned;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out)?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<(), Status> {
        let address = (&raw const value).cast();
        // SAFETY: the preference is alive; the library copies the value, whose size it checks
        // against the attribute's.
        unsafe { (self.lt.preference_set)(self.raw, attribute, address, size_of::<T>()) }.result()
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by the same library and destroyed here only.
        let _ = unsafe { (self.lt.preference_destroy)(self.raw) };
    }
}

/// Turns cublasLt's errors into errors that name the operation.
pub(super) trait OrFault<T> {
    fn or_fault(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T> OrFault<T> for Result<T, Status> {
    fn or_fault(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|status| {
            let kind = if status == Status::ALLOC_FAILED { ErrorKind::Memory } else { ErrorKind::Device };
            Error::new(kind, format!("{doing} failed: {status}"))
        })
    }
}
