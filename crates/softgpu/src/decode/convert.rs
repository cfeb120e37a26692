//! `cvt` and `mov`.

use super::arith::{bytes, scalar};
use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{FloatMods, Half, Int1, Op, Round, Type};
use crate::ptx::{Instruction, Operand};

impl Builder<'_> {
    pub(super) fn convert(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let mods = FloatMods { ftz: opcode.take("ftz"), sat: opcode.take("sat") };
        let relu = opcode.take("relu");
        let (round, integral) = conversion_rounding(opcode);
        let from = opcode.pop()?;
        let to = opcode.pop()?;
        if let "bf16x2" | "f16x2" = to {
            if from != "f32" || round != Round::Near || mods.ftz || mods.sat {
                return Err("unknown conversion".into());
            }
            let half = if to == "bf16x2" { Half::Bf16 } else { Half::F16 };
            let mut draft = Draft::new(Op::CvtPair { to: half, relu });
            self.def(&mut draft, &i.operands[0], Class::W32)?;
            self.read(&mut draft, &i.operands[1], Class::W32)?;
            self.read(&mut draft, &i.operands[2], Class::W32)?;
            return Ok(draft);
        }
        let (from, to) = (scalar(from)?, scalar(to)?);
        if relu || (to == Type::F16 || to == Type::Bf16) && !matches!(round, Round::Near | Round::Zero) {
            return Err("unknown conversion".into());
        }
        let mut draft = Draft::new(Op::Cvt { to, from, round, integral, mods });
        // Integer conversions may write a register wider than their type, and read one.
        let to_class = self.class(&i.operands[0]).unwrap_or_else(|| class_of(to));
        let from_class = self.class(&i.operands[1]).unwrap_or_else(|| class_of(from));
        if to_class != class_of(to) || from_class != class_of(from) {
            return Err("the registers have other widths than the types".into());
        }
        self.def(&mut draft, &i.operands[0], to_class)?;
        self.read(&mut draft, &i.operands[1], from_class)?;
        Ok(draft)
    }

    pub(super) fn mov(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let kind = opcode.pop()?;
        let [to, from] = i.operands.as_slice() else { return Err("mov takes two operands".into()) };
        if kind == "pred" {
            let mut draft = Draft::new(Op::PredMov);
            self.def(&mut draft, to, Class::Pred)?;
            self.read(&mut draft, from, Class::Pred)?;
            return Ok(draft);
        }
        let width = bytes(kind);
        let class = if width == 8 { Class::W64 } else { Class::W32 };
        match (to, from) {
            (to, Operand::Vector(items)) => {
                let (part_bits, part) = part(width, items.len())?;
                let mut draft = Draft::new(Op::Pack { part_bits, wide: width == 8 });
                self.def(&mut draft, to, class)?;
                for item in items {
                    self.read_listed(&mut draft, item, part)?;
                }
                Ok(draft)
            }
            (Operand::Vector(items), from) => {
                let (part_bits, part) = part(width, items.len())?;
                let mut draft = Draft::new(Op::Unpack { part_bits, wide: width == 8 });
                self.read(&mut draft, from, class)?;
                for item in items {
                    self.def_listed(&mut draft, item, part)?;
                }
                Ok(draft)
            }
            (to, from) => {
                let op = if width == 8 { Op::U64(Int1::Mov) } else { Op::U32(Int1::Mov) };
                let mut draft = Draft::new(op);
                let masked = match from {
                    Operand::Imm(v) if width == 2 => Operand::Imm(v & 0xFFFF),
                    other => other.clone(),
                };
                self.def(&mut draft, to, class)?;
                self.read(&mut draft, &masked, class)?;
                Ok(draft)
            }
        }
    }
}

fn part(width: usize, count: usize) -> Result<(u8, Class), String> {
    match width / count.max(1) {
        part @ (1 | 2 | 4) if part * count == width => Ok((part as u8 * 8, Class::W32)),
        _ => Err("unknown instruction".into()),
    }
}

fn class_of(kind: Type) -> Class {
    if matches!(kind, Type::U64 | Type::S64 | Type::F64) { Class::W64 } else { Class::W32 }
}

/// `.rn`, `.rni` and the like; integral roundings keep a float a float.
fn conversion_rounding(opcode: &mut Opcode<'_>) -> (Round, bool) {
    let modes = [("n", Round::Near), ("z", Round::Zero), ("m", Round::Down), ("p", Round::Up)];
    for (letter, round) in modes {
        if opcode.take(&format!("r{letter}i")) {
            return (round, true);
        }
        if opcode.take(&format!("r{letter}")) {
            return (round, false);
        }
    }
    (Round::Near, false)
}
