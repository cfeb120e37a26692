//! `mbarrier`: barriers in shared memory, by 32-bit addresses; and `setmaxnreg`.

use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{Op, Space};
use crate::ptx::{Instruction, Operand};

impl Builder<'_> {
    pub(super) fn mbarrier(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let kind = opcode.shift();
        opcode.take_any(&["shared", "shared::cta", "release", "acquire", "cta"]);
        let expects = opcode.take("expect_tx");
        let by_parity = opcode.take("parity");
        if opcode.pop()? != "b64" || expects && kind != "arrive" {
            return Err("unknown instruction".into());
        }
        match (kind, i.operands.as_slice()) {
            ("init", [barrier, count]) => {
                let mut draft = Draft::new(Op::MbarrierInit);
                self.mbarrier_address(&mut draft, barrier)?;
                self.read(&mut draft, count, Class::W32)?;
                Ok(draft)
            }
            ("arrive", [Operand::Sink, barrier, number @ ..]) if number.len() <= 1 => {
                let mut draft = Draft::new(Op::MbarrierArrive);
                self.mbarrier_address(&mut draft, barrier)?;
                let number = number.first().cloned();
                let (bytes, count) = if expects { (number, None) } else { (None, number) };
                self.read(&mut draft, &bytes.unwrap_or(Operand::Imm(0)), Class::W32)?;
                self.read(&mut draft, &count.unwrap_or(Operand::Imm(1)), Class::W32)?;
                Ok(draft)
            }
            // With a limit of time or without: a wait that fails lets others run.
            ("try_wait" | "test_wait", [done, barrier, parity, limit @ ..])
                if by_parity && limit.len() <= 1 =>
            {
                let mut draft = Draft::new(Op::MbarrierWait);
                self.def(&mut draft, done, Class::Pred)?;
                self.mbarrier_address(&mut draft, barrier)?;
                self.read(&mut draft, parity, Class::W32)?;
                Ok(draft)
            }
            _ => Err("unknown instruction".into()),
        }
    }

    fn mbarrier_address(&mut self, draft: &mut Draft, operand: &Operand) -> Result<(), String> {
        match self.memory_address(draft, operand, Space::Shared)? {
            Space::Shared => Ok(()),
            _ => Err("the address of a barrier has 64 bits".into()),
        }
    }

    pub(super) fn set_registers(
        &mut self,
        opcode: &mut Opcode<'_>,
        i: &Instruction,
    ) -> Result<Draft, String> {
        let changes = opcode.take_any(&["inc", "dec"]);
        let is_whole = opcode.take("sync") && opcode.take("aligned");
        let [Operand::Imm(count)] = i.operands.as_slice() else {
            return Err("the count is not a constant".into());
        };
        if !changes || !is_whole || opcode.pop()? != "u32" {
            return Err("unknown instruction".into());
        }
        if !(24..=256).contains(count) || !count.is_multiple_of(8) {
            return Err("the count is not a multiple of 8 from 24 to 256".into());
        }
        let mut draft = Draft::new(Op::SetRegisters);
        draft.inst.imm = *count as i64;
        Ok(draft)
    }
}
