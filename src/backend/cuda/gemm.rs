//! Matrix products by cublasLt, on the library's own level: layouts and algorithms are made once per weight and kept.
//!
//! A product has one algorithm, chosen at load without split-K, and uses it for any number of rows: a row's bits then
//! do not depend on how many rows there are. cublasLt thinks in columns, so `out = x * weight^T` in rows is
//! `out^T = weight * x^T` to it: `m` is the weight's features, `n` the rows of `x`, `k` the width.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::Storage;
use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use crate::error::{Error, ErrorKind, Result};

/// What cublasLt may use beside its operands: NVIDIA's advice for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Candidates to choose from.
const CANDIDATES: usize = 16;

/// `CUBLAS_OP_T`, which is in a header that the bindings of cublasLt leave out.
const TRANSPOSED: i32 = 1;

/// A handle on cublasLt with its workspace, for the products of one rank's compute stream.
pub struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer,
    stream: Arc<CudaStream>,
    storage: Storage,
}

/// What a product computes with: `out[rows, features] = alpha * x[rows, width] * weight[features, width]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// Rows of the weight.
    pub features: usize,
    /// Columns of the weight and of `x`.
    pub width: usize,
    /// Numbers from one row of `x` to the next.
    pub x_stride: usize,
    /// Numbers from one row of `out` to the next.
    pub out_stride: usize,
    /// What `out` holds.
    pub out: Out,
    /// Whether a bias `[features]`, in the format of `out`, is added.
    pub bias: bool,
    /// The number of rows that the algorithm is chosen for; any other works too.
    pub rows_nominal: usize,
}

/// What becomes of the numbers of `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Out {
    /// Written, in storage.
    Storage,
    /// Added to, in storage.
    AddStorage,
    /// Written, in f32.
    F32,
    /// Added to, in f32.
    AddF32,
}

/// A product that is ready to run.
pub struct Product {
    shape: ProductShape,
    desc: Desc,
    weight: Layout,
    x: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The operands of one run.
#[derive(Debug)]
pub struct Operands<'a> {
    /// `[rows, x_stride]`, from the first row that takes part; the last row may end after `width` numbers.
    pub x: DeviceSlice<'a>,
    /// `[features, width]`
    pub weight: DeviceSlice<'a>,
    /// `[features]`, where the shape says so.
    pub bias: Option<DeviceSlice<'a>>,
    /// `[.., out_stride]`
    pub out: &'a mut DeviceBuffer,
    /// Where in `out` the first number goes, counted in its numbers.
    pub out_first: usize,
    /// Rows of `x`.
    pub rows: usize,
    /// What the product is multiplied by.
    pub alpha: f32,
}

impl Out {
    fn bytes(self) -> usize {
        match self {
            Self::Storage | Self::AddStorage => Storage::BYTES,
            Self::F32 | Self::AddF32 => size_of::<f32>(),
        }
    }

    fn number(self, storage: Storage) -> sys::cudaDataType {
        match self {
            Self::Storage | Self::AddStorage => number(storage),
            Self::F32 | Self::AddF32 => sys::cudaDataType::CUDA_R_32F,
        }
    }

    /// What `out` is multiplied by before the product is added.
    fn beta(self) -> f32 {
        match self {
            Self::Storage | Self::F32 => 0.0,
            Self::AddStorage | Self::AddF32 => 1.0,
        }
    }
}

fn number(storage: Storage) -> sys::cudaDataType {
    match storage {
        Storage::F16 => sys::cudaDataType::CUDA_R_16F,
        Storage::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// That cublasLt can be loaded; [`ErrorKind::Device`] that says so where it cannot.
pub fn is_present() -> Result<()> {
    // SAFETY: loads the library by name and lets go of it again; its initialisers are the vendor's own.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "cublasLt is not on this machine (no libcublasLt was found)")
        .with_hint("install CUDA's cuBLAS library of version 13, or put its folder on the loader's path"))
}

impl Lt {
    /// cublasLt in this context; [`ErrorKind::Device`] where the library is missing.
    pub fn new(context: &Context, storage: Storage) -> Result<Self> {
        is_present()?;
        context.bind()?;
        let workspace = context.allocate(WORKSPACE_BYTES)?;
        let handle = lt::create_handle().or_fault("starting cublasLt")?;
        Ok(Self { handle, workspace, stream: context.compute().clone(), storage })
    }

    /// Prepares a product: its layouts, and the fastest of the library's algorithms that sum each number in one piece.
    pub fn product(&self, shape: ProductShape) -> Result<Product> {
        let doing = || format!("preparing a product of {} x {}", shape.features, shape.width);
        let storage = number(self.storage);
        let out_number = shape.out.number(self.storage);
        let rows = shape.rows_nominal.max(1);
        let desc = Desc::new(shape.bias).or_fault(doing())?;
        let layout = |number, rows: usize, cols: usize, stride: usize| {
            Layout::new(number, rows, cols, stride).or_fault(doing())
        };
        let weight = layout(storage, shape.width, shape.features, shape.width)?;
        let x = layout(storage, shape.width, rows, shape.x_stride)?;
        let out = layout(out_number, shape.features, rows, shape.out_stride)?;
        let candidates = self.candidates(&desc, &weight, &x, &out).or_fault(doing())?;
        let whole = candidates.into_iter().find(|candidate| sums_in_one_piece(&candidate.algo));
        let Some(chosen) = whole else {
            return Err(Error::new(
                ErrorKind::Device,
                format!("{} failed: no algorithm without split-K", doing()),
            ));
        };
        Ok(Product { shape, desc, weight, x, out, algorithm: chosen.algo })
    }

    /// The library's proposals, fastest first.
    fn candidates(
        &self,
        desc: &Desc,
        weight: &Layout,
        x: &Layout,
        out: &Layout,
    ) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, CublasError> {
        let preference = Preference::new()?;
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: every handle is alive, made by the same library; `found` has room for as many as are asked for.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        }
        .result()?;
        // SAFETY: the library wrote the first `count` of them, which is no more than was asked for.
        unsafe { found.set_len((count.max(0) as usize).min(CANDIDATES)) };
        found.retain(|candidate| candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(found)
    }

    /// Queues a product on the compute stream.
    pub fn run(&self, product: &mut Product, operands: Operands<'_>) -> Result<()> {
        let Operands { x, weight, bias, out, out_first, rows, alpha } = operands;
        let shape = product.shape;
        let doing = || format!("a product of {rows} rows with {} x {}", shape.features, shape.width);
        let covers = |has: usize, stride: usize, width: usize, bytes: usize| {
            rows > 0 && stride >= width && has >= ((rows - 1) * stride + width) * bytes
        };
        let out_bytes = out_first * shape.out.bytes();
        let fits = covers(x.bytes(), shape.x_stride, shape.width, Storage::BYTES)
            && covers(
                out.bytes().saturating_sub(out_bytes),
                shape.out_stride,
                shape.features,
                shape.out.bytes(),
            )
            && weight.bytes() >= shape.features * shape.width * Storage::BYTES
            && bias
                .map_or(!shape.bias, |bias| shape.bias && bias.bytes() >= shape.features * shape.out.bytes());
        if !fits {
            return Err(Error::new(ErrorKind::Unsupported, format!("{} leaves its buffers", doing())));
        }
        product.x.set_cols(rows).or_fault(doing())?;
        product.out.set_cols(rows).or_fault(doing())?;
        if let Some(bias) = bias {
            product.desc.set_bias(bias.address()).or_fault(doing())?;
        }
        let beta = shape.out.beta();
        let pointer = |address: u64| address as *mut c_void;
        let to = pointer(out.address() + out_bytes as u64);
        // SAFETY: the layouts describe operands that were just checked to lie in their buffers; out is borrowed
        // mutably, so nothing that is read overlaps it; the scalars are f32, as the descriptor says; the workspace is
        // this handle's own and used on this one stream; buffers outlive the work, since dropping one waits for it.
        unsafe {
            lt::matmul(
                self.handle,
                product.desc.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(weight.address()),
                product.weight.0,
                pointer(x.address()),
                product.x.0,
                to,
                product.out.0,
                to,
                product.out.0,
                &product.algorithm,
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .or_fault(doing())
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: made by create_handle and destroyed here only. A failure leaves nothing to do.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Whether an algorithm computes each number by one thread block, in one order.
fn sums_in_one_piece(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    let attribute = |attribute| {
        let (mut value, mut written) = (0_u32, 0);
        // SAFETY: both attributes are 32-bit integers; the call writes one, and how many bytes.
        let status = unsafe {
            let value = (&raw mut value).cast();
            sys::cublasLtMatmulAlgoConfigGetAttribute(
                algorithm,
                attribute,
                value,
                size_of::<u32>(),
                &mut written,
            )
        };
        status.result().is_ok().then_some(value)
    };
    let split = attribute(Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
    let scheme = attribute(Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    split.is_some_and(|parts| parts <= 1) && scheme == Some(0)
}

/// A product's types, transpositions and epilogue.
struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new(bias: bool) -> Result<Self, CublasError> {
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

    fn set_bias(&mut self, address: u64) -> Result<(), CublasError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), CublasError> {
        // SAFETY: the descriptor is alive; the library copies the value, whose size it checks against the attribute's.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: made by create_matmul_desc and destroyed here only.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// A matrix in cublasLt's terms: columns of `rows` numbers, `stride` apart.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(number: sys::cudaDataType, rows: usize, cols: usize, stride: usize) -> Result<Self, CublasError> {
        lt::create_matrix_layout(number, rows as u64, cols as u64, stride as i64).map(Self)
    }

    fn set_cols(&mut self, cols: usize) -> Result<(), CublasError> {
        let (attribute, cols) =
            (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, cols as u64);
        // SAFETY: the layout is alive; the attribute is a 64-bit integer, which the library copies.
        unsafe {
            lt::set_matrix_layout_attribute(self.0, attribute, (&raw const cols).cast(), size_of::<u64>())
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by create_matrix_layout and destroyed here only.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// What algorithms are asked for: no reduction among thread blocks, and what fits the workspace.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(lt::create_matmul_pref()?);
        let (bytes, schemes) = (WORKSPACE_BYTES as u64, 0_u32);
        // SAFETY: the preference is alive; the first attribute is a 64-bit integer, the second one of 32 bits.
        unsafe {
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(
                preference.0,
                attribute,
                (&raw const bytes).cast(),
                size_of::<u64>(),
            )?;
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            lt::set_matmul_pref_attribute(
                preference.0,
                attribute,
                (&raw const schemes).cast(),
                size_of::<u32>(),
            )?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by create_matmul_pref and destroyed here only.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

/// Says what was being done when cublasLt refused.
trait OrFault<T> {
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

impl fmt::Debug for Lt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lt").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl fmt::Debug for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Product").field("shape", &self.shape).finish_non_exhaustive()
    }
}
