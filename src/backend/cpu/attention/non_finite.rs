//! Values that are not finite, where keys that a row does not see are multiplied too.

use super::task::Task;

/// The rows of a task that see a value that is not finite, by dimension. Such a value is multiplied as
/// zero, for zero times NaN is NaN, and the rows that see it get NaN in that dimension at the end.
#[derive(Default)]
pub(super) struct NonFinite {
    /// `[rows, head_dim]`; empty as long as all values are finite.
    sees: Vec<bool>,
}

impl NonFinite {
    /// Records a value that is not finite: of key `key` of the path, in dimension `dim`.
    pub(super) fn record(&mut self, task: &Task, key: usize, dim: usize) {
        self.sees.resize(task.rows() * task.head_dim(), false);
        for row in 0..task.rows() {
            let sees = (task.first_key_of(row)..task.keys_of(row)).contains(&key);
            self.sees[row * task.head_dim() + dim] |= sees;
        }
    }

    /// Writes NaN to the outputs of the rows that see such values.
    pub(super) fn finish(&self, task: &Task, o: &mut [f32], o_stride: usize) {
        for (r, sees) in self.sees.chunks_exact(task.head_dim()).enumerate() {
            for (dim, _) in sees.iter().enumerate().filter(|(_, sees)| **sees) {
                o[r * o_stride + dim] = f32::NAN;
            }
        }
    }
}
