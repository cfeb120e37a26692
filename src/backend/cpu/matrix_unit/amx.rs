//! Intel's AMX, by inline assembly: its instructions are not in stable Rust. The compiler never
//! uses tile registers, so this module has them to itself.

use std::arch::asm;

use super::super::accumulators::Start;
use super::tiles::{NR, TILE_K, TILE_ROWS, TileOperands};

/// Shapes of the tile registers: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures this thread's tile registers.
///
/// # Safety
///
/// AMX is available.
pub(super) unsafe fn configure() {
    // SAFETY: reads the 64 bytes of a valid configuration; tile registers belong to this module
    // alone.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly, preserves_flags))
    }
}

/// Releases this thread's tile registers, so that a context switch need not save them.
///
/// # Safety
///
/// AMX is available.
pub(super) unsafe fn release() {
    // SAFETY: touches no memory; tile registers belong to this module alone.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
}

/// Multiplies tiles of zeros, four times in each of `steps` steps.
///
/// # Safety
///
/// AMX is available, and tiles are configured.
pub(super) unsafe fn run_at_peak(steps: usize) {
    // SAFETY: touches no memory; tile registers are this module's alone, and configured.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) steps.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
    }
}

/// Loads both tiles of one term of the panel into tmm6 and tmm7.
macro_rules! panel_term {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm6, [{panel} + {line} * 2 + ",
            $first,
            "]\n",
            "tileloadd tmm7, [{panel} + {line} * 2 + ",
            $second,
            "]\n",
        )
    };
}

/// Multiplies both tiles of one term of x by both tiles of the panel.
macro_rules! x_term {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{x} + {line} + ",
            $first,
            "]\n",
            "tileloaddt1 tmm5, [{x} + {line} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

macro_rules! microkernel {
    ($name:ident, $x_bytes:literal, $panel_bytes:literal, $products:expr) => {
        /// # Safety
        ///
        /// As `MatrixUnit::microkernel`, for as many terms as the name says.
        #[inline(always)]
        pub(super) unsafe fn $name(operands: &TileOperands) {
            const { assert!(2 * TILE_ROWS * TILE_K == 1024 && NR == 32) };
            debug_assert!(operands.k_tiles > 0);
            // SAFETY: reads the tiles of x and of the panel, and reads and writes the accumulators,
            // in the shapes that `TileOperands` states and the caller vouches for. Tile registers
            // are this module's alone, and configured.
            unsafe {
                asm!(
                    "test {start:e}, {start:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{upper} + {stride}]",
                    "tileloadd tmm1, [{upper} + {stride} + 64]",
                    "tileloadd tmm2, [{lower} + {stride}]",
                    "tileloadd tmm3, [{lower} + {stride} + 64]",
                    "3:",
                    $products,
                    concat!("add {panel}, ", $panel_bytes),
                    concat!("add {x}, ", $x_bytes),
                    "dec {k_tiles}",
                    "jnz 3b",
                    "tilestored [{upper} + {stride}], tmm0",
                    "tilestored [{upper} + {stride} + 64], tmm1",
                    "tilestored [{lower} + {stride}], tmm2",
                    "tilestored [{lower} + {stride} + 64], tmm3",
                    start = in(reg) u32::from(operands.start == Start::Reload),
                    x = inout(reg) operands.x => _,
                    panel = inout(reg) operands.panel => _,
                    k_tiles = inout(reg) operands.k_tiles => _,
                    line = in(reg) 64usize,
                    upper = in(reg) operands.acc,
                    lower = in(reg) operands.acc.add(TILE_ROWS * operands.acc_stride),
                    stride = in(reg) operands.acc_stride * size_of::<f32>(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

microkernel!(microkernel_1_by_1, "2048", "2048", concat!(panel_term!("0", "64"), x_term!("0", "1024")));
microkernel!(
    microkernel_3_by_1,
    "6144",
    "2048",
    concat!(panel_term!("0", "64"), x_term!("0", "1024"), x_term!("2048", "3072"), x_term!("4096", "5120"))
);
microkernel!(
    microkernel_3_by_3,
    "6144",
    "6144",
    concat!(
        panel_term!("0", "64"),
        x_term!("0", "1024"),
        x_term!("2048", "3072"),
        x_term!("4096", "5120"),
        panel_term!("2048", "2112"),
        x_term!("0", "1024"),
        x_term!("2048", "3072"),
        panel_term!("4096", "4160"),
        x_term!("0", "1024"),
    )
);
