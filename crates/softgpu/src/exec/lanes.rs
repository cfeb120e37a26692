//! Thirty-two lanes of a register, and the loops over them. Everything here is inlined into the
//! interpreter's loop, which is compiled once for AVX2 + FMA and once for any machine: so closures
//! must not call functions that are not inlined.

/// All lanes.
pub(super) const FULL: u32 = u32::MAX;

/// A 32-bit register of a warp.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct W32(pub(super) [u32; 32]);

/// A 64-bit register of a warp.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct W64(pub(super) [u64; 32]);

/// Writes the lanes of `mask`.
#[inline(always)]
pub(super) fn put<T: Copy>(to: &mut [T; 32], from: &[T; 32], mask: u32) {
    if mask == FULL {
        *to = *from;
    } else {
        for i in 0..32 {
            to[i] = if mask >> i & 1 == 1 { from[i] } else { to[i] };
        }
    }
}

macro_rules! lane_maps {
    ($one:ident, $two:ident, $three:ident, $register:ident, $word:ty) => {
        #[inline(always)]
        pub(super) fn $one(file: &mut [$register], r: &[u16; 5], mask: u32, f: impl Fn($word) -> $word) {
            let a = file[r[1] as usize].0;
            let mut out = [0; 32];
            for i in 0..32 {
                out[i] = f(a[i]);
            }
            put(&mut file[r[0] as usize].0, &out, mask);
        }

        #[inline(always)]
        pub(super) fn $two(
            file: &mut [$register],
            r: &[u16; 5],
            mask: u32,
            f: impl Fn($word, $word) -> $word,
        ) {
            let (a, b) = (&file[r[1] as usize].0, &file[r[2] as usize].0);
            let mut out = [0; 32];
            for i in 0..32 {
                out[i] = f(a[i], b[i]);
            }
            put(&mut file[r[0] as usize].0, &out, mask);
        }

        #[inline(always)]
        pub(super) fn $three(
            file: &mut [$register],
            r: &[u16; 5],
            mask: u32,
            f: impl Fn($word, $word, $word) -> $word,
        ) {
            let (a, b, c) = (&file[r[1] as usize].0, &file[r[2] as usize].0, &file[r[3] as usize].0);
            let mut out = [0; 32];
            for i in 0..32 {
                out[i] = f(a[i], b[i], c[i]);
            }
            put(&mut file[r[0] as usize].0, &out, mask);
        }
    };
}

lane_maps!(one32, two32, three32, W32, u32);
lane_maps!(one64, two64, three64, W64, u64);
