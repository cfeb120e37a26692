//! The library, its algorithms and its matmuls; [`super::descriptors`] has the rest of the entry
//! points.

use super::algorithm::{Algorithm, Aligned, Size};
use super::descriptors::{ALIGNMENT_MAX, Description, Layout, Preference, refuse, wrong_size};
use super::elsewhere::{driver_suffices, forward, version};
use super::gemm::{Gemm, Matrix};
use super::status::{
    ALLOC_FAILED, EXECUTION_FAILED, INVALID_VALUE, LtStatus, NOT_INITIALIZED, NOT_SUPPORTED, SUCCESS,
};
use crate::driver::calls::called;
use crate::driver::op::{Lasts, Op};
use crate::driver::status::Status;
use crate::driver::version::driver_version;
use crate::driver::wait::{Device, drain_all, push_launch};
use crate::driver::world::{initialise, world};
use crate::driver::{current_device, device_of, enter};
use std::ffi::{c_int, c_uint, c_void};

/// The oldest library that knows the devices here; an older one has no algorithm for any shape.
const VERSION_MIN: usize = 120_000;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct HeuristicResult {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: LtStatus,
    waves: f32,
    reserved: [c_int; 4],
}

impl HeuristicResult {
    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The workspace that it needs.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    fn of(algorithm: Algorithm) -> Self {
        let workspace_bytes = algorithm.workspace_bytes();
        Self { algorithm, workspace_bytes, state: SUCCESS, waves: 1.0, reserved: [0; 4] }
    }
}

/// A handle holds nothing, but the library holds the primary context of the current device from
/// then on, or that of device 0 where none is current, as the CUDA runtime within it does.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut usize) -> LtStatus {
    if !driver_suffices() {
        eprintln!("softgpu: cublasLt {} does not start on a driver of {}", version(), driver_version());
        return NOT_INITIALIZED;
    }
    // SAFETY: the caller's promises.
    unsafe { softgpu_cublasLtCreate(handle) }
}

/// [`cublasLtCreate`] by a library of any version.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_cublasLtCreate(handle: *mut usize) -> LtStatus {
    forward!(softgpu_cublasLtCreate(handle));
    called("cublasLtCreate");
    let world = initialise();
    let Ok(mut device) = enter(current_device().unwrap_or(0)) else { return NOT_INITIALIZED };
    device.held_by_library = true;
    if device.cublas.library.is_none() {
        let bytes = world.settings.library_bytes.cublas;
        device.cublas.library = device.memory.reserve(bytes);
        if device.cublas.library.is_none() {
            eprintln!("softgpu: cublasLtCreate: {bytes} bytes do not fit on device {}", device.index);
            return ALLOC_FAILED;
        }
    }
    // SAFETY: the caller's out parameter.
    unsafe { handle.write(1) };
    SUCCESS
}

/// Does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: usize) -> LtStatus {
    forward!(cublasLtDestroy(handle));
    called("cublasLtDestroy");
    SUCCESS
}

/// 130000 is 13.0: `SOFTGPU_CUBLASLT`, or what the name says under which the library was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    called("cublasLtGetVersion");
    version()
}

/// Offers algorithms that take this many columns of D and that workspace, the best first. They
/// rest on the alignments that the preference promises, and on that of a bias which is set.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    desc: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    preference: *const Preference,
    wanted: c_int,
    results: *mut HeuristicResult,
    found: *mut c_int,
) -> LtStatus {
    if version() < VERSION_MIN {
        return refuse(&format!("cublasLt {} has no algorithm for this device", version()));
    }
    // SAFETY: the caller's promises.
    unsafe {
        softgpu_cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, c, d, preference, wanted, results, found)
    }
}

/// [`cublasLtMatmulAlgoGetHeuristic`] by a library of any version.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    desc: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    preference: *const Preference,
    wanted: c_int,
    results: *mut HeuristicResult,
    found: *mut c_int,
) -> LtStatus {
    forward!(softgpu_cublasLtMatmulAlgoGetHeuristic(
        handle, desc, a, b, c, d, preference, wanted, results, found
    ));
    called("cublasLtMatmulAlgoGetHeuristic");
    // SAFETY: the caller's descriptors.
    let sizes = unsafe { gemm(desc, [a, b, c, d], [0; 4]) }.and_then(|gemm| gemm.sizes());
    let (_, columns, _) = match sizes {
        Ok(sizes) => sizes,
        Err(why) => return refuse(&why),
    };
    if preference.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's descriptors; `gemm` has found that the description is not null.
    let (preference, desc) = unsafe { (&*preference, &*desc) };
    let bias = if desc.biased { desc.bias_alignment() } else { 0 };
    let aligned = Aligned::new(preference.alignments.map(|bytes| bytes as u16), bias);
    let workspace_bytes = usize::try_from(preference.workspace_bytes).unwrap_or(usize::MAX);
    let mut count = 0;
    let proposed = Algorithm::proposed(columns, workspace_bytes, aligned, desc.multiprocessors);
    for algorithm in proposed.take(wanted.max(0) as usize) {
        // SAFETY: the caller gives memory for `wanted` results.
        unsafe { results.add(count).write(HeuristicResult::of(algorithm)) };
        count += 1;
    }
    // SAFETY: the caller's out parameter.
    unsafe { found.write(count as c_int) };
    SUCCESS
}

/// Accepts the algorithms on offer, for the columns of D that they support.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoCheck(
    handle: usize,
    desc: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    algorithm: *const Algorithm,
    result: *mut HeuristicResult,
) -> LtStatus {
    forward!(cublasLtMatmulAlgoCheck(handle, desc, a, b, c, d, algorithm, result));
    called("cublasLtMatmulAlgoCheck");
    // SAFETY: the caller's descriptors and algorithm.
    let (gemm, algorithm) = unsafe { (gemm(desc, [a, b, c, d], [0; 4]), *algorithm) };
    let (_, columns, _) = match gemm.and_then(|gemm| gemm.sizes()) {
        Ok(sizes) => sizes,
        Err(why) => return refuse(&why),
    };
    if !algorithm.is_known() {
        return INVALID_VALUE;
    }
    if !algorithm.takes(columns) {
        return NOT_SUPPORTED;
    }
    // SAFETY: the caller's out parameter.
    unsafe { result.write(HeuristicResult::of(algorithm)) };
    SUCCESS
}

/// An attribute of an algorithm; 0 where it has none.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoConfigGetAttribute(
    algorithm: *const Algorithm,
    attribute: c_uint,
    value: *mut c_void,
    bytes: usize,
    written: *mut usize,
) -> LtStatus {
    forward!(cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, value, bytes, written));
    called("cublasLtMatmulAlgoConfigGetAttribute");
    // SAFETY: the caller's algorithm.
    let found = unsafe { *algorithm }.attribute(attribute);
    let size = Algorithm::attribute_bytes(attribute);
    // Without a value, its size alone is asked for.
    if bytes == 0 && !written.is_null() {
        // SAFETY: the caller's out parameter, which is not null.
        unsafe { written.write(size) };
        return SUCCESS;
    }
    if value.is_null() || bytes != size {
        return wrong_size("cublasLtMatmulAlgoConfigGetAttribute", attribute, bytes, size);
    }
    // SAFETY: the caller gives as many bytes as the attribute has; `written` may be null.
    unsafe {
        match size {
            2 => value.cast::<u16>().write_unaligned(found as u16),
            _ => value.cast::<u32>().write_unaligned(found),
        }
        if !written.is_null() {
            written.write(size);
        }
    }
    SUCCESS
}

/// Id, tile, split-K and reduction scheme; `cublasLtMatmulAlgoCheck` then checks whether it exists.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoConfigSetAttribute(
    algorithm: *mut Algorithm,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> LtStatus {
    forward!(cublasLtMatmulAlgoConfigSetAttribute(algorithm, attribute, value, bytes));
    called("cublasLtMatmulAlgoConfigSetAttribute");
    let size = Algorithm::attribute_bytes(attribute);
    if algorithm.is_null() || value.is_null() || bytes != size {
        return wrong_size("cublasLtMatmulAlgoConfigSetAttribute", attribute, bytes, size);
    }
    if size != 4 {
        return refuse(&format!("cublasLtMatmulAlgoConfigSetAttribute: attribute {attribute}"));
    }
    // SAFETY: the caller's algorithm, and a value of 4 bytes.
    let (algorithm, value) = unsafe { (&mut *algorithm, value.cast::<u32>().read_unaligned()) };
    if algorithm.set(attribute, value) { SUCCESS } else { INVALID_VALUE }
}

/// Queues a GEMM. Alpha and beta are read now, from the host.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: usize,
    desc: *const Description,
    alpha: *const f32,
    a: u64,
    a_layout: *const Layout,
    b: u64,
    b_layout: *const Layout,
    beta: *const f32,
    c: u64,
    c_layout: *const Layout,
    d: u64,
    d_layout: *const Layout,
    algorithm: *const Algorithm,
    workspace: u64,
    workspace_bytes: usize,
    stream: usize,
) -> LtStatus {
    forward!(cublasLtMatmul(
        handle,
        desc,
        alpha,
        a,
        a_layout,
        b,
        b_layout,
        beta,
        c,
        c_layout,
        d,
        d_layout,
        algorithm,
        workspace,
        workspace_bytes,
        stream
    ));
    called("cublasLtMatmul");
    // SAFETY: the caller's descriptors and scalars; the algorithm may be null.
    let (gemm, alpha, beta, algorithm, planned) = unsafe {
        let chosen = if algorithm.is_null() { Algorithm::DEFAULT } else { *algorithm };
        let gemm = gemm(desc, [a_layout, b_layout, c_layout, d_layout], [a, b, c, d]);
        (gemm, *alpha, *beta, chosen, desc.as_ref().map_or(0, |desc| desc.multiprocessors))
    };
    let (gemm, (m, n, k)) = match gemm.and_then(|g| g.sizes().map(|sizes| (g, sizes))) {
        Ok(checked) => checked,
        Err(why) => return refuse(&why),
    };
    if !algorithm.is_known() {
        return INVALID_VALUE;
    }
    if !algorithm.takes(n) {
        return refuse(&format!("cublasLtMatmul: {algorithm:?} does not take {n} columns"));
    }
    let needed = algorithm.workspace_bytes();
    if workspace_bytes < needed || !workspace.is_multiple_of(u64::from(ALIGNMENT_MAX)) {
        eprintln!(
            "softgpu: cublasLtMatmul: a workspace of {workspace_bytes} bytes at {workspace:#x}; algorithm {} needs {needed} at a multiple of {ALIGNMENT_MAX}",
            algorithm.id()
        );
        return INVALID_VALUE;
    }
    let gemm = Gemm { alpha, beta, workspace: (needed > 0).then_some((workspace, needed)), ..gemm };
    if let Err(why) = keeps_promises(&gemm, algorithm.aligned()) {
        eprintln!("softgpu: cublasLtMatmul: {why}");
        return INVALID_VALUE;
    }
    let multiplications = (m * n * k) as u64;
    let (Ok(world), Ok(index)) = (world(), device_of(stream)) else { return NOT_INITIALIZED };
    let all = world.settings.multiprocessors_of(index);
    let multiprocessors = if planned == 0 { all } else { planned.min(all) };
    let size = Size { rows: m, columns: n, k, multiprocessors };
    let gemm = Gemm { k_block: algorithm.k_block(size), ..gemm };
    let call = Box::new(move |memory: &mut crate::device::DeviceMemory| gemm.run(memory));
    let queued = device_of(stream).and_then(enter).and_then(|device| {
        let device = loaded(device, &algorithm)?;
        push_launch(
            device,
            stream,
            Op::Library { name: "cublasLtMatmul", multiplications, multiprocessors, call },
        )
    });
    match queued {
        Ok(()) => SUCCESS,
        Err(Status::OutOfMemory) => ALLOC_FAILED,
        Err(_) => EXECUTION_FAILED,
    }
}

/// Whether the operands are aligned as the heuristic was promised.
fn keeps_promises(gemm: &Gemm, aligned: Aligned) -> Result<(), String> {
    let [a, b, c, d] = aligned.matrices;
    let c = if gemm.beta == 0.0 { 0 } else { c };
    let bias = (gemm.bias.map_or(0, |bias| bias.address), aligned.bias);
    let operands = [
        ("A", (gemm.a.address, a)),
        ("B", (gemm.b.address, b)),
        ("C", (gemm.c.address, c)),
        ("D", (gemm.d.address, d)),
    ];
    for (name, (address, bytes)) in operands.into_iter().chain([("the bias", bias)]) {
        if bytes > 0 && !address.is_multiple_of(u64::from(bytes)) {
            return Err(format!("{name} at {address:#x} is not aligned to the promised {bytes} bytes"));
        }
    }
    Ok(())
}

/// Loads an algorithm's kernels at its first use on the device, which takes memory and waits for
/// all that the device has to do.
///
/// # Errors
/// Out of memory, and the device's sticky error, which that of a collective whose other ranks do
/// not come is.
fn loaded(device: Device, algorithm: &Algorithm) -> Result<Device, Status> {
    let id = algorithm.id();
    if device.cublas.algorithms.contains_key(&id) {
        return Ok(device);
    }
    let (mut device, ran) = drain_all(device);
    if let Err(status) = ran {
        if status == Status::LaunchTimeout && device.error_lasts == Lasts::Context {
            eprintln!(
                "softgpu: cublasLtMatmul: the first use of algorithm {id} on device {} waits for all of its work, and that for ranks that did not come: a deadlock",
                device.index
            );
        }
        return Err(status);
    }
    let bytes = world()?.settings.library_bytes.algorithm;
    let Some(memory) = device.memory.reserve(bytes) else {
        eprintln!(
            "softgpu: cublasLtMatmul: {bytes} bytes of code of algorithm {id} do not fit on device {}",
            device.index
        );
        return Err(Status::OutOfMemory);
    };
    device.cublas.algorithms.insert(id, memory);
    Ok(device)
}

/// # Safety
/// The descriptors are null or live.
unsafe fn gemm(
    desc: *const Description,
    layouts: [*const Layout; 4],
    addresses: [u64; 4],
) -> Result<Gemm, String> {
    if desc.is_null() || layouts.iter().any(|l| l.is_null()) {
        return Err("a descriptor is null".into());
    }
    // SAFETY: not null, and live by the caller's promise.
    let desc = unsafe { &*desc };
    if let Some(why) = desc.refused {
        return Err(why.into());
    }
    let matrix = |index: usize| -> Result<Matrix, String> {
        // SAFETY: as above.
        let layout = unsafe { &*layouts[index] };
        let element = layout.element.ok_or("an element type that is not f32, f16 or bf16")?;
        let run = if layout.row_order { layout.columns } else { layout.rows };
        if layout.stride < run as i64 {
            return Err(format!("a leading dimension of {} for runs of {run}", layout.stride));
        }
        Ok(Matrix {
            address: addresses[index],
            element,
            rows: layout.rows as usize,
            columns: layout.columns as usize,
            stride: layout.stride as usize,
            row_order: layout.row_order,
        })
    };
    let d = matrix(3)?;
    // It has the elements of D, one for each row.
    let bias = Matrix { address: desc.bias, columns: 1, stride: d.rows, row_order: false, ..d };
    Ok(Gemm {
        a: matrix(0)?,
        b: matrix(1)?,
        c: matrix(2)?,
        d,
        bias: desc.biased.then_some(bias),
        transpose: desc.transpose,
        alpha: 1.0,
        beta: 0.0,
        k_block: 0,
        workspace: None,
    })
}
