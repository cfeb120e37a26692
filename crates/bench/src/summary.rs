//! Mean, standard deviation and median of samples.

use serde::Serialize;

/// Mean, standard deviation and median of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) mean: f64,
    /// The sample standard deviation (n - 1); 0 for one sample.
    pub(super) sd: f64,
    pub(super) median: f64,
}

impl Summary {
    /// # Panics
    ///
    /// Panics without samples.
    pub(super) fn new(samples: &[f64]) -> Self {
        let count = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let sd = (squares / (count - 1.0).max(1.0)).sqrt();
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = |shift: usize| sorted[(sorted.len() - shift) / 2];
        Self { mean, sd, median: (middle(1) + middle(0)) / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_mean_deviation_and_median() {
        let of = |samples: &[f64]| {
            let Summary { mean, sd, median } = Summary::new(samples);
            [mean, sd, median]
        };
        assert_eq!(of(&[3.0]), [3.0, 0.0, 3.0]);
        assert_eq!(of(&[9.0, 1.0, 2.0]), [4.0, 19.0_f64.sqrt(), 2.0]);
        assert_eq!(of(&[1.0, 3.0]), [2.0, 2.0_f64.sqrt(), 2.0]);
    }
}
