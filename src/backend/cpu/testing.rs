//! Helpers of the kernels' tests: seeded inputs that are hard on purpose, comparisons that report
//! the element, thread counts, and arithmetics.

use std::io::Write;

use super::arithmetic::Math;
use super::simd::Isa;
use super::threads::Threads;

/// Thread counts that results must not depend on.
pub(super) const THREAD_COUNTS: [usize; 4] = [1, 2, 3, 5];

/// SplitMix64: the same values on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns an index below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Returns a roughly normal value, standard deviation 1; one in fifty is twenty times as large:
    /// flat inputs hide mistakes.
    pub(super) fn value(&mut self) -> f32 {
        let sum: f64 = (0..4).map(|_| (self.bits() >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum();
        let outlier = if self.below(50) == 0 { 20.0 } else { 1.0 };
        (sum * 1.7 * outlier) as f32
    }

    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Threads of each count that results must not depend on.
pub(super) fn all_threads() -> Vec<Threads> {
    THREAD_COUNTS.iter().map(|count| Threads::new(*count).unwrap()).collect()
}

/// Every f32 arithmetic: instruction sets, and matrix units beside them.
pub(super) fn f32_math() -> Vec<(Isa, Math)> {
    let of = |isa: Isa| std::iter::once(Math::F32).chain(isa.matrix_unit().map(Math::F32Tiles));
    Isa::for_tests().into_iter().flat_map(|isa| of(isa).map(move |math| (isa, math))).collect()
}

/// Every bfloat16 arithmetic.
pub(super) fn bf16_math() -> Vec<(Isa, Math)> {
    let of = |isa: Isa| isa.bf16().map(Math::Bf16).into_iter().chain(isa.matrix_unit().map(Math::Bf16Tiles));
    Isa::for_tests().into_iter().flat_map(|isa| of(isa).map(move |math| (isa, math))).collect()
}

/// Every arithmetic.
pub(super) fn all_math() -> Vec<(Isa, Math)> {
    f32_math().into_iter().chain(bf16_math()).collect()
}

/// Returns the name of an arithmetic as printed.
pub(super) fn name(isa: Isa, math: Math) -> String {
    match math {
        Math::F32 => isa.name().to_owned(),
        Math::Bf16(bf16) => bf16.name().to_owned(),
        Math::F32Tiles(unit) | Math::Bf16Tiles(unit) => format!("{math:?} {}", unit.name()),
    }
}

/// Fails with the first element whose bits differ.
#[track_caller]
pub(super) fn assert_same_bits(got: &[f32], expected: &[f32], width: usize, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(same, "{what}: at [{}, {}] {got:e}, expected {expected:e}", i / width, i % width);
    }
}

/// The largest `|got - expected| / scale` so far, and where.
#[derive(Default)]
pub(super) struct Worst {
    error: f64,
    location: String,
}

impl Worst {
    pub(super) fn record(&mut self, got: f32, expected: f64, scale: f64, location: impl FnOnce() -> String) {
        let error = (f64::from(got) - expected).abs() / scale.max(f64::MIN_POSITIVE);
        // A NaN must win, and must not be replaced.
        if (error > self.error || error.is_nan()) && !self.error.is_nan() {
            self.error = error;
            self.location = format!("{}: {got:e}, expected {expected:e}", location());
        }
    }

    #[track_caller]
    pub(super) fn assert_within(&self, bound: f64, what: &str) {
        println!("{what}: worst {:.2e} of {bound:.2e}, {}", self.error, self.location);
        assert!(self.error <= bound, "{what}: {:.2e} is over {bound:.2e}, {}", self.error, self.location);
    }
}

/// Reports past the test harness's capture that a test could not run; fails where
/// `KUDOS_TEST_REQUIRE` names it.
pub(super) fn not_run(test: &str, missing: &str) {
    let required = std::env::var("KUDOS_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == missing), "{test} is required, and this CPU has no {missing}");
    // The harness captures print macros, not the stream itself.
    let _ = writeln!(std::io::stderr(), "not run: {test}: this CPU has no {missing}");
}
