//! Instruction sets: the algorithm once over a small `Vector` trait, thin instantiations, one choice at run time.
//!
//! A kernel is a value with a method generic over the vector type (`Kernel`). `Isa::run` enters it through a
//! function compiled for the chosen instruction set; everything under it is `inline(always)`, so the whole kernel is
//! compiled with those instructions. An [`Isa`] exists only for a CPU that has it: whoever holds one has the proof.
//!
//! Every kernel that adds in f32 fixes the order of its additions without regard to the lanes of a vector, and every
//! instruction set but the portable one fuses multiply and add, so AVX2 and AVX-512 give the same bits (a matrix unit beside
//! them, which matrix products and attention use, has bits of its own). The portable
//! one rounds the product first, because a fused multiply-add without the instruction is a slow library call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;
#[cfg(test)]
mod tests;

use super::matrix_unit::MatrixUnit;
#[cfg(test)]
pub(super) use math::exp;
pub(super) use math::{Sums, exp2, max_of_rows, silu};

/// The most lanes of any vector type; sums over a row use this many partial sums on every instruction set.
pub(super) const LANES_MAX: usize = 16;

/// A vector of f32 lanes.
///
/// # Safety
///
/// All methods: the CPU has the type's instructions (an [`Isa`] of that kind exists). Loads and stores: the pointer is
/// valid for the lanes named, of any alignment.
pub(super) trait Vector: Copy {
    /// f32 lanes; a power of two, at most [`LANES_MAX`].
    const LANES: usize;
    /// Vectors side by side in a GEMM's register tile: 3 or 2.
    const PANEL_VECTORS: usize;
    /// Rows of a register tile: with the vectors above it fills the register file.
    const TILE_ROWS: usize;
    /// Steps along k that a GEMM packs at a time.
    const K_BLOCK: usize;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// All lanes from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// All lanes to memory.
    unsafe fn store(self, to: *mut f32);
    /// The first `count <= LANES` lanes from memory, zero in the others; touches nothing behind them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// The first `count <= LANES` lanes to memory; touches nothing behind them.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// Widens `LANES` IEEE halves from memory, exactly.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Widens lanes that are pairs of bfloat16 values, exactly: the first of each (in the low half), and the second.
    unsafe fn widen_pairs(self) -> (Self, Self);

    /// `self * b + c`, rounded once (but see [`portable`]).
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// `self / b`.
    unsafe fn div(self, b: Self) -> Self;
    /// The larger; `b` where either is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(self, b: Self) -> Self;
    /// The bits of each lane shifted left by 23, zeros coming in: the low bits become sign and exponent.
    unsafe fn bits_shl_23(self) -> Self;

    /// `(a0 b0 a1 b1 ..)`: the lower halves of two vectors, and then their upper halves, as a zip.
    unsafe fn zip(self, b: Self) -> (Self, Self);

    /// Runs `kernel` with this vector type in a function of its own, where only its own values compete for registers: what
    /// is inlined into a long function may find its sums in memory in every step.
    unsafe fn run_apart(kernel: impl Kernel);

    /// Transposes the `LANES x LANES` square whose rows are `square[..LANES]`, moving bits only.
    #[inline(always)]
    unsafe fn transpose(square: &mut [Self; LANES_MAX]) {
        // Zipping row i with row i + LANES / 2 rotates the (row, lane) index by one bit; after log2(LANES) rounds row
        // and lane have changed places.
        let half = Self::LANES / 2;
        let mut round = 1;
        while round < Self::LANES {
            let rows = *square;
            for i in 0..half {
                // SAFETY: as this function.
                (square[2 * i], square[2 * i + 1]) = unsafe { rows[i].zip(rows[i + half]) };
            }
            round *= 2;
        }
    }

    /// The `LANES x LANES` square of 32-bit lanes at `offset` bytes of the first `LANES` rows, transposed.
    #[inline(always)]
    unsafe fn load_square(rows: &[*const u8; LANES_MAX], offset: usize) -> [Self; LANES_MAX] {
        // SAFETY: as this function.
        unsafe {
            let mut square = [Self::splat(0.0); LANES_MAX];
            for i in 0..Self::LANES {
                square[i] = Self::load(rows[i].wrapping_add(offset).cast());
            }
            Self::transpose(&mut square);
            square
        }
    }
}

/// A vector type whose CPU multiplies pairs of bfloat16 values.
pub(super) trait Bf16Vector: Vector {
    /// `self + x[1] * w[1] + x[0] * w[0]` per lane, where each lane of `x` and `w` is a pair of bfloat16 values (the
    /// first in the low half): two fused multiply-adds, the upper pair's first, subnormals in and out taken as zero.
    unsafe fn dot_pairs(self, x: Self, w: Self) -> Self;
    /// Rounds the lanes to bfloat16 (to nearest even; subnormals to zero) and stores them side by side.
    unsafe fn store_bf16(self, to: *mut u16);
    /// The nearest bfloat16 value of each lane, as [`store_bf16`](Self::store_bf16) rounds.
    unsafe fn nearest_bf16(self) -> Self;
    /// The upper half of each lane, zeros below: the bfloat16 value towards zero.
    unsafe fn upper_half(self) -> Self;
    /// Stores the upper halves of all lanes and of `next`'s, side by side.
    unsafe fn store_upper_halves(self, next: Self, to: *mut u16);
    /// Pairs of upper halves: a lane's own in the low half, the one of the same lane of `next` in the high half.
    unsafe fn pair_upper_halves(self, next: Self) -> Self;
}

/// A computation that is generic over the instruction set. Implementations are `#[inline(always)]`.
pub(super) trait Kernel {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn run<V: Vector>(self);
}

/// A [`Kernel`] that needs bfloat16 products.
pub(super) trait Bf16Kernel {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn run<V: Bf16Vector>(self);
}

/// Sizes of an instruction set's vectors and tiles; see `Vector`.
#[derive(Clone, Copy, Default)]
pub(super) struct Shape {
    pub(super) lanes: usize,
    /// Output columns of a GEMM's panel.
    pub(super) panel_width: usize,
    pub(super) tile_rows: usize,
    pub(super) k_block: usize,
}

impl Shape {
    /// The sizes that a vector type gives the kernels.
    #[inline(always)]
    pub(super) fn of<V: Vector>() -> Self {
        let panel_width = V::PANEL_VECTORS * V::LANES;
        Self { lanes: V::LANES, panel_width, tile_rows: V::TILE_ROWS, k_block: V::K_BLOCK }
    }
}

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
    /// The shape of AVX-512 (16 lanes, 8 x 48 tile) in portable code, products rounded first.
    #[cfg(test)]
    Lanes16,
    /// The same, multiply and add fused: AVX-512's bits on any machine.
    #[cfg(test)]
    Lanes16Fused,
}

impl Isa {
    /// The fastest instruction set of this CPU.
    pub fn detect() -> Self {
        *Self::available().last().expect("the portable instruction set is always there")
    }

    /// The instruction set that every CPU has: plain Rust, which the compiler turns into what the target guarantees.
    pub fn portable() -> Self {
        Self(IsaKind::Portable)
    }

    /// All instruction sets of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::portable()];
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

    /// Its name as printed: `portable`, `avx2+fma`, `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            IsaKind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => "avx512",
            #[cfg(test)]
            IsaKind::Lanes16 => "16 portable lanes",
            #[cfg(test)]
            IsaKind::Lanes16Fused => "16 portable lanes, fused",
        }
    }

    /// The instructions for bfloat16 products, where this CPU has them beside this instruction set.
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

    /// The sizes that its vector type gives the kernels.
    pub(super) fn shape(self) -> Shape {
        struct Measure<'a>(&'a mut Shape);
        impl Kernel for Measure<'_> {
            #[inline(always)]
            unsafe fn run<V: Vector>(self) {
                *self.0 = Shape::of::<V>();
            }
        }
        let mut shape = Shape::default();
        self.run(Measure(&mut shape));
        shape
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run(self, kernel: impl Kernel) {
        // SAFETY: a value of each kind is made only where the CPU has its instructions (`available`).
        unsafe {
            match self.0 {
                IsaKind::Portable => kernel.run::<portable::Portable>(),
                #[cfg(target_arch = "x86_64")]
                IsaKind::Avx2 => avx2::run::<avx2::Avx2, _>(kernel),
                #[cfg(target_arch = "x86_64")]
                IsaKind::Avx512 => avx512::run(kernel),
                #[cfg(test)]
                IsaKind::Lanes16 => kernel.run::<portable::Lanes16>(),
                // The same bits without a library call for every multiply-add.
                #[cfg(all(test, target_arch = "x86_64"))]
                IsaKind::Lanes16Fused if avx2::is_available() => {
                    avx2::run::<portable::Lanes16Fused, _>(kernel)
                }
                #[cfg(test)]
                IsaKind::Lanes16Fused => kernel.run::<portable::Lanes16Fused>(),
            }
        }
    }

    /// What the tests run on: everything this CPU has, and AVX-512's shape in portable code.
    #[cfg(test)]
    pub(super) fn for_tests() -> Vec<Self> {
        let mut all = Self::available();
        all.extend([Self(IsaKind::Lanes16), Self(IsaKind::Lanes16Fused)]);
        all
    }

    /// The instruction sets among [`for_tests`](Self::for_tests) that fuse multiply and add.
    #[cfg(test)]
    pub(super) fn fused_for_tests() -> Vec<Self> {
        let unfused = [Self(IsaKind::Portable), Self(IsaKind::Lanes16)];
        Self::for_tests().into_iter().filter(|isa| !unfused.contains(isa)).collect()
    }
}

/// Instructions for bfloat16 products that this CPU has; made by [`Isa::bf16`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Isa(Bf16Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bf16Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The instruction's documented arithmetic in portable code.
    #[cfg(test)]
    Lanes16,
    /// The same, f32 multiply and add fused beside it.
    #[cfg(test)]
    Lanes16Fused,
}

impl Bf16Isa {
    /// Whether a product is faster with them than with multiply-adds of f32. An instruction has twice the products of one,
    /// and on AMD's CPUs the same rate. On Intel's it has a quarter of the rate at most: so measured on one of family 6,
    /// model 207. This is decided by the maker rather than by a stopwatch because it decides bits.
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
    pub(super) fn run(self, kernel: impl Bf16Kernel) {
        match self.0 {
            // SAFETY: a value of this kind is made only where the CPU has the instructions (`Isa::bf16`).
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
