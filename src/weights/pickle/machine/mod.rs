//! The pickle machine, as far as dicts of tensors need it: opcodes to [`Values`].
//!
//! A pickle is a program for a stack machine, and in Python it can call any function. This machine
//! has the opcodes that write containers, numbers and strings, and calls those functions of `calls`
//! only. Its memory is bounded by the limits below, whatever the pickle says, and is used in
//! proportion to the opcodes that ran.

use std::collections::HashMap;

use super::calls;
use super::cursor::Cursor;
use super::errors::{damaged, unsupported};
use super::values::{Value, Values};
use crate::error::{Error, Result};

/// Bytes of the longest pickle. That of a 70B model's 723 tensors has about 150 KB.
pub(super) const PICKLE_BYTES_MAX: usize = 64 << 20;

/// Opcodes of the longest pickle; a tensor takes about 50.
const OPCODES_MAX: usize = 4 << 20;

/// Values and marks on the stack. Python's pickler leaves 2,000 of a dict there.
const STACK_MAX: usize = 64 << 10;

/// Values in the memo; a tensor takes about 10.
const MEMO_MAX: usize = 1 << 20;

/// Bytes of a module's or a class's name.
const GLOBAL_BYTES_MAX: usize = 1 << 10;

/// Opcodes, by their names in Python's `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const NONE: u8 = b'N';
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const FRAME: u8 = 0x95;

    /// Other opcodes, refused by name: those that make or call other objects, and those that
    /// `torch.save` does not write.
    pub(super) const REFUSED: [(u8, &str); 33] = [
        (b'i', "INST"),
        (b'o', "OBJ"),
        (b'P', "PERSID"),
        (0x81, "NEWOBJ"),
        (0x92, "NEWOBJ_EX"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (b'0', "POP"),
        (b'1', "POP_MARK"),
        (b'2', "DUP"),
        (b'F', "FLOAT"),
        (b'I', "INT"),
        (b'L', "LONG"),
        (0x8b, "LONG4"),
        (b'S', "STRING"),
        (b'T', "BINSTRING"),
        (b'U', "SHORT_BINSTRING"),
        (b'V', "UNICODE"),
        (b'B', "BINBYTES"),
        (b'C', "SHORT_BINBYTES"),
        (b'd', "DICT"),
        (b'l', "LIST"),
        (b'p', "PUT"),
        (b'g', "GET"),
        (0x8d, "BINUNICODE8"),
        (0x8e, "BINBYTES8"),
        (0x8f, "EMPTY_SET"),
        (0x90, "ADDITEMS"),
        (0x91, "FROZENSET"),
        (0x96, "BYTEARRAY8"),
        (0x97, "NEXT_BUFFER"),
        (0x98, "READONLY_BUFFER"),
    ];
}

/// A pickle that has been read.
#[derive(Debug)]
pub(super) struct Pickled {
    pub(super) values: Values,
    /// The value that the pickle makes.
    pub(super) root: Value,
    /// Bytes of the pickle.
    pub(super) bytes: usize,
}

/// Reads the pickle at the start of `bytes`.
pub(super) fn run(bytes: &[u8]) -> Result<Pickled> {
    let mut machine = Machine {
        input: Cursor::new("pickle", bytes),
        values: Values::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..OPCODES_MAX {
        let at = machine.input.at();
        if at > PICKLE_BYTES_MAX {
            return Err(damaged(format!("the pickle has more than {PICKLE_BYTES_MAX} bytes")));
        }
        match machine.input.u8()? {
            op::STOP => {
                let root = machine.pop()?;
                return Ok(Pickled { values: machine.values, root, bytes: machine.input.at() });
            }
            opcode => machine.step(opcode, at)?,
        }
    }
    Err(damaged(format!("the pickle has more than {OPCODES_MAX} opcodes")))
}

struct Machine<'a> {
    input: Cursor<'a>,
    values: Values,
    stack: Vec<Value>,
    /// Heights of the stack where a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    /// Executes one opcode, which lies at byte `at`.
    fn step(&mut self, opcode: u8, at: usize) -> Result<()> {
        let value = match opcode {
            op::NONE => Value::None,
            op::NEWTRUE => Value::Bool(true),
            op::NEWFALSE => Value::Bool(false),
            op::BININT => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            op::BININT1 => Value::Int(self.input.u8()?.into()),
            op::BININT2 => Value::Int(self.input.u16()?.into()),
            op::LONG1 => self.long()?,
            op::BINFLOAT => self.input.array::<8>().map(|_| Value::Float)?,
            op::BINUNICODE => {
                let length = self.input.u32()?;
                self.text(length)?
            }
            op::SHORT_BINUNICODE => {
                let length = self.input.u8()?;
                self.text(length.into())?
            }
            op::EMPTY_TUPLE => self.tuple(self.stack.len()),
            op::TUPLE => {
                let start = self.pop_mark()?;
                self.tuple(start)
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let start = self.height_of(usize::from(opcode - op::TUPLE1) + 1)?;
                self.tuple(start)
            }
            op::EMPTY_LIST => self.values.add_list(),
            op::EMPTY_DICT => self.values.add_dict(),
            op::BINGET => {
                let index = self.input.u8()?;
                self.memoized(index.into())?
            }
            op::LONG_BINGET => {
                let index = self.input.u32()?;
                self.memoized(index)?
            }
            op::GLOBAL => self.global()?,
            op::STACK_GLOBAL => self.stack_global()?,
            op::REDUCE => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                calls::call(&mut self.values, function, arguments)?
            }
            op::BINPERSID => {
                let id = self.pop()?;
                calls::persistent(&mut self.values, id)?
            }
            _ => return self.change(opcode, at),
        };
        self.push(value)
    }

    /// Executes an opcode that pushes no value.
    fn change(&mut self, opcode: u8, at: usize) -> Result<()> {
        match opcode {
            op::MARK => {
                self.marks.push(self.stack.len());
                if self.marks.len() > STACK_MAX { Err(too_deep()) } else { Ok(()) }
            }
            op::APPEND => {
                let start = self.height_of(1)?;
                self.append(start)
            }
            op::APPENDS => {
                let start = self.pop_mark()?;
                self.append(start)
            }
            op::SETITEM => {
                let start = self.height_of(2)?;
                self.set_items(start)
            }
            op::SETITEMS => {
                let start = self.pop_mark()?;
                self.set_items(start)
            }
            op::BUILD => {
                let state = self.pop()?;
                calls::set_attributes(self.top()?, state)
            }
            op::BINPUT => {
                let index = self.input.u8()?;
                self.memoize(index.into())
            }
            op::LONG_BINPUT => {
                let index = self.input.u32()?;
                self.memoize(index)
            }
            op::MEMOIZE => self.memoize(self.memo.len() as u32),
            op::PROTO => match self.input.u8()? {
                2..=4 => Ok(()),
                other => Err(unsupported(
                    format!("the pickle has protocol {other}, expected 2, 3 or 4"),
                    "save it with `torch.save`, which writes protocol 2",
                )),
            },
            op::FRAME => match self.input.u64()? {
                length if length <= self.input.rest() as u64 => Ok(()),
                length => Err(damaged(format!("a frame of the pickle claims {length} bytes"))),
            },
            _ => match op::REFUSED.iter().find(|(refused, _)| *refused == opcode) {
                Some((_, name)) => Err(calls::opcode_error(name, at)),
                None => Err(damaged(format!("byte {at} of the pickle, {opcode:#04x}, is no known opcode"))),
            },
        }
    }

    fn long(&mut self) -> Result<Value> {
        let length = self.input.u8()?;
        let bytes = self.input.take(length.into())?;
        let mut wide = [0; 8];
        let Some(low) = wide.get_mut(..bytes.len()) else {
            return Err(damaged(format!("the pickle has an integer of {length} bytes, expected at most 8")));
        };
        low.copy_from_slice(bytes);
        // The sign is extended from the highest byte that is there.
        let unused = 64 - 8 * u32::from(length);
        let value = i64::from_le_bytes(wide);
        Ok(Value::Int(if unused == 64 { 0 } else { value << unused >> unused }))
    }

    fn text(&mut self, length: u32) -> Result<Value> {
        let bytes = self.input.take(length as usize)?;
        if self.values.text_bytes() + bytes.len() > PICKLE_BYTES_MAX {
            return Err(damaged(format!("the pickle has strings of more than {PICKLE_BYTES_MAX} bytes")));
        }
        // Copied before it is checked: the file might change under its map.
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| {
            damaged(format!("a string before byte {} of the pickle is not UTF-8", self.input.at()))
        })?;
        Ok(self.values.add_text(&text))
    }

    fn global(&mut self) -> Result<Value> {
        let mut line = || Ok(String::from_utf8_lossy(&self.input.line(GLOBAL_BYTES_MAX)?).into_owned());
        let (module, name) = (line()?, line()?);
        calls::global(&module, &name)
    }

    fn stack_global(&mut self) -> Result<Value> {
        match (self.pop()?, self.pop()?) {
            (Value::Text(name), Value::Text(module)) => {
                calls::global(self.values.text(module), self.values.text(name))
            }
            (name, module) => Err(damaged(format!(
                "the pickle names a class by {} and {}, expected strings",
                module.kind(),
                name.kind()
            ))),
        }
    }

    fn tuple(&mut self, start: usize) -> Value {
        self.values.add_tuple(self.stack.drain(start..))
    }

    fn append(&mut self, start: usize) -> Result<()> {
        match self.below(start)? {
            Value::List(list) => {
                self.values.lists[list].extend(self.stack.drain(start..));
                Ok(())
            }
            other => Err(damaged(format!("the pickle appends to {}", other.kind()))),
        }
    }

    fn set_items(&mut self, start: usize) -> Result<()> {
        let Value::Dict(dict) = self.below(start)? else {
            return Err(damaged(format!("the pickle sets items of {}", self.below(start)?.kind())));
        };
        let (pairs, rest) = self.stack[start..].as_chunks::<2>();
        if !rest.is_empty() {
            return Err(damaged("the pickle sets a dict's key without a value"));
        }
        self.values.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        self.stack.truncate(start);
        Ok(())
    }

    fn memoize(&mut self, index: u32) -> Result<()> {
        self.memo.insert(index, self.top()?);
        match self.memo.len() > MEMO_MAX {
            true => Err(damaged(format!("the pickle memoizes more than {MEMO_MAX} values"))),
            false => Ok(()),
        }
    }

    fn memoized(&self, index: u32) -> Result<Value> {
        let value = self.memo.get(&index).copied();
        value.ok_or_else(|| {
            damaged(format!("the pickle reads entry {index} of its memo, which it has not set"))
        })
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.stack.push(value);
        if self.stack.len() > STACK_MAX { Err(too_deep()) } else { Ok(()) }
    }

    fn pop(&mut self) -> Result<Value> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    /// Returns the value on top of the stack, above its last mark.
    fn top(&self) -> Result<Value> {
        self.height_of(1).map(|at| self.stack[at])
    }

    /// Returns the value below height `start` of the stack, above its last mark.
    fn below(&self, start: usize) -> Result<Value> {
        let is_there = start > self.marks.last().copied().unwrap_or(0);
        if is_there { Ok(self.stack[start - 1]) } else { Err(empty()) }
    }

    /// Returns the height at which the top `count` values begin, all of them above the last mark.
    fn height_of(&self, count: usize) -> Result<usize> {
        let start = self.stack.len().checked_sub(count);
        start.filter(|start| *start >= self.marks.last().copied().unwrap_or(0)).ok_or_else(empty)
    }

    fn pop_mark(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(|| damaged("the pickle ends a sequence that it has not begun"))
    }
}

fn empty() -> Error {
    damaged("the pickle takes a value from its empty stack")
}

fn too_deep() -> Error {
    damaged(format!("the pickle has more than {STACK_MAX} values on its stack"))
}

#[cfg(test)]
mod tests;
