//! Modules, functions, launches.

use super::calls::called;
use super::limits::{limits, reserved};
use super::op::Op;
use super::status::Status;
use super::version::{driver_version, ptx_version_max};
use super::wait::push_launch;
use super::world::{Function, world};
use super::{CuResult, code, current_device, device_of, enter, store};
use crate::decode::decode_module;
use crate::{exec, ptx};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Dynamic shared memory of a block without an opt-in.
const DYNAMIC_SHARED_DEFAULT: usize = 48 << 10;
const THREADS_MAX: u32 = 1024;
const ATTRIBUTE_MAX_THREADS: c_uint = 0;
const ATTRIBUTE_SHARED_BYTES: c_uint = 1;
const ATTRIBUTE_DYNAMIC_SHARED_MAX: c_uint = 8;
const ATTRIBUTE_CARVEOUT: c_uint = 9;

/// The carve-out of a kernel for which none was asked: the driver's choice.
const CARVEOUT_DEFAULT: c_int = -1;

/// Reads a fatbin or PTX text, applies the plants of `SOFTGPU_PLANT`, and decodes every kernel;
/// instructions that are not supported are listed on stderr.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_void) -> CuResult {
    called("cuModuleLoadData");
    code(current_device().and_then(enter).and_then(|mut d| {
        if image.is_null() {
            return Err(Status::InvalidValue);
        }
        // SAFETY: the caller's image is a whole fatbin or a string with an end.
        let image =
            unsafe { ptx::ptx_for(image.cast(), world()?.settings.cc_of(d.index)) }.map_err(|why| {
                eprintln!("softgpu: cuModuleLoadData: {why}");
                Status::NoBinary
            })?;
        loads(&image)?;
        let refuse = |why: String| {
            eprintln!("softgpu: cuModuleLoadData: {why}");
            Status::InvalidPtx
        };
        let mut parsed = ptx::parse(&image.text).map_err(refuse)?;
        world()?.plant(&mut parsed).map_err(refuse)?;
        let programs = decode_module(&parsed).map_err(|lines| {
            eprintln!("softgpu: cuModuleLoadData: {} instructions are not supported:", lines.len());
            lines.iter().for_each(|line| eprintln!("  {line}"));
            Status::InvalidPtx
        })?;
        let handle = d.handle();
        d.modules.insert(handle, programs.into_iter().map(Arc::new).collect());
        // SAFETY: the caller's out parameter.
        unsafe { store(module, handle) }
    }))
}

/// Whether the driver has code for the device: machine code of its own major version or an older
/// one, or PTX that it knows.
fn loads(image: &ptx::Image) -> Result<(), Status> {
    let major = driver_version() / 1000;
    let mut refused = "it has no machine code for this device".to_string();
    if let Some(code) = image.machine_code {
        match code.toolkit {
            Some(toolkit) if toolkit as c_int / 10 > major => {
                refused = format!("its machine code is of CUDA {}.{}", toolkit / 10, toolkit % 10);
            }
            _ => return Ok(()),
        }
    }
    let newest = ptx_version_max();
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once(".version")?.1.split_whitespace().next()?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match numbers(&image.text) {
        Some((major, minor)) if (major, minor) > newest => {
            eprintln!(
                "softgpu: cuModuleLoadData: {refused}, and its PTX {major}.{minor} is newer than this driver's {}.{}",
                newest.0, newest.1
            );
            Err(Status::UnsupportedPtx)
        }
        _ => Ok(()),
    }
}

/// Unloads the module; queued launches keep their functions.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> CuResult {
    called("cuModuleUnload");
    code(
        device_of(module)
            .and_then(enter)
            .and_then(|mut d| d.modules.remove(&module).map(|_| ()).ok_or(Status::InvalidHandle)),
    )
}

/// A kernel by name.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut usize,
    module: usize,
    name: *const c_char,
) -> CuResult {
    called("cuModuleGetFunction");
    code(device_of(module).and_then(enter).and_then(|mut d| {
        // SAFETY: the caller's string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let programs = d.modules.get(&module).ok_or(Status::InvalidHandle)?;
        let program = programs.iter().find(|p| p.name == name).ok_or(Status::NotFound)?.clone();
        let handle = d.handle();
        let found = Function {
            program,
            dynamic_shared_max: DYNAMIC_SHARED_DEFAULT,
            carveout_percent: CARVEOUT_DEFAULT,
        };
        d.functions.insert(handle, found);
        // SAFETY: the caller's out parameter.
        unsafe { store(function, handle) }
    }))
}

/// Static attributes of a kernel; those that only ptxas knows (registers, local memory) is 0.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    function: usize,
) -> CuResult {
    called("cuFuncGetAttribute");
    code(device_of(function).and_then(enter).and_then(|d| {
        let f = d.functions.get(&function).ok_or(Status::InvalidHandle)?;
        let found = match attribute {
            ATTRIBUTE_MAX_THREADS => f.program.threads_max.unwrap_or(THREADS_MAX) as c_int,
            ATTRIBUTE_SHARED_BYTES => f.program.shared_bytes as c_int,
            ATTRIBUTE_DYNAMIC_SHARED_MAX => f.dynamic_shared_max as c_int,
            ATTRIBUTE_CARVEOUT => f.carveout_percent,
            _ => 0,
        };
        // SAFETY: the caller's out parameter.
        unsafe { store(value, found) }
    }))
}

/// Raises dynamic shared memory up to the device's opt-in limit, and notes the carve-out, a percentage
/// or -1; other attributes are hints.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_uint, value: c_int) -> CuResult {
    called("cuFuncSetAttribute");
    code(device_of(function).and_then(enter).and_then(|mut d| {
        let opt_in = limits(world()?.settings.cc_of(d.index)).0 as usize;
        let f = d.functions.get_mut(&function).ok_or(Status::InvalidHandle)?;
        if attribute == ATTRIBUTE_DYNAMIC_SHARED_MAX {
            let wanted = usize::try_from(value).map_err(|_| Status::InvalidValue)?;
            if wanted + f.program.shared_bytes > opt_in {
                return Err(Status::InvalidValue);
            }
            f.dynamic_shared_max = wanted;
        }
        if attribute == ATTRIBUTE_CARVEOUT {
            if !(CARVEOUT_DEFAULT..=100).contains(&value) {
                return Err(Status::InvalidValue);
            }
            f.carveout_percent = value;
        }
        Ok(())
    }))
}

/// Blocks of an SM by threads and shared memory (registers are not known here).
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: *mut c_int,
    function: usize,
    block_size: c_int,
    dynamic_shared_bytes: usize,
    _flags: c_uint,
) -> CuResult {
    called("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags");
    code(device_of(function).and_then(enter).and_then(|d| {
        let f = d.functions.get(&function).ok_or(Status::InvalidHandle)?;
        let cc = world()?.settings.cc_of(d.index);
        let ((opt_in, _, threads), reserved) = (limits(cc), reserved(cc) as usize);
        let shared = f.program.shared_bytes + dynamic_shared_bytes + reserved;
        let by_shared = (opt_in as usize + reserved).checked_div(shared).unwrap_or(usize::MAX);
        let by_threads = (threads / block_size.max(1)) as usize;
        // SAFETY: the caller's out parameter.
        unsafe { store(blocks, by_shared.min(by_threads).min(32) as c_int) }
    }))
}

/// Queues a kernel; its parameters are copied now. `SOFTGPU_FAIL=launch:N` fails the N-th kernel to
/// run, `lazy:N` the N-th call of this.
///
/// # Safety
/// As the CUDA driver documents: `params` points to one pointer for each parameter of the kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared_bytes: c_uint,
    stream: usize,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CuResult {
    called("cuLaunchKernel");
    code(device_of(function).and_then(enter).and_then(|d| {
        let f = d.functions.get(&function).ok_or(Status::InvalidHandle)?;
        let program = f.program.clone();
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().map(|&n| n as u64).product::<u64>();
        let most = program.threads_max.unwrap_or(THREADS_MAX) as u64;
        let grid_fits = grid.iter().all(|&n| n > 0) && grid_y <= 65_535 && grid_z <= 65_535;
        if !grid_fits || threads == 0 || threads > most || block_z > 64 || !extra.is_null() {
            eprintln!("softgpu: cuLaunchKernel: `{}` cannot run as grid {grid:?}, block {block:?}", program.name);
            return Err(Status::InvalidValue);
        }
        if dynamic_shared_bytes as usize > f.dynamic_shared_max {
            let most = f.dynamic_shared_max;
            eprintln!("softgpu: cuLaunchKernel: `{}` asks for {dynamic_shared_bytes} bytes of dynamic shared memory, allowed are {most}", program.name);
            return Err(Status::InvalidValue);
        }
        let mut bytes = vec![0u8; program.param_bytes];
        for (index, &(offset, size)) in program.params.iter().enumerate() {
            // SAFETY: the caller gives one pointer a parameter, each to as many bytes as the kernel
            // declares.
            unsafe {
                let from = *params.add(index);
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), bytes[offset..].as_mut_ptr(), size);
            }
        }
        let world = world()?;
        if world.fails("lazy", d.index) {
            return Err(Status::OutOfMemory);
        }
        let checked = world.settings.checked;
        let order = world.warp_order.load(Ordering::Relaxed);
        let dynamic_shared_bytes = dynamic_shared_bytes as usize;
        let config = exec::Config { grid, block, dynamic_shared_bytes, checked, order };
        push_launch(d, stream, Op::Launch { program, config, params: bytes })
    }))
}
