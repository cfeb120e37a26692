//! The results of collectives, to the bit: all-reduces in the order of a ring, rounded at every
//! hop, and exact all-gathers.

mod common;

use common::{Gpu, NON_BLOCKING, join, state, unique_id};
use half::{bf16, f16};
use softgpu::driver::memory::*;
use softgpu::nccl::*;

const IN_PROGRESS: u32 = 7;
const SUM: u32 = 0;

/// `ncclDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}
const KINDS: [Kind; 3] = [Kind::F16, Kind::F32, Kind::Bf16];

impl Kind {
    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// To the type and back. f64 has enough more bits that the sum of two, rounded twice, is the
    /// sum rounded once.
    fn rounded(self, value: f64) -> f64 {
        match self {
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::F32 => (value as f32).into(),
            Self::Bf16 => bf16::from_f64(value).to_f64(),
        }
    }

    fn encode(self, values: &[f64]) -> Vec<u8> {
        let bytes = |&value: &f64| match self {
            Self::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            Self::F32 => (value as f32).to_le_bytes().to_vec(),
            Self::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }
}

/// Ranks whose streams run in this thread.
struct Ranks(Vec<(Gpu, usize)>);

impl Ranks {
    fn new(count: usize) -> Self {
        let id = unique_id();
        let ranks = (0..count as i32).map(|rank| {
            let gpu = Gpu::new();
            let (result, comm) = join(id, count as i32, rank, &NON_BLOCKING);
            assert_eq!(result, IN_PROGRESS);
            (gpu, comm)
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.iter().for_each(|&(_, comm)| assert_eq!(state(comm), 0));
        Self(ranks)
    }

    /// The result of every rank in a buffer of `out_bytes`. `call` gets input, output and
    /// communicator. The input lies at `offset(rank, bytes)` in the output, or in a buffer of its
    /// own.
    fn run(
        &self,
        inputs: &[Vec<u8>],
        out_bytes: usize,
        offset: Option<fn(usize, usize) -> usize>,
        call: impl Fn(u64, u64, usize) -> u32,
    ) -> Vec<Vec<u8>> {
        let mut outputs = Vec::new();
        for (rank, (gpu, comm)) in self.0.iter().enumerate() {
            gpu.enter();
            let (output, bytes) = (gpu.allocate(out_bytes), inputs[rank].len());
            let input = offset.map_or_else(|| gpu.allocate(bytes), |at| output + at(rank, bytes) as u64);
            // SAFETY: the source has that length and is read at the call.
            assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(input, inputs[rank].as_ptr(), bytes, 0) }, 0);
            assert_eq!(call(input, output, *comm), IN_PROGRESS);
            assert_eq!(state(*comm), 0);
            outputs.push(output);
        }
        let read = |(rank, &output): (usize, &u64)| {
            self.0[rank].0.enter();
            let mut out = vec![0; out_bytes];
            // SAFETY: the target has that length, and a copy to pageable memory waits for itself.
            assert_eq!(unsafe { cuMemcpyDtoHAsync_v2(out.as_mut_ptr(), output, out_bytes, 0) }, 0);
            assert_eq!(cuMemFree_v2(output), 0);
            out
        };
        outputs.iter().enumerate().map(read).collect()
    }

    /// The all-reduce, whose bits must be equal on every rank, in place and out of place.
    fn sum(&self, kind: Kind, values: &[Vec<f64>]) -> Vec<u8> {
        let inputs: Vec<Vec<u8>> = values.iter().map(|v| kind.encode(v)).collect();
        let call =
            |input, output, comm| ncclAllReduce(input, output, values[0].len(), kind as u32, SUM, comm, 0);
        let apart = self.run(&inputs, inputs[0].len(), None, call);
        let in_place = self.run(&inputs, inputs[0].len(), Some(|_, _| 0), call);
        assert!(apart.iter().chain(&in_place).all(|out| *out == apart[0]), "{kind:?}: ranks or runs differ");
        apart[0].clone()
    }
}

/// Values of both signs over six binary orders, so that the order of a sum shows.
fn values(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    (0..count).map(|_| (next() as f64 / (1u64 << 23) as f64 - 1.0) * (1 << (next() % 7)) as f64).collect()
}

#[test]
fn sums_go_round_a_ring_and_round_at_every_hop() {
    for ranks in [2, 3, 4] {
        let world = Ranks::new(ranks);
        for (kind, count) in KINDS.into_iter().flat_map(|k| [1, 2, 5, 64, 97, 1001].map(|n| (k, n))) {
            let parts: Vec<Vec<f64>> = (0..ranks)
                .map(|rank| values((rank * 1000 + count) as u64, count))
                .map(|part| part.into_iter().map(|v| kind.rounded(v)).collect())
                .collect();
            let chunk = count.div_ceil(ranks);
            let expected: Vec<f64> = (0..count)
                .map(|i| {
                    let order = (1..=ranks).map(|hop| parts[(i / chunk + hop) % ranks][i]);
                    order.reduce(|sum, term| kind.rounded(sum + term)).expect("a rank at least")
                })
                .collect();
            assert_eq!(world.sum(kind, &parts), kind.encode(&expected), "{ranks} ranks, {count} {kind:?}");
        }
    }
}

/// The all-reduce of one row that every rank holds `rows` times, `row` elements each.
fn repeated(world: &Ranks, kind: Kind, row: usize, rows: usize) -> Vec<Vec<u8>> {
    let parts: Vec<Vec<f64>> =
        (0..world.0.len()).map(|rank| values(rank as u64 + 7, row).repeat(rows)).collect();
    world.sum(kind, &parts).chunks(row * kind.bytes()).map(<[u8]>::to_vec).collect()
}

#[test]
fn sum_of_two_ranks_does_not_depend_on_where_a_row_lies() {
    let world = Ranks::new(2);
    for kind in KINDS {
        let alone = repeated(&world, kind, 96, 1);
        for rows in [2, 3, 8] {
            assert!(
                repeated(&world, kind, 96, rows).iter().all(|row| *row == alone[0]),
                "{kind:?}, {rows} rows"
            );
        }
    }
}

#[test]
fn sum_of_more_ranks_depends_on_where_a_row_lies() {
    for ranks in [3, 4] {
        let world = Ranks::new(ranks);
        for kind in KINDS {
            let alone = repeated(&world, kind, 96, 1);
            let batch = repeated(&world, kind, 96, 8);
            assert!(batch.iter().any(|row| *row != batch[0]), "{ranks} ranks, {kind:?}: rows of a batch");
            assert!(
                batch.iter().any(|row| *row != alone[0]),
                "{ranks} ranks, {kind:?}: alone and in a batch"
            );
        }
    }
}

/// Sends slice `peer` of the input to each other rank, and receives theirs into slice `peer` of the
/// output.
fn exchange(rank: usize, ranks: usize, (input, output): (u64, u64), bytes: usize, comm: usize) -> u32 {
    assert_eq!(ncclGroupStart(), 0);
    for peer in (0..ranks).filter(|&peer| peer != rank) {
        let (offset, floats) = ((peer * bytes) as u64, bytes / 4);
        let kind = Kind::F32 as u32;
        assert_eq!(ncclSend(input + offset, floats, kind, peer as i32, comm, 0), 0);
        assert_eq!(ncclRecv(output + offset, floats, kind, peer as i32, comm, 0), 0);
    }
    ncclGroupEnd()
}

#[test]
fn exchanged_slices_come_from_each_rank_and_in_its_place() {
    const BYTES: usize = 24;
    for ranks in [2, 3, 5] {
        let world = Ranks::new(ranks);
        let byte = |from: usize, to: usize, i: usize| (i * 89 + from * 57 + to * 31 + 3) as u8;
        let part = |from: usize| (0..ranks * BYTES).map(|i| byte(from, i / BYTES, i % BYTES)).collect();
        let inputs: Vec<Vec<u8>> = (0..ranks).map(part).collect();
        let rank_of = |comm: usize| world.0.iter().position(|(_, other)| *other == comm).unwrap();
        let call = |input, output, comm| exchange(rank_of(comm), ranks, (input, output), BYTES, comm);
        // The output begins as the input, whose own slice stays.
        let out = world.run(&inputs, ranks * BYTES, Some(|_, _| 0), call);
        for (rank, out) in out.iter().enumerate() {
            let expected: Vec<u8> = (0..ranks * BYTES).map(|i| byte(i / BYTES, rank, i % BYTES)).collect();
            assert!(*out == expected, "rank {rank} of {ranks}");
        }
    }
}

#[test]
fn groups_that_are_no_exchange_are_refused() {
    const INVALID_USAGE: u32 = 5;
    let world = Ranks::new(3);
    let (gpu, comm) = &world.0[0];
    gpu.enter();
    let (at, kind) = (gpu.allocate(64), Kind::F32 as u32);
    let send = |peer, count| ncclSend(at, count, kind, peer, *comm, 0);
    let receive = |peer, count| ncclRecv(at + 32, count, kind, peer, *comm, 0);
    // Outside of a group it would wait for its peer.
    assert_eq!((send(1, 4), receive(1, 4)), (INVALID_USAGE, INVALID_USAGE));
    let group = |messages: &dyn Fn()| {
        assert_eq!(ncclGroupStart(), 0);
        messages();
        ncclGroupEnd()
    };
    assert_eq!(group(&|| {}), 0, "nothing to do");
    let each = |count| [send(1, count), receive(1, count), send(2, count), receive(2, count)];
    assert_eq!(group(&|| assert_eq!(each(4)[..3], [0; 3])), IN_PROGRESS);
    assert_eq!(state(*comm), 0);
    let incomplete = || assert_eq!([send(1, 4), receive(1, 4), send(2, 4)], [0; 3]);
    let unequal = || assert_eq!([send(1, 4), receive(1, 4), send(2, 4), receive(2, 2)], [0; 4]);
    let own = || assert_eq!((each(4), send(0, 4)), ([0; 4], 0));
    for wrong in [&incomplete as &dyn Fn(), &unequal, &own] {
        assert_eq!(group(wrong), INVALID_USAGE);
    }
    assert_eq!(group(&|| assert_eq!(ncclAllGather(at, at, 4, kind, *comm, 0), INVALID_USAGE)), 0);
    assert_eq!(ncclGroupEnd(), INVALID_USAGE, "no group is open");
}

#[test]
fn gathered_parts_are_the_ranks_bytes_in_order() {
    for ranks in [2, 3] {
        let world = Ranks::new(ranks);
        for (kind, count) in KINDS.into_iter().flat_map(|k| [1, 7, 130].map(|n| (k, n))) {
            // Any bytes, NaN among them.
            let part =
                |rank: usize| (0..count * kind.bytes()).map(|i| (i * 89 + rank * 57 + 3) as u8).collect();
            let inputs: Vec<Vec<u8>> = (0..ranks).map(part).collect();
            let expected = inputs.concat();
            let call = |input, output, comm| ncclAllGather(input, output, count, kind as u32, comm, 0);
            for offset in [None, Some((|rank, bytes| rank * bytes) as fn(usize, usize) -> usize)] {
                let out = world.run(&inputs, expected.len(), offset, call);
                assert!(out.iter().all(|out| *out == expected), "{ranks} ranks, {count} {kind:?}");
            }
        }
    }
}
