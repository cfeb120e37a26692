//! Matrix units: products of whole tiles of bfloat16 values in one instruction, as Intel's AMX has them.
//!
//! ```text
//! sums[m, n] += (sum over even k of x[m, k] * w[k, n]) + (sum over odd k of x[m, k] * w[k, n])      m, n < 16, k < 32
//! ```
//!
//! Each of the two sums is a chain of fused multiply-adds from zero in the order of k; subnormals are taken as zero, going in
//! and coming out. A bfloat16 weight goes in as it is. An f32 activation is the exact sum of three bfloat16 values (8 of its
//! 24 bits each), and products with all three make an f32 product out of a unit that has 16 times the multiply-adds of
//! vector instructions in the same time. Of two such sums six products of parts count: what the other three add is below
//! 2^-21 of the product, the size of a few roundings of f32.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod parts;

use super::simd::Bf16Isa;
#[cfg(test)]
use super::simd::{Isa, Kernel, Vector};
use super::tile::Start;
pub(super) use parts::{cut_rows, put_parts};

/// Rows of a tile of x, and columns of a tile of the weight.
const TILE_ROWS: usize = 16;
/// Values of k in a tile: a block.
pub(super) const BLOCK: usize = 32;
/// Rows of x that are multiplied at a time: two tiles.
pub(super) const ROWS: usize = 2 * TILE_ROWS;
/// Columns of the weight that are multiplied at a time, and of a panel: two tiles.
pub(super) const COLUMNS: usize = 2 * TILE_ROWS;

/// Products of a step of [`MatrixUnit::run_at_peak`]: independent, and enough of them to hide what one takes.
pub(super) const PEAK_PRODUCTS: usize = 4;
/// FLOP of the product of two tiles.
pub(super) const TILE_FLOPS: usize = 2 * TILE_ROWS * TILE_ROWS * BLOCK;

/// Where row `row` of 32 begins in tiles of `parts` parts, for block `block` and part `part`: its 32 values lie together.
#[inline(always)]
pub(super) const fn row_of_tiles(row: usize, block: usize, parts: usize, part: usize) -> usize {
    ((block * parts + part) * ROWS + row) * BLOCK
}

/// Where block `block` and part `part` begin in a panel of `parts` parts: 16 steps of 32 pairs.
#[inline(always)]
pub(super) const fn panel_block(block: usize, parts: usize, part: usize) -> usize {
    (block * parts + part) * BLOCK / 2 * COLUMNS
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

#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(unused_variables, reason = "there is no matrix unit whose work they would be")
)]
impl MatrixUnit {
    /// AMX, where CPU and system have it beside the instructions of `vectors`.
    pub(super) fn beside(vectors: Bf16Isa) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return Some(Self { kind: Kind::Amx, vectors });
        }
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

    /// Nothing but products of tiles in registers, `steps` times [`PEAK_PRODUCTS`]: what the unit can do.
    pub(super) fn run_at_peak(self, steps: usize) {
        match self.kind {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: a value of this kind is made only where the unit may be used (`beside`); configured first.
            Kind::Amx => unsafe {
                amx::configure();
                amx::run_at_peak(steps);
                amx::release();
            },
            #[cfg(test)]
            Kind::Emulated => {}
        }
    }

    /// Computes `product`, of x in `PARTS` parts and a panel in `PANEL_PARTS`: those products of parts that count, of which
    /// part i of the panel has the first `PARTS - i`.
    ///
    /// # Safety
    ///
    /// Called between [`begin`](Self::begin) and [`end`](Self::end). What [`TileProduct`] states is readable, and its sums are writable (and
    /// initialised, to continue); nobody else touches those sums.
    #[inline(always)]
    pub(super) unsafe fn multiply<const PARTS: usize, const PANEL_PARTS: usize>(self, product: &TileProduct) {
        // SAFETY: the caller's promises.
        unsafe {
            match (self.kind, PARTS, PANEL_PARTS) {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (Kind::Amx, 1, 1) => amx::multiply_1_by_1(product),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (Kind::Amx, 3, 1) => amx::multiply_3_by_1(product),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                (Kind::Amx, 3, 3) => amx::multiply_3_by_3(product),
                #[cfg(test)]
                // Compiled for an instruction set that has a fused multiply-add: without one it is a slow library call.
                (Kind::Emulated, ..) => Isa::detect().run(Emulate::<PARTS, PANEL_PARTS>(product)),
                #[allow(unreachable_patterns)]
                _ => unreachable!("{PARTS} parts by {PANEL_PARTS}"),
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
    /// `[blocks, panel parts, 16, 32]` pairs of bfloat16 values: the weight's for two neighbouring k side by side.
    pub(super) panel: *const f32,
    /// `[32, 32]`, rows `sums_stride` floats apart.
    pub(super) sums: *mut f32,
    pub(super) sums_stride: usize,
    pub(super) start: Start,
}

/// The arithmetic of [`multiply`](MatrixUnit::multiply) in portable code: a row's columns side by side, which the compiler can
/// make vectors of.
///
/// Whoever makes one vouches for what is asked there.
#[cfg(test)]
struct Emulate<'a, const PARTS: usize, const PANEL_PARTS: usize>(&'a TileProduct);

#[cfg(test)]
impl<const PARTS: usize, const PANEL_PARTS: usize> Kernel for Emulate<'_, PARTS, PANEL_PARTS> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let product = self.0;
        let widen = |bits: u16| flush(f32::from_bits(u32::from(bits) << 16));
        for row in 0..ROWS {
            // SAFETY: the maker's promises; all places are those of whole rows, steps and blocks in the shapes that `TileProduct`
            // states, aligned as their elements are.
            unsafe {
                let to = product.sums.add(row * product.sums_stride).cast::<[f32; COLUMNS]>();
                let mut sums = if product.start == Start::Zero { [0.0; COLUMNS] } else { (*to).map(flush) };
                for block in 0..product.blocks {
                    let parts = (0..PANEL_PARTS)
                        .flat_map(|of_panel| (0..PARTS - of_panel).map(move |of_x| (of_x, of_panel)));
                    for (part, panel_part) in parts {
                        let x = *product.x.add(row_of_tiles(row, block, PARTS, part)).cast::<[u16; BLOCK]>();
                        let panel = product.panel.add(panel_block(block, PANEL_PARTS, panel_part));
                        let mut halves = [[0.0f32; COLUMNS]; 2];
                        for (pairs, x) in
                            (*panel.cast::<[[u32; COLUMNS]; BLOCK / 2]>()).iter().zip(x.chunks(2))
                        {
                            let (even, odd) = (widen(x[0]), widen(x[1]));
                            for column in 0..COLUMNS {
                                let first = flush(f32::from_bits(pairs[column] << 16));
                                let second = flush(f32::from_bits(pairs[column] & 0xffff_0000));
                                halves[0][column] = fused(even, first, halves[0][column]);
                                halves[1][column] = fused(odd, second, halves[1][column]);
                            }
                        }
                        for column in 0..COLUMNS {
                            let sum = flush(halves[0][column] + halves[1][column]);
                            sums[column] = flush(sums[column] + sum);
                        }
                    }
                }
                *to = sums;
            }
        }
    }
}

/// `a * b + c` of bfloat16 values and an f32, rounded once; zero where it is below the smallest normal number when rounded to 24
/// bits, as AMX was measured to do: f32 has fewer bits there, and rounds up to that number sooner.
#[cfg(test)]
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
    let (sum, exact) = (a.mul_add(b, c), f64::from(a) * f64::from(b) + f64::from(c));
    if exact.abs() < TINY { 0.0f32.copysign(sum) } else { sum }
}

/// Zero for a subnormal.
#[cfg(test)]
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}
