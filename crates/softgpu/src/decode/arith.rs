//! Integer, floating-point and predicate arithmetic.

use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{Combine, Compare, Float1, Float2, FloatMods, Half, HalfOp, Int1, Int2, Op, Round, Type};
use crate::ptx::{Instruction, Operand};

/// Classes of result and sources, in operand order.
type Signature = (Op, Class, &'static [Class]);

use Class::{Pred, W32, W64};

impl Builder<'_> {
    pub(super) fn arith(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        match opcode.name {
            "setp" => return self.setp(opcode, i),
            "selp" => return self.selp(opcode, i),
            "lop3" => return self.lop3(opcode, i),
            _ => {}
        }
        let kind = opcode.pop()?;
        let (op, result, sources) = match kind {
            "f32" => float32(opcode)?,
            "f64" => float64(opcode)?,
            "bf16" | "bf16x2" => half(opcode, Half::Bf16)?,
            "f16" | "f16x2" => half(opcode, Half::F16)?,
            "pred" => predicate(opcode)?,
            "b32" if matches!(opcode.name, "shf" | "prmt" | "bfi") => bits(opcode)?,
            _ => integer(opcode, kind)?,
        };
        if i.operands.len() != 1 + sources.len() {
            return Err("unexpected number of operands".into());
        }
        let mut draft = Draft::new(op);
        self.def(&mut draft, &i.operands[0], result)?;
        for (operand, class) in i.operands[1..].iter().zip(sources) {
            self.read(&mut draft, operand, *class)?;
        }
        Ok(draft)
    }

    fn setp(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let of = scalar(opcode.pop()?)?;
        opcode.take("ftz");
        let compare = compare(opcode.shift(), of)?;
        let combine = match opcode.shift() {
            "" => Combine::None,
            "and" => Combine::And,
            "or" => Combine::Or,
            "xor" => Combine::Xor,
            other => return Err(format!("`.{other}`")),
        };
        let class = if matches!(of, Type::U64 | Type::S64 | Type::F64) { W64 } else { W32 };
        let (p, q) = match &i.operands[0] {
            Operand::Pair(p, q) => ((**p).clone(), (**q).clone()),
            p => (p.clone(), Operand::Sink),
        };
        let third = i.operands.get(3).cloned().unwrap_or(Operand::Imm(1));
        let (third, negate_c) = match third {
            Operand::NotReg(r) => (Operand::Reg(r), true),
            other => (other, false),
        };
        let mut draft = Draft::new(Op::Setp { compare, of, combine, negate_c });
        self.def(&mut draft, &p, Pred)?;
        self.def(&mut draft, &q, Pred)?;
        self.read(&mut draft, &i.operands[1], class)?;
        self.read(&mut draft, &i.operands[2], class)?;
        self.read(&mut draft, &third, Pred)?;
        Ok(draft)
    }

    fn selp(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let wide = bytes(opcode.pop()?) == 8;
        let class = if wide { W64 } else { W32 };
        let mut draft = Draft::new(if wide { Op::Select64 } else { Op::Select32 });
        self.def(&mut draft, &i.operands[0], class)?;
        self.read(&mut draft, &i.operands[1], class)?;
        self.read(&mut draft, &i.operands[2], class)?;
        self.read(&mut draft, &i.operands[3], Pred)?;
        Ok(draft)
    }

    fn lop3(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        if opcode.pop()? != "b32" {
            return Err("only lop3.b32".into());
        }
        let Some(Operand::Imm(table)) = i.operands.get(4) else {
            return Err("the table is not a constant".into());
        };
        let mut draft = Draft::new(Op::Lop3);
        draft.inst.imm = *table as i64;
        self.def(&mut draft, &i.operands[0], W32)?;
        for operand in &i.operands[1..4] {
            self.read(&mut draft, operand, W32)?;
        }
        Ok(draft)
    }
}

fn integer(opcode: &mut Opcode<'_>, kind: &str) -> Result<Signature, String> {
    let signed = kind.starts_with('s');
    if !matches!(kind, "b16" | "u16" | "s16" | "b32" | "u32" | "s32" | "b64" | "u64" | "s64") {
        return Err("unknown instruction".into());
    }
    let pick = |s, u| if signed { s } else { u };
    let two: &[Class] = if bytes(kind) == 8 { &[W64, W64] } else { &[W32, W32] };
    let three: &[Class] = if bytes(kind) == 8 { &[W64; 3] } else { &[W32; 3] };
    let class = two[0];
    let wrap2 = |op: Int2| match bytes(kind) {
        2 => Op::I16(op),
        4 => Op::I32(op),
        _ => Op::I64(op),
    };
    let wrap1 = |op: Int1| match bytes(kind) {
        2 => Op::U16(op),
        4 => Op::U32(op),
        _ => Op::U64(op),
    };
    let shift: &[Class] = if bytes(kind) == 8 { &[W64, W32] } else { &[W32, W32] };
    let name = opcode.name;
    Ok(match name {
        "add" => (wrap2(Int2::Add), class, two),
        "sub" => (wrap2(Int2::Sub), class, two),
        "mul" if opcode.take("wide") => match bytes(kind) {
            2 => (Op::MulWide16 { signed }, W32, &[W32, W32]),
            4 => (Op::MulWide { signed }, W64, &[W32, W32]),
            _ => return Err("unknown instruction".into()),
        },
        "mul" if opcode.take("hi") => (wrap2(pick(Int2::MulHiS, Int2::MulHiU)), class, two),
        "mul" if opcode.take("lo") => (wrap2(Int2::MulLo), class, two),
        "mad" if opcode.take("wide") && bytes(kind) == 4 => (Op::MadWide { signed }, W64, &[W32, W32, W64]),
        "mad" if opcode.take("hi") && bytes(kind) == 4 => (Op::MadHi { signed }, W32, three),
        "mad" if opcode.take("lo") => match bytes(kind) {
            2 => (Op::Mad16, W32, three),
            4 => (Op::Mad32, W32, three),
            _ => (Op::Mad64, W64, three),
        },
        "div" => (wrap2(pick(Int2::DivS, Int2::DivU)), class, two),
        "rem" => (wrap2(pick(Int2::RemS, Int2::RemU)), class, two),
        "min" => (wrap2(pick(Int2::MinS, Int2::MinU)), class, two),
        "max" => (wrap2(pick(Int2::MaxS, Int2::MaxU)), class, two),
        "and" => (wrap2(Int2::And), class, two),
        "or" => (wrap2(Int2::Or), class, two),
        "xor" => (wrap2(Int2::Xor), class, two),
        "shl" => (wrap2(Int2::Shl), class, shift),
        "shr" => (wrap2(pick(Int2::ShrS, Int2::ShrU)), class, shift),
        "not" => (wrap1(Int1::Not), class, &two[..1]),
        "neg" => (wrap1(Int1::Neg), class, &two[..1]),
        "abs" => (wrap1(Int1::Abs), class, &two[..1]),
        "brev" => (wrap1(Int1::Brev), class, &two[..1]),
        "popc" if bytes(kind) == 8 => (Op::Popc64, W32, &[W64]),
        "popc" => (Op::U32(Int1::Popc), W32, &[W32]),
        "clz" if bytes(kind) == 8 => (Op::Clz64, W32, &[W64]),
        "clz" => (Op::U32(Int1::Clz), W32, &[W32]),
        "bfe" if bytes(kind) == 4 => (Op::Bfe { signed }, W32, three),
        _ => return Err("unknown instruction".into()),
    })
}

fn bits(opcode: &mut Opcode<'_>) -> Result<Signature, String> {
    Ok(match opcode.name {
        "prmt" => (Op::Prmt, W32, &[W32; 3]),
        "bfi" => (Op::Bfi, W32, &[W32; 4]),
        "shf" => {
            let left = opcode.take("l");
            let wrap = opcode.take("wrap");
            if !left && !opcode.take("r") || !wrap && !opcode.take("clamp") {
                return Err("unknown instruction".into());
            }
            (if left { Op::FunnelLeft { wrap } } else { Op::FunnelRight { wrap } }, W32, &[W32; 3])
        }
        _ => return Err("unknown instruction".into()),
    })
}

fn predicate(opcode: &mut Opcode<'_>) -> Result<Signature, String> {
    Ok(match opcode.name {
        "and" => (Op::PredAnd, Pred, &[Pred, Pred]),
        "or" => (Op::PredOr, Pred, &[Pred, Pred]),
        "xor" => (Op::PredXor, Pred, &[Pred, Pred]),
        "not" => (Op::PredNot, Pred, &[Pred]),
        _ => return Err("unknown instruction".into()),
    })
}

fn float32(opcode: &mut Opcode<'_>) -> Result<Signature, String> {
    let mods = FloatMods { ftz: opcode.take("ftz"), sat: opcode.take("sat") };
    let nan = opcode.take("NaN");
    let approx = opcode.take("approx");
    let full = opcode.take("full");
    let round = rounding(opcode);
    let near = round.is_none_or(|r| r == Round::Near);
    let one = |op| (Op::F32One(op, mods), W32, &[W32; 1] as &[Class]);
    let two = |op| (Op::F32(op, mods), W32, &[W32; 2] as &[Class]);
    Ok(match opcode.name {
        "add" if near => two(Float2::Add),
        "sub" if near => two(Float2::Sub),
        "mul" if near => two(Float2::Mul),
        // div.approx and div.full err by 2 ulp at most; the rounded quotient is within that.
        "div" if near || approx || full => two(Float2::Div),
        "min" => two(if nan { Float2::MinNan } else { Float2::Min }),
        "max" => two(if nan { Float2::MaxNan } else { Float2::Max }),
        "fma" | "mad" if near => (Op::FmaF32(mods), W32, &[W32; 3]),
        "fma" => (Op::FmaF32Directed(round.unwrap_or(Round::Near), mods), W32, &[W32; 3]),
        "neg" => one(Float1::Neg),
        "abs" => one(Float1::Abs),
        "sqrt" if near => one(Float1::Sqrt),
        "rcp" if near => one(Float1::Rcp),
        "rsqrt" if approx => one(Float1::Rsqrt),
        "ex2" if approx => one(Float1::Ex2),
        "lg2" if approx => one(Float1::Lg2),
        "sin" if approx => one(Float1::Sin),
        "cos" if approx => one(Float1::Cos),
        "tanh" if approx => one(Float1::Tanh),
        _ => return Err("unknown instruction".into()),
    })
}

fn float64(opcode: &mut Opcode<'_>) -> Result<Signature, String> {
    if rounding(opcode).is_some_and(|r| r != Round::Near) {
        return Err("unknown instruction".into());
    }
    Ok(match opcode.name {
        "add" => (Op::F64(Float2::Add), W64, &[W64; 2]),
        "sub" => (Op::F64(Float2::Sub), W64, &[W64; 2]),
        "mul" => (Op::F64(Float2::Mul), W64, &[W64; 2]),
        "div" => (Op::F64(Float2::Div), W64, &[W64; 2]),
        "min" => (Op::F64(Float2::Min), W64, &[W64; 2]),
        "max" => (Op::F64(Float2::Max), W64, &[W64; 2]),
        "fma" => (Op::FmaF64, W64, &[W64; 3]),
        "neg" => (Op::F64One(Float1::Neg), W64, &[W64]),
        "abs" => (Op::F64One(Float1::Abs), W64, &[W64]),
        "sqrt" => (Op::F64One(Float1::Sqrt), W64, &[W64]),
        "rcp" => (Op::F64One(Float1::Rcp), W64, &[W64]),
        _ => return Err("unknown instruction".into()),
    })
}

/// Both lanes of a packed pair are computed always; the upper half of a 16-bit register is zero and
/// stays unused.
fn half(opcode: &mut Opcode<'_>, of: Half) -> Result<Signature, String> {
    if rounding(opcode).is_some_and(|r| r != Round::Near) {
        return Err("unknown instruction".into());
    }
    let two = |op| (Op::HalfTwo { op, of }, W32, &[W32; 2] as &[Class]);
    let one = |op| (Op::HalfOne { op, of }, W32, &[W32; 1] as &[Class]);
    Ok(match opcode.name {
        "add" => two(HalfOp::Add),
        "sub" => two(HalfOp::Sub),
        "mul" => two(HalfOp::Mul),
        "min" => two(HalfOp::Min),
        "max" => two(HalfOp::Max),
        "fma" => (Op::HalfTwo { op: HalfOp::Fma, of }, W32, &[W32; 3]),
        "neg" => one(HalfOp::Neg),
        "abs" => one(HalfOp::Abs),
        _ => return Err("unknown instruction".into()),
    })
}

/// Takes the rounding mode, if one is written.
pub(super) fn rounding(opcode: &mut Opcode<'_>) -> Option<Round> {
    let modes = [("rn", Round::Near), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
    modes.into_iter().find(|(name, _)| opcode.take(name)).map(|(_, round)| round)
}

/// Bytes of a type name.
pub(super) fn bytes(kind: &str) -> usize {
    let digits: String = kind.trim_end_matches("x2").chars().filter(char::is_ascii_digit).collect();
    let packed = if kind.ends_with("x2") { 2 } else { 1 };
    digits.parse::<usize>().map_or(0, |bits| bits / 8 * packed)
}

/// A scalar type by name; untyped bits count as unsigned.
pub(super) fn scalar(kind: &str) -> Result<Type, String> {
    Ok(match kind {
        "u8" | "b8" => Type::U8,
        "u16" | "b16" => Type::U16,
        "u32" | "b32" => Type::U32,
        "u64" | "b64" => Type::U64,
        "s8" => Type::S8,
        "s16" => Type::S16,
        "s32" => Type::S32,
        "s64" => Type::S64,
        "f16" => Type::F16,
        "bf16" => Type::Bf16,
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => return Err(format!("type `.{kind}`")),
    })
}

fn compare(name: &str, of: Type) -> Result<Compare, String> {
    let float = matches!(of, Type::F16 | Type::Bf16 | Type::F32 | Type::F64);
    Ok(match name {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "equ" if float => Compare::EqU,
        "neu" if float => Compare::NeU,
        "ltu" if float => Compare::LtU,
        "leu" if float => Compare::LeU,
        "gtu" if float => Compare::GtU,
        "geu" if float => Compare::GeU,
        "num" if float => Compare::Num,
        "nan" if float => Compare::Nan,
        _ => return Err(format!("comparison `.{name}`")),
    })
}
