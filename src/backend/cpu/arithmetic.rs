//! The arithmetic of matmuls and attention: requested ([`CpuMath`]), and what this CPU computes it
//! with ([`Arithmetic`]).

use super::simd::{Bf16Isa, Isa, MatrixUnit};
#[cfg(test)]
use super::testing;

/// The arithmetic of matmuls and of attention on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CpuMath {
    /// f32, as fast as this CPU can
    ///
    /// Activations in f32, weights as stored, attention in f32: by a matrix unit, which takes an f32 as the
    /// exact sum of three bf16 values, where the CPU has one.
    #[default]
    F32,
    /// f32 by vector instructions alone, with the same bits on every CPU with AVX2 or AVX-512
    F32Vector,
    /// bf16 where the CPU is faster with it: rewards move by about as much as a bf16 model's do
    ///
    /// Activations and weights are rounded to bf16 and accumulated in f32; elsewhere f32 is used, with a
    /// warning. So are the queries, keys, values and probabilities of attention.
    Bf16,
}

/// The arithmetic that matmuls and attention are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// f32 matmuls of x with the weight as stored, by vector instructions.
    F32,
    /// f32 matmuls by a matrix unit where the weight is stored as bfloat16, by vector instructions
    /// where it is not. Attention is by the matrix unit always, both operands in three bfloat16
    /// terms.
    F32Tiles(MatrixUnit),
    /// x and the weight rounded to bfloat16, products exact, accumulated in f32: faster, and some
    /// 100 times less exact. In attention queries, keys, values and probabilities are rounded.
    Bf16(Bf16Isa),
    /// Like `Bf16`, by a matrix unit.
    Bf16Tiles(MatrixUnit),
}

impl Math {
    /// Returns the arithmetic closest to the requested one.
    pub fn of(isa: Isa, wanted: CpuMath) -> Self {
        match wanted {
            CpuMath::F32 => Self::f32(isa),
            CpuMath::F32Vector => Self::F32,
            CpuMath::Bf16 => Self::bf16(isa).unwrap_or_else(|| Self::f32(isa)),
        }
    }

    /// The fastest f32 arithmetic.
    fn f32(isa: Isa) -> Self {
        isa.matrix_unit().map_or(Self::F32, Self::F32Tiles)
    }

    /// The fastest arithmetic on bfloat16 values; none where f32 is as fast.
    pub fn bf16(isa: Isa) -> Option<Self> {
        let vectors = || isa.bf16().filter(|bf16| bf16.is_faster()).map(Self::Bf16);
        isa.matrix_unit().map(Self::Bf16Tiles).or_else(vectors)
    }

    /// The instructions as printed, beside those of `isa`: `avx512`, `avx512+amx`, `avx512-bf16`.
    pub fn instructions(self, isa: Isa) -> String {
        match self {
            Self::F32 => isa.name().to_owned(),
            Self::Bf16(bf16) => bf16.name().to_owned(),
            Self::F32Tiles(unit) | Self::Bf16Tiles(unit) => format!("{}+{}", isa.name(), unit.name()),
        }
    }
}

/// The instructions that this CPU computes with, and the arithmetic of matmuls and attention.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    pub(super) isa: Isa,
    pub(super) math: Math,
    /// A warning where that is not the requested arithmetic.
    pub(super) warning: Option<String>,
}

impl Arithmetic {
    /// Returns the arithmetic closest to the requested one, by the fastest instructions of this
    /// CPU.
    pub fn of(wanted: CpuMath) -> Self {
        let isa = Isa::detect();
        let warning = (wanted == CpuMath::Bf16 && Math::bf16(isa).is_none()).then(|| {
            let why =
                if isa.bf16().is_some() { "multiplies bf16 no faster" } else { "has no bf16 instructions" };
            format!("matmuls are computed in f32, not bf16: this CPU {why}")
        });
        Self { isa, math: Math::of(isa, wanted), warning }
    }

    /// Its instructions as printed: `avx512`, `avx512+amx`, `avx512-bf16`.
    pub fn instructions(&self) -> String {
        self.math.instructions(self.isa)
    }

    /// Every arithmetic that this CPU has or can emulate, except those whose bits no CPU has: bf16
    /// multiplication beside vectors that do not fuse.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Vec<TestArithmetic> {
        let (fused, available) = (Isa::fused_for_tests(), Isa::available());
        let section = |isa: &Isa, math: Math| match math {
            Math::F32 => Some(if fused.contains(isa) { "f32-vector" } else { "portable" }),
            _ if !fused.contains(isa) => None,
            Math::F32Tiles(_) => Some("f32-amx"),
            Math::Bf16(_) => Some("bf16-avx512"),
            Math::Bf16Tiles(_) => Some("bf16-amx"),
        };
        let all = testing::all_math().into_iter().filter_map(|(isa, math)| {
            let arithmetic = Self { isa, math, warning: None };
            Some(TestArithmetic {
                section: section(&isa, math)?,
                emulated: !available.contains(&isa),
                arithmetic,
            })
        });
        all.collect()
    }
}

/// An arithmetic that tests can compute in.
#[cfg(test)]
pub(crate) struct TestArithmetic {
    /// Section of `tests/golden/bits.json` that holds its bits.
    pub(crate) section: &'static str,
    /// True for portable code, which is slow.
    pub(crate) emulated: bool,
    pub(crate) arithmetic: Arithmetic,
}
