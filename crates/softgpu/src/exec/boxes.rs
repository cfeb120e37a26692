//! `cp.async.bulk.tensor`: copies of boxes of a tensor map, which an mbarrier counts.
//!
//! A copy arrives when a warp waits for the barrier that counts it and no warp is ready, no earlier.
//! Until then no thread may touch its target.

use super::Block;
use super::access::{PARAM_WINDOW, WINDOW_MASK, at_lane, lanes_of};
use super::phase::copies_of;
use super::shared::Actor;
use super::warp::{BoxCopy, State, Warp};
use crate::check::{LaneFault, Violation};
use crate::decode::Inst;
use crate::device::Access;
use crate::device::tensor_map::{ELEMENT_BYTES, MAP_ALIGN, MAP_BYTES, RANK_MAX, TensorMap};

/// Bytes that are copied at once, which no swizzle takes apart.
const CHUNK: u64 = 16;
/// The multiple that the target's address must be.
const TARGET_ALIGN: u64 = 128;

impl Block<'_> {
    pub(super) fn copy_box(
        &mut self,
        warp: &Warp,
        pc: usize,
        inst: &Inst,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let program = self.program;
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        self.shared.begin_write();
        for lane in lanes_of(mask) {
            let [target, barrier] = [0, 2].map(|r| u64::from(warp.w32[inst.r[r] as usize].0[lane]));
            let map = self.tensor_map(warp.w64[inst.r[1] as usize].0[lane]).map_err(at_lane(lane))?;
            let fail = |violation, detail| Err(LaneFault { violation, lane, detail });
            if map.rank != list.len() {
                let detail = format!("a map of {} dimensions", map.rank);
                return fail(Violation::Descriptor, detail);
            }
            if !target.is_multiple_of(TARGET_ALIGN) {
                return fail(Violation::Misaligned, format!("a box at shared byte {target}"));
            }
            let barrier = self.shared.mbarrier_of_copy(barrier, warp.index).map_err(at_lane(lane))?;
            for at in (target..target + map.box_bytes()).step_by(CHUNK as usize) {
                let actor = Actor::lane(warp.index, lane);
                let at =
                    self.shared.access(at, CHUNK as usize, actor, Access::Write).map_err(at_lane(lane))?;
                self.shared.set_in_flight(at, CHUNK as usize, true);
            }
            let mut first = [0; RANK_MAX];
            for (first, slot) in first.iter_mut().zip(list) {
                *first = i64::from(warp.w32[*slot as usize].0[lane] as i32);
            }
            let target = target as usize;
            self.copies.push(BoxCopy { map, first, target, barrier, pc, warp: warp.index, lane });
        }
        Ok(())
    }

    /// The map at a generic address: a parameter's, or in global memory.
    fn tensor_map(&mut self, address: u64) -> Result<TensorMap, (Violation, String)> {
        if !address.is_multiple_of(MAP_ALIGN as u64) {
            return Err((Violation::Misaligned, format!("a tensor map at {address:#x}")));
        }
        let mut bytes = [0; MAP_BYTES];
        if address & WINDOW_MASK == PARAM_WINDOW {
            let at = (address & !WINDOW_MASK) as usize;
            let found = self.params.get(at..at + MAP_BYTES);
            let found =
                found.ok_or((Violation::OutOfBounds, format!("a tensor map at parameter byte {at}")))?;
            bytes.copy_from_slice(found);
        } else {
            self.memory.kernel_read(address, MAP_BYTES)?;
            // SAFETY: `kernel_read` found the bytes inside a live allocation.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(address as *const u8, MAP_BYTES) };
        }
        TensorMap::decode(&bytes).ok_or_else(|| (Violation::Descriptor, "this is no tensor map".into()))
    }

    /// Brings the copies that waiting warps wait for, or one of them where the order is random; returns whether
    /// there was one.
    pub(super) fn bring_copies(&mut self, warps: &[Warp]) -> Result<bool, (usize, LaneFault, u8)> {
        let is_waited_for = |copy: &mut BoxCopy| {
            let place = self.shared.mbarriers[copy.barrier].at;
            warps.iter().any(|warp| matches!(warp.state, State::AtMbarrier { at, .. } if at == place))
        };
        let mut arriving: Vec<BoxCopy> = self.copies.extract_if(.., is_waited_for).collect();
        if self.order.is_random()
            && let Some(first) = self.order.choose(arriving.len())
        {
            let rest = arriving.split_off(first + 1);
            self.copies.extend(arriving.drain(..first).chain(rest));
        }
        for copy in &arriving {
            self.bring(copy).map_err(|(violation, detail)| {
                (copy.pc, LaneFault { violation, lane: copy.lane, detail }, copy.warp)
            })?;
        }
        Ok(!arriving.is_empty())
    }

    /// The fault of a block that ends with copies on their way, if there are such.
    pub(super) fn all_copies_arrived(&self) -> Result<(), (usize, LaneFault, u8)> {
        let Some(copy) = self.copies.first() else { return Ok(()) };
        let detail = "the block ends before this copy has completed".into();
        Err((copy.pc, LaneFault { violation: Violation::InFlight, lane: copy.lane, detail }, copy.warp))
    }

    fn bring(&mut self, copy: &BoxCopy) -> Result<(), (Violation, String)> {
        let BoxCopy { map, first, target, barrier, .. } = copy;
        let row_bytes = u64::from(map.box_dims[0]) * ELEMENT_BYTES;
        let (writer, tick) = (copies_of(*barrier), self.shared.tick());
        for row in 0..map.box_bytes() / row_bytes {
            // The row's place in the tensor, if it is inside.
            let (mut rest, mut source) = (row, Some(map.address));
            for axis in 1..map.rank {
                let (size, dim) = (u64::from(map.box_dims[axis]), map.dims[axis]);
                let index =
                    u64::try_from(first[axis] + (rest % size) as i64).ok().filter(|index| *index < dim);
                source = source.zip(index).map(|(source, index)| source + index * map.strides[axis]);
                rest /= size;
            }
            let (mut addresses, mut reading) = ([0; 32], 0);
            for chunk in 0..row_bytes / CHUNK {
                let mut data = [0; CHUNK as usize];
                let elements = CHUNK / ELEMENT_BYTES;
                let column = first[0] + (chunk * elements) as i64;
                // The chunk's elements that are inside.
                let begin = (-column).clamp(0, elements as i64);
                let end = (map.dims[0] as i64 - column).clamp(begin, elements as i64);
                if let Some(source) = source
                    && begin < end
                {
                    let from = source.wrapping_add_signed((column + begin) * ELEMENT_BYTES as i64);
                    let bytes = (end - begin) as usize * ELEMENT_BYTES as usize;
                    self.memory.kernel_read(from, bytes)?;
                    let to = &mut data[begin as usize * ELEMENT_BYTES as usize..][..bytes];
                    // SAFETY: `kernel_read` found the bytes inside a live allocation, and `to` has as many.
                    unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from as *const u8, bytes) };
                    (addresses[chunk as usize], reading) = (from, reading | 1 << chunk);
                }
                let mut at = *target as u64 + row * row_bytes + chunk * CHUNK;
                if map.swizzled {
                    at ^= (at >> 7 & 7) << 4;
                }
                self.shared.receive(at as usize, &data, writer, tick);
            }
            if reading != 0 {
                self.count_global(&addresses, reading, CHUNK as usize, Access::Read);
            }
        }
        self.shared.complete_bytes(*barrier, map.box_bytes(), tick);
        Ok(())
    }
}
