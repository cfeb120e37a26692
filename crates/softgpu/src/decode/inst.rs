//! The interpreter's code: one fixed-size [`Inst`] per PTX instruction, operands as register slots.

/// Two integer operands of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Int2 {
    Add,
    Sub,
    MulLo,
    MulHiS,
    MulHiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Shl,
    ShrS,
    ShrU,
}

/// One integer operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Int1 {
    Mov,
    Not,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
}

/// Two floating-point operands. `MinNan` and `MaxNan` return NaN when either is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
}

/// One floating-point operand; `Lg2` to `Tanh` are PTX's `.approx` forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Float1 {
    Neg,
    Abs,
    Sqrt,
    Rcp,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Rounding modes. `Near` is `.rn` and `.rni`, `Zero` is `.rz` and `.rzi`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Round {
    Near,
    Zero,
    Down,
    Up,
}

/// `.ftz` and `.sat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloatMods {
    /// Flush subnormal inputs and results to zero of the same sign.
    pub ftz: bool,
    /// Clamp the result to [0, 1], NaN to 0.
    pub sat: bool,
}

/// 16-bit floating-point formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Half {
    Bf16,
    F16,
}

/// Arithmetic on 16-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    Neg,
    Abs,
}

/// Scalar types of `cvt` and `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

/// Comparisons; the `U` ones are true when either operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Num,
    Nan,
}

/// The combination of `setp`'s result with a third predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Combine {
    None,
    And,
    Or,
    Xor,
}

/// Address spaces of loads and stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Param,
    /// Shared and param addresses that stand in 64-bit registers.
    SharedLong,
    ParamLong,
}

/// Shape of a load or store of one lane: `count` elements of `elem` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub elem: u8,
    /// Elements: 1, 2 or 4.
    pub count: u8,
    /// Sign-extend loaded elements.
    pub signed: bool,
    /// The registers are 64 bits wide.
    pub wide: bool,
    /// Bits that a sign extension may fill: 16 or 32 (ignored when wide).
    pub register_bits: u8,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Atomic {
    Add,
    AddF32,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// Modes of `shfl.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Modes of `vote.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Tensor-core shapes of one warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mma {
    M16N8K16(Half),
    M16N8K8(Half),
}

/// A matmul of one warpgroup, `wgmma.mma_async`: 64 rows by `columns` columns by 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMatmul {
    /// Columns of the result, a multiple of 8.
    pub columns: u16,
    /// The format of both operands.
    pub half: Half,
    /// The left operand is in registers, not in shared memory.
    pub registers: bool,
    /// The right operand is `[16, columns]` in memory, not `[columns, 16]`.
    pub transposed: bool,
}

/// The operation of an instruction. `r[0]` is the result unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    /// d, a, b
    I16(Int2),
    I32(Int2),
    I64(Int2),
    /// d, a
    U16(Int1),
    U32(Int1),
    U64(Int1),
    /// d32, a64
    Popc64,
    Clz64,
    /// d64, a32, b32
    MulWide {
        signed: bool,
    },
    /// d32, a16, b16
    MulWide16 {
        signed: bool,
    },
    /// d, a, b, c
    Mad16,
    Mad32,
    Mad64,
    MadWide {
        signed: bool,
    },
    MadHi {
        signed: bool,
    },
    /// d, a, b, c; Bfi: d, insert, into, position, length
    Bfi,
    Bfe {
        signed: bool,
    },
    Prmt,
    FunnelLeft {
        wrap: bool,
    },
    FunnelRight {
        wrap: bool,
    },
    /// d, a, b, c; the table is `imm`
    Lop3,
    /// d, a, b, predicate
    Select32,
    Select64,
    /// d, a, b: predicates
    PredAnd,
    PredOr,
    PredXor,
    /// d, a
    PredNot,
    PredMov,
    /// p, q, a, b, c
    Setp {
        compare: Compare,
        of: Type,
        combine: Combine,
        negate_c: bool,
    },
    F32(Float2, FloatMods),
    FmaF32(FloatMods),
    FmaF32Directed(Round, FloatMods),
    F32One(Float1, FloatMods),
    F64(Float2),
    FmaF64,
    F64One(Float1),
    /// d, a, b, c
    HalfOne {
        op: HalfOp,
        of: Half,
    },
    HalfTwo {
        op: HalfOp,
        of: Half,
    },
    Cvt {
        to: Type,
        from: Type,
        round: Round,
        integral: bool,
        mods: FloatMods,
    },
    /// d, high, low
    CvtPair {
        to: Half,
        relu: bool,
    },
    /// `list of parts -> r[0]`
    Pack {
        part_bits: u8,
        wide: bool,
    },
    /// `r[0] -> list of parts`
    Unpack {
        part_bits: u8,
        wide: bool,
    },
    /// `list <- [r[0] + imm]`
    Load(Space, Shape),
    /// `[r[0] + imm] <- list`
    Store(Space, Shape),
    /// d, address, b, c
    Atom {
        space: Space,
        op: Atomic,
        wide: bool,
        returns: bool,
    },
    /// `d, predicate, a, b, c`; the members are `list[0]`
    Shfl(Shuffle),
    /// d, predicate, members
    VoteSync(Vote, bool),
    /// d, a, members
    Redux(Int2),
    ActiveMask,
    /// d64, a64, shared window added or taken off
    SharedToGeneric,
    GenericToShared,
    ParamToGeneric,
    BarSync,
    /// members
    BarWarp,
    /// shared address, global address, source bytes; `imm` = bytes
    CpAsync {
        bytes: u8,
        sized: bool,
    },
    CpAsyncCommit,
    /// `imm` groups may stay in flight
    CpAsyncWait {
        all: bool,
    },
    /// `list <- matrices at r[0] + imm`
    Ldmatrix {
        transposed: bool,
        wide: bool,
    },
    /// list: d x4, a, b, c x4
    Mma(Mma),
    /// descriptor of b, predicate, descriptor of a unless it is in registers; list: d, a x4 in registers
    GroupMatmul(GroupMatmul),
    GroupFence,
    GroupCommit,
    /// `imm` groups may stay in flight
    GroupWait,
    ProxyFence,
    /// address, count; `imm` = offset
    MbarrierInit,
    /// address, bytes, count; `imm` = offset
    MbarrierArrive,
    /// predicate, address, parity; `imm` = offset
    MbarrierWait,
    MbarrierFence,
    /// shared address, map, address of the barrier; list: coordinates
    CopyBox,
    /// `imm` registers a thread
    SetRegisters,
    Nop,
    /// `imm` = target
    Branch,
    Ret,
    Trap,
}

/// `guard` of an instruction without one.
pub const NO_GUARD: u16 = u16::MAX;

/// One decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Inst {
    /// The operation.
    pub op: Op,
    /// Predicate slot, or [`NO_GUARD`].
    pub guard: u16,
    /// `@!p`.
    pub guard_negated: bool,
    /// Entries of the pool that belong to this instruction.
    pub list_len: u8,
    /// First of them.
    pub list: u32,
    /// Operand slots in the order that the variant documents.
    pub r: [u16; 5],
    /// Offset, branch target, table or count.
    pub imm: i64,
}

/// Values that differ by block, warp or lane and are laid into registers before a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    LanemaskLt,
    LanemaskLe,
    LanemaskEq,
    LanemaskGe,
    LanemaskGt,
    Zero,
}

/// A register whose value is set before a warp starts.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// 32-bit slot, value.
    W32(u16, u32),
    /// 64-bit slot, value.
    W64(u16, u64),
    /// Predicate slot, value.
    Pred(u16, bool),
    /// 32-bit slot, special register.
    Special(u16, Special),
}

/// A kernel ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Entry name.
    pub name: String,
    /// The code.
    pub code: Vec<Inst>,
    /// Operand lists of `code`.
    pub pool: Vec<u16>,
    /// For each instruction, where its lanes reconverge after a divergent branch (`code.len()` is
    /// the exit).
    pub reconverge: Vec<u32>,
    /// PTX text and `.cu` position of each instruction, for messages.
    pub text: Vec<(String, String)>,
    /// Slots a warp needs: 32-bit, 64-bit, predicates.
    pub slots: (usize, usize, usize),
    /// Constants and special registers.
    pub presets: Vec<Preset>,
    /// (offset, bytes) of each parameter.
    pub params: Vec<(usize, usize)>,
    /// Bytes of the parameter block.
    pub param_bytes: usize,
    /// Bytes of static shared memory; dynamic memory begins here.
    pub shared_bytes: usize,
    /// `.maxntid`.
    pub threads_max: Option<u32>,
    /// The 32-bit registers that each instruction reads or writes, for kernels with matmuls of
    /// warpgroups; no lists for others.
    pub touched: Vec<Vec<Touched>>,
}

/// A 32-bit register that an instruction reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Its slot.
    pub slot: u16,
    /// It is written.
    pub writes: bool,
}
