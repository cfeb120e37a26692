//! Branches, barriers, and exchanges between the lanes of a warp.

use super::arith::bytes;
use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{Int2, Op, Shuffle, Vote};
use crate::ptx::{Instruction, Operand};

impl Builder<'_> {
    pub(super) fn control(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        match opcode.name {
            "bra" => {
                opcode.take("uni");
                let Some(Operand::Label(label)) = i.operands.first() else {
                    return Err("the target is not a label".into());
                };
                let mut draft = Draft::new(Op::Branch);
                draft.inst.imm = self.entry.labels[*label as usize] as i64;
                Ok(draft)
            }
            "ret" | "exit" => {
                opcode.take("uni");
                Ok(Draft::new(Op::Ret))
            }
            "trap" => Ok(Draft::new(Op::Trap)),
            "bar" | "barrier" => self.barrier(opcode, i),
            "shfl" => self.shuffle(opcode, i),
            "vote" => self.vote(opcode, i),
            "redux" => self.redux(opcode, i),
            "activemask" => {
                opcode.take("b32");
                let mut draft = Draft::new(Op::ActiveMask);
                self.def(&mut draft, &i.operands[0], Class::W32)?;
                Ok(draft)
            }
            // Other fences order nothing here: warps of a block take turns, blocks run one after another.
            _ => {
                if opcode.take("proxy") {
                    opcode.take("shared::cta");
                    let is_known = opcode.take("async");
                    return if is_known {
                        Ok(Draft::new(Op::ProxyFence))
                    } else {
                        Err("unknown proxy".into())
                    };
                }
                if opcode.take("mbarrier_init") {
                    opcode.take_any(&["release", "cluster"]);
                    return Ok(Draft::new(Op::MbarrierFence));
                }
                let scopes = ["gl", "cta", "sys", "gpu", "sc", "acq_rel", "u32", "wait", "launch_dependents"];
                opcode.take_any(&scopes);
                Ok(Draft::new(Op::Nop))
            }
        }
    }

    fn barrier(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        opcode.take_any(&["cta", "aligned"]);
        if opcode.take("warp") {
            opcode.take("sync");
            let mut draft = Draft::new(Op::BarWarp);
            self.read(&mut draft, &i.operands[0], Class::W32)?;
            return Ok(draft);
        }
        match i.operands.as_slice() {
            [Operand::Imm(0)] if opcode.take("sync") => Ok(Draft::new(Op::BarSync)),
            _ => Err("only barrier 0 over the whole block".into()),
        }
    }

    fn shuffle(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        if !opcode.take("sync") || opcode.pop()? != "b32" {
            return Err("unknown instruction".into());
        }
        let mode = match opcode.shift() {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Bfly,
            "idx" => Shuffle::Idx,
            _ => return Err("unknown mode".into()),
        };
        let (value, valid) = match &i.operands[0] {
            Operand::Pair(d, p) => ((**d).clone(), (**p).clone()),
            d => (d.clone(), Operand::Sink),
        };
        let mut draft = Draft::new(Op::Shfl(mode));
        self.def(&mut draft, &value, Class::W32)?;
        self.def(&mut draft, &valid, Class::Pred)?;
        for operand in &i.operands[1..4] {
            self.read(&mut draft, operand, Class::W32)?;
        }
        self.read_listed(&mut draft, &i.operands[4], Class::W32)?;
        Ok(draft)
    }

    fn vote(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        if !opcode.take("sync") {
            return Err("unknown instruction".into());
        }
        opcode.pop()?;
        let mode = match opcode.shift() {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uni,
            "ballot" => Vote::Ballot,
            _ => return Err("unknown mode".into()),
        };
        let (source, negated) = match &i.operands[1] {
            Operand::NotReg(r) => (Operand::Reg(*r), true),
            other => (other.clone(), false),
        };
        let mut draft = Draft::new(Op::VoteSync(mode, negated));
        let class = if mode == Vote::Ballot { Class::W32 } else { Class::Pred };
        self.def(&mut draft, &i.operands[0], class)?;
        self.read(&mut draft, &source, Class::Pred)?;
        self.read(&mut draft, &i.operands[2], Class::W32)?;
        Ok(draft)
    }

    fn redux(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let kind = opcode.pop()?;
        if !opcode.take("sync") || bytes(kind) != 4 || kind == "f32" {
            return Err("unknown instruction".into());
        }
        let signed = kind.starts_with('s');
        let op = match opcode.shift() {
            "add" => Int2::Add,
            "min" => {
                if signed {
                    Int2::MinS
                } else {
                    Int2::MinU
                }
            }
            "max" => {
                if signed {
                    Int2::MaxS
                } else {
                    Int2::MaxU
                }
            }
            "and" => Int2::And,
            "or" => Int2::Or,
            "xor" => Int2::Xor,
            _ => return Err("unknown operation".into()),
        };
        let mut draft = Draft::new(Op::Redux(op));
        self.def(&mut draft, &i.operands[0], Class::W32)?;
        self.read(&mut draft, &i.operands[1], Class::W32)?;
        self.read(&mut draft, &i.operands[2], Class::W32)?;
        Ok(draft)
    }
}
