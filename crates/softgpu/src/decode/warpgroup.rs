//! `wgmma`: matmuls of a warpgroup, four warps, and the instructions that order them.

use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{GroupMatmul, Half, Op};
use super::memory::items;
use crate::ptx::{Instruction, Operand};

impl Builder<'_> {
    pub(super) fn warpgroup(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let kind = opcode.shift();
        if !opcode.take("sync") || !opcode.take("aligned") {
            return Err("unknown instruction".into());
        }
        match kind {
            "mma_async" => self.group_matmul(opcode, i),
            "fence" => Ok(Draft::new(Op::GroupFence)),
            "commit_group" => Ok(Draft::new(Op::GroupCommit)),
            "wait_group" => {
                let Some(Operand::Imm(groups)) = i.operands.first() else {
                    return Err("the count is not a constant".into());
                };
                let mut draft = Draft::new(Op::GroupWait);
                draft.inst.imm = *groups as i64;
                Ok(draft)
            }
            _ => Err("unknown instruction".into()),
        }
    }

    fn group_matmul(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let columns = opcode.shift().strip_prefix("m64n").and_then(|rest| rest.strip_suffix("k16"));
        let columns: u16 = columns.and_then(|columns| columns.parse().ok()).ok_or("unknown shape")?;
        if !columns.is_multiple_of(8) || !(8..=256).contains(&columns) {
            return Err("unknown shape".into());
        }
        let half = match [opcode.shift(), opcode.shift(), opcode.shift()] {
            ["f32", "bf16", "bf16"] => Half::Bf16,
            ["f32", "f16", "f16"] => Half::F16,
            _ => return Err("unknown types".into()),
        };
        let [d, a, b, accumulates, modifiers @ ..] = i.operands.as_slice() else {
            return Err("operands".into());
        };
        let registers = matches!(a, Operand::Vector(_));
        // Factors of a and b, then which of those in memory are transposed.
        let transposed = match (modifiers, registers) {
            ([Operand::Imm(1), Operand::Imm(1), Operand::Imm(b)], true)
            | ([Operand::Imm(1), Operand::Imm(1), Operand::Imm(0), Operand::Imm(b)], false)
                if *b < 2 =>
            {
                *b == 1
            }
            _ => return Err("only factors of 1, and no transposed left operand".into()),
        };
        let mut draft = Draft::new(Op::GroupMatmul(GroupMatmul { columns, half, registers, transposed }));
        let sums = items(d);
        if sums.len() != usize::from(columns) / 2 {
            return Err("unexpected number of accumulators".into());
        }
        for item in sums {
            self.update_listed(&mut draft, item, Class::W32)?;
        }
        self.read(&mut draft, b, Class::W64)?;
        self.read(&mut draft, accumulates, Class::Pred)?;
        if registers {
            let fragments = items(a);
            if fragments.len() != 4 {
                return Err("unexpected number of fragment registers".into());
            }
            for item in fragments {
                self.read_listed(&mut draft, item, Class::W32)?;
            }
        } else {
            self.read(&mut draft, a, Class::W64)?;
        }
        Ok(draft)
    }
}
