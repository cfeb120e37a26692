//! The operations of a [`MatrixUnit`], whichever it is.

use super::super::simd::{MatrixUnit, MatrixUnitKind};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(test)]
use super::emulated;
use super::tiles::TileOperands;

/// Products of a step of [`MatrixUnit::run_at_peak`]: independent, and enough of them to hide the
/// latency of one.
pub(in crate::backend::cpu) const PEAK_PRODUCTS: usize = 4;

#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(unused_variables, reason = "no matrix unit exists there")
)]
impl MatrixUnit {
    /// Configures this thread's unit for [`microkernel`](Self::microkernel).
    #[inline(always)]
    pub(in crate::backend::cpu) fn begin(self) {
        match self.kind() {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: a value of this kind is made only where the unit may be used
            // (`Isa::matrix_unit`).
            MatrixUnitKind::Amx => unsafe { amx::configure() },
            #[cfg(test)]
            MatrixUnitKind::Emulated => {}
        }
    }

    /// Releases this thread's unit: its state need not be saved at a context switch.
    #[inline(always)]
    pub(in crate::backend::cpu) fn end(self) {
        match self.kind() {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as in `begin`.
            MatrixUnitKind::Amx => unsafe { amx::release() },
            #[cfg(test)]
            MatrixUnitKind::Emulated => {}
        }
    }

    /// Multiplies tiles in registers and does nothing else, `steps` times [`PEAK_PRODUCTS`]: the
    /// unit's peak.
    pub(in crate::backend::cpu) fn run_at_peak(self, steps: usize) {
        match self.kind() {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: a value of this kind is made only where the unit may be used; configured
            // first.
            MatrixUnitKind::Amx => unsafe {
                amx::configure();
                amx::run_at_peak(steps);
                amx::release();
            },
            #[cfg(test)]
            MatrixUnitKind::Emulated => {}
        }
    }

    /// Multiplies x in `TERMS` terms by a panel in `PANEL_TERMS`: of the products of terms those
    /// that count, which are term i of the panel with the first `TERMS - i` of x.
    ///
    /// # Safety
    ///
    /// Called between [`begin`](Self::begin) and [`end`](Self::end). What [`TileOperands`] states
    /// is readable, and its accumulators are writable (and initialised, to be reloaded) and no
    /// other thread touches them.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn microkernel<const TERMS: usize, const PANEL_TERMS: usize>(
        self,
        operands: &TileOperands,
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            match (self.kind(), TERMS, PANEL_TERMS) {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (MatrixUnitKind::Amx, 1, 1) => amx::microkernel_1_by_1(operands),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (MatrixUnitKind::Amx, 3, 1) => amx::microkernel_3_by_1(operands),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (MatrixUnitKind::Amx, 3, 3) => amx::microkernel_3_by_3(operands),
                #[cfg(test)]
                (MatrixUnitKind::Emulated, ..) => emulated::microkernel::<TERMS, PANEL_TERMS>(operands),
                #[allow(unreachable_patterns)]
                _ => unreachable!("{TERMS} terms by {PANEL_TERMS}"),
            }
        }
    }
}
