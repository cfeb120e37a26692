//! `mbarrier`: barriers in shared memory. A phase is complete when all arrivals have come that the
//! barrier expects, and all bytes; then the next one begins.
//!
//! A wait that fails ends the warp's turn, and returns false, as hardware may: kernels repeat it. An
//! arrival carries what the warp has done and has seen to those that wait for the phase; nothing else
//! orders accesses of two warps but the barrier of the block. A warp whose lanes wait for each other
//! is stuck here.

use super::Block;
use super::access::{at_lane, lanes_of};
use super::phase::{BYTES, Clock, MBARRIERS_MAX, Mbarrier, copies_of};
use super::shared::Shared;
use super::warp::{State, Warp};
use crate::check::{LaneFault, Violation};
use crate::decode::Inst;

/// Arrivals and bytes that a phase can expect at most.
const EXPECTED_MAX: u32 = (1 << 20) - 1;
/// Registers of a multiprocessor.
const REGISTERS: u32 = 64 * 1024;

impl Shared {
    fn begin_mbarrier(&mut self, at: u64, warp: u8, count: u32) -> Result<(), (Violation, String)> {
        let at = self.place(at, BYTES)?;
        if !(1..=EXPECTED_MAX).contains(&count) {
            return Err((Violation::Mbarrier, format!("a count of {count}")));
        }
        if self.mbarriers.iter().any(|barrier| barrier.overlaps(at, BYTES)) {
            return Err((Violation::Mbarrier, format!("shared byte {at} is that of a barrier already")));
        }
        if self.mbarriers.len() == MBARRIERS_MAX {
            let detail = format!("more than {MBARRIERS_MAX} barriers, which are not known here");
            return Err((Violation::Mbarrier, detail));
        }
        let (made_at, expected, missing) = (self.tick(), count, count);
        let (arrived, completed) = (Clock::NONE, Clock::NONE);
        self.mbarriers.push(Mbarrier {
            at,
            maker: warp,
            made_at,
            expected,
            missing,
            bytes: 0,
            phase: 0,
            arrived,
            completed,
        });
        Ok(())
    }

    /// The index of the barrier at this address, which `warp` knows to be initialised.
    fn mbarrier(&self, at: u64, warp: u8) -> Result<usize, (Violation, String)> {
        let at = self.place(at, BYTES)?;
        let found = self.mbarriers.iter().position(|barrier| barrier.at == at);
        let Some(found) = found else {
            return Err((Violation::Mbarrier, format!("shared byte {at} was not initialised as a barrier")));
        };
        let Mbarrier { maker, made_at, .. } = self.mbarriers[found];
        if maker != warp && !self.sees(warp, maker, made_at) {
            let detail = format!(
                "the barrier at shared byte {at} was initialised by warp {maker}, no barrier of the block between"
            );
            return Err((Violation::Race, detail));
        }
        Ok(found)
    }

    /// A lane arrives `count` times, after `bytes` more are expected.
    fn arrive(&mut self, at: u64, warp: u8, bytes: u32, count: u32) -> Result<(), (Violation, String)> {
        let index = self.mbarrier(at, warp)?;
        let clock = self.clock_after(warp);
        let barrier = &mut self.mbarriers[index];
        let bytes = barrier.bytes + i64::from(bytes);
        let Some(missing) = barrier.missing.checked_sub(count) else {
            let detail = format!("{count} arrivals where {} are missing", barrier.missing);
            return Err((Violation::Mbarrier, detail));
        };
        if bytes > i64::from(EXPECTED_MAX) {
            return Err((Violation::Mbarrier, format!("{bytes} bytes, more than {EXPECTED_MAX}")));
        }
        (barrier.missing, barrier.bytes) = (missing, bytes);
        barrier.arrived.join(&clock);
        barrier.advance();
        Ok(())
    }

    /// The index of the barrier that counts a copy, which must know that it is initialised.
    pub(super) fn mbarrier_of_copy(&self, at: u64, warp: u8) -> Result<usize, (Violation, String)> {
        let index = self.mbarrier(at, warp)?;
        let Mbarrier { at, maker, made_at, .. } = self.mbarriers[index];
        if self.mbarrier_fences[maker as usize] <= made_at {
            let detail = format!(
                "the barrier at shared byte {at} was initialised by warp {maker} with no fence.mbarrier_init after it"
            );
            return Err((Violation::Unfenced, detail));
        }
        Ok(index)
    }

    /// Bytes of a copy have come to the barrier of this index.
    pub(super) fn complete_bytes(&mut self, index: usize, bytes: u64, tick: u32) {
        let barrier = &mut self.mbarriers[index];
        barrier.bytes -= bytes as i64;
        barrier.arrived.join(&Clock::of(copies_of(index), tick + 1));
        barrier.advance();
    }

    /// Whether the phase is complete; if so, `warp` sees what those who arrived have done.
    fn wait(&mut self, at: u64, warp: u8, parity: u32) -> Result<bool, (Violation, String)> {
        let index = self.mbarrier(at, warp)?;
        let barrier = &self.mbarriers[index];
        let is_complete = barrier.has_completed(parity);
        if is_complete {
            let clock = barrier.completed.clone();
            self.see(warp, &clock);
        }
        Ok(is_complete)
    }

    /// Refuses bytes of a barrier to other accesses.
    pub(super) fn not_of_mbarriers(&self, at: usize, size: usize) -> Result<(), (Violation, String)> {
        match self.mbarriers.iter().find(|barrier| barrier.overlaps(at, size)) {
            None => Ok(()),
            Some(barrier) => Err((Violation::Mbarrier, format!("shared byte {} is a barrier's", barrier.at))),
        }
    }
}

impl Block<'_> {
    pub(super) fn begin_mbarriers(&mut self, warp: &Warp, inst: &Inst, mask: u32) -> Result<(), LaneFault> {
        for lane in lanes_of(mask) {
            let (at, count) = (address(warp, inst, 0, lane), warp.w32[inst.r[1] as usize].0[lane]);
            self.shared.begin_mbarrier(at, warp.index, count).map_err(at_lane(lane))?;
        }
        Ok(())
    }

    pub(super) fn arrive(&mut self, warp: &Warp, inst: &Inst, mask: u32) -> Result<(), LaneFault> {
        for lane in lanes_of(mask) {
            let [bytes, count] = [1, 2].map(|r| warp.w32[inst.r[r] as usize].0[lane]);
            let at = address(warp, inst, 0, lane);
            self.shared.arrive(at, warp.index, bytes, count).map_err(at_lane(lane))?;
        }
        Ok(())
    }

    /// Returns what the warp waits for, if that is not complete for all lanes.
    pub(super) fn wait(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        mask: u32,
    ) -> Result<Option<State>, LaneFault> {
        let (mut done, mut stopped) = (0, None);
        for lane in lanes_of(mask) {
            let (at, parity) = (address(warp, inst, 1, lane), warp.w32[inst.r[2] as usize].0[lane]);
            match self.shared.wait(at, warp.index, parity).map_err(at_lane(lane))? {
                true => done |= 1 << lane,
                false => stopped = stopped.or(Some(State::AtMbarrier { at: at as usize, parity })),
            }
        }
        let predicate = &mut warp.predicates[inst.r[0] as usize];
        *predicate = *predicate & !mask | done;
        Ok(stopped)
    }

    /// Lets warps run on that wait for a phase that is complete; returns whether there was one.
    pub(super) fn wake(&self, warps: &mut [Warp]) -> bool {
        let mut any = false;
        for warp in warps {
            if let State::AtMbarrier { at, parity } = warp.state
                && self
                    .shared
                    .mbarriers
                    .iter()
                    .any(|barrier| barrier.at == at && barrier.has_completed(parity))
            {
                (warp.state, any) = (State::Ready, true);
            }
        }
        any
    }

    /// The fault of warps that wait for phases that nothing will complete, if there are such.
    pub(super) fn stuck(&self, warps: &[Warp]) -> Result<(), (usize, LaneFault, u8)> {
        let waits = |warp: &&Warp| matches!(warp.state, State::AtMbarrier { .. });
        let Some(first) = warps.iter().find(waits) else { return Ok(()) };
        let of_warp = |warp: &Warp| match warp.state {
            State::AtMbarrier { at, parity } => {
                let barrier = self.shared.mbarriers.iter().find(|barrier| barrier.at == at);
                let state = barrier.map_or(String::new(), |barrier| {
                    let Mbarrier { phase, missing, bytes, .. } = barrier;
                    format!(", in phase {phase} with {missing} arrivals and {bytes} bytes missing")
                });
                format!(
                    "warp {} waits for parity {parity} of the barrier at shared byte {at}{state}",
                    warp.index
                )
            }
            _ => format!("warp {} waits at `{}`", warp.index, self.program.text[warp.barrier()].0),
        };
        let waiting = warps.iter().filter(|warp| warp.state != State::Done).map(of_warp);
        let detail = waiting.collect::<Vec<_>>().join("; ");
        let lane = first.live.trailing_zeros() as usize % 32;
        Err((first.barrier(), LaneFault { violation: Violation::Barrier, lane, detail }, first.index))
    }

    /// `setmaxnreg`: once all warps have set their registers, these must be no more than there are.
    pub(super) fn set_registers(&mut self, warp: &Warp, count: u32, mask: u32) -> Result<(), LaneFault> {
        let fail = |violation, detail| Err(LaneFault { violation, lane: 0, detail });
        if mask != warp.live {
            return fail(
                Violation::Barrier,
                format!("lanes {mask:#010x} of {:#010x} set registers", warp.live),
            );
        }
        self.registers[warp.index as usize] = count;
        let all: u32 = self.registers.iter().map(|count| 32 * count).sum();
        if all > REGISTERS && self.registers.iter().all(|count| *count > 0) {
            return fail(Violation::Barrier, format!("{all} registers of {REGISTERS}"));
        }
        Ok(())
    }
}

fn address(warp: &Warp, inst: &Inst, operand: usize, lane: usize) -> u64 {
    u64::from(warp.w32[inst.r[operand] as usize].0[lane]).wrapping_add_signed(inst.imm)
}
