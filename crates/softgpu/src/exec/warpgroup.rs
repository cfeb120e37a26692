//! `wgmma`: matmuls of a warpgroup, whose operands lie in shared memory.
//!
//! A matmul is issued when the four warps of the group stand at it, and each warp computes its
//! sixteen rows when it waits for the matmul's group, no earlier: a missing wait shows every time.
//! Until then its registers may not be touched, nor what it reads be written.

use super::Block;
use super::access::at_lane;
use super::float::half_to;
use super::matmuls::Matmul;
use super::warp::{State, Warp};
use crate::check::{LaneFault, Violation};
use crate::decode::{Half, Op};

/// Warps of a warpgroup.
const WARPS: usize = 4;
/// Rows of a warp, and the inner dimension.
const ROWS: usize = 16;
const DEPTH: usize = 16;
/// Bytes that are read at once, which no swizzle takes apart.
const CHUNK: u64 = 16;

impl Block<'_> {
    /// Issues the matmul of every warpgroup whose four warps stand at it; returns whether there was
    /// one.
    pub(super) fn issue_matmuls(&mut self, warps: &mut [Warp]) -> Result<bool, (usize, LaneFault, u8)> {
        let (mut any, mut missed) = (false, None);
        for group in warps.chunks_mut(WARPS) {
            let Some(first) = group.iter().find(|w| w.state == State::AtMatmul) else { continue };
            let (index, pc) = (first.index, first.barrier());
            let stands = |w: &Warp| w.state == State::AtMatmul && w.barrier() == pc;
            if group.len() == WARPS && group.iter().all(stands) {
                self.issue_matmul(pc, group).map_err(|(fault, warp)| (pc, fault, warp))?;
                any = true;
                continue;
            }
            let missing = group.iter().find(|w| !stands(w)).map(|w| match w.state {
                State::Done => format!("warp {} has returned", w.index),
                _ => format!("warp {} waits at `{}`", w.index, self.program.text[w.barrier()].0),
            });
            let missing = missing.unwrap_or_else(|| format!("the block has {} of its warps", group.len()));
            let detail = format!("warp {index} waits for its warpgroup, but {missing}");
            missed.get_or_insert((pc, LaneFault { violation: Violation::Barrier, lane: 0, detail }, index));
        }
        // The missing warp may wait for what follows the matmul of another group.
        missed.filter(|_| !any).map_or(Ok(any), Err)
    }

    /// Issues the matmul at which the four warps of a group stand.
    fn issue_matmul(&mut self, pc: usize, group: &mut [Warp]) -> Result<(), (LaneFault, u8)> {
        let program = self.program;
        let inst = &program.code[pc];
        let Op::GroupMatmul(shape) = inst.op else { return Ok(()) };
        let (mut common, first) = (None, group[0].index);
        for (part, warp) in group.iter_mut().enumerate() {
            let index = warp.index;
            let fail = move |(violation, detail)| (LaneFault { violation, lane: 0, detail }, index);
            let left = if shape.registers { [0; 32] } else { warp.w64[inst.r[2] as usize].0 };
            let (right, accumulates) = (warp.w64[inst.r[0] as usize].0, warp.predicates[inst.r[1] as usize]);
            let mine = (left[0], right[0], accumulates);
            let is_uniform = left.iter().all(|d| *d == left[0])
                && right.iter().all(|d| *d == right[0])
                && matches!(accumulates, 0 | u32::MAX);
            if !is_uniform || *common.get_or_insert(mine) != mine {
                let detail = format!("operands differ within warp {index}, or from those of warp {first}");
                return Err(fail((Violation::Descriptor, detail)));
            }
            warp.matmuls.check(program, pc).map_err(fail)?;
            let left = if shape.registers {
                Vec::new()
            } else {
                let rows = part * ROWS..(part + 1) * ROWS;
                Descriptor::new(left[0]).map_err(fail)?.rows(rows)
            };
            let right = Descriptor::new(right[0]).map_err(fail)?;
            let columns = usize::from(shape.columns);
            let right = if shape.transposed { right.columns(columns) } else { right.rows(0..columns) };
            let mut read = |places: Vec<u64>| -> Result<Vec<usize>, (Violation, String)> {
                places.into_iter().map(|at| self.shared.begin_matmul(at, index)).collect()
            };
            let (left, right) = (read(left).map_err(fail)?, read(right).map_err(fail)?);
            warp.matmuls.mark(program, pc, true);
            let accumulates = accumulates != 0;
            warp.matmuls.open.push(Matmul { shape, pc, accumulates, left, right });
            warp.state = State::Ready;
            // As many as of `mma.m16n8k16`.
            self.memory.counters.mma += u64::from(shape.columns) / 8;
        }
        Ok(())
    }

    /// Computes committed groups until `keep` are left.
    pub(super) fn wait_matmuls(&mut self, warp: &mut Warp, keep: usize) -> Result<(), LaneFault> {
        while warp.matmuls.groups.len() > keep {
            for matmul in warp.matmuls.groups.pop_front().unwrap_or_default() {
                self.compute_matmul(warp, &matmul);
                warp.matmuls.mark(self.program, matmul.pc, false);
                for &at in matmul.left.iter().chain(&matmul.right) {
                    self.shared.end_matmul(at, warp.index).map_err(at_lane(0))?;
                }
            }
        }
        Ok(())
    }

    /// d = a * b + d on 16 x columns x 16: multiplications are exact in f32, additions are in f32 in the
    /// order of the inner dimension.
    fn compute_matmul(&mut self, warp: &mut Warp, matmul: &Matmul) {
        let Matmul { shape, .. } = *matmul;
        let program = self.program;
        let inst = &program.code[matmul.pc];
        let columns = usize::from(shape.columns);
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        let (sums, fragments) = list.split_at(columns / 2);
        let mut left = [[0f32; DEPTH]; ROWS];
        if shape.registers {
            for (part, &slot) in fragments.iter().enumerate() {
                for (lane, &pair) in warp.w32[slot as usize].0.iter().enumerate() {
                    let (row, k) = (lane / 4 + 8 * (part % 2), 2 * (lane % 4) + 8 * (part / 2));
                    left[row][k] = half_to(shape.half, pair & 0xFFFF);
                    left[row][k + 1] = half_to(shape.half, pair >> 16);
                }
            }
        } else {
            for (chunk, &at) in matmul.left.iter().enumerate() {
                let (row, k) = (chunk / 2, 8 * (chunk % 2));
                left[row][k..k + 8].copy_from_slice(&self.chunk(shape.half, at));
            }
        }
        let mut right = vec![0f32; DEPTH * columns];
        for (chunk, &at) in matmul.right.iter().enumerate() {
            let values = self.chunk(shape.half, at);
            if shape.transposed {
                let (k, column) = (chunk / (columns / 8), chunk % (columns / 8) * 8);
                right[k * columns + column..][..8].copy_from_slice(&values);
            } else {
                let (column, k) = (chunk / 2, 8 * (chunk % 2));
                values.iter().enumerate().for_each(|(i, value)| right[(k + i) * columns + column] = *value);
            }
        }
        let place =
            |i: usize, lane: usize| (lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
        let mut total = vec![[0f32; ROWS]; columns];
        if matmul.accumulates {
            for (i, &slot) in sums.iter().enumerate() {
                for (lane, &bits) in warp.w32[slot as usize].0.iter().enumerate() {
                    let (row, column) = place(i, lane);
                    total[column][row] = f32::from_bits(bits);
                }
            }
        }
        for (column, total) in total.iter_mut().enumerate() {
            for k in 0..DEPTH {
                let factor = right[k * columns + column];
                for row in 0..ROWS {
                    total[row] += left[row][k] * factor;
                }
            }
        }
        for (i, &slot) in sums.iter().enumerate() {
            for (lane, bits) in warp.w32[slot as usize].0.iter_mut().enumerate() {
                let (row, column) = place(i, lane);
                *bits = total[column][row].to_bits();
            }
        }
    }

    /// Eight elements of an operand.
    fn chunk(&mut self, half: Half, at: usize) -> [f32; 8] {
        let bytes = self.shared.at(at, CHUNK as usize);
        std::array::from_fn(|i| {
            half_to(half, u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])))
        })
    }
}

/// A matrix descriptor with the swizzle of 128 bytes.
#[derive(Clone, Copy)]
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
}

impl Descriptor {
    /// Takes the fields apart; addresses and offsets are in units of sixteen bytes.
    fn new(bits: u64) -> Result<Self, (Violation, String)> {
        let field = |first: u32, count: u32| bits >> first & ((1 << count) - 1);
        let unused = field(14, 2) | field(30, 2) | field(46, 3) | field(52, 10);
        let (base_offset, swizzle) = (field(49, 3), field(62, 2));
        if swizzle != 1 || base_offset != 0 || unused != 0 {
            let detail = format!(
                "{bits:#018x} has swizzle {swizzle}, base offset {base_offset} and other bits {unused:#x}: only 1, \
                 128 bytes, and zeros are known here"
            );
            return Err((Violation::Descriptor, detail));
        }
        Ok(Self { start: field(0, 14) << 4, leading: field(16, 14) << 4, stride: field(32, 14) << 4 })
    }

    /// The chunks of rows of sixteen elements of the inner dimension each, which lie side by side.
    fn rows(self, rows: std::ops::Range<usize>) -> Vec<u64> {
        let row = |row: u64| self.start + row / 8 * self.stride + row % 8 * 128;
        rows.flat_map(|r| [row(r as u64), row(r as u64) + CHUNK]).map(swizzled).collect()
    }

    /// The chunks of sixteen rows of the inner dimension, each with the elements of all columns.
    fn columns(self, columns: usize) -> Vec<u64> {
        let at = |k: u64, column: u64| {
            self.start + column / 64 * self.leading + k / 8 * self.stride + k % 8 * 128 + 2 * (column % 64)
        };
        let of_k = |k: usize| (0..columns).step_by(8).map(move |column| at(k as u64, column as u64));
        (0..DEPTH).flat_map(of_k).map(swizzled).collect()
    }
}

/// The place of a byte: the chunk's index in its line of 128 bytes changes with the line's index in
/// 1,024.
fn swizzled(at: u64) -> u64 {
    at ^ (at >> 7 & 7) << 4
}
