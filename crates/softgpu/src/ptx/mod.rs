//! PTX as text and as a tree: what nvcc 13.0 prints, read into [`Module`] with scopes resolved.
//!
//! The meaning of instructions is in `decode`.

mod ast;
mod fatbin;
mod lex;
mod parse;
mod plant;

pub use ast::{Entry, Instruction, Module, Operand, Param, RegClass, RegId, Source, Variable};
pub use fatbin::{Image, MachineCode, ptx_for};
pub use parse::parse;
pub use plant::{DROPPED, Plants};
