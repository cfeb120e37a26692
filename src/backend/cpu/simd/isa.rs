//! Capability tokens: an [`Isa`], [`Bf16Isa`] or [`MatrixUnit`] is made by detection alone, and
//! proves that this CPU has it.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::portable;
use super::vector::{Bf16Kernel, Kernel, Vector};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(IsaKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsaKind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The shape of AVX-512 (16 lanes, 8 x 48 tile) in portable code, products rounded first.
    #[cfg(test)]
    Lanes16,
    /// `Lanes16` with multiply and add fused: AVX-512's bits on any machine.
    #[cfg(test)]
    Lanes16Fused,
}

impl Isa {
    /// The fastest instruction set of this CPU.
    pub fn detect() -> Self {
        *Self::available().last().expect("the portable instruction set is always there")
    }

    /// The instruction set that every CPU has: plain Rust, which the compiler turns into what the
    /// target guarantees.
    pub fn portable() -> Self {
        Self(IsaKind::Portable)
    }

    /// All instruction sets of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::portable()];
        #[cfg(target_arch = "aarch64")]
        found.push(Self(IsaKind::Neon));
        #[cfg(target_arch = "x86_64")]
        {
            if avx2::is_available() {
                found.push(Self(IsaKind::Avx2));
            }
            if avx512::is_available() {
                found.push(Self(IsaKind::Avx512));
            }
        }
        found
    }

    /// Its name as printed: `portable`, `avx2+fma`, `avx512`, `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            IsaKind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => "neon",
            #[cfg(test)]
            IsaKind::Lanes16 => "16 portable lanes",
            #[cfg(test)]
            IsaKind::Lanes16Fused => "16 portable lanes, fused",
        }
    }

    /// The instructions for bfloat16, where this CPU has them beside this instruction set.
    pub fn bf16(self) -> Option<Bf16Isa> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 if avx512::is_bf16_available() => Some(Bf16Isa(Bf16Kind::Avx512)),
            #[cfg(test)]
            IsaKind::Lanes16 => Some(Bf16Isa(Bf16Kind::Lanes16)),
            #[cfg(test)]
            IsaKind::Lanes16Fused => Some(Bf16Isa(Bf16Kind::Lanes16Fused)),
            _ => None,
        }
    }

    /// The matrix unit, where this CPU has one beside this instruction set.
    pub fn matrix_unit(self) -> Option<MatrixUnit> {
        match self.0 {
            #[cfg(test)]
            IsaKind::Lanes16 | IsaKind::Lanes16Fused => self.bf16().map(MatrixUnit::emulated),
            _ => self.bf16().and_then(MatrixUnit::beside),
        }
    }

    /// f32 lanes of its vectors.
    pub(in crate::backend::cpu) fn lanes(self) -> usize {
        match self.0 {
            IsaKind::Portable => portable::Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => avx2::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => avx512::Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => neon::Neon::LANES,
            #[cfg(test)]
            IsaKind::Lanes16 => portable::Lanes16::LANES,
            #[cfg(test)]
            IsaKind::Lanes16Fused => portable::Lanes16Fused::LANES,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(in crate::backend::cpu) fn run(self, kernel: impl Kernel) {
        // SAFETY: a value of each kind is made only where the CPU has its instructions
        // (`available`).
        unsafe {
            match self.0 {
                IsaKind::Portable => kernel.run::<portable::Portable>(),
                #[cfg(target_arch = "x86_64")]
                IsaKind::Avx2 => avx2::run::<avx2::Avx2, _>(kernel),
                #[cfg(target_arch = "x86_64")]
                IsaKind::Avx512 => avx512::run(kernel),
                #[cfg(target_arch = "aarch64")]
                IsaKind::Neon => kernel.run::<neon::Neon>(),
                #[cfg(test)]
                IsaKind::Lanes16 => kernel.run::<portable::Lanes16>(),
                // AVX2 gives the bits without a library call for every multiply-add.
                #[cfg(all(test, target_arch = "x86_64"))]
                IsaKind::Lanes16Fused if avx2::is_available() => {
                    avx2::run::<portable::Lanes16Fused, _>(kernel)
                }
                #[cfg(test)]
                IsaKind::Lanes16Fused => kernel.run::<portable::Lanes16Fused>(),
            }
        }
    }

    /// The instruction sets of tests: all that this CPU has, and AVX-512's shape in portable code.
    #[cfg(test)]
    pub(in crate::backend::cpu) fn for_tests() -> Vec<Self> {
        let mut all = Self::available();
        all.extend([Self(IsaKind::Lanes16), Self(IsaKind::Lanes16Fused)]);
        all
    }

    /// The instruction sets among [`for_tests`](Self::for_tests) that fuse multiply and add.
    #[cfg(test)]
    pub(in crate::backend::cpu) fn fused_for_tests() -> Vec<Self> {
        let unfused = [Self(IsaKind::Portable), Self(IsaKind::Lanes16)];
        Self::for_tests().into_iter().filter(|isa| !unfused.contains(isa)).collect()
    }
}

/// Instructions for bfloat16 that this CPU has; made by [`Isa::bf16`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Isa(Bf16Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bf16Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The instruction's documented arithmetic in portable code.
    #[cfg(test)]
    Lanes16,
    /// `Lanes16` with f32 multiply and add fused.
    #[cfg(test)]
    Lanes16Fused,
}

impl Bf16Isa {
    /// Returns whether a matmul is faster with them than with f32 multiply-adds. An instruction
    /// multiplies twice as many elements, on AMD's CPUs at the same rate. On Intel's it has a
    /// quarter of the rate at most: so measured on one of family 6, model 207. The vendor decides
    /// this rather than a measurement because it decides bits.
    pub fn is_faster(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => avx512::is_amd(),
            #[cfg(test)]
            Bf16Kind::Lanes16 | Bf16Kind::Lanes16Fused => true,
        }
    }

    /// Its name as printed: `avx512-bf16`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => "avx512-bf16",
            #[cfg(test)]
            Bf16Kind::Lanes16 => "16 portable lanes, bf16",
            #[cfg(test)]
            Bf16Kind::Lanes16Fused => "16 portable lanes, fused, bf16",
        }
    }

    /// Runs `kernel` compiled for these instructions.
    pub(in crate::backend::cpu) fn run(self, kernel: impl Bf16Kernel) {
        match self.0 {
            // SAFETY: a value of this kind is made only where the CPU has the instructions
            // (`Isa::bf16`).
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => unsafe { avx512::run_bf16(kernel) },
            // SAFETY: plain Rust.
            #[cfg(test)]
            Bf16Kind::Lanes16 => unsafe { kernel.run::<portable::Lanes16>() },
            // SAFETY: plain Rust.
            #[cfg(test)]
            Bf16Kind::Lanes16Fused => unsafe { kernel.run::<portable::Lanes16Fused>() },
        }
    }
}

/// A matrix unit that this CPU has; made by [`Isa::matrix_unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnit {
    kind: MatrixUnitKind,
    vectors: Bf16Isa,
}

/// The kinds of matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::cpu) enum MatrixUnitKind {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// The instruction's documented arithmetic in portable code.
    #[cfg(test)]
    Emulated,
}

impl MatrixUnit {
    /// Returns AMX, where CPU and system have it beside the instructions of `vectors`.
    #[cfg_attr(
        not(all(target_arch = "x86_64", target_os = "linux")),
        allow(unused_variables, reason = "no matrix unit exists there")
    )]
    fn beside(vectors: Bf16Isa) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return Some(Self { kind: MatrixUnitKind::Amx, vectors });
        }
        None
    }

    /// Returns a unit with the arithmetic of AMX on any machine.
    #[cfg(test)]
    fn emulated(vectors: Bf16Isa) -> Self {
        Self { kind: MatrixUnitKind::Emulated, vectors }
    }

    /// The kind of unit: `Amx` only where AMX may be used.
    #[inline(always)]
    pub(in crate::backend::cpu) fn kind(self) -> MatrixUnitKind {
        self.kind
    }

    /// The vector instructions beside it.
    pub(in crate::backend::cpu) fn vectors(self) -> Bf16Isa {
        self.vectors
    }

    /// Its name as printed: `amx`.
    pub fn name(self) -> &'static str {
        match self.kind {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            MatrixUnitKind::Amx => "amx",
            #[cfg(test)]
            MatrixUnitKind::Emulated => "emulated tiles",
        }
    }
}
