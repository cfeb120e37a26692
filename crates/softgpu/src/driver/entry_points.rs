//! The entry points that a driver of a version has, by their names.

use super::calls::called;
use super::status::Status;
use super::version::{self, driver_version};
use super::{CuResult, context, entry_points, launch, memory, stream, tensor_map};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `CUdriverProcAddressQueryResult`.
const FOUND: c_uint = 0;
const NOT_FOUND: c_uint = 1;
const VERSION_NOT_SUFFICIENT: c_uint = 2;

/// The greatest `CUdriverProcAddress_flags`: the per-thread default stream.
const FLAGS_MAX: u64 = 2;

/// A name without its suffix, the version with which this variant of it came, and its address.
type EntryPoint = (&'static str, c_int, *const c_void);

/// The entry points that are offered here; of several variants of a name the newest last.
#[rustfmt::skip]
fn entry_points() -> Vec<EntryPoint> {
    macro_rules! all {
        ($($name:literal $since:literal $module:ident :: $function:ident;)*) => {
            vec![$(($name, $since, $module::$function as *const c_void),)*]
        };
    }
    all! {
        "cuInit" 2000 context::cuInit;
        "cuDriverGetVersion" 2020 version::cuDriverGetVersion;
        "cuGetProcAddress" 12000 entry_points::cuGetProcAddress_v2;
        "cuGetErrorName" 6000 context::cuGetErrorName;
        "cuGetErrorString" 6000 context::cuGetErrorString;
        "cuDeviceGet" 2000 context::cuDeviceGet;
        "cuDeviceGetCount" 2000 context::cuDeviceGetCount;
        "cuDeviceGetName" 2000 context::cuDeviceGetName;
        "cuDeviceGetUuid" 11040 context::cuDeviceGetUuid_v2;
        "cuDeviceGetAttribute" 2000 context::cuDeviceGetAttribute;
        "cuDeviceTotalMem" 3020 context::cuDeviceTotalMem_v2;
        "cuDevicePrimaryCtxRetain" 7000 context::cuDevicePrimaryCtxRetain;
        "cuDevicePrimaryCtxRelease" 11000 context::cuDevicePrimaryCtxRelease_v2;
        "cuCtxGetCurrent" 4000 context::cuCtxGetCurrent;
        "cuCtxSetCurrent" 4000 context::cuCtxSetCurrent;
        "cuCtxGetDevice" 2000 context::cuCtxGetDevice;
        "cuCtxSynchronize" 2000 context::cuCtxSynchronize;
        "cuMemGetInfo" 3020 memory::cuMemGetInfo_v2;
        "cuMemAlloc" 3020 memory::cuMemAlloc_v2;
        "cuMemFree" 3020 memory::cuMemFree_v2;
        "cuMemHostAlloc" 2020 memory::cuMemHostAlloc;
        "cuMemFreeHost" 2000 memory::cuMemFreeHost;
        "cuMemsetD8Async" 3020 memory::cuMemsetD8Async;
        "cuMemcpyHtoDAsync" 3020 memory::cuMemcpyHtoDAsync_v2;
        "cuMemcpyDtoHAsync" 3020 memory::cuMemcpyDtoHAsync_v2;
        "cuMemcpyDtoDAsync" 3020 memory::cuMemcpyDtoDAsync_v2;
        "cuMemcpy2DAsync" 3020 memory::cuMemcpy2DAsync_v2;
        "cuStreamCreate" 2000 stream::cuStreamCreate;
        "cuStreamCreateWithPriority" 5050 stream::cuStreamCreateWithPriority;
        "cuCtxGetStreamPriorityRange" 5050 stream::cuCtxGetStreamPriorityRange;
        "cuStreamDestroy" 4000 stream::cuStreamDestroy_v2;
        "cuStreamSynchronize" 2000 stream::cuStreamSynchronize;
        "cuStreamWaitEvent" 3020 stream::cuStreamWaitEvent;
        "cuEventCreate" 2000 stream::cuEventCreate;
        "cuEventDestroy" 4000 stream::cuEventDestroy_v2;
        "cuEventRecord" 2000 stream::cuEventRecord;
        "cuEventQuery" 2000 stream::cuEventQuery;
        "cuEventSynchronize" 2000 stream::cuEventSynchronize;
        "cuEventElapsedTime" 2000 stream::cuEventElapsedTime;
        "cuEventElapsedTime" 12080 stream::cuEventElapsedTime_v2;
        "cuModuleLoadData" 2000 launch::cuModuleLoadData;
        "cuModuleUnload" 2000 launch::cuModuleUnload;
        "cuModuleGetFunction" 2000 launch::cuModuleGetFunction;
        "cuFuncGetAttribute" 2020 launch::cuFuncGetAttribute;
        "cuFuncSetAttribute" 9000 launch::cuFuncSetAttribute;
        "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags" 7000
            launch::cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags;
        "cuLaunchKernel" 4000 launch::cuLaunchKernel;
        "cuTensorMapEncodeTiled" 12000 tensor_map::cuTensorMapEncodeTiled;
    }
}

/// The newest variant of an entry point, by its name without a suffix such as `_v2`, that came with
/// `version` or before it. A name or a version that there is nothing for is a success with a null
/// pointer, and `found` tells which of both it is; a version that is newer than the driver is an
/// invalid value.
///
/// # Safety
/// As the CUDA driver documents; `found` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    function: *mut *const c_void,
    version: c_int,
    flags: u64,
    found: *mut c_uint,
) -> CuResult {
    called("cuGetProcAddress_v2");
    if name.is_null() || function.is_null() || flags > FLAGS_MAX || version > driver_version() {
        return Status::InvalidValue as u32;
    }
    // SAFETY: the caller's string, which is not null.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let mut variants = entry_points();
    variants.retain(|(known, ..)| known.as_bytes() == name);
    let variant = variants.iter().rfind(|&&(_, since, _)| since <= version);
    let (address, state) = match variant {
        Some(&(.., address)) => (address, FOUND),
        None if variants.is_empty() => (std::ptr::null(), NOT_FOUND),
        None => (std::ptr::null(), VERSION_NOT_SUFFICIENT),
    };
    // SAFETY: the caller's out parameters, the first of which is not null.
    unsafe {
        function.write(address);
        if !found.is_null() {
            found.write(state);
        }
    }
    0
}
