//! PTX as text and as a tree: what nvcc 13.0 prints, read into [`Module`] with scopes resolved.
//!
//! Nothing here knows what an instruction means; `decode` does.

mod ast;
mod fatbin;
mod lex;
mod parse;
mod plant;

pub use ast::{Entry, Instruction, Module, Operand, Param, RegClass, RegId, Source, Variable};
pub use fatbin::ptx_for;
pub use parse::parse;
pub use plant::{DROPPED, Plants};
