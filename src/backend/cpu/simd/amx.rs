//! Detection of Intel's AMX: whether CPU and system have it, and this process may use it.

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Returns whether the CPU has tiles and their bfloat16 multiply-adds, and the system saves them
/// and lets this process use them. Detected once: the result decides bits.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && system_saves_tiles() && request_permission())
}

fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let wanted = AMX_BF16 | AMX_TILE;
    is_x86_feature_detected!("avx512f") && __cpuid_count(7, 0).edx & wanted == wanted
}

/// Returns whether the system has switched on the state components of tiles, 17 and 18.
fn system_saves_tiles() -> bool {
    if !is_x86_feature_detected!("xsave") {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 is there where the system has switched on XSAVE, which the detection
        // above includes.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the CPU has the instruction.
    unsafe { enabled() & (0b11 << 17) == 0b11 << 17 }
}

/// Requests tiles for this process and all its threads. Linux refuses where a thread's signal stack
/// is too small for them.
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}
