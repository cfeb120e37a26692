//! Matrix products by cublasLt, on the library's own level: layouts and algorithms are made once per shape and kept.
//!
//! cublasLt thinks in columns, so `out = x * weight^T` in rows is `out^T = weight * x^T` to it: `m` is the weight's
//! features, `n` the rows of `x`, `k` the width.
//!
//! # Which algorithm
//!
//! A row's bits must not depend on how many rows there are, and the fastest algorithm does. Both can be had, because many
//! algorithms differ in their tiles alone and add the terms of a number in the same order. So, for each shape:
//!
//! 1. The library's proposals for numbers of rows from few to many are collected ([`algorithm`]); those with split-K or a
//!    reduction are dropped.
//! 2. Each computes products of several numbers of rows on numbers that cancel, so that what is left is rounding, and is
//!    sorted by their bits into *classes*; one that gives equal rows different bits is dropped ([`trial`]).
//! 3. The class of the library's first proposal for [`ROWS_NOMINAL`] rows is used for every number of rows ([`classes`]).
//! 4. Within it, the fastest at each size of batch is used there: measured, and kept on disk ([`tuning`], [`cache`]).
//!
//! **Times never change bits.** The class follows from what the library proposes and computes: its version, the kind of
//! GPU, the storage and the shape. A class that is faster over all is not taken for it, because then the bits of a
//! reward would hang on a stopwatch: two runs, two ranks or two machines of one kind could differ. For the same reason
//! ranks need not agree on anything, and a file of times can make a product slow, but not wrong.
//!
//! (The library has had a mode of its own for batch invariance since 13.4, which is newer than what is built against.)
//!
//! No algorithm is used for a number of rows that it was not checked for, which asks the library's host code and happens
//! once per number of rows. What no member of the class takes at once is computed in several pieces of rows, which
//! gives the same bits; a class without a member for a single row is not used. So no pass fails for its size.

pub mod algorithm;
pub mod cache;
pub mod classes;
mod handles;
pub mod trial;
pub mod tuning;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::iter;
use std::sync::Arc;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use serde::{Deserialize, Serialize};

use super::Storage;
use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use crate::error::{Error, ErrorKind, Result};
use algorithm::Algorithm;
use classes::Schedule;
use handles::{Desc, Layout, OrFault};

pub use classes::ROWS_NOMINAL;

/// What cublasLt may use beside its operands: NVIDIA's advice for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// What an allocation is aligned to, and the most that the library asks for.
const ALIGNMENT_MAX: usize = 256;

/// A handle on cublasLt with its workspace, for the products of one rank's compute stream.
pub struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer,
    stream: Arc<CudaStream>,
    storage: Storage,
}

/// What a product computes with: `out[rows, features] = alpha * x[rows, width] * weight[features, width]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProductShape {
    /// Rows of the weight.
    pub features: usize,
    /// Columns of the weight and of `x`.
    pub width: usize,
    /// Numbers from one row of `x` to the next.
    pub x_stride: usize,
    /// Numbers from one row of `out` to the next. The features are its first or its last columns.
    pub out_stride: usize,
    /// What `out` holds.
    pub out: Out,
    /// Whether a bias `[features]`, in the format of `out`, is added.
    pub bias: bool,
}

/// What becomes of the numbers of `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// Bytes that the first numbers of a product's operands are aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignments {
    weight: u32,
    x: u32,
    out: u32,
}

/// A product in the library's terms, without a choice of how to compute it.
pub struct Problem {
    shape: ProductShape,
    desc: Desc,
    weight: Layout,
    x: Layout,
    out: Layout,
}

/// A product that is ready to run for any number of rows.
pub struct Product {
    problem: Problem,
    schedule: Schedule,
    /// For a number of rows that is left to do: how many are done next, and by which algorithm.
    pieces: HashMap<usize, (usize, Algorithm)>,
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

impl ProductShape {
    /// Any row of an operand may be its first one, and `out` may start where the features before it end.
    fn alignments(&self) -> Alignments {
        let of = |bytes: usize| 1 << bytes.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros());
        Alignments {
            weight: of(self.width * Storage::BYTES),
            x: of(self.x_stride * Storage::BYTES),
            out: of((self.out_stride | (self.out_stride - self.features)) * self.out.bytes()),
        }
    }
}

impl fmt::Display for ProductShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a product with {} x {}", self.features, self.width)
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

/// The version of the library, as it writes it: 130000 is 13.0.
fn version() -> usize {
    // SAFETY: the library is there, as a handle shows that somebody has made; the call takes nothing.
    unsafe { sys::cublasLtGetVersion() }
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

    /// A product's layouts.
    ///
    /// # Panics
    ///
    /// When rows of `out` are narrower than the features.
    pub fn problem(&self, shape: ProductShape) -> Result<Problem> {
        assert!(shape.out_stride >= shape.features, "{shape:?}");
        let doing = || format!("preparing {shape}");
        let storage = number(self.storage);
        let layout = |number, rows: usize, cols: usize, stride: usize| {
            Layout::new(number, rows, cols, stride).or_fault(doing())
        };
        Ok(Problem {
            shape,
            desc: Desc::new(shape.bias).or_fault(doing())?,
            weight: layout(storage, shape.width, shape.features, shape.width)?,
            x: layout(storage, shape.width, 1, shape.x_stride)?,
            out: layout(shape.out.number(self.storage), shape.features, 1, shape.out_stride)?,
        })
    }

    /// Queues a product on the compute stream.
    pub fn run(&self, product: &mut Product, mut operands: Operands<'_>) -> Result<()> {
        let (shape, rows, out_first) = (product.problem.shape, operands.rows, operands.out_first);
        product.problem.check(&operands)?;
        let x = operands.x;
        let mut first = 0;
        while first < rows {
            let (count, algorithm) = self.piece(product, rows - first)?;
            operands.x = x.after(first * shape.x_stride * Storage::BYTES);
            operands.out_first = out_first + first * shape.out_stride;
            operands.rows = count;
            self.launch(&mut product.problem, &algorithm, &mut operands)?
                .or_fault(format!("{shape} of {count} rows"))?;
            first += count;
        }
        Ok(())
    }

    /// Of so many rows, how many are computed next, and by what: all, wherever an algorithm takes them.
    fn piece(&self, product: &mut Product, rows: usize) -> Result<(usize, Algorithm)> {
        if let Some(&known) = product.pieces.get(&rows) {
            return Ok(known);
        }
        let below = (0..rows.ilog2() + u32::from(!rows.is_power_of_two())).rev().map(|log| 1 << log);
        for count in iter::once(rows).chain(below) {
            for algorithm in product.schedule.at(count) {
                if self.accepts(&mut product.problem, algorithm, count)? {
                    product.pieces.insert(rows, (count, *algorithm));
                    return Ok((count, *algorithm));
                }
            }
        }
        let shape = product.problem.shape;
        Err(Error::new(
            ErrorKind::Device,
            format!("no algorithm of cublasLt computes {shape} of {rows} rows"),
        ))
    }

    /// Queues a product by this algorithm; the library's answer is the inner result.
    fn launch(
        &self,
        problem: &mut Problem,
        algorithm: &Algorithm,
        operands: &mut Operands<'_>,
    ) -> Result<std::result::Result<(), CublasError>> {
        problem.check(operands)?;
        let Operands { x, weight, bias, ref mut out, out_first, rows, alpha } = *operands;
        let shape = problem.shape;
        let doing = || format!("{shape} of {rows} rows");
        problem.set_rows(rows).or_fault(doing())?;
        if let Some(bias) = bias {
            problem.desc.set_bias(bias.address()).or_fault(doing())?;
        }
        let beta = shape.out.beta();
        let pointer = |address: u64| address as *mut c_void;
        let to = pointer(out.address() + (out_first * shape.out.bytes()) as u64);
        // SAFETY: the layouts describe operands that were just checked to lie in their buffers; out is borrowed
        // mutably, so nothing that is read overlaps it; the scalars are f32, as the descriptor says; the workspace is
        // this handle's own and used on this one stream; buffers outlive the work, since dropping one waits for it.
        Ok(unsafe {
            lt::matmul(
                self.handle,
                problem.desc.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(weight.address()),
                problem.weight.0,
                pointer(x.address()),
                problem.x.0,
                to,
                problem.out.0,
                to,
                problem.out.0,
                algorithm.raw(),
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        })
    }
}

impl Problem {
    /// What it is.
    pub fn shape(&self) -> ProductShape {
        self.shape
    }

    /// How many rows `x` and `out` have from here on.
    fn set_rows(&mut self, rows: usize) -> Result<(), CublasError> {
        self.x.set_cols(rows)?;
        self.out.set_cols(rows)
    }

    /// That operands lie in their buffers, and where the library was told that they would.
    fn check(&self, operands: &Operands<'_>) -> Result<()> {
        let (shape, rows) = (self.shape, operands.rows);
        let Operands { x, weight, bias, ref out, out_first, .. } = *operands;
        let covers = |has: usize, stride: usize, width: usize, bytes: usize| {
            let last_row = (rows.max(1) - 1).saturating_mul(stride);
            rows > 0 && stride >= width && has >= last_row.saturating_add(width).saturating_mul(bytes)
        };
        let covers_matrix = |has: usize, rows: usize, width: usize, bytes: usize| {
            has >= rows.saturating_mul(width).saturating_mul(bytes)
        };
        let number = shape.out.bytes();
        let out_bytes = out.bytes().saturating_sub(out_first.saturating_mul(number));
        let fits = covers(x.bytes(), shape.x_stride, shape.width, Storage::BYTES)
            && covers(out_bytes, shape.out_stride, shape.features, number)
            && covers_matrix(weight.bytes(), shape.features, shape.width, Storage::BYTES)
            && bias.map_or(!shape.bias, |bias| {
                shape.bias && covers_matrix(bias.bytes(), shape.features, 1, number)
            });
        if !fits {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{shape} of {rows} rows leaves its buffers"),
            ));
        }
        let aligned = shape.alignments();
        let out = out.address() + (out_first * number) as u64;
        for (name, address, to) in [
            ("weight", weight.address(), aligned.weight),
            ("x", x.address(), aligned.x),
            ("out", out, aligned.out),
        ] {
            if !address.is_multiple_of(u64::from(to)) {
                let message = format!("{shape}: {name} at {address:#x} is not aligned to {to} bytes");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }
}

impl Product {
    /// A product that is computed as the schedule says.
    pub fn new(problem: Problem, schedule: Schedule) -> Self {
        Self { problem, schedule, pieces: HashMap::new() }
    }

    /// How it is computed.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: made by create_handle and destroyed here only. A failure leaves nothing to do.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl fmt::Debug for Lt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lt").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problem").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl fmt::Debug for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Product")
            .field("shape", &self.problem.shape)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}
