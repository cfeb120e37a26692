//! [`Profile`]: where the time of passes goes, by [`Class`] of op, for whoever asks while they run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// What the ops of a pass are counted as, by the names of their kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What a pass needs besides its tokens, on its way to the device.
    Tables,
    /// Rows of the embedding table.
    Embeddings,
    /// Streamed layers that ops had to wait for.
    StreamedLayers,
    /// Norms.
    AddRmsNorm,
    /// Products with the fused q, k and v.
    Qkv,
    /// Rotations of queries and keys.
    Rope,
    /// Attention.
    Attention,
    /// Products from attention back to the residual stream.
    O,
    /// Sums over ranks.
    AllReduce,
    /// Products with the fused gate and up; on a CPU with a matrix unit, which multiplies with them, the MLP's activation too.
    GateUp,
    /// The MLP's activation, where it is an op of its own.
    SiluMul,
    /// Products from the MLP back to the residual stream.
    Down,
    /// The rows in which sequences end, out of all rows.
    GatherRows,
    /// The head, and what a pass ends with.
    Score,
}

impl Class {
    /// All of them, in the order in which a pass comes to them.
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
        Self::SiluMul,
        Self::Down,
        Self::GatherRows,
        Self::Score,
    ];

    /// What it is called.
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
            Self::SiluMul => "silu_mul",
            Self::Down => "product_down",
            Self::GatherRows => "gather_rows",
            Self::Score => "score",
        }
    }
}

/// What an op has to do, however it does it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations of products and of attention; 0 where bytes alone matter.
    pub flop: f64,
    /// The fewest that must be read from the device's memory and written to it, where that is known.
    pub bytes: Option<usize>,
}

/// What ops of one class came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Which class it is.
    pub class: Class,
    /// How many ops.
    pub ops: usize,
    /// From the end of what came before each op to its own end, added up.
    pub seconds: f64,
    /// What they had to do; the bytes are known where those of every op are.
    pub work: Work,
}

/// Where passes of rank 0 spend their time, as long as it is asked for. A clone counts the same ones: keep one, give the
/// other to the engine.
#[derive(Clone, Debug, Default)]
pub struct Profile(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_on: AtomicBool,
    spent: Mutex<Vec<Spent>>,
}

impl Profile {
    /// Profiles passes that begin from here on. No pass may be under way.
    pub fn start(&self) {
        self.0.is_on.store(true, Ordering::Relaxed);
    }

    /// Profiles none any more: what the passes since the start came to, by class in the order of [`Class::ALL`], without
    /// those of which there was no op. No pass may be under way.
    pub fn stop(&self) -> Vec<Spent> {
        self.0.is_on.store(false, Ordering::Relaxed);
        let mut spent = std::mem::take(&mut *lock(&self.0.spent));
        spent.sort_by_key(|spent| Class::ALL.iter().position(|&class| class == spent.class));
        spent
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Counts one op.
    pub fn add(&self, class: Class, seconds: f64, work: Work) {
        let mut all = lock(&self.0.spent);
        match all.iter_mut().find(|spent| spent.class == class) {
            None => all.push(Spent { class, ops: 1, seconds, work }),
            Some(spent) => {
                spent.ops += 1;
                spent.seconds += seconds;
                spent.work.flop += work.flop;
                spent.work.bytes = spent.work.bytes.zip(work.bytes).map(|(before, more)| before + more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_added_up_by_class_in_the_order_of_a_pass() {
        let profile = Profile::default();
        profile.start();
        assert!(profile.is_on());
        let work = |flop, bytes| Work { flop, bytes };
        profile.add(Class::Down, 1.0, work(8.0, Some(3)));
        profile.add(Class::Tables, 0.5, work(0.0, None));
        profile.add(Class::Down, 2.0, work(4.0, Some(1)));
        profile.add(Class::Tables, 0.5, work(0.0, Some(7)));
        let spent = profile.stop();
        assert!(!profile.is_on());
        let expected = [
            Spent { class: Class::Tables, ops: 2, seconds: 1.0, work: work(0.0, None) },
            Spent { class: Class::Down, ops: 2, seconds: 3.0, work: work(12.0, Some(4)) },
        ];
        assert_eq!(spent, expected);
        assert_eq!(profile.stop(), [], "what was told is forgotten");
    }
}
