//! Elementary functions that have the same bits on every platform; those of the standard library are the
//! platform's own, and differ in the last place.
//!
//! They are computed in f64, within one unit in its last place; results in f32 are rounded from that.

/// `x` to the power `y`.
pub(crate) fn pow(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}

/// The hyperbolic tangent.
pub(crate) fn tanh(x: f64) -> f64 {
    libm::tanh(x)
}

/// The cosine of an angle in radians.
pub(crate) fn cos(angle: f32) -> f32 {
    libm::cos(f64::from(angle)) as f32
}

/// The sine of an angle in radians.
pub(crate) fn sin(angle: f32) -> f32 {
    libm::sin(f64::from(angle)) as f32
}
