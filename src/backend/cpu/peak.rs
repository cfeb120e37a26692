//! The peak of multiply-adds, measured: independent chains in registers and nothing else. Kernels
//! reach a share of it.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::arithmetic::Math;
use super::matrix_unit::{PEAK_PRODUCTS, TILE_FLOPS};
use super::simd::Isa;
use super::threads::Threads;
use crate::error::Result;

/// Steps of a run, of one or a few milliseconds.
pub const STEPS: usize = 100_000;

/// Returns the FLOP per second of `threads` threads at once, in the arithmetic of `math`: the
/// fastest run within `time`. None where no peak is known.
///
/// # Errors
///
/// [`ErrorKind::Io`](crate::ErrorKind::Io) where a thread cannot be started.
pub fn flop_per_second(isa: Isa, math: Math, threads: usize, time: Duration) -> Result<Option<f64>> {
    if run(isa, math, 1).is_none() {
        return Ok(None);
    }
    let threads = Threads::new(threads)?;
    let once = || {
        let begin = Instant::now();
        threads.for_each_item(threads.count(), |_, _| {
            black_box(run(isa, math, STEPS));
        });
        begin.elapsed().as_secs_f64()
    };
    let begin = Instant::now();
    let mut seconds = once();
    while begin.elapsed() < time {
        seconds = seconds.min(once());
    }
    Ok(Some(threads.count() as f64 * STEPS as f64 * flops_per_step(isa, math) / seconds))
}

/// Chains: more than an addition's latency times the two units that add.
const CHAINS: usize = 12;

/// FLOP of one step of [`run`], counted in f32 multiply-adds, each of which takes three of a matrix
/// unit's: the weight is stored in bfloat16.
pub fn flops_per_step(isa: Isa, math: Math) -> f64 {
    let lanes = if isa.name() == "avx512" { 16 } else { 8 };
    match math {
        Math::F32 => (CHAINS * lanes * 2) as f64,
        Math::Bf16(_) => (CHAINS * lanes * 4) as f64,
        Math::F32Tiles(_) => (PEAK_PRODUCTS * TILE_FLOPS) as f64 / 3.0,
        Math::Bf16Tiles(_) => (PEAK_PRODUCTS * TILE_FLOPS) as f64,
    }
}

/// The arithmetic of attention beside matmuls in `math`, and the share of a step's FLOP that it
/// comes to: half with f32 tiles, for both operands are f32, and an f32 multiply-add then takes six
/// of a matrix unit.
pub fn of_attention(math: Math) -> (Math, f64) {
    match math {
        Math::F32Tiles(_) => (math, 0.5),
        Math::F32 | Math::Bf16(_) | Math::Bf16Tiles(_) => (math, 1.0),
    }
}

/// Runs `steps` steps of every chain. Returns a value, so that they are not optimised away; none
/// where no peak is known: of portable code.
pub fn run(isa: Isa, math: Math, steps: usize) -> Option<f32> {
    if let Math::F32Tiles(unit) | Math::Bf16Tiles(unit) = math {
        unit.run_at_peak(steps);
        return Some(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an `Isa`, or the arithmetic of its bf16 instructions, is the proof that the CPU has
    // them.
    unsafe {
        match (isa.name(), math) {
            ("avx512", Math::F32) => Some(fused_avx512(steps)),
            ("avx512", _) => Some(pairs_avx512(steps)),
            ("avx2+fma", _) => Some(fused_avx2(steps)),
            _ => None,
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa.name() == "neon" {
        // SAFETY: every 64-bit ARM has NEON.
        return Some(unsafe { fused_neon(steps) });
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, steps);
        None
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fused_avx512(steps: usize) -> f32 {
    let mut acc = [_mm512_set1_ps(1.0); CHAINS];
    let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
    for _ in 0..steps {
        acc.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, a, b));
    }
    acc.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs_avx512(steps: usize) -> f32 {
    let mut acc = [_mm512_set1_ps(1.0); CHAINS];
    let pairs = |x: f32| _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(x));
    let (a, b) = (black_box(pairs(0.5)), black_box(pairs(0.25)));
    for _ in 0..steps {
        acc.iter_mut().for_each(|s| *s = _mm512_dpbf16_ps(*s, a, b));
    }
    acc.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused_avx2(steps: usize) -> f32 {
    let mut acc = [_mm256_set1_ps(1.0); CHAINS];
    let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
    for _ in 0..steps {
        acc.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, a, b));
    }
    acc.into_iter().map(|s| _mm256_cvtss_f32(s)).sum()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn fused_neon(steps: usize) -> f32 {
    let mut acc = [vdupq_n_f32(1.0); 2 * CHAINS];
    let (a, b) = (black_box(vdupq_n_f32(0.5)), black_box(vdupq_n_f32(0.25)));
    for _ in 0..steps {
        acc.iter_mut().for_each(|s| *s = vfmaq_f32(b, *s, a));
    }
    acc.into_iter().map(|s| vaddvq_f32(s)).sum()
}
