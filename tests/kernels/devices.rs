//! Tests of what hardware and drivers may do in their own way: how many blocks a
//! multiprocessor holds, when kernels are loaded, and how long sums in tensor cores drift.

use kudos::Sharing;
use kudos::internals::backend::cuda::kernels::AttentionKernel;
use kudos::internals::backend::cuda::ops::{
    AddParts, AddRmsNorm, Delta, DigestRows, GateMul, GatherRows, HeadNorms, Norm, Ops, Rope, RopeTables,
    Score,
};
use kudos::internals::config::Gate;

use crate::attention::{Queries, heads, naive, pack, qkv_rows, try_run, width};
use crate::launches::Counters;
use crate::numbers::{Random, bits, half_ulp, tables, upload_raw};
use crate::{AttentionTest, Gpu, sectors};

/// Tests of every attention kernel.
pub(crate) const TESTS: &[AttentionTest] =
    &[("has_as_many_blocks_together_as_the_table_has", has_as_many_blocks_together_as_the_table_has)];

/// Tests of the attention kernels that use tensor cores.
pub(crate) const WITH_TENSOR_CORES: &[AttentionTest] =
    &[("is_not_biased_over_many_keys", is_not_biased_over_many_keys)];

/// Tests for which nothing else may use the GPU.
pub(crate) const ALONE: &[crate::Test] =
    &[("kernels_take_no_memory_at_their_first_launch", kernels_take_no_memory_at_their_first_launch)];

/// Tests that need the software GPU's counts.
pub(crate) const COUNTED: &[sectors::Test] =
    &[("every_kernel_is_loaded_with_the_others", every_kernel_is_loaded_with_the_others)];

fn has_as_many_blocks_together_as_the_table_has(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let found = gpu.ops_with(kernel).attention_occupancy().unwrap();
    let expected = if kernel.shares(gpu.info()) { kernel.blocks } else { 1 };
    assert!(found.blocks >= expected, "{found:?}, expected {expected} blocks");
    assert_eq!(found.carveout_percent == 100, !kernel.is_plain(), "{found:?}");
}

/// Kernels of a format, with one of attention.
const KERNELS: u64 = 13;

fn every_kernel_is_loaded_with_the_others(gpu: &Gpu, counters: Counters) {
    let calls = counters.calls(|| drop(gpu.ops(64)));
    let [found, asked, launched] =
        ["cuModuleGetFunction", "cuFuncGetAttribute", "cuLaunchKernel"].map(|name| calls.get(name).copied());
    assert!(found == Some(KERNELS) && asked == found && launched.is_none(), "{calls:?}");
}

/// Launches every kernel once.
fn launch_all(ops: &Ops) {
    let (hidden, head_dim, bytes) = (128, 64, ops.format().bytes());
    let zeros = || upload_raw(ops, &vec![0_f32; hidden]);
    let (mut stream, mut out, weight) = (zeros(), zeros(), zeros());
    ops.fill_normal(&mut stream, hidden, 1, 0.02).unwrap();
    for norm in [Norm::Scale, Norm::OnePlus { branch: None }] {
        ops.add_rms_norm(AddRmsNorm {
            residual: &mut stream,
            delta: Delta::None,
            norm,
            weight: weight.all(),
            out: &mut out,
            first_row: 0,
            tokens: 1,
            hidden,
            eps: 1e-5,
        })
        .unwrap();
    }
    for gate in [Gate::Silu, Gate::GeluTanh] {
        let gate_up = &mut stream;
        ops.gate_mul(GateMul { gate_up, tokens: 1, ffn: hidden / 2, gate, scale: 1.0 }).unwrap();
    }
    let (x, head) = (stream.all(), weight.all());
    ops.score(Score { x, head, out: &mut out, tokens: 1, labels: 1, hidden }).unwrap();
    let (tables, indices) = tables(ops, |tables| tables.row_indices(&[0]));
    let row_bytes = hidden * bytes;
    let (x, out) = (weight.all(), &mut out);
    ops.gather_rows(GatherRows { x, tables: &tables, rows: &indices, out, row_bytes }).unwrap();
    let rope_tables = RopeTables::new(ops, &vec![1.0; head_dim / 2], 1).unwrap();
    let norms = HeadNorms { q_weight: weight.all(), k_weight: weight.all(), q_heads: 1, eps: 1e-5 };
    for norms in [None, Some(norms)] {
        ops.rope(Rope {
            qkv: &mut stream,
            first_row: 0,
            tables: &tables,
            positions: &indices,
            rope_tables: &rope_tables,
            row_stride: hidden,
            first_head: 0,
            heads: 2,
            norms,
        })
        .unwrap();
    }
    let (residual, received, mut digests) = (&mut stream, zeros(), zeros());
    let (own, received) = (weight.all(), received.all());
    let args = AddParts { residual, first: 0, own, received, parts: 2, rank: 0, count: hidden / 2 };
    ops.add_parts(args, ops.context().compute()).unwrap();
    let digests = &mut digests;
    ops.digest_rows(DigestRows { x: received, digests, rows: 1, stride: 16, row_bytes: 16 }).unwrap();
    // Attention, and the seam tiles of two conversations that share a prefix.
    let heads = heads(1, 1, head_dim);
    let packed = pack(&[(0..70).collect(), (0..71).collect(), (1..99).collect()], Sharing::Prefixes);
    let rows = qkv_rows(ops.format(), heads, &packed);
    try_run(ops, heads, &packed, &rows, Queries::All, |_| {}).unwrap();
}

fn kernels_take_no_memory_at_their_first_launch(gpu: &Gpu) {
    // The driver keeps memory that was freed: the first round takes what buffers need.
    launch_all(&gpu.ops(64));
    let ops = gpu.ops(64);
    let free = ops.context().free_bytes().unwrap();
    launch_all(&ops);
    ops.context().synchronize().unwrap();
    assert_eq!(ops.context().free_bytes().unwrap(), free);
}

/// Keys of a long conversation.
const KEYS: u32 = 65_536;

/// The most that the mean of relative errors may be: an eighth of half an ulp of bf16. Seen on the
/// software GPU, which rounds every sum: 1.3e-4 in bf16, 1.7e-5 in f16, by the roundings of the
/// results. A tensor core that cuts off half an ulp of f32 for each 8 keys adds 2.4e-4 to that.
const SIGNED_ERROR_MAX: f64 = 5e-4;

/// A tensor core may cut off the low bits of a sum instead of rounding it, which makes the result
/// of many keys too small: each element's own rounding hides that, their mean error shows it. The
/// values are positive, so that sums grow with every key, and each dim has its own size, so that
/// the roundings of the dims differ.
fn is_not_biased_over_many_keys(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let format = gpu.format;
    let heads = heads(8, 1, kernel.head_dim);
    let packed = pack(&[(0..KEYS).collect()], Sharing::Nothing);
    let mut random = Random::new(1);
    let values = (heads.q_heads + heads.kv_heads) * heads.head_dim;
    let rows: Vec<u16> = (0..KEYS as usize * width(heads))
        .map(|at| match at % width(heads) {
            column if column >= values => {
                let size = 1.0 + (column - values) as f64 / heads.head_dim as f64;
                size * (1.0 + 0.25 * random.uniform())
            }
            _ => 0.5 * random.normal(),
        })
        .map(|number| bits(format, number))
        .collect();
    let got = try_run(&ops, heads, &packed, &rows, Queries::Last, |_| {}).unwrap();
    let path: Vec<usize> = (0..KEYS as usize).collect();
    let mut sum = 0.0;
    for head in 0..heads.q_heads {
        let want = naive(format, heads, &rows, &path, path.len() - 1, head);
        for (got, (want, _)) in got[head * heads.head_dim..].iter().zip(want) {
            assert!(
                (got - want).abs() <= 1.5 * half_ulp(format) * want,
                "head {head}: {got:e}, expected {want:e}"
            );
            sum += (got - want) / want;
        }
    }
    let mean = sum / got.len() as f64;
    eprintln!("{}: mean signed error of {} elements over {KEYS} keys: {mean:e}", kernel.name, got.len());
    assert!(mean.abs() <= SIGNED_ERROR_MAX, "mean signed error {mean:e}");
}
