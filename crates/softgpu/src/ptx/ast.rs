//! The tree of a PTX module. Registers and labels are indices already; opcodes and symbols are
//! still strings.

use std::collections::HashMap;

/// Index of a register within its entry.
pub type RegId = u32;

/// Width of a register; `.f32` and `.b32` are both 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegClass {
    /// One bit a lane.
    Pred,
    /// 8 or 16 bits.
    B16,
    /// 32 bits.
    B32,
    /// 64 bits.
    B64,
}

/// A position in the `.cu` file, from `.loc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Number of the `.file`; 0 is unknown.
    pub file: u32,
    /// Line, from 1.
    pub line: u32,
    /// The outermost call site when the line was inlined: (file, line).
    pub inlined_at: Option<(u32, u32)>,
}

/// One kernel parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its PTX name.
    pub name: String,
    /// Bytes from the start of the parameter block.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A variable in shared memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its PTX name.
    pub name: String,
    /// Alignment in bytes.
    pub align: usize,
    /// Bytes; 0 for `extern` (dynamic) shared memory.
    pub size: usize,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A declared register.
    Reg(RegId),
    /// `!%p`: a negated predicate.
    NotReg(RegId),
    /// An integer, or the bits of a `0f`/`0d` constant.
    Imm(u64),
    /// `%tid.x` and other special registers.
    Special(String),
    /// A variable or parameter name.
    Symbol(String),
    /// A branch target.
    Label(u32),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Memory(Box<Operand>, i64),
    /// `a|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// `@%p` or `@!%p` (true: negated).
    pub guard: Option<(RegId, bool)>,
    /// The whole dotted opcode, e.g. `ld.global.v4.u32`.
    pub opcode: String,
    /// Operands in written order.
    pub operands: Vec<Operand>,
    /// Its position in the source.
    pub source: Source,
    /// Its text, for messages.
    pub text: String,
}

/// One kernel.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Class of each register, by [`RegId`].
    pub registers: Vec<RegClass>,
    /// Static shared variables of this kernel.
    pub shared: Vec<Variable>,
    /// The body.
    pub instructions: Vec<Instruction>,
    /// Instruction index of each label.
    pub labels: Vec<usize>,
    /// `.maxntid` or `.reqntid` as a thread count.
    pub threads_max: Option<u32>,
}

/// One PTX file.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `sm_80` gives 80.
    pub target: u32,
    /// Names of `.file`.
    pub files: HashMap<u32, String>,
    /// Shared variables at module scope; extern ones have size 0.
    pub shared: Vec<Variable>,
    /// The kernels.
    pub entries: Vec<Entry>,
}
