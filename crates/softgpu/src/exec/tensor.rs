//! `cp.async`, `ldmatrix` and `mma`: what the sm_80 attention kernels add.

use super::Block;
use super::access::{at_lane, bank_conflicts, lanes_of};
use super::float::half_to;
use super::lanes::put;
use super::shared::Actor;
use super::warp::{Copy16, Warp};
use crate::check::{LaneFault, Violation};
use crate::decode::{Half, Inst, Mma};
use crate::device::Access;

impl Block<'_> {
    /// Issues one copy a lane. The bytes move when the group is waited for; until then their target
    /// is poison.
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        bytes: u8,
        sized: bool,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let (shared_offset, global_offset) = ((inst.imm >> 32) as u32, inst.imm as i32 as i64);
        self.shared.begin_write();
        let mut globals = [0u64; 32];
        let mut reading = 0u32;
        for lane in lanes_of(mask) {
            let shared = warp.w32[inst.r[0] as usize].0[lane].wrapping_add(shared_offset) as u64;
            let global = warp.w64[inst.r[1] as usize].0[lane].wrapping_add(global_offset as u64);
            let source_bytes =
                if sized { warp.w32[inst.r[2] as usize].0[lane].min(bytes as u32) as u8 } else { bytes };
            if source_bytes > 0 {
                self.memory.kernel_read(global, source_bytes as usize).map_err(at_lane(lane))?;
                reading |= 1 << lane;
            }
            let actor = Actor::lane(warp.index, lane);
            let at =
                self.shared.access(shared, bytes as usize, actor, Access::Write).map_err(at_lane(lane))?;
            self.shared.set_in_flight(at, bytes as usize, true);
            globals[lane] = global;
            warp.open.push(Copy16 { shared: at, global, bytes, source_bytes, lane: lane as u8 });
        }
        if reading != 0 {
            self.count_global(&globals, reading, bytes as usize, Access::Read);
        }
        Ok(())
    }

    /// Completes groups until `keep` are left.
    pub(super) fn wait_copies(&mut self, warp: &mut Warp, keep: usize, all: bool) -> Result<(), LaneFault> {
        if all {
            let open = std::mem::take(&mut warp.open);
            warp.groups.push_back(open);
        }
        self.shared.begin_write();
        while warp.groups.len() > keep {
            for copy in warp.groups.pop_front().unwrap_or_default() {
                let (lane, mut data) = (copy.lane as usize, [0u8; 16]);
                if copy.source_bytes > 0 {
                    self.memory
                        .range(copy.global, copy.source_bytes as usize, Access::Read)
                        .map_err(at_lane(lane))?;
                    // SAFETY: `range` found the source bytes inside a live allocation, and there
                    // are at most 16.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            copy.global as *const u8,
                            data.as_mut_ptr(),
                            copy.source_bytes as usize,
                        )
                    };
                }
                let size = copy.bytes as usize;
                self.shared.set_in_flight(copy.shared, size, false);
                let actor = Actor::lane(warp.index, lane);
                self.shared.access(copy.shared as u64, size, actor, Access::Write).map_err(at_lane(lane))?;
                self.shared.at(copy.shared, size).copy_from_slice(&data[..size]);
            }
        }
        Ok(())
    }

    /// Lanes 8j to 8j + 7 give the row addresses of matrix j; lane t gets the pair (t / 4, 2 (t %
    /// 4)) of each.
    pub(super) fn ldmatrix(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        transposed: bool,
        wide: bool,
    ) -> Result<(), LaneFault> {
        let program = self.program;
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        for (j, &slot) in list.iter().enumerate() {
            let mut rows = [[0u16; 8]; 8];
            let mut addresses = [0u64; 32];
            for (row, values) in rows.iter_mut().enumerate() {
                let lane = 8 * j + row;
                let base = if wide {
                    warp.w64[inst.r[0] as usize].0[lane]
                } else {
                    warp.w32[inst.r[0] as usize].0[lane] as u64
                };
                let address = base.wrapping_add(inst.imm as u64);
                addresses[row] = address;
                let actor = Actor::lanes(warp.index);
                let at = self.shared.access(address, 16, actor, Access::Read).map_err(at_lane(lane))?;
                for (column, pair) in self.shared.at(at, 16).chunks_exact(2).enumerate() {
                    values[column] = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            self.memory.counters.bank_conflicts += bank_conflicts(&addresses, 0xFF, 16);
            let out = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let (low, high) = if transposed {
                    (rows[column][row], rows[column + 1][row])
                } else {
                    (rows[row][column], rows[row][column + 1])
                };
                low as u32 | (high as u32) << 16
            });
            put(&mut warp.w32[slot as usize].0, &out, u32::MAX);
        }
        self.memory.counters.shared_requests += 1;
        Ok(())
    }

    /// Whole-warp instructions need every lane.
    pub(super) fn whole_warp(mask: u32) -> Result<(), LaneFault> {
        if mask == u32::MAX {
            return Ok(());
        }
        let detail = format!("a whole-warp instruction with lanes {mask:#010x} only");
        Err(LaneFault { violation: Violation::Trap, lane: mask.trailing_ones() as usize % 32, detail })
    }
}

/// d = a * b + c on 16 x 8 x K: multiplications are exact in f32, additions are in f32 in the order
/// of K.
#[inline(always)]
pub(super) fn mma(kind: Mma, warp: &mut Warp, list: &[u16]) {
    let (half, depth) = match kind {
        Mma::M16N8K16(half) => (half, 16),
        Mma::M16N8K8(half) => (half, 8),
    };
    let (a_count, b_count) = (depth / 4, depth / 8);
    let (d, rest) = list.split_at(4);
    let (a, rest) = rest.split_at(a_count);
    let (b, c) = rest.split_at(b_count);
    let (mut left, mut right, mut sum) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    for lane in 0..32 {
        let (group, thread) = (lane / 4, 2 * (lane % 4));
        for (part, &slot) in a.iter().enumerate() {
            let (row, k) = (group + 8 * (part % 2), thread + 8 * (part / 2));
            let pair = warp.w32[slot as usize].0[lane];
            left[row][k] = low(half, pair);
            left[row][k + 1] = high(half, pair);
        }
        for (part, &slot) in b.iter().enumerate() {
            let pair = warp.w32[slot as usize].0[lane];
            right[thread + 8 * part][group] = low(half, pair);
            right[thread + 8 * part + 1][group] = high(half, pair);
        }
        for (part, &slot) in c.iter().enumerate() {
            sum[group + 8 * (part / 2)][thread + part % 2] = f32::from_bits(warp.w32[slot as usize].0[lane]);
        }
    }
    for row in 0..16 {
        let mut total = sum[row];
        for k in 0..depth {
            let x = left[row][k];
            for column in 0..8 {
                total[column] += x * right[k][column];
            }
        }
        sum[row] = total;
    }
    for (part, &slot) in d.iter().enumerate() {
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (part / 2), 2 * (lane % 4) + part % 2);
            warp.w32[slot as usize].0[lane] = sum[row][column].to_bits();
        }
    }
}

#[inline(always)]
fn low(half: Half, pair: u32) -> f32 {
    half_to(half, pair & 0xFFFF)
}

#[inline(always)]
fn high(half: Half, pair: u32) -> f32 {
    half_to(half, pair >> 16)
}
