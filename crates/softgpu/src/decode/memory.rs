//! Loads, stores, atomics, asynchronous copies, matrix loads, tensor-core matmuls, address
//! conversions.

use super::arith::{bytes, scalar};
use super::builder::{Builder, Class, Draft, Opcode};
use super::inst::{Atomic, Half, Int1, Mma, Op, Shape, Space, Type};
use crate::ptx::{Instruction, Operand, RegClass};

/// Hints without an effect on the result of a load or store.
const HINTS: [&str; 17] = [
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "relaxed",
    "volatile",
    "gpu",
    "cta",
    "L1::no_allocate",
    "L2::128B",
    "L2::256B",
    "L2::64B",
];

impl Builder<'_> {
    pub(super) fn memory(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        match opcode.name {
            "ld" | "ldu" => self.load(opcode, i),
            "st" => self.store(opcode, i),
            "atom" | "red" => self.atomic(opcode, i),
            "cvta" => self.cvta(opcode, i),
            "cp" => self.copy_async(opcode, i),
            "ldmatrix" => self.ldmatrix(opcode, i),
            "mma" => self.mma(opcode, i),
            _ => {
                opcode.take_any(&[
                    "global",
                    "L1",
                    "L2",
                    "L2::evict_last",
                    "L2::evict_normal",
                    "128",
                    "param",
                    "tensormap",
                ]);
                Ok(Draft::new(Op::Nop))
            }
        }
    }

    fn load(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let (space, shape, class) = self.shape(opcode, &i.operands[0])?;
        let mut draft = Draft::new(Op::Load(space, shape));
        let items = items(&i.operands[0]);
        if items.len() != shape.count as usize {
            return Err("the vector has another length than the instruction".into());
        }
        let space = self.memory_address(&mut draft, &i.operands[1], space)?;
        draft.inst.op = Op::Load(space, shape);
        for item in items {
            self.def_listed(&mut draft, item, class)?;
        }
        Ok(draft)
    }

    fn store(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let (space, shape, class) = self.shape(opcode, &i.operands[1])?;
        let mut draft = Draft::new(Op::Store(space, shape));
        let items = items(&i.operands[1]);
        if items.len() != shape.count as usize {
            return Err("the vector has another length than the instruction".into());
        }
        let space = self.memory_address(&mut draft, &i.operands[0], space)?;
        draft.inst.op = Op::Store(space, shape);
        for item in items {
            self.read_listed(&mut draft, item, class)?;
        }
        Ok(draft)
    }

    /// The address operand; the space comes back as its long form when the register is 64 bits
    /// wide.
    pub(super) fn memory_address(
        &mut self,
        draft: &mut Draft,
        operand: &Operand,
        space: Space,
    ) -> Result<Space, String> {
        let Operand::Memory(base, offset) = operand else { return Err("expected [address]".into()) };
        let (want, space) = match (space, self.class(base)) {
            (Space::Shared, Some(Class::W64)) => (Class::W64, Space::SharedLong),
            (Space::Param, Some(Class::W64)) => (Class::W64, Space::ParamLong),
            (Space::Shared | Space::Param, _) => (Class::W32, space),
            _ => (Class::W64, space),
        };
        draft.inst.imm = *offset;
        self.read(draft, base, want)?;
        Ok(space)
    }

    /// Space, shape and register class of a load or store.
    fn shape(&mut self, opcode: &mut Opcode<'_>, value: &Operand) -> Result<(Space, Shape, Class), String> {
        opcode.take_any(&HINTS);
        let space = space(opcode);
        let kind = opcode.pop()?;
        let count = if opcode.take("v2") {
            2
        } else if opcode.take("v4") {
            4
        } else {
            1
        };
        let signed = kind.starts_with('s');
        let first = items(value)[0];
        let (class, register_bits) = match first {
            Operand::Reg(r) => match self.entry.registers.get(*r as usize) {
                Some(RegClass::B64) => (Class::W64, 64),
                Some(RegClass::B16) => (Class::W32, 16),
                _ => (Class::W32, 32),
            },
            _ if bytes(kind) == 8 => (Class::W64, 64),
            _ => (Class::W32, 32),
        };
        let elem = bytes(kind) as u8;
        if !matches!(elem, 1 | 2 | 4 | 8) || elem * 8 > register_bits && elem > 1 {
            return Err("unknown type".into());
        }
        Ok((space, Shape { elem, count, signed, wide: class == Class::W64, register_bits }, class))
    }

    fn atomic(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let returns = opcode.name == "atom";
        opcode.take_any(&["relaxed", "gpu", "cta", "acquire", "release", "acq_rel"]);
        let space = space(opcode);
        let kind = opcode.pop()?;
        let signed = kind.starts_with('s');
        let op = match opcode.shift() {
            "add" if kind == "f32" => Atomic::AddF32,
            "add" if !kind.starts_with('f') => Atomic::Add,
            "min" => {
                if signed {
                    Atomic::MinS
                } else {
                    Atomic::MinU
                }
            }
            "max" => {
                if signed {
                    Atomic::MaxS
                } else {
                    Atomic::MaxU
                }
            }
            "and" => Atomic::And,
            "or" => Atomic::Or,
            "xor" => Atomic::Xor,
            "exch" => Atomic::Exch,
            "cas" => Atomic::Cas,
            _ => return Err("unknown instruction".into()),
        };
        let wide = match bytes(kind) {
            4 => false,
            8 => true,
            _ => return Err("unknown type".into()),
        };
        let class = if wide { Class::W64 } else { Class::W32 };
        let mut draft = Draft::new(Op::Atom { space, op, wide, returns });
        let (target, rest) = if returns {
            (i.operands[0].clone(), &i.operands[1..])
        } else {
            (Operand::Sink, &i.operands[..])
        };
        self.def(&mut draft, &target, class)?;
        let space = self.memory_address(&mut draft, &rest[0], space)?;
        draft.inst.op = Op::Atom { space, op, wide, returns };
        self.read(&mut draft, &rest[1], class)?;
        self.read(&mut draft, rest.get(2).unwrap_or(&Operand::Imm(0)), class)?;
        Ok(draft)
    }

    fn cvta(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let to = opcode.take("to");
        let op = match (opcode.shift(), to) {
            ("global", _) => Op::U64(Int1::Mov),
            ("shared", true) => Op::GenericToShared,
            ("shared", false) => Op::SharedToGeneric,
            ("param", false) => Op::ParamToGeneric,
            _ => return Err("unknown instruction".into()),
        };
        if opcode.pop()? != "u64" {
            return Err("unknown instruction".into());
        }
        let mut draft = Draft::new(op);
        self.def(&mut draft, &i.operands[0], Class::W64)?;
        self.read(&mut draft, &i.operands[1], Class::W64)?;
        Ok(draft)
    }

    fn copy_async(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        if !opcode.take("async") {
            return Err("unknown instruction".into());
        }
        if opcode.take("bulk") {
            return self.copy_box(opcode, i);
        }
        if opcode.take("commit_group") {
            return Ok(Draft::new(Op::CpAsyncCommit));
        }
        if opcode.take("wait_group") {
            let Some(Operand::Imm(n)) = i.operands.first() else {
                return Err("the count is not a constant".into());
            };
            let mut draft = Draft::new(Op::CpAsyncWait { all: false });
            draft.inst.imm = *n as i64;
            return Ok(draft);
        }
        if opcode.take("wait_all") {
            return Ok(Draft::new(Op::CpAsyncWait { all: true }));
        }
        opcode.take_any(&["ca", "cg", "shared", "shared::cta", "global", "L2::128B", "L2::256B", "L2::64B"]);
        let [to, from, Operand::Imm(size), rest @ ..] = i.operands.as_slice() else {
            return Err("operands".into());
        };
        if !matches!(size, 4 | 8 | 16) {
            return Err("the size is not 4, 8 or 16".into());
        }
        let mut draft = Draft::new(Op::CpAsync { bytes: *size as u8, sized: !rest.is_empty() });
        let (Operand::Memory(shared, shared_offset), Operand::Memory(global, global_offset)) = (to, from)
        else {
            return Err("expected [address]".into());
        };
        if *shared_offset != 0 && *global_offset != 0 {
            // One immediate a side: the shared one is in the upper half.
            let fits = |v: i64| i32::try_from(v).is_ok();
            if !fits(*shared_offset) || !fits(*global_offset) {
                return Err("an offset is too large".into());
            }
        }
        draft.inst.imm = (*shared_offset << 32) | (*global_offset & 0xFFFF_FFFF);
        self.read(&mut draft, shared, Class::W32)?;
        self.read(&mut draft, global, Class::W64)?;
        self.read(&mut draft, rest.first().unwrap_or(&Operand::Imm(*size)), Class::W32)?;
        Ok(draft)
    }

    /// `cp.async.bulk.tensor`, into shared memory.
    fn copy_box(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        let is_tensor = opcode.take("tensor");
        opcode.take_any(&["shared::cluster", "shared::cta", "global", "tile"]);
        if !is_tensor || !opcode.take("mbarrier::complete_tx::bytes") {
            return Err("unknown instruction".into());
        }
        let rank = opcode.shift().strip_suffix('d').and_then(|rank| rank.parse::<usize>().ok());
        let [Operand::Memory(target, 0), Operand::Memory(source, 0), Operand::Memory(barrier, 0)] =
            i.operands.as_slice()
        else {
            return Err("operands".into());
        };
        let Operand::Vector(parts) = &**source else { return Err("there are no coordinates".into()) };
        let [map, coordinates] = parts.as_slice() else { return Err("operands".into()) };
        let coordinates = items(coordinates);
        if rank != Some(coordinates.len()) {
            return Err("the vector has another length than the instruction".into());
        }
        let mut draft = Draft::new(Op::CopyBox);
        self.read(&mut draft, target, Class::W32)?;
        self.read(&mut draft, map, Class::W64)?;
        self.read(&mut draft, barrier, Class::W32)?;
        for coordinate in coordinates {
            self.read_listed(&mut draft, coordinate, Class::W32)?;
        }
        Ok(draft)
    }

    fn ldmatrix(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        opcode.take_any(&["sync", "aligned", "shared", "shared::cta"]);
        let transposed = opcode.take("trans");
        let count = if opcode.take("x1") {
            1
        } else if opcode.take("x2") {
            2
        } else if opcode.take("x4") {
            4
        } else {
            0
        };
        if !opcode.take("m8n8") || opcode.pop()? != "b16" {
            return Err("unknown instruction".into());
        }
        let items = items(&i.operands[0]);
        if items.len() != count {
            return Err("the vector has another length than the instruction".into());
        }
        let mut draft = Draft::new(Op::Ldmatrix { transposed, wide: false });
        let space = self.memory_address(&mut draft, &i.operands[1], Space::Shared)?;
        draft.inst.op = Op::Ldmatrix { transposed, wide: space == Space::SharedLong };
        for item in items {
            self.def_listed(&mut draft, item, Class::W32)?;
        }
        Ok(draft)
    }

    fn mma(&mut self, opcode: &mut Opcode<'_>, i: &Instruction) -> Result<Draft, String> {
        opcode.take_any(&["sync", "aligned", "row", "col"]);
        let shape = opcode.shift();
        let types = [opcode.shift(), opcode.shift(), opcode.shift(), opcode.shift()].map(scalar);
        let [Ok(Type::F32), Ok(a), Ok(b), Ok(Type::F32)] = types else { return Err("unknown types".into()) };
        let half = match (a, b) {
            (Type::Bf16, Type::Bf16) => Half::Bf16,
            (Type::F16, Type::F16) => Half::F16,
            _ => return Err("unknown types".into()),
        };
        let (mma, counts) = match shape {
            "m16n8k16" => (Mma::M16N8K16(half), [4, 4, 2, 4]),
            "m16n8k8" => (Mma::M16N8K8(half), [4, 2, 1, 4]),
            _ => return Err("unknown shape".into()),
        };
        let mut draft = Draft::new(Op::Mma(mma));
        for (at, (operand, count)) in i.operands.iter().zip(counts).enumerate() {
            let items = items(operand);
            if items.len() != count {
                return Err("unexpected number of fragment registers".into());
            }
            for item in items {
                if at == 0 {
                    self.def_listed(&mut draft, item, Class::W32)?;
                } else {
                    self.read_listed(&mut draft, item, Class::W32)?;
                }
            }
        }
        Ok(draft)
    }
}

pub(super) fn items(operand: &Operand) -> Vec<&Operand> {
    if let Operand::Vector(items) = operand { items.iter().collect() } else { vec![operand] }
}

fn space(opcode: &mut Opcode<'_>) -> Space {
    if opcode.take_any(&["shared", "shared::cta"]) {
        Space::Shared
    } else if opcode.take("global") {
        Space::Global
    } else if opcode.take("param") {
        Space::Param
    } else {
        Space::Generic
    }
}
