//! [`Lt`]: a handle on cublasLt, which proposes algorithms for a matmul and launches it by one of
//! them.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use super::handles::{Desc, MatrixLayout, OrFault, Preference, WORKSPACE_BYTES};
use super::library::{HeuristicResult, LtLibrary, Status};
use super::shape::{MatmulShape, activation_type, weight_type};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::context::Context;
use crate::backend::cuda::format::{ActivationFormat, WeightFormat};
use crate::error::{Error, ErrorKind, Result};

/// The most proposals for a count of rows.
const PROPOSALS: usize = 16;

/// A handle on cublasLt with its workspace, for the matmuls of one rank's compute stream.
pub struct Lt {
    library: &'static LtLibrary,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer,
    pub(super) stream: Arc<CudaStream>,
    pub(super) format: ActivationFormat,
    /// `None` with one rank.
    sharing: Option<Sharing>,
}

/// How matmuls share the GPU with collectives that run beside them.
///
/// The library's kernels for large GPUs have a block for each multiprocessor. Blocks for which a
/// collective leaves no space would wait for a second round, and the matmul take twice as long: so
/// it is planned for those that are left.
#[derive(Clone, Copy, Debug)]
struct Sharing {
    /// Multiprocessors that collectives leave.
    multiprocessors: i32,
    /// Rows of a matmul from which on it usually has collectives beside it.
    rows_min: usize,
}

/// The part of the GPU that a matmul is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Share {
    /// All multiprocessors.
    Whole,
    /// Those that collectives leave.
    BesideCollectives,
}

/// A matmul in the library's terms, without a choice of algorithm.
pub struct Problem {
    pub(super) shape: MatmulShape,
    pub(super) format: ActivationFormat,
    desc: Desc,
    weight: MatrixLayout,
    x: MatrixLayout,
    out: MatrixLayout,
    share: Share,
}

/// The operands of one run.
#[derive(Debug)]
pub struct Operands<'a> {
    /// `[rows, x_stride]`, from the first row that takes part; the last row may end after `width`
    /// numbers.
    pub x: DeviceSlice<'a>,
    /// `[features, width]`
    pub weight: DeviceSlice<'a>,
    /// `[features]`, where the shape says so.
    pub bias: Option<DeviceSlice<'a>>,
    /// `[.., out_stride]`
    pub out: &'a mut DeviceBuffer,
    /// Index of the first element that is written, among those of `out`.
    pub out_first: usize,
    /// Rows of `x`.
    pub rows: usize,
    /// Factor of the result.
    pub alpha: f32,
    /// The part of the GPU that it has.
    pub share: Share,
}

/// Loads cublasLt and returns its version and file, such as
/// `cublasLt 13.4.1 (/usr/lib/libcublasLt.so.13)`; [`ErrorKind::Device`] where it is missing or
/// does not fit the driver.
pub fn library() -> Result<String> {
    LtLibrary::get().map(ToString::to_string)
}

impl Lt {
    /// cublasLt in this context; [`ErrorKind::Device`] where the library is missing.
    pub fn new(context: &Context, format: ActivationFormat) -> Result<Self> {
        let library = LtLibrary::get()?;
        context.bind()?;
        let workspace = context.allocate(WORKSPACE_BYTES)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the out parameter is a local.
        unsafe { (library.create)(&mut handle) }.result().or_fault("starting cublasLt")?;
        Ok(Self { library, handle, workspace, stream: context.compute().clone(), format, sharing: None })
    }

    /// Prepares matmuls for collectives that leave so many multiprocessors to them; those of at
    /// least `rows_min` rows usually have some beside them.
    pub fn beside_collectives(mut self, multiprocessors: usize, rows_min: usize) -> Self {
        let multiprocessors = i32::try_from(multiprocessors).unwrap_or(i32::MAX);
        self.sharing = Some(Sharing { multiprocessors, rows_min });
        self
    }

    /// The parts of the GPU that a matmul may have, that which decides on its bits first.
    pub(super) fn shares(&self) -> &'static [Share] {
        match self.sharing {
            Some(_) => &[Share::BesideCollectives, Share::Whole],
            None => &[Share::Whole],
        }
    }

    /// The multiprocessors of a part of a GPU that has so many.
    pub(super) fn multiprocessors(&self, share: Share, all: usize) -> usize {
        match (share, self.sharing) {
            (Share::BesideCollectives, Some(sharing)) => sharing.multiprocessors as usize,
            _ => all,
        }
    }

    /// The part of the GPU that a matmul of so many rows usually has.
    pub(super) fn usual_share(&self, rows: usize) -> Share {
        match self.sharing {
            Some(sharing) if rows >= sharing.rows_min => Share::BesideCollectives,
            _ => Share::Whole,
        }
    }

    /// Plans a matmul for a part of the GPU.
    pub(super) fn set_share(&self, problem: &mut Problem, share: Share) -> Result<()> {
        if problem.share == share {
            return Ok(());
        }
        let multiprocessors = match (share, self.sharing) {
            (Share::BesideCollectives, Some(sharing)) => sharing.multiprocessors,
            _ => 0,
        };
        let set = problem.desc.set_multiprocessors(multiprocessors);
        set.or_fault(format!("preparing {}", problem.shape))?;
        problem.share = share;
        Ok(())
    }

    /// The layouts of a matmul.
    ///
    /// # Panics
    ///
    /// When rows of `out` are narrower than the features.
    pub fn problem(&self, shape: MatmulShape) -> Result<Problem> {
        assert!(shape.out_stride >= shape.features, "{shape:?}");
        let doing = || format!("preparing {shape}");
        let format = self.format;
        let (weights, x) = (weight_type(WeightFormat::beside(format)), activation_type(format));
        let layout = |element, rows: usize, cols: usize, stride: usize| {
            MatrixLayout::new(self.library, element, rows, cols, stride).or_fault(doing())
        };
        let bias = shape.bias.then(|| shape.alignments(format).bias);
        Ok(Problem {
            shape,
            format,
            desc: Desc::new(self.library, bias).or_fault(doing())?,
            weight: layout(weights, shape.width, shape.features, shape.width)?,
            x: layout(x, shape.width, 1, shape.x_stride)?,
            out: layout(shape.out.data_type(format), shape.features, 1, shape.out_stride)?,
            share: Share::Whole,
        })
    }

    /// Queues a matmul by this algorithm; the inner result is the library's.
    pub(super) fn launch(
        &self,
        problem: &mut Problem,
        algorithm: &Algorithm,
        operands: &mut Operands<'_>,
    ) -> Result<std::result::Result<(), Status>> {
        problem.check(operands)?;
        let Operands { x, weight, bias, ref mut out, out_first, rows, alpha, share } = *operands;
        self.set_share(problem, share)?;
        let shape = problem.shape;
        let doing = || format!("{shape} of {rows} rows");
        problem.set_rows(rows).or_fault(doing())?;
        if let Some(bias) = bias {
            problem.desc.set_bias(bias.address()).or_fault(doing())?;
        }
        let beta = shape.out.beta();
        let pointer = |address: u64| address as *mut c_void;
        let to = pointer(out.address() + (out_first * shape.out.bytes(problem.format)) as u64);
        // SAFETY: the layouts describe operands that were just checked to lie in their buffers; out
        // is borrowed mutably, so nothing that is read overlaps it; the scalars are f32, as the
        // descriptor says; the workspace is this handle's own and used on this one stream; buffers
        // outlive the work, since dropping one waits for it.
        Ok(unsafe {
            (self.library.matmul)(
                self.handle,
                problem.desc.raw,
                (&raw const alpha).cast(),
                pointer(weight.address()),
                problem.weight.raw,
                pointer(x.address()),
                problem.x.raw,
                (&raw const beta).cast(),
                to,
                problem.out.raw,
                to,
                problem.out.raw,
                algorithm.raw(),
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .result())
    }

    /// The library's proposals for a matmul of `rows` rows, the best first. They are the same in
    /// every run of one version of the library on one model of GPU.
    pub fn proposals(&self, problem: &mut Problem, rows: usize, share: Share) -> Result<Vec<Algorithm>> {
        self.set_share(problem, share)?;
        let shape = problem.shape;
        let doing = || format!("querying algorithms for {shape}");
        let preference = Preference::new(self.library, shape.alignments(self.format)).or_fault(doing())?;
        problem.set_rows(rows).or_fault(doing())?;
        let mut found = Vec::<HeuristicResult>::with_capacity(PROPOSALS);
        let mut count = 0;
        // SAFETY: every handle is alive, made by the same library; `found` has capacity for
        // `PROPOSALS`.
        let status = unsafe {
            (self.library.heuristic)(
                self.handle,
                problem.desc.raw,
                problem.weight.raw,
                problem.x.raw,
                problem.out.raw,
                problem.out.raw,
                preference.raw,
                PROPOSALS as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        // No proposal for this count of rows is no error: those for others may do.
        if status == Status::NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        status.result().or_fault(doing())?;
        // SAFETY: the library wrote the first `count` of them, which is at most `PROPOSALS`.
        unsafe { found.set_len((count.max(0) as usize).min(PROPOSALS)) };
        found.retain(|proposal| proposal.state == Status::SUCCESS);
        Ok(found.iter().map(|proposal| Algorithm::new(self.library, proposal.algorithm)).collect())
    }

    /// Whether an algorithm computes the matmul of `rows` rows within the workspace. This runs the
    /// library's host code only.
    pub fn accepts(
        &self,
        problem: &mut Problem,
        algorithm: &Algorithm,
        rows: usize,
        share: Share,
    ) -> Result<bool> {
        self.set_share(problem, share)?;
        let shape = problem.shape;
        let doing = || format!("checking an algorithm for {shape}");
        problem.set_rows(rows).or_fault(doing())?;
        let mut result = HeuristicResult::of(*algorithm.raw());
        // SAFETY: every handle is alive, made by the same library, and so is the algorithm, which a
        // heuristic gave; the result is written to a local.
        let status = unsafe {
            (self.library.check)(
                self.handle,
                problem.desc.raw,
                problem.weight.raw,
                problem.x.raw,
                problem.out.raw,
                problem.out.raw,
                algorithm.raw(),
                &mut result,
            )
        };
        let success = status == Status::SUCCESS && result.state == Status::SUCCESS;
        Ok(success && result.workspace_bytes <= WORKSPACE_BYTES)
    }
}

impl Problem {
    /// The shape.
    pub fn shape(&self) -> MatmulShape {
        self.shape
    }

    /// Sets the count of rows of `x` and `out`.
    fn set_rows(&mut self, rows: usize) -> Result<(), Status> {
        self.x.set_cols(rows)?;
        self.out.set_cols(rows)
    }

    /// Checks that operands lie in their buffers, aligned as algorithms require.
    pub(super) fn check(&self, operands: &Operands<'_>) -> Result<()> {
        let (shape, rows) = (self.shape, operands.rows);
        let Operands { x, weight, bias, ref out, out_first, .. } = *operands;
        let covers = |has: usize, stride: usize, width: usize, bytes: usize| {
            let last_row = (rows.max(1) - 1).saturating_mul(stride);
            rows > 0 && stride >= width && has >= last_row.saturating_add(width).saturating_mul(bytes)
        };
        let covers_matrix = |has: usize, rows: usize, width: usize, bytes: usize| {
            has >= rows.saturating_mul(width).saturating_mul(bytes)
        };
        let element_bytes = shape.out.bytes(self.format);
        let out_bytes = out.bytes().saturating_sub(out_first.saturating_mul(element_bytes));
        let weight_bytes = WeightFormat::beside(self.format).bytes();
        let fits = covers(x.bytes(), shape.x_stride, shape.width, self.format.bytes())
            && covers(out_bytes, shape.out_stride, shape.features, element_bytes)
            && covers_matrix(weight.bytes(), shape.features, shape.width, weight_bytes)
            && bias.map_or(!shape.bias, |bias| {
                shape.bias && covers_matrix(bias.bytes(), shape.features, 1, element_bytes)
            });
        if !fits {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{shape} of {rows} rows leaves its buffers"),
            ));
        }
        let aligned = shape.alignments(self.format);
        let out = out.address() + (out_first * element_bytes) as u64;
        for (name, address, to) in [
            ("weight", weight.address(), aligned.weight),
            ("x", x.address(), aligned.x),
            ("out", out, aligned.out),
            ("bias", bias.map_or(0, |bias| bias.address()), aligned.bias),
        ] {
            if !address.is_multiple_of(u64::from(to)) {
                let message = format!("{shape}: {name} at {address:#x} is not aligned to {to} bytes");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: made by the same library and destroyed here only. A failure leaves nothing to do.
        let _ = unsafe { (self.library.destroy)(self.handle) };
    }
}

impl fmt::Debug for Lt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lt").field("format", &self.format).finish_non_exhaustive()
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problem").field("shape", &self.shape).finish_non_exhaustive()
    }
}
