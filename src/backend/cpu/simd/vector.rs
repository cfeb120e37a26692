//! The vector types that kernels are generic over, and the kernels themselves.

/// The most lanes of any vector type; sums over a row use this many partial sums on every
/// instruction set.
pub(in crate::backend::cpu) const LANES_MAX: usize = 16;

/// A vector of f32 lanes.
///
/// # Safety
///
/// All methods: the CPU has the type's instructions (an `Isa` of that kind exists). Loads and
/// stores: the pointer is valid for the lanes named, of any alignment.
pub(in crate::backend::cpu) trait Vector: Copy {
    /// f32 lanes; a power of two, at most [`LANES_MAX`].
    const LANES: usize;

    /// Returns `x` in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// Loads all lanes.
    unsafe fn load(from: *const f32) -> Self;
    /// Stores all lanes.
    unsafe fn store(self, to: *mut f32);
    /// Loads the first `count <= LANES` lanes, zero in the others; touches no memory behind them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Stores the first `count <= LANES` lanes; touches no memory behind them.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// Widens `LANES` IEEE halves from memory, exactly.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Widens `LANES` bfloat16 values from memory, exactly.
    unsafe fn load_bf16(from: *const u8) -> Self;

    /// `self * b + c`, rounded once (but see `portable`).
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
    /// The bits of each lane shifted left by 23, zeros coming in: the low bits become sign and
    /// exponent.
    unsafe fn bits_shl_23(self) -> Self;

    /// `(a0 b0 a1 b1 ..)`: the lower halves of two vectors, and then their upper halves, as a zip.
    unsafe fn zip(self, b: Self) -> (Self, Self);

    /// The bfloat16 values in the lower and in the upper halves of the lanes, widened.
    unsafe fn widen_bf16_pairs(self) -> (Self, Self);

    /// Runs `kernel` with this vector type in a function of its own, where only its own values
    /// compete for registers: a kernel that is inlined into a long function may have its
    /// accumulators spilled in every step.
    unsafe fn run_apart(kernel: impl Kernel);

    /// Transposes the `LANES x LANES` square whose rows are `square[..LANES]`, moving bits only.
    #[inline(always)]
    unsafe fn transpose(square: &mut [Self; LANES_MAX]) {
        // Zipping row i with row i + LANES / 2 rotates the (row, lane) index by one bit; after
        // log2(LANES) zips row and lane are swapped.
        let half = Self::LANES / 2;
        let mut zipped = 1;
        while zipped < Self::LANES {
            let rows = *square;
            for i in 0..half {
                // SAFETY: as this function.
                (square[2 * i], square[2 * i + 1]) = unsafe { rows[i].zip(rows[i + half]) };
            }
            zipped *= 2;
        }
    }

    /// Loads the `LANES x LANES` square of 32-bit lanes at `offset` bytes of the first `LANES`
    /// rows, transposed.
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

/// A vector type with instructions for pairs of bfloat16 values.
pub(in crate::backend::cpu) trait Bf16Vector: Vector {
    /// `self + x[1] * w[1] + x[0] * w[0]` per lane, where each lane of `x` and `w` is a pair of
    /// bfloat16 values (the first in the low half): two fused multiply-adds, the upper pair's
    /// first, subnormals in and out taken as zero.
    unsafe fn dot_pairs(self, x: Self, w: Self) -> Self;
    /// Rounds the lanes to bfloat16 (to nearest even; subnormals to zero) and stores them side by
    /// side.
    unsafe fn store_bf16(self, to: *mut u16);
    /// The nearest bfloat16 value of each lane, as [`store_bf16`](Self::store_bf16) rounds.
    unsafe fn nearest_bf16(self) -> Self;
    /// The upper half of each lane, zeros below: the bfloat16 value towards zero.
    unsafe fn upper_half(self) -> Self;
    /// Stores the upper halves of all lanes and of `next`'s, side by side.
    unsafe fn store_upper_halves(self, next: Self, to: *mut u16);
    /// Pairs of upper halves: a lane's own in the low half, the one of the same lane of `next` in
    /// the high half.
    unsafe fn pair_upper_halves(self, next: Self) -> Self;
    /// Runs `kernel` as [`run_apart`](Vector::run_apart) does.
    unsafe fn run_bf16_apart(kernel: impl Bf16Kernel);
}

/// A computation that is generic over the instruction set. Implementations are `#[inline(always)]`.
pub(in crate::backend::cpu) trait Kernel {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn run<V: Vector>(self);
}

/// A [`Kernel`] that needs bfloat16 instructions.
pub(in crate::backend::cpu) trait Bf16Kernel {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn run<V: Bf16Vector>(self);
}
