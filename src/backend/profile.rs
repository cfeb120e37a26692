//! [`Profile`]: the time of passes by [`Class`] of op.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Classes of a pass's ops, by the names of their kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Uploads of a pass's metadata.
    Tables,
    /// Gathers of the embedding table's rows.
    Embeddings,
    /// Waits for streamed layers.
    StreamedLayers,
    /// Norms.
    AddRmsNorm,
    /// Matmuls with the fused q, k and v.
    Qkv,
    /// Rotations of queries and keys.
    Rope,
    /// Attention.
    Attention,
    /// Output projections of attention.
    O,
    /// All-reduces over ranks.
    AllReduce,
    /// Matmuls with the fused gate and up; with the MLP's activation where the backend fuses it.
    GateUp,
    /// The MLP's activation where it is an op of its own.
    GateMul,
    /// Output projections of the MLP.
    Down,
    /// Gathers of the rows in which sequences end.
    GatherRows,
    /// The head and the download of logits.
    Score,
}

impl Class {
    /// All classes, in the order of a pass.
    pub const ALL: [Self; 14] = [
        Self::Tables,
        Self::Embeddings,
        Self::StreamedLayers,
        Self::AddRmsNorm,
        Self::Qkv,
        Self::Rope,
        Self::Attention,
        Self::O,
        Self::AllReduce,
        Self::GateUp,
        Self::GateMul,
        Self::Down,
        Self::GatherRows,
        Self::Score,
    ];

    /// The name of the class in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Embeddings => "embeddings",
            Self::StreamedLayers => "streamed_layers",
            Self::AddRmsNorm => "add_rms_norm",
            Self::Qkv => "product_qkv",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::O => "product_o",
            Self::AllReduce => "all_reduce",
            Self::GateUp => "product_gate_up",
            Self::GateMul => "gate_mul",
            Self::Down => "product_down",
            Self::GatherRows => "gather_rows",
            Self::Score => "score",
        }
    }
}

/// The work of an op, whatever algorithm computes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// FLOP of matmuls and of attention; 0 where bytes alone count.
    pub flop: f64,
    /// The fewest bytes read from and written to the device's memory, where that is known.
    pub bytes: Option<usize>,
}

/// All ops of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Their class.
    pub class: Class,
    /// Their number.
    pub ops: usize,
    /// The sum of their times, each from the end of the op before to its own end.
    pub seconds: f64,
    /// The sum of their costs; the bytes are known where those of every op are.
    pub cost: Cost,
}

/// The time of rank 0's passes while profiling is on. Clones share their counts: give one to the
/// engine and keep another.
#[derive(Clone, Debug, Default)]
pub struct Profile(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_on: AtomicBool,
    spent: Mutex<Vec<Spent>>,
}

impl Profile {
    /// Profiles all passes from here on. No pass may be running.
    pub fn start(&self) {
        self.0.is_on.store(true, Ordering::Relaxed);
    }

    /// Ends profiling and returns the classes that had ops since the start, in the order of
    /// [`Class::ALL`]. No pass may be running.
    pub fn stop(&self) -> Vec<Spent> {
        self.0.is_on.store(false, Ordering::Relaxed);
        let mut spent = std::mem::take(&mut *lock(&self.0.spent));
        spent.sort_by_key(|spent| Class::ALL.iter().position(|&class| class == spent.class));
        spent
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Adds an op.
    pub fn add(&self, class: Class, seconds: f64, cost: Cost) {
        let mut all = lock(&self.0.spent);
        match all.iter_mut().find(|spent| spent.class == class) {
            None => all.push(Spent { class, ops: 1, seconds, cost }),
            Some(spent) => {
                spent.ops += 1;
                spent.seconds += seconds;
                spent.cost.flop += cost.flop;
                spent.cost.bytes = spent.cost.bytes.zip(cost.bytes).map(|(before, more)| before + more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_summed_by_class_in_the_order_of_a_pass() {
        let profile = Profile::default();
        profile.start();
        assert!(profile.is_on());
        let cost = |flop, bytes| Cost { flop, bytes };
        profile.add(Class::Down, 1.0, cost(8.0, Some(3)));
        profile.add(Class::Tables, 0.5, cost(0.0, None));
        profile.add(Class::Down, 2.0, cost(4.0, Some(1)));
        profile.add(Class::Tables, 0.5, cost(0.0, Some(7)));
        let spent = profile.stop();
        assert!(!profile.is_on());
        let expected = [
            Spent { class: Class::Tables, ops: 2, seconds: 1.0, cost: cost(0.0, None) },
            Spent { class: Class::Down, ops: 2, seconds: 3.0, cost: cost(12.0, Some(4)) },
        ];
        assert_eq!(spent, expected);
        assert_eq!(profile.stop(), [], "stop clears the counts");
    }
}
