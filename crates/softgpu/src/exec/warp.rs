//! A warp: its registers, its lanes' positions, its copies in flight.

use super::lanes::{W32, W64};
use super::matmuls::Matmuls;
use crate::decode::{Preset, Program, Special};
use crate::device::tensor_map::{RANK_MAX, TensorMap};

/// Lanes that run together until `reconverge`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) reconverge: u32,
}

/// The state of a warp between turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    AtBarrier,
    /// At a matmul of its warpgroup.
    AtMatmul,
    /// Behind a wait for the phase of this parity, of the barrier at this byte of shared memory.
    AtMbarrier {
        at: usize,
        parity: u32,
    },
    Done,
}

/// One lane's part of a `cp.async`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy16 {
    pub(super) shared: usize,
    pub(super) global: u64,
    pub(super) bytes: u8,
    /// Bytes that come from memory; the rest is zero.
    pub(super) source_bytes: u8,
    pub(super) lane: u8,
}

/// A copy of a box that has not arrived.
pub(super) struct BoxCopy {
    pub(super) map: TensorMap,
    /// The box's first element in the tensor, which may lie outside.
    pub(super) first: [i64; RANK_MAX],
    pub(super) target: usize,
    /// The barrier's index.
    pub(super) barrier: usize,
    pub(super) pc: usize,
    pub(super) warp: u8,
    pub(super) lane: usize,
}

/// State of one warp.
pub(super) struct Warp {
    pub(super) w32: Vec<W32>,
    pub(super) w64: Vec<W64>,
    pub(super) predicates: Vec<u32>,
    pub(super) stack: Vec<Frame>,
    /// Lanes that have not returned.
    pub(super) live: u32,
    pub(super) index: u8,
    pub(super) state: State,
    /// Copies issued since the last commit.
    pub(super) open: Vec<Copy16>,
    /// Committed groups, oldest first.
    pub(super) groups: std::collections::VecDeque<Vec<Copy16>>,
    pub(super) matmuls: Matmuls,
}

/// Position and size of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockPosition {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) block_index: [u32; 3],
}

impl Warp {
    pub(super) fn new(program: &Program, index: u8) -> Self {
        let (w32, w64, predicates) = program.slots;
        Self {
            w32: vec![W32([0; 32]); w32],
            w64: vec![W64([0; 32]); w64],
            predicates: vec![0; predicates],
            stack: Vec::new(),
            live: 0,
            index,
            state: State::Ready,
            open: Vec::new(),
            groups: Default::default(),
            matmuls: Matmuls::new(program),
        }
    }

    /// The instruction that a warp waits at.
    pub(super) fn barrier(&self) -> usize {
        self.stack.last().map_or(0, |top| top.pc as usize - 1)
    }

    /// Puts the warp at the start of the kernel in a block.
    pub(super) fn start(&mut self, program: &Program, position: &BlockPosition) {
        let threads: u32 = position.block.iter().product();
        let first = self.index as u32 * 32;
        let lanes = (threads - first).min(32);
        self.live = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        self.stack.clear();
        self.stack.push(Frame { pc: 0, mask: self.live, reconverge: program.code.len() as u32 });
        self.state = State::Ready;
        self.open.clear();
        self.groups.clear();
        self.matmuls.clear();
        for preset in &program.presets {
            match *preset {
                Preset::W32(at, value) => self.w32[at as usize].0 = [value; 32],
                Preset::W64(at, value) => self.w64[at as usize].0 = [value; 32],
                Preset::Pred(at, value) => self.predicates[at as usize] = if value { u32::MAX } else { 0 },
                Preset::Special(at, special) => {
                    let index = self.index as u32;
                    self.w32[at as usize].0 =
                        std::array::from_fn(|lane| value(special, lane as u32, index, position));
                }
            }
        }
    }
}

fn value(special: Special, lane: u32, warp: u32, position: &BlockPosition) -> u32 {
    let thread = warp * 32 + lane;
    let [x, y, _] = position.block;
    match special {
        Special::Tid(0) => thread % x,
        Special::Tid(1) => thread / x % y,
        Special::Tid(_) => thread / x / y,
        Special::Ntid(axis) => position.block[axis as usize],
        Special::Ctaid(axis) => position.block_index[axis as usize],
        Special::Nctaid(axis) => position.grid[axis as usize],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::LanemaskEq => 1 << lane,
        Special::LanemaskLt => (1 << lane) - 1,
        Special::LanemaskLe => u32::MAX >> (31 - lane),
        Special::LanemaskGe => u32::MAX << lane,
        Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
        Special::Zero => 0,
    }
}
