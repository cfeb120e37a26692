//! Prefetches into the caches, on CPUs that have an instruction for it.

/// Prefetches the cache line at `address`, which need not be valid.
#[inline(always)]
pub(in crate::backend::cpu) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch of any address has no effect but on the caches; x86-64 and 64-bit ARM always
    // have the instruction.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    // SAFETY: as there.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Like [`prefetch`], into the second-level cache only.
#[inline(always)]
pub(in crate::backend::cpu) fn prefetch_far(address: *const u8) {
    // SAFETY: as for `prefetch`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    // SAFETY: as for `prefetch`.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
