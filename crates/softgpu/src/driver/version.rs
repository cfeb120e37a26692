//! The driver's version.

use super::calls::called;
use super::settings::variable;
use super::{CuResult, code, store};
use std::ffi::c_int;
use std::sync::OnceLock;

/// 13.0.
const DEFAULT_VERSION: c_int = 13_000;

/// The first driver with `cuEventElapsedTime_v2`: 12.8.
pub(super) const ELAPSED_TIME_V2_SINCE: c_int = 12_080;

/// `SOFTGPU_DRIVER`, as `cuDriverGetVersion` writes it: 12040 is 12.4.
pub(crate) fn driver_version() -> c_int {
    static VERSION: OnceLock<c_int> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let Some(text) = variable("SOFTGPU_DRIVER") else { return DEFAULT_VERSION };
        text.trim().parse().unwrap_or_else(|_| {
            eprintln!(
                "softgpu: SOFTGPU_DRIVER=`{text}` is not a version such as 12040; it is {DEFAULT_VERSION}"
            );
            DEFAULT_VERSION
        })
    })
}

/// `SOFTGPU_DRIVER`. Needs no `cuInit`.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CuResult {
    called("cuDriverGetVersion");
    // SAFETY: the caller's out parameter.
    code(unsafe { store(version, driver_version()) })
}

/// The newest PTX that the driver compiles, as major and minor number: 12.4 takes PTX 8.4.
pub(super) fn ptx_version_max() -> (u32, u32) {
    let (major, minor) = (driver_version() / 1000, driver_version() % 1000 / 10);
    let minor = match (major, minor) {
        // 12.6 came without a new PTX, so that those after it are one behind.
        (12, 6..) => minor - 1,
        _ => minor,
    };
    ((major - 4).max(0) as u32, minor as u32)
}
