//! Matrix units: products of whole tiles of bfloat16 values in one instruction, as Intel's AMX has them.
//!
//! ```text
//! sums[m, n] += (sum over even k of x[m, k] * w[k, n]) + (sum over odd k of x[m, k] * w[k, n])      m, n < 16, k < 32
//! ```
//!
//! Each of the two sums is a chain of fused multiply-adds from zero in the order of k; subnormals are taken as zero, going in
//! and coming out. A bfloat16 weight goes in as it is. An f32 activation is the exact sum of three bfloat16 values (8 of its
//! 24 bits each), and products with all three make an f32 product out of an instruction that has some 16 times the
//! multiply-adds of a vector instruction.

use super::simd::Bf16Isa;
use super::tile::Start;

/// Rows of a tile of x, and columns of a tile of the weight.
const TILE_ROWS: usize = 16;
/// Values of k in a tile: a block.
pub(super) const BLOCK: usize = 32;
/// Rows of x that are multiplied at a time: two tiles.
pub(super) const ROWS: usize = 2 * TILE_ROWS;
/// Columns of the weight that are multiplied at a time, and of a panel: two tiles.
pub(super) const COLUMNS: usize = 2 * TILE_ROWS;

const TILE_BYTES: usize = 2 * TILE_ROWS * BLOCK;

/// Where row `row` of 32 begins in tiles of `parts` parts, for block `block` and part `part`: its 32 values lie together.
#[inline(always)]
pub(super) const fn row_of_tiles(row: usize, block: usize, parts: usize, part: usize) -> usize {
    ((block * parts + part) * ROWS + row) * BLOCK
}

/// A matrix unit that this CPU has; made by [`Isa::matrix_unit`](super::simd::Isa::matrix_unit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnit {
    kind: Kind,
    vectors: Bf16Isa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// The instruction's documented arithmetic in portable code.
    #[cfg(test)]
    Emulated,
}

impl MatrixUnit {
    /// AMX, where CPU and system have it beside the instructions of `vectors`.
    pub(super) fn beside(vectors: Bf16Isa) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return Some(Self { kind: Kind::Amx, vectors });
        }
        let _ = vectors;
        None
    }

    /// Its arithmetic on any machine.
    #[cfg(test)]
    pub(super) fn emulated(vectors: Bf16Isa) -> Self {
        Self { kind: Kind::Emulated, vectors }
    }

    /// The vector instructions beside it.
    pub(super) fn vectors(self) -> Bf16Isa {
        self.vectors
    }

    /// Its name as printed: `amx`.
    pub fn name(self) -> &'static str {
        match self.kind {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kind::Amx => "amx",
            #[cfg(test)]
            Kind::Emulated => "emulated tiles",
        }
    }

    /// Readies this thread's unit for [`multiply`](Self::multiply).
    #[inline(always)]
    pub(super) fn begin(self) {
        match self.kind {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: a value of this kind is made only where the unit may be used (`beside`).
            Kind::Amx => unsafe { amx::configure() },
            #[cfg(test)]
            Kind::Emulated => {}
        }
    }

    /// Gives this thread's unit back: what it holds need not be saved when threads change places.
    #[inline(always)]
    pub(super) fn end(self) {
        match self.kind {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as in `begin`.
            Kind::Amx => unsafe { amx::release() },
            #[cfg(test)]
            Kind::Emulated => {}
        }
    }

    /// Computes `product`, of activations in `PARTS` parts.
    ///
    /// # Safety
    ///
    /// Called between [`begin`](Self::begin) and [`end`](Self::end). What [`TileProduct`] states is readable, and its sums are writable (and
    /// initialised, to continue); nobody else touches those sums.
    #[inline(always)]
    pub(super) unsafe fn multiply<const PARTS: usize>(self, product: &TileProduct) {
        // SAFETY: the caller's promises.
        unsafe {
            match (self.kind, PARTS) {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (Kind::Amx, 1) => amx::multiply_1_part(product),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (Kind::Amx, 3) => amx::multiply_3_parts(product),
                #[cfg(test)]
                (Kind::Emulated, _) => emulate::<PARTS>(product),
                #[allow(unreachable_patterns)]
                _ => unreachable!("x in {PARTS} parts"),
            }
        }
    }
}

/// 32 rows of x times one panel, along `blocks` blocks of 32 values.
#[derive(Clone, Copy)]
pub(super) struct TileProduct {
    /// `[blocks, parts, 2, 16, 32]` bfloat16 values.
    pub(super) x: *const u16,
    /// At least 1.
    pub(super) blocks: usize,
    /// `[16 * blocks, 32]` pairs of bfloat16 values: the weight's for two neighbouring k side by side.
    pub(super) panel: *const f32,
    /// `[32, 32]`, rows `sums_stride` floats apart.
    pub(super) sums: *mut f32,
    pub(super) sums_stride: usize,
    pub(super) start: Start,
}

/// The arithmetic of [`multiply`](MatrixUnit::multiply) in portable code.
///
/// # Safety
///
/// As there.
#[cfg(test)]
unsafe fn emulate<const PARTS: usize>(product: &TileProduct) {
    let widen = |bits: u16| flush(f32::from_bits(u32::from(bits) << 16));
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            // SAFETY: all indices are below the shapes that `TileProduct` states.
            unsafe {
                let to = product.sums.add(row * product.sums_stride + column);
                let mut sum = if product.start == Start::Zero { 0.0 } else { *to };
                for block in 0..product.blocks {
                    for part in 0..PARTS {
                        let x = product.x.add(row_of_tiles(row, block, PARTS, part));
                        let mut halves = [0.0f32; 2];
                        for k in 0..BLOCK {
                            let pair = product.panel.add((BLOCK * block + k) / 2 * COLUMNS + column);
                            let w = widen(*pair.cast::<u16>().add(k % 2));
                            halves[k % 2] = flush(widen(*x.add(k)).mul_add(w, halves[k % 2]));
                        }
                        sum = flush(sum + flush(halves[0] + halves[1]));
                    }
                }
                *to = sum;
            }
        }
    }
}

/// Zero for a subnormal.
#[cfg(test)]
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Intel's AMX. The compiler neither has these instructions (they are not stable) nor uses tile registers of its own accord.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    use super::{COLUMNS, TILE_BYTES, TILE_ROWS, TileProduct};
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

    /// One part of a block: both tiles of x times both tiles of the panel, which are in tmm6 and tmm7.
    macro_rules! part {
        ($first:literal, $second:literal) => {
            concat!(
                "tileloadd tmm4, [{x} + {line} + ",
                $first,
                "]\n",
                "tileloadd tmm5, [{x} + {line} + ",
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
        ($name:ident, $bytes:literal, $parts:expr) => {
            /// # Safety
            ///
            /// As [`multiply`](super::MatrixUnit::multiply), for as many parts as the name says.
            #[inline(always)]
            pub(super) unsafe fn $name(product: &TileProduct) {
                const { assert!(TILE_BYTES == 1024 && COLUMNS == 32) };
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
                        "tileloadd tmm6, [{panel} + {line} * 2]",
                        "tileloadd tmm7, [{panel} + {line} * 2 + 64]",
                        $parts,
                        "add {panel}, 2048",
                        concat!("add {x}, ", $bytes),
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

    multiply!(multiply_1_part, "2048", part!("0", "1024"));
    multiply!(
        multiply_3_parts,
        "6144",
        concat!(part!("0", "1024"), part!("2048", "3072"), part!("4096", "5120"))
    );
}
