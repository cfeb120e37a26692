//! Block sizes of a GEMM in BLIS's letters: a table with a row for each instruction set and matrix
//! unit.

use super::matrix_unit;
use super::simd::{Isa, Vector};

/// Block sizes: the microkernel multiplies `mr` rows by a panel of `nr` columns, over k blocks of at
/// most `kc` steps, in blocks of at most `mc` rows of x. A step is one element of k, or a pair of
/// bfloat16 values.
///
/// Vector instructions broadcast rows of the weight over panels of x, so that `mr` counts columns of
/// the output and `nr` rows of it; a matrix unit multiplies tiles of x by panels of the weight.
#[derive(Clone, Copy)]
pub(super) struct Blocking {
    /// Rows of the microkernel: with its columns, accumulators that fill the register file.
    pub(super) mr: usize,
    /// Columns of the microkernel, and of a packed panel.
    pub(super) nr: usize,
    /// Steps of a k block at most.
    pub(super) kc: usize,
    /// Rows of x in a block at most: a weight is read, and converted, again for each block of rows.
    pub(super) mc: usize,
    /// Columns of the output at a time for which accumulators are kept between k blocks.
    pub(super) nc: usize,
    /// Columns of the matmul that are stored at once: whole microkernels and whole vectors, and half of
    /// them whole microkernels and pairs.
    pub(super) group: usize,
}

/// 2 vectors of 4 lanes.
const PORTABLE: Blocking = Blocking { mr: 4, nr: 8, kc: 512, mc: 64, nc: 192, group: 8 };
/// 2 vectors of 8 lanes in 16 registers, or in NEON's 32 by pairs. 144 rows of 512 steps take 288 KiB of the
/// second-level cache: on Zen 4, 96 rows were 4 to 5 % slower, and 192 as fast. Not measured with NEON.
const OF_8_LANES: Blocking = Blocking { mr: 6, nr: 16, kc: 512, mc: 144, nc: 192, group: 48 };
/// 3 vectors of 16 lanes in 32 registers. 192 rows of 1,024 steps take 768 KiB of the second-level
/// cache, out of which a panel comes at a third of what that gives.
const AVX512: Blocking = Blocking { mr: 8, nr: 48, kc: 1024, mc: 192, nc: 512, group: 16 };

/// Elements of k: a panel then takes 40 KiB of the first-level cache, which tiles of x pass by.
/// With 768 it takes all 48, and matmuls over k = 576, in one k block with either, are as fast;
/// those over 1,536 lost 5 %.
const TILES_KC: usize = 640;
/// x in one term. A weight is packed again for every `mc` rows, and their x, in all its terms,
/// stays in the second-level cache: one term of 512 rows takes 640 KiB of it, three terms of 256
/// take 960.
const TILES_OF_1_TERM: Blocking = Blocking {
    mr: matrix_unit::MR,
    nr: matrix_unit::NR,
    kc: TILES_KC,
    mc: 512,
    nc: 768,
    group: matrix_unit::NR,
};
/// x in three terms.
const TILES_OF_3_TERMS: Blocking = Blocking { mc: 256, ..TILES_OF_1_TERM };

impl Blocking {
    /// The block sizes for vectors of `lanes` lanes: each instruction set has a width of its own.
    const fn of_lanes(lanes: usize) -> Self {
        match lanes {
            4 => PORTABLE,
            8 => OF_8_LANES,
            16 => AVX512,
            _ => panic!("no block sizes for vectors of this width"),
        }
    }

    /// The block sizes of an instruction set.
    pub(super) fn of(isa: Isa) -> Self {
        Self::of_lanes(isa.lanes())
    }

    /// The block sizes of a matrix unit, of x in `terms` bfloat16 terms.
    pub(super) fn of_tiles(terms: usize) -> Self {
        if terms == 1 { TILES_OF_1_TERM } else { TILES_OF_3_TERMS }
    }
}

/// A vector type with the block sizes of its instruction set, which kernels are compiled for.
pub(super) trait Blocked: Vector {
    /// The row of the table.
    const BLOCKING: Blocking = Blocking::of_lanes(Self::LANES);
    /// Vectors of a panel: 3 or 2.
    const NR_VECTORS: usize = Self::BLOCKING.nr / Self::LANES;
}

impl<V: Vector> Blocked for V {}
