//! [`RandomWeights`]: tensors of a model's shape with random bf16 elements and no file, for
//! measuring.
//!
//! Power, and with it speed, depends on the elements that are multiplied: these are distributed as
//! in a model before training. Norms multiply with 1. A device that makes such elements itself
//! takes the seed from [`HostTensor::normal`] and reads nothing here; the first read of a tensor's
//! bytes makes them in ordinary memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::normal::{DEVIATION, DTYPE, Elements, HostElements, Normal};
use super::table::{EMBEDDING, Entry, LAYER_PREFIX, LM_HEAD};
use super::tensor::HostTensor;
use crate::config::{Head, ModelConfig, Norm};
use crate::random::Random;

/// Bytes of layers that have memory of their own on the host; the layers after them repeat these in
/// turn. More than any cache holds, so that repeated layers are read from memory, as a model's own
/// would be.
const LAYER_BYTES_MIN: usize = 2 << 30;

/// Random weights of a model's shape, which depend on the seed only.
#[derive(Debug)]
pub struct RandomWeights {
    tensors: BTreeMap<String, HostTensor>,
    host_bytes: usize,
}

impl RandomWeights {
    /// Returns weights for a model of these sizes; their elements are made when they are read.
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        Self::repeating(config, seed, LAYER_BYTES_MIN)
    }

    fn repeating(config: &ModelConfig, seed: u64, layer_bytes_min: usize) -> Self {
        let bytes = |entry: &Entry| entry.sizes(config).iter().product::<usize>() * DTYPE.size();
        let layer_bytes: usize = Entry::of(config)
            .filter(|(name, _)| name.starts_with(&format!("{LAYER_PREFIX}0.")))
            .map(|(_, entry)| bytes(entry))
            .sum();
        let own = layer_bytes_min.div_ceil(layer_bytes.max(1)).clamp(1, config.layers);
        let mut numbers: BTreeMap<String, Arc<HostElements>> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, entry) in Entry::of(config) {
            if name == LM_HEAD && config.head == (Head::LogitZero { tied: true }) {
                continue;
            }
            let sizes = entry.sizes(config);
            let shape = if let [rows, cols] = sizes[..] { [rows, cols] } else { [1, sizes[0]] };
            // Vectors are norms, or biases; both are ones, or zeros where norms add 1.
            let vectors = if config.norm == Norm::OnePlus { 0.0 } else { 1.0 };
            let elements = |name: &str| match sizes.len() {
                1 => Elements::Constant(vectors),
                _ => Elements::Normal(seed_of(name, seed)),
            };
            let count = shape[0] * shape[1];
            let repeated = repeated(&name, own);
            let make = || Arc::new(HostElements::new(count, elements(&repeated)));
            let numbers = numbers.entry(repeated.clone()).or_insert_with(make).clone();
            let normal = match elements(&name) {
                Elements::Constant(_) => None,
                Elements::Normal(seed) => Some(Normal { seed, deviation: DEVIATION }),
            };
            tensors.insert(name.clone(), HostTensor::random(numbers, name.as_str().into(), normal, shape));
        }
        let host_bytes = numbers.values().map(|numbers| numbers.count() * DTYPE.size()).sum();
        Self { tensors, host_bytes }
    }

    /// Bytes of all weights in the host's memory, once they are read there.
    pub fn host_bytes(&self) -> usize {
        self.host_bytes
    }

    /// Returns a whole tensor; the head of a model with tied embeddings is the embeddings.
    ///
    /// # Panics
    ///
    /// When the model has no such tensor.
    pub(super) fn tensor(&self, name: &str) -> HostTensor {
        let tied = || self.tensors.get(EMBEDDING).filter(|_| name == LM_HEAD);
        self.tensors.get(name).or_else(tied).unwrap_or_else(|| panic!("no tensor `{name}`")).clone()
    }
}

/// Returns the name of the tensor whose elements this one repeats on the host, where only
/// `own_layers` have their own.
fn repeated(name: &str, own_layers: usize) -> String {
    let in_layer = name.strip_prefix(LAYER_PREFIX).and_then(|rest| rest.split_once('.'));
    match in_layer.and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest))) {
        Some((layer, rest)) => format!("{LAYER_PREFIX}{}.{rest}", layer % own_layers),
        None => name.to_owned(),
    }
}

/// Returns the seed of a tensor, far from every other tensor's: FNV-1a of the model's seed and the
/// name, mixed once more.
fn seed_of(name: &str, seed: u64) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    Random::new(hash).next_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Shard;
    use crate::weights::{ModelTensors, WeightBytes};

    fn config() -> ModelConfig {
        ModelConfig { layers: 5, head: Head::LogitZero { tied: true }, ..ModelConfig::tiny() }
    }

    fn numbers(tensor: &HostTensor) -> Vec<f32> {
        let mut all = vec![0.0; tensor.rows() * tensor.cols()];
        for (row, out) in all.chunks_exact_mut(tensor.cols()).enumerate() {
            tensor.row_to_f32(row, out);
        }
        all
    }

    #[test]
    fn a_rank_has_its_part_of_the_whole_tensors() {
        let weights = RandomWeights::new(&config(), 0);
        for ranks in [1, 2] {
            for rank in 0..ranks {
                let shard = Shard::new(&config(), rank, ranks).unwrap();
                let tensors = ModelTensors::random(&weights, &config(), &shard);
                assert_eq!(tensors.bytes(), WeightBytes::of(&config(), &shard, DTYPE));
                let whole = ModelTensors::random(&weights, &config(), &Shard::new(&config(), 0, 1).unwrap());
                let [part, all] = [&tensors, &whole].map(|tensors| &tensors.layers[1].gate_up[0]);
                let share = all.rows() / ranks;
                let expected = numbers(&all.row_range(rank * share..(rank + 1) * share));
                assert_eq!(numbers(part), expected);
            }
        }
    }

    #[test]
    fn elements_depend_on_seed_and_name() {
        let whole = Shard::new(&config(), 0, 1).unwrap();
        let of = |seed| ModelTensors::random(&RandomWeights::new(&config(), seed), &config(), &whole);
        let (one, again, other) = (of(1), of(1), of(2));
        assert_eq!(numbers(&one.layers[0].o), numbers(&again.layers[0].o));
        assert_ne!(numbers(&one.layers[0].o), numbers(&other.layers[0].o));
        assert_ne!(numbers(&one.layers[0].o), numbers(&one.layers[1].o));
        assert!(numbers(&one.layers[3].input_norm).iter().all(|&number| number == 1.0));
        assert_eq!(one.layers[3].input_norm.normal(), None);
        assert_ne!(one.layers[0].o.normal(), one.layers[1].o.normal());
        assert_eq!(one.layers[0].o.normal(), again.layers[0].o.normal());
        // Tied: row 0 of the embeddings.
        assert_eq!(numbers(&one.head), numbers(&one.embedding.row_range(0..1)));
    }

    #[test]
    fn the_host_repeats_layers_and_a_device_does_not() {
        let layer_bytes = WeightBytes::of(&config(), &Shard::new(&config(), 0, 1).unwrap(), DTYPE).layer_max;
        let weights = RandomWeights::repeating(&config(), 0, layer_bytes + 1);
        let whole = Shard::new(&config(), 0, 1).unwrap();
        let layers = ModelTensors::random(&weights, &config(), &whole).layers;
        assert_eq!(numbers(&layers[0].down), numbers(&layers[2].down));
        assert_ne!(numbers(&layers[0].down), numbers(&layers[3].down));
        assert_ne!(layers[0].down.normal(), layers[2].down.normal());
        let beside_layers = 2 * (config().vocab * config().hidden + config().hidden);
        assert_eq!(weights.host_bytes(), 2 * layer_bytes + beside_layers);
    }
}
