//! The matmuls of a warp that are in flight, and the rules for their registers.

use std::collections::VecDeque;

use crate::check::{LaneFault, Violation};
use crate::decode::{GroupMatmul, Op, Program, Touched};

/// The matmuls of one warp.
#[derive(Default)]
pub(super) struct Matmuls {
    /// Issued since the last commit.
    pub(super) open: Vec<Matmul>,
    /// Committed groups, oldest first.
    pub(super) groups: VecDeque<Vec<Matmul>>,
    /// For each 32-bit register how many matmuls in flight have it, and the last of them.
    in_flight: Vec<(u16, usize)>,
    /// Registers that were written since the last fence.
    unfenced: Vec<bool>,
    /// A fence was passed.
    has_fence: bool,
}

/// One warp's part of a matmul in flight.
pub(super) struct Matmul {
    pub(super) shape: GroupMatmul,
    /// Its instruction.
    pub(super) pc: usize,
    pub(super) accumulates: bool,
    /// Places in shared memory of its rows of the left operand, unless that is in registers.
    pub(super) left: Vec<usize>,
    pub(super) right: Vec<usize>,
}

impl Matmuls {
    pub(super) fn new(program: &Program) -> Self {
        let registers = if program.touched.is_empty() { 0 } else { program.slots.0 };
        Self { in_flight: vec![(0, 0); registers], unfenced: vec![false; registers], ..Self::default() }
    }

    /// Prepares for the next block.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.groups.clear();
        self.in_flight.fill((0, 0));
        self.unfenced.fill(false);
        self.has_fence = false;
    }

    /// Checks that an instruction touches no register of a matmul in flight, and notes the registers
    /// that it writes. Matmuls have rules of their own.
    #[inline]
    pub(super) fn touch(&mut self, program: &Program, pc: usize) -> Result<(), LaneFault> {
        if let Op::GroupMatmul(_) = program.code[pc].op {
            return Ok(());
        }
        for &Touched { slot, writes } in &program.touched[pc] {
            let (matmuls, last) = self.in_flight[slot as usize];
            if matmuls > 0 {
                let (text, line) = &program.text[last];
                let opcode = text.split_whitespace().next().unwrap_or_default();
                let detail = format!("a register of `{opcode}` at {line}, which was not waited for");
                return Err(LaneFault { violation: Violation::InMatmul, lane: 0, detail });
            }
            self.unfenced[slot as usize] |= writes;
        }
        Ok(())
    }

    /// `wgmma.fence`: what was written to registers may be read by matmuls.
    pub(super) fn fence(&mut self) {
        self.unfenced.fill(false);
        self.has_fence = true;
    }

    pub(super) fn commit(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.groups.push_back(open);
    }

    /// Checks the registers of the matmul at `pc`. Those of sums may be another matmul's that is in
    /// flight, which is done first.
    pub(super) fn check(&self, program: &Program, pc: usize) -> Result<(), (Violation, String)> {
        if !self.has_fence {
            return Err((Violation::Unfenced, "there was no wgmma.fence before".into()));
        }
        let touched = &program.touched[pc];
        if touched.iter().any(|touched| self.unfenced[touched.slot as usize]) {
            let detail = "a register was written with no wgmma.fence after it".into();
            return Err((Violation::Unfenced, detail));
        }
        let is_sum = |slot: u16| touched.iter().any(|touched| touched.writes && touched.slot == slot);
        let mut fragments = touched.iter().filter(|touched| !is_sum(touched.slot));
        if fragments.any(|touched| self.is_sum_in_flight(program, touched.slot)) {
            let detail = "a register of the left operand is the sum of a matmul in flight".into();
            return Err((Violation::InMatmul, detail));
        }
        Ok(())
    }

    fn is_sum_in_flight(&self, program: &Program, slot: u16) -> bool {
        self.groups.iter().flatten().chain(&self.open).any(|matmul| {
            program.touched[matmul.pc].iter().any(|touched| touched.writes && touched.slot == slot)
        })
    }

    pub(super) fn mark(&mut self, program: &Program, pc: usize, on: bool) {
        for touched in program.touched[pc].iter() {
            let (matmuls, last) = &mut self.in_flight[touched.slot as usize];
            if on {
                (*matmuls, *last) = (*matmuls + 1, pc);
            } else {
                *matmuls -= 1;
            }
        }
    }
}
