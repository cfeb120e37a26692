//! Intel's AMX, by inline assembly: its instructions are not in stable Rust. The compiler uses tile registers nowhere of its
//! own accord, so they are this module's alone.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::{BLOCK, COLUMNS, TILE_ROWS, TileProduct};
use crate::backend::cpu::tile::Start;

/// Whether the CPU has tiles and their bfloat16 products, and the system saves them and lets this process use them.
/// Asked once: the answer decides bits.
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

/// Whether the system has switched on the state components of tiles, 17 and 18.
fn system_saves_tiles() -> bool {
    if !is_x86_feature_detected!("xsave") {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 is there where the system has switched on XSAVE, which the detection above includes.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the CPU has the instruction.
    unsafe { enabled() & (0b11 << 17) == 0b11 << 17 }
}

/// Linux gives tiles to a process that asks for them, with all its threads. It refuses where a thread's signal stack is
/// too small for them.
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// What a tile register holds: palette 1, eight tiles of 16 rows of 64 bytes.
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

/// Shapes this thread's tile registers.
///
/// # Safety
///
/// [`is_available`].
pub(super) unsafe fn configure() {
    // SAFETY: reads the 64 bytes of a valid configuration; tile registers belong to this module alone.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly, preserves_flags))
    }
}

/// Gives this thread's tile registers back, so that nobody saves them when threads change places.
///
/// # Safety
///
/// [`is_available`].
pub(super) unsafe fn release() {
    // SAFETY: touches no memory; tile registers belong to this module alone.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
}

/// `steps` times four products of zeros.
///
/// # Safety
///
/// [`is_available`], and tiles are configured.
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

/// Both tiles of one part of the panel, into tmm6 and tmm7.
macro_rules! panel {
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

/// One part of x: both its tiles times both tiles of the panel.
macro_rules! part {
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

macro_rules! multiply {
    ($name:ident, $x_bytes:literal, $panel_bytes:literal, $products:expr) => {
        /// # Safety
        ///
        /// As [`multiply`](super::MatrixUnit::multiply), for as many parts as the name says.
        #[inline(always)]
        pub(super) unsafe fn $name(product: &TileProduct) {
            const { assert!(2 * TILE_ROWS * BLOCK == 1024 && COLUMNS == 32) };
            debug_assert!(product.blocks > 0);
            // SAFETY: reads the tiles of x and of the panel, and reads and writes the tiles of sums, in the shapes that
            // `TileProduct` states and the caller vouches for. Tile registers are this module's alone, and configured.
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
                    "dec {blocks}",
                    "jnz 3b",
                    "tilestored [{upper} + {stride}], tmm0",
                    "tilestored [{upper} + {stride} + 64], tmm1",
                    "tilestored [{lower} + {stride}], tmm2",
                    "tilestored [{lower} + {stride} + 64], tmm3",
                    start = in(reg) u32::from(product.start == Start::Continue),
                    x = inout(reg) product.x => _,
                    panel = inout(reg) product.panel => _,
                    blocks = inout(reg) product.blocks => _,
                    line = in(reg) 64usize,
                    upper = in(reg) product.sums,
                    lower = in(reg) product.sums.add(TILE_ROWS * product.sums_stride),
                    stride = in(reg) product.sums_stride * size_of::<f32>(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply!(multiply_1_by_1, "2048", "2048", concat!(panel!("0", "64"), part!("0", "1024")));
multiply!(
    multiply_3_by_1,
    "6144",
    "2048",
    concat!(panel!("0", "64"), part!("0", "1024"), part!("2048", "3072"), part!("4096", "5120"))
);
multiply!(
    multiply_3_by_3,
    "6144",
    "6144",
    concat!(
        panel!("0", "64"),
        part!("0", "1024"),
        part!("2048", "3072"),
        part!("4096", "5120"),
        panel!("2048", "2112"),
        part!("0", "1024"),
        part!("2048", "3072"),
        panel!("4096", "4160"),
        part!("0", "1024"),
    )
);
