//! Drafts of instructions over virtual registers, and the operand rules that all decoders share.

use super::inst::{Inst, NO_GUARD, Op, Special};
use crate::ptx::{DROPPED, Entry, Instruction, Operand, RegClass};
use std::collections::HashMap;

/// The three register files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Pred,
    W32,
    W64,
}

/// The field of an [`Inst`] into which a slot is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum OperandSlot {
    Guard,
    Fixed(usize),
    List(usize),
}

/// One use or definition of a virtual register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) register: u32,
    pub(super) slot: OperandSlot,
    pub(super) defines: bool,
}

/// An instruction whose operands are virtual registers still.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) inst: Inst,
    pub(super) fields: Vec<Field>,
    fixed: usize,
    listed: usize,
}

impl Draft {
    pub(super) fn new(op: Op) -> Self {
        let inst =
            Inst { op, guard: NO_GUARD, guard_negated: false, list_len: 0, list: 0, r: [0; 5], imm: 0 };
        Self { inst, fields: Vec::new(), fixed: 0, listed: 0 }
    }

    fn fixed(&mut self, register: u32, defines: bool) {
        self.fields.push(Field { register, slot: OperandSlot::Fixed(self.fixed), defines });
        self.fixed += 1;
    }

    fn list(&mut self, register: u32, defines: bool) {
        self.fields.push(Field { register, slot: OperandSlot::List(self.listed), defines });
        self.listed += 1;
        self.inst.list_len = self.listed as u8;
    }
}

/// An opcode: its name, and the dotted modifiers that no decoder has taken yet, which must be none
/// at the end.
pub(super) struct Opcode<'a> {
    pub(super) name: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    fn new(opcode: &'a str) -> Self {
        let mut opcode = opcode.split('.');
        Self { name: opcode.next().unwrap_or(""), rest: opcode.collect() }
    }

    /// Takes a modifier if it is there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        let found = self.rest.iter().position(|p| *p == name);
        if let Some(at) = found {
            self.rest.remove(at);
        }
        found.is_some()
    }

    /// Takes every modifier of `names` that is there; true if any was.
    pub(super) fn take_any(&mut self, names: &[&str]) -> bool {
        let before = self.rest.len();
        self.rest.retain(|part| !names.contains(part));
        self.rest.len() < before
    }

    /// Takes the last part: usually the type.
    pub(super) fn pop(&mut self) -> Result<&'a str, String> {
        self.rest.pop().ok_or_else(|| "the opcode has no type".into())
    }

    /// Takes the next part in order.
    pub(super) fn shift(&mut self) -> &'a str {
        if self.rest.is_empty() { "" } else { self.rest.remove(0) }
    }

    fn finish(self) -> Result<(), String> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(format!("`.{}` is not supported by softgpu", self.rest.join(".")))
        }
    }
}

/// State of one kernel's decoding.
pub(super) struct Builder<'a> {
    pub(super) entry: &'a Entry,
    shared: Vec<(String, u64)>,
    /// Class of each virtual register; the entry's own come first.
    pub(super) classes: Vec<Class>,
    pub(super) constants: HashMap<(Class, u64), u32>,
    pub(super) specials: HashMap<Special, u32>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(entry: &'a Entry, shared: Vec<(String, u64)>) -> Self {
        let classes = entry.registers.iter().map(|&c| class_of(c)).collect();
        Self { entry, shared, classes, constants: HashMap::new(), specials: HashMap::new() }
    }

    /// One instruction.
    pub(super) fn decode(&mut self, i: &Instruction) -> Result<Draft, String> {
        let mut opcode = Opcode::new(&i.opcode);
        let mut draft = match opcode.name {
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "cvta" | "prefetch" | "mma"
            | "discard" => self.memory(&mut opcode, i)?,
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote"
            | "redux" | "activemask" | "nanosleep" | "griddepcontrol" => self.control(&mut opcode, i)?,
            DROPPED => Draft::new(Op::Nop),
            "cvt" => self.convert(&mut opcode, i)?,
            "wgmma" => self.warpgroup(&mut opcode, i)?,
            "mbarrier" => self.mbarrier(&mut opcode, i)?,
            "setmaxnreg" => self.set_registers(&mut opcode, i)?,
            "mov" => self.mov(&mut opcode, i)?,
            _ => self.arith(&mut opcode, i)?,
        };
        opcode.finish()?;
        if let Some((register, negated)) = i.guard {
            draft.inst.guard = 0;
            draft.inst.guard_negated = negated;
            draft.fields.push(Field { register, slot: OperandSlot::Guard, defines: false });
        }
        Ok(draft)
    }

    /// Adds a result operand.
    pub(super) fn def(&mut self, draft: &mut Draft, operand: &Operand, class: Class) -> Result<(), String> {
        let register = self.target(operand, class)?;
        draft.fixed(register, true);
        Ok(())
    }

    /// Adds a result to the list.
    pub(super) fn def_listed(
        &mut self,
        draft: &mut Draft,
        operand: &Operand,
        class: Class,
    ) -> Result<(), String> {
        let register = self.target(operand, class)?;
        draft.list(register, true);
        Ok(())
    }

    /// Adds a source operand.
    pub(super) fn read(&mut self, draft: &mut Draft, operand: &Operand, class: Class) -> Result<(), String> {
        let register = self.value(operand, class)?;
        draft.fixed(register, false);
        Ok(())
    }

    /// Adds a source to the list.
    pub(super) fn read_listed(
        &mut self,
        draft: &mut Draft,
        operand: &Operand,
        class: Class,
    ) -> Result<(), String> {
        let register = self.value(operand, class)?;
        draft.list(register, false);
        Ok(())
    }

    /// Adds a register to the list that is read and written.
    pub(super) fn update_listed(
        &mut self,
        draft: &mut Draft,
        operand: &Operand,
        class: Class,
    ) -> Result<(), String> {
        self.def_listed(draft, operand, class)?;
        let read = draft.fields.last().map(|&written| Field { defines: false, ..written });
        draft.fields.extend(read);
        Ok(())
    }

    /// Class of a register operand; `None` for anything else.
    pub(super) fn class(&self, operand: &Operand) -> Option<Class> {
        match operand {
            Operand::Reg(r) | Operand::NotReg(r) => Some(self.classes[*r as usize]),
            _ => None,
        }
    }

    /// A register of this kernel's own.
    pub(super) fn fresh(&mut self, class: Class) -> u32 {
        self.classes.push(class);
        self.classes.len() as u32 - 1
    }

    pub(super) fn constant(&mut self, class: Class, value: u64) -> u32 {
        let value = match class {
            Class::Pred => value & 1,
            Class::W32 => value & 0xFFFF_FFFF,
            Class::W64 => value,
        };
        if let Some(&r) = self.constants.get(&(class, value)) {
            return r;
        }
        let r = self.fresh(class);
        self.constants.insert((class, value), r);
        r
    }

    fn target(&mut self, operand: &Operand, class: Class) -> Result<u32, String> {
        match operand {
            Operand::Reg(r) if self.classes[*r as usize] == class => Ok(*r),
            Operand::Reg(_) => Err("the result register has another width than the instruction".into()),
            Operand::Sink => Ok(self.fresh(class)),
            _ => Err("the result is not a register".into()),
        }
    }

    fn value(&mut self, operand: &Operand, class: Class) -> Result<u32, String> {
        match operand {
            Operand::Reg(r) if self.classes[*r as usize] == class => Ok(*r),
            Operand::Reg(_) => Err("a source register has another width than the instruction".into()),
            Operand::Imm(v) => Ok(self.constant(class, *v)),
            Operand::Symbol(name) => {
                let value = self.symbol(name)?;
                Ok(self.constant(class, value))
            }
            Operand::Special(name) if class == Class::W32 => {
                let special = special(name).ok_or_else(|| format!("`{name}` is not supported by softgpu"))?;
                if let Some(&r) = self.specials.get(&special) {
                    return Ok(r);
                }
                let r = self.fresh(Class::W32);
                self.specials.insert(special, r);
                Ok(r)
            }
            other => Err(format!("operand {other:?} is not supported here")),
        }
    }

    /// Shared address or parameter offset of a name.
    fn symbol(&self, name: &str) -> Result<u64, String> {
        let shared = self.shared.iter().find(|(n, _)| n == name).map(|(_, a)| *a);
        let param = self.entry.params.iter().find(|p| p.name == name).map(|p| p.offset as u64);
        shared.or(param).ok_or_else(|| format!("unknown symbol `{name}`"))
    }
}

fn class_of(class: RegClass) -> Class {
    match class {
        RegClass::Pred => Class::Pred,
        RegClass::B16 | RegClass::B32 => Class::W32,
        RegClass::B64 => Class::W64,
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |c: &str| ["x", "y", "z"].iter().position(|a| *a == c).map(|a| a as u8);
    let (stem, tail) = name.split_once('.').unwrap_or((name, ""));
    Some(match stem {
        "%tid" => Special::Tid(axis(tail)?),
        "%ntid" => Special::Ntid(axis(tail)?),
        "%ctaid" => Special::Ctaid(axis(tail)?),
        "%nctaid" => Special::Nctaid(axis(tail)?),
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%lanemask_lt" => Special::LanemaskLt,
        "%lanemask_le" => Special::LanemaskLe,
        "%lanemask_eq" => Special::LanemaskEq,
        "%lanemask_ge" => Special::LanemaskGe,
        "%lanemask_gt" => Special::LanemaskGt,
        // A cluster is one block here.
        "%cluster_ctarank" | "%cluster_ctaid" => Special::Zero,
        _ => return None,
    })
}
