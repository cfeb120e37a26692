//! The CPU as a [`Platform`]: weights are used where they are mapped, ranks are groups of threads.

use std::sync::Arc;
use std::thread;

use super::device::{DeviceInfo, DeviceKind};
use super::interface::{Platform, RankSetup, at_least_one};
use super::load::load;
use crate::backend::cpu::{Arithmetic, Cpu, Group, Nodes, stay_on};
use crate::backend::{Capacity, Footprint, Geometry};
use crate::config::ModelConfig;
use crate::engine::options::{CpuOptions, Replicas};
use crate::engine::ranks::Rank;
use crate::engine::residency::Residency;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{ModelTensors, WeightBytes};

/// Rows that go through the MLP at a time: gate and up of a chunk stay near the cache, while a
/// weight block is packed once for many rows.
const MLP_TOKENS: usize = 512;

pub(in crate::engine) struct CpuPlatform {
    threads: usize,
    /// The requested number of ranks.
    ranks: Option<usize>,
    requested: Replicas,
    nodes: Nodes,
    arithmetic: Arithmetic,
    /// The ranks of each replica.
    groups: Vec<Arc<Group>>,
}

impl CpuPlatform {
    pub(in crate::engine) fn new(options: &CpuOptions) -> Result<Self> {
        Self::with_arithmetic(options, Arithmetic::of(options.math))
    }

    /// Makes a platform that computes in the given arithmetic.
    pub(in crate::engine) fn with_arithmetic(options: &CpuOptions, arithmetic: Arithmetic) -> Result<Self> {
        let all = || thread::available_parallelism().map_or(1, |n| n.get());
        let threads = options.threads.unwrap_or_else(all);
        if threads == 0 {
            return Err(Error::new(
                ErrorKind::Options,
                "the CPU needs at least one thread, and 0 were requested",
            )
            .with_hint("leave the number of threads out for as many as the machine has"));
        }
        Ok(Self {
            threads,
            ranks: options.ranks,
            requested: options.replicas,
            nodes: Nodes::of_machine(),
            arithmetic,
            groups: vec![Arc::new(Group::new(1))],
        })
    }
}

impl Platform for CpuPlatform {
    fn device(&self) -> DeviceInfo {
        let (count, name) = (self.threads, self.arithmetic.instructions());
        let description = format!("CPU, {count} threads, {name}");
        DeviceInfo { kind: DeviceKind::Cpu, name, count, reason: None, simulated: false, description }
    }

    fn ranks(&self, _: &ModelConfig, _: Residency, _: &dyn Fn(usize) -> Result<Footprint>) -> Result<usize> {
        Ok(self.ranks.unwrap_or(1))
    }

    fn replicas(&self, _ranks: usize) -> Result<usize> {
        match self.requested {
            Replicas::Auto => Ok(self.nodes.count().min(self.threads)),
            Replicas::Count(count) if count > self.threads => {
                let message = format!("{count} replicas need a thread each, and there are {}", self.threads);
                Err(Error::new(ErrorKind::Options, message)
                    .with_hint("ask for fewer replicas, or for more threads (`--threads`)"))
            }
            Replicas::Count(count) => at_least_one(count),
        }
    }

    fn divide(&mut self, replicas: usize, ranks: usize) -> Result<()> {
        self.groups = (0..replicas).map(|_| Arc::new(Group::new(ranks))).collect();
        Ok(())
    }

    fn mlp_tokens(&self, _: &Geometry, tokens: usize) -> usize {
        MLP_TOKENS.min(tokens)
    }

    fn weight_bytes(&self, _: &Geometry, _: &ModelTensors) -> WeightBytes {
        WeightBytes::default()
    }

    fn footprint(&self, geometry: &Geometry, capacity: &Capacity, _: usize) -> Footprint {
        Cpu::footprint(geometry, capacity)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn open_rank(&self, rank: RankSetup<'_>) -> Result<Box<dyn Rank>> {
        let threads = (self.threads / self.groups.len() / rank.geometry.shard.ranks).max(1);
        let (arithmetic, group) = (self.arithmetic.clone(), Arc::clone(&self.groups[rank.replica]));
        // Before anything is allocated, and the rank's workers start: they stay there too.
        if let Some(cpus) = self.nodes.cpus_of(rank.replica, self.groups.len())
            && let Err(error) = stay_on(&cpus)
        {
            (rank.warn)(format!("replicas do not stay on NUMA nodes, and may be slower: {error}"));
        }
        load(Cpu::new(rank.geometry.clone(), rank.capacity, arithmetic, threads, group)?, &rank)
    }

    fn abort(&self, replica: usize) -> Arc<dyn Fn() + Send + Sync> {
        let group = Arc::clone(&self.groups[replica]);
        Arc::new(move || group.abort())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of replicas for `requested` on two nodes with `threads` threads.
    fn replicas(requested: Replicas, threads: usize) -> Result<usize> {
        let options = CpuOptions { threads: Some(threads), replicas: requested, ..CpuOptions::default() };
        let nodes = Nodes::of_cpus(&[&[0], &[1]]);
        CpuPlatform { nodes, ..CpuPlatform::new(&options)? }.replicas(1)
    }

    #[test]
    fn auto_is_a_replica_per_node_that_has_a_thread() {
        assert_eq!(replicas(Replicas::Auto, 8).unwrap(), 2);
        assert_eq!(replicas(Replicas::Auto, 1).unwrap(), 1);
        assert_eq!(replicas(Replicas::Count(3), 8).unwrap(), 3);
        assert_eq!(replicas(Replicas::Count(3), 2).unwrap_err().kind(), ErrorKind::Options);
    }
}
