//! The end of a pass, on the host: from the last matmul to a few rows of logits.

use crate::elementary;
use crate::weights::{HeadOut, HostTensor};

/// `cap * tanh(logit / cap)`, computed in f64 and rounded once.
pub(super) fn capped(logit: f32, cap: f32) -> f32 {
    let (logit, cap) = (f64::from(logit), f64::from(cap));
    (cap * elementary::tanh(logit / cap)) as f32
}

/// The rest of a head with a hidden layer: `weight * relu(hidden + hidden_bias) + bias`.
#[derive(Debug)]
pub(super) struct HeadMlp {
    hidden_bias: Vec<f32>,
    /// `[labels, hidden]`
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl HeadMlp {
    pub(super) fn new(tensors: &HeadOut) -> Self {
        let values = |tensor: &HostTensor| {
            let mut values = vec![0.0; tensor.rows() * tensor.cols()];
            for (row, out) in values.chunks_exact_mut(tensor.cols()).enumerate() {
                tensor.row_to_f32(row, out);
            }
            values
        };
        let HeadOut { hidden_bias, weight, bias } = tensors;
        Self { hidden_bias: values(hidden_bias), weight: values(weight), bias: values(bias) }
    }

    /// Returns the logits `[rows, labels]` from the hidden layer's matmul `[rows, hidden]`. Sums are
    /// in f64, in the order of the features, and rounded once.
    pub(super) fn forward(&self, matmul: &[f32]) -> Vec<f32> {
        let hidden = self.hidden_bias.len();
        let mut activated = vec![0.0; hidden];
        let mut logits = Vec::with_capacity(matmul.len() / hidden * self.bias.len());
        for row in matmul.chunks_exact(hidden) {
            for (out, (x, bias)) in activated.iter_mut().zip(row.iter().zip(&self.hidden_bias)) {
                let x = x + bias;
                // Not `max`, which would turn NaN into 0.
                *out = if x < 0.0 { 0.0 } else { x };
            }
            logits.extend(self.weight.chunks_exact(hidden).zip(&self.bias).map(|(weight, bias)| {
                let terms = activated.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
                (terms.sum::<f64>() + f64::from(*bias)) as f32
            }));
        }
        logits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_layer_is_rectified_and_keeps_a_nan() {
        let mlp = HeadMlp {
            hidden_bias: vec![0.5, -1.0],
            weight: vec![2.0, 3.0, -1.0, 4.0],
            bias: vec![10.0, 20.0],
        };
        // relu([1.5, 0]) and relu([0, 2]).
        assert_eq!(mlp.forward(&[1.0, 0.5, -2.0, 3.0]), [13.0, 18.5, 16.0, 28.0]);
        assert!(mlp.forward(&[f32::NAN, 0.0]).iter().all(|logit| logit.is_nan()));
    }

    #[test]
    fn a_cap_bounds_logits_and_keeps_a_nan() {
        assert_eq!(capped(0.0, 30.0), 0.0);
        assert_eq!(capped(1e30, 30.0), 30.0);
        assert_eq!(capped(-1e30, 30.0), -30.0);
        assert!((capped(15.0, 30.0) - 30.0 * 0.5f32.tanh()).abs() < 1e-6);
        assert!(capped(f32::NAN, 30.0).is_nan());
    }
}
