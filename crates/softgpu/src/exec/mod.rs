//! Runs a [`Program`]: blocks one after another, the warps of a block in turns between barriers, 32
//! lanes an instruction.

mod access;
mod boxes;
mod convert;
mod float;
mod int;
mod lanes;
mod matmuls;
mod mbarrier;
mod order;
mod phase;
mod run;
mod shared;
mod tensor;
mod together;
mod warp;
mod warpgroup;

use crate::check::{Fault, LaneFault, Violation};
use crate::decode::{Op, Program};
use crate::device::DeviceMemory;
use order::Order;
use shared::Shared;
use warp::{BlockPosition, BoxCopy, State, Warp};

/// Size of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block, 1,024 at most.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub dynamic_shared_bytes: usize,
    /// Track uninitialised reads, races and copies in flight.
    pub checked: bool,
    /// The seed of the order in which warps run that are ready; 0: by index.
    pub order: u64,
}

/// A block being run.
struct Block<'a> {
    program: &'a Program,
    memory: &'a mut DeviceMemory,
    shared: Shared,
    params: &'a [u8],
    /// Registers of a thread of each warp that has set them; otherwise 0.
    registers: Vec<u32>,
    /// Copies of boxes on their way.
    copies: Vec<BoxCopy>,
    order: Order,
}

/// Runs a kernel over a grid. `params` is the parameter block as `cuLaunchKernel` laid it out.
///
/// # Errors
/// The first violation, which ends the launch.
pub fn launch(
    program: &Program,
    config: &Config,
    params: &[u8],
    memory: &mut DeviceMemory,
) -> Result<(), Fault> {
    let threads: u32 = config.block.iter().product();
    let mut warps: Vec<Warp> =
        (0..threads.div_ceil(32)).map(|index| Warp::new(program, index as u8)).collect();
    let shared_bytes = program.shared_bytes + config.dynamic_shared_bytes;
    // Warps that mbarriers order one by one.
    let has_mbarriers = program.code.iter().any(|inst| inst.op == Op::MbarrierInit);
    let ordered = if has_mbarriers { warps.len() } else { 0 };
    let shared = Shared::new(shared_bytes, config.checked, !program.touched.is_empty(), ordered);
    memory.begin_launch(config.grid);
    let registers = vec![0; warps.len()];
    let order = Order::new(config.order);
    let mut block = Block { program, memory, shared, params, registers, copies: Vec::new(), order };
    for z in 0..config.grid[2] {
        for y in 0..config.grid[1] {
            for x in 0..config.grid[0] {
                let position =
                    BlockPosition { grid: config.grid, block: config.block, block_index: [x, y, z] };
                block.shared.reset();
                block.registers.fill(0);
                block.copies.clear();
                block.memory.begin_block();
                for warp in &mut warps {
                    warp.start(program, &position);
                }
                block.run(&mut warps, &position)?;
            }
        }
    }
    Ok(())
}

impl Block<'_> {
    /// Turns: every ready warp runs to its next barrier or matmul of its warpgroup, or to its end; when
    /// none is left ready, no phase of an mbarrier that is waited for is complete, and no matmul has all
    /// its warps, the barrier of the block opens.
    fn run(&mut self, warps: &mut [Warp], position: &BlockPosition) -> Result<(), Fault> {
        loop {
            while let Some(warp) = self.next(warps) {
                let (index, outcome) = (warp.index, self.run_warp(warp));
                if let Err((pc, fault)) = outcome {
                    return Err(self.describe(pc, &fault, index, position));
                }
            }
            if self.progress(warps).map_err(|(pc, fault, warp)| self.describe(pc, &fault, warp, position))? {
                continue;
            }
            if warps.iter().all(|w| w.state == State::Done) {
                return Ok(());
            }
            // Warps that have returned count as arrived, as they do in hardware.
            self.shared.sync_block();
            for warp in warps.iter_mut().filter(|w| w.state == State::AtBarrier) {
                warp.state = State::Ready;
            }
        }
    }

    /// The ready warp that runs next.
    fn next<'w>(&mut self, warps: &'w mut [Warp]) -> Option<&'w mut Warp> {
        // By index, phases are looked at when no warp is ready, which takes less time.
        if self.order.is_random() {
            self.wake(warps);
        }
        let is_ready = |warp: &&mut Warp| warp.state == State::Ready;
        let count = if self.order.is_random() { warps.iter_mut().filter(is_ready).count() } else { 1 };
        let chosen = self.order.choose(count)?;
        warps.iter_mut().filter(is_ready).nth(chosen)
    }

    /// Lets warps go on that do not wait for the block's barrier; returns whether there was one, or may be.
    /// Fails where nothing can go on any more.
    fn progress(&mut self, warps: &mut [Warp]) -> Result<bool, (usize, LaneFault, u8)> {
        if self.wake(warps) || self.bring_copies(warps)? || self.issue_matmuls(warps)? {
            return Ok(true);
        }
        if warps.iter().all(|w| w.state == State::Done) {
            return self.all_copies_arrived().map(|()| false);
        }
        self.stuck(warps)?;
        self.one_barrier(warps).map(|()| false)
    }

    /// Warps that wait must wait at one instruction. Hardware counts arrivals wherever they are, so
    /// a loop that one warp leaves a turn early would run on undetected, with every later barrier
    /// one step out of phase.
    fn one_barrier(&self, warps: &[Warp]) -> Result<(), (usize, LaneFault, u8)> {
        let mut waiting = warps.iter().filter(|w| w.state == State::AtBarrier).map(|w| (w, w.barrier()));
        let Some((first, barrier)) = waiting.next() else { return Ok(()) };
        let Some((other, pc)) = waiting.find(|&(_, pc)| pc != barrier) else { return Ok(()) };
        let (text, line) = &self.program.text[barrier];
        let lane = other.live.trailing_zeros() as usize % 32;
        let detail =
            format!("warp {} waits here, warp {} waits at `{text}` at {line}", other.index, first.index);
        Err((pc, LaneFault { violation: Violation::Barrier, lane, detail }, other.index))
    }

    /// Adds kernel, line, instruction, block and thread to a lane's fault.
    fn describe(&self, pc: usize, fault: &LaneFault, warp: u8, position: &BlockPosition) -> Fault {
        let thread = warp as u32 * 32 + fault.lane as u32;
        let [x, y, _] = position.block;
        let (text, line) = &self.program.text[pc];
        let message = format!(
            "{} in kernel `{}` at {line}: `{text}`, block {:?}, thread {:?}: {}",
            fault.violation,
            self.program.name,
            position.block_index,
            [thread % x, thread / x % y, thread / x / y],
            fault.detail
        );
        Fault { violation: fault.violation, message }
    }
}
