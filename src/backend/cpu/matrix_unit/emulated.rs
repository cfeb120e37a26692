//! The arithmetic of AMX in portable code, for tests.

use super::super::accumulators::Start;
use super::super::simd::{Isa, Kernel, Vector, flush, fused};
use super::tiles::{MR, NR, TILE_K, TileOperands, index_in_panel, index_in_tiles};

/// Runs the microkernel compiled for an instruction set that has a fused multiply-add: without one
/// it is a slow library call.
///
/// # Safety
///
/// As `MatrixUnit::microkernel`.
pub(super) unsafe fn microkernel<const TERMS: usize, const PANEL_TERMS: usize>(operands: &TileOperands) {
    Isa::detect().run(Emulate::<TERMS, PANEL_TERMS>(operands));
}

/// The microkernel in portable code: a row's columns side by side, which the compiler can make
/// vectors of.
///
/// Its maker vouches for what [`microkernel`] asks.
struct Emulate<'a, const TERMS: usize, const PANEL_TERMS: usize>(&'a TileOperands);

impl<const TERMS: usize, const PANEL_TERMS: usize> Kernel for Emulate<'_, TERMS, PANEL_TERMS> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let operands = self.0;
        let widen = |bits: u16| flush(f32::from_bits(u32::from(bits) << 16));
        for row in 0..MR {
            // SAFETY: the maker's promises; all addresses are those of whole rows, steps and tiles
            // in the shapes that `TileOperands` states, aligned as their elements are.
            unsafe {
                let to = operands.acc.add(row * operands.acc_stride).cast::<[f32; NR]>();
                let mut acc = if operands.start == Start::Zero { [0.0; NR] } else { (*to).map(flush) };
                for k_tile in 0..operands.k_tiles {
                    let terms = (0..PANEL_TERMS)
                        .flat_map(|of_panel| (0..TERMS - of_panel).map(move |of_x| (of_x, of_panel)));
                    for (term, panel_term) in terms {
                        let x =
                            *operands.x.add(index_in_tiles(row, k_tile, TERMS, term)).cast::<[u16; TILE_K]>();
                        let panel = operands.panel.add(index_in_panel(k_tile, PANEL_TERMS, panel_term));
                        let mut halves = [[0.0f32; NR]; 2];
                        for (pairs, x) in (*panel.cast::<[[u32; NR]; TILE_K / 2]>()).iter().zip(x.chunks(2)) {
                            let (even, odd) = (widen(x[0]), widen(x[1]));
                            for column in 0..NR {
                                let first = flush(f32::from_bits(pairs[column] << 16));
                                let second = flush(f32::from_bits(pairs[column] & 0xffff_0000));
                                halves[0][column] = fused(even, first, halves[0][column]);
                                halves[1][column] = fused(odd, second, halves[1][column]);
                            }
                        }
                        for column in 0..NR {
                            let sum = flush(halves[0][column] + halves[1][column]);
                            acc[column] = flush(acc[column] + sum);
                        }
                    }
                }
                *to = acc;
            }
        }
    }
}
