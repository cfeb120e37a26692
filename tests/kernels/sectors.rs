//! The memory traffic of memory-bound kernels, held to the least that their work needs: each byte's
//! sector once, and full requests.
//!
//! Bytes are distinct 32-byte sectors read and written in a launch. Expectations come from shapes
//! alone, through [`Least`]: threads move 16 bytes at a time, warps 512. Two things take more
//! requests than that, though no more sectors: every warp of a block loads its row's index, and
//! beside a residual of f32, 16 bytes of which are 4 elements, weight and result go in words of 8
//! bytes.

use std::iter::repeat_n;

use kudos::internals::backend::cuda::buffer::DeviceBuffer;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::ops::{
    AddParts, AddRmsNorm, Delta, DigestRows, GateMul, GatherRows, HeadNorms, Heads, Norm, Ops, Rope,
    RopeTables, Score, SeamTiles,
};
use kudos::internals::backend::cuda::tiles::NO_ROW;
use kudos::internals::config::Gate;

use crate::Gpu;
use crate::launches::{Counters, Launch};
use crate::least::{Access, INDEX_BYTES, LANES, Least};
use crate::numbers::{tables, upload_raw};

/// A test: its name, and the function that runs it on a GPU that counts.
pub(crate) type Test = (&'static str, fn(&Gpu, Counters));

pub(crate) const TESTS: &[Test] = &[
    ("add_rms_norm_moves_the_least", add_rms_norm_moves_the_least),
    ("add_parts_moves_the_least", add_parts_moves_the_least),
    ("digest_rows_moves_the_least", digest_rows_moves_the_least),
    ("rope_moves_the_least", rope_moves_the_least),
    ("gate_mul_moves_the_least", gate_mul_moves_the_least),
    ("gather_rows_moves_the_least", gather_rows_moves_the_least),
    ("score_moves_the_least", score_moves_the_least),
    ("seam_tiles_move_the_least", seam_tiles_move_the_least),
    ("fill_normal_moves_the_least", fill_normal_moves_the_least),
    ("a_layer_moves_the_least_at_70b_width", a_layer_moves_the_least_at_70b_width),
];

/// Threads of a block that takes a row.
const THREADS: usize = 256;
/// Bytes of a thread's widest access.
const WORD: usize = 16;

/// As in the tests of results: one row, odd counts, parts of a sector, of a warp and of a block,
/// the 70B width.
const SHAPES: [(usize, usize); 7] = [(1, 64), (3, 8), (5, 136), (2, 1000), (3, 2048), (1, 2056), (2, 8192)];
/// The 70B model: of a token, of a head, of a row of gate or up.
const HIDDEN: usize = 8192;
const HEADS: Heads = Heads { q_heads: 64, kv_heads: 8, head_dim: 128 };
const FFN: usize = 28_672;

/// A buffer of zeros.
fn zeros(ops: &Ops, bytes: usize) -> DeviceBuffer {
    upload_raw(ops, &vec![0_u8; bytes])
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Added {
    Nothing,
    Rows,
}

/// The arithmetic of a norm: that of `add_rms_norm`, or that of `add_branch_rms_norm`, with a norm
/// of the branch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arithmetic {
    Scale,
    Branch,
}

fn add_rms_norm(
    ops: &Ops,
    counters: Counters,
    (arithmetic, added): (Arithmetic, Added),
    tokens: usize,
    hidden: usize,
) -> Launch {
    let stream_bytes = tokens * hidden * ops.format().residual_bytes();
    let (mut residual, delta) = (zeros(ops, stream_bytes), zeros(ops, stream_bytes));
    let (weight, mut out) = (zeros(ops, hidden * 2), zeros(ops, tokens * hidden * 2));
    let branch_weight = zeros(ops, hidden * 2);
    let (norm, kernel) = match arithmetic {
        Arithmetic::Scale => (Norm::Scale, "add_rms_norm"),
        Arithmetic::Branch => (Norm::OnePlus { branch: Some(branch_weight.all()) }, "add_branch_rms_norm"),
    };
    let args = AddRmsNorm {
        residual: &mut residual,
        delta: match added {
            Added::Nothing => Delta::None,
            Added::Rows => Delta::In(delta.all()),
        },
        norm,
        weight: weight.all(),
        out: &mut out,
        first_row: 0,
        tokens,
        hidden,
        eps: 1e-5,
    };
    counters.launch(ops, kernel, || ops.add_rms_norm(args).unwrap())
}

fn add_rms_norm_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    let number = gpu.format.residual_bytes();
    // As many elements as 16 bytes of residual hold.
    let narrow = WORD / number * gpu.format.bytes();
    let kinds = [Arithmetic::Scale, Arithmetic::Branch]
        .into_iter()
        .flat_map(|arithmetic| [Added::Nothing, Added::Rows].map(|added| (arithmetic, added)));
    for (arithmetic, added) in kinds {
        for (tokens, hidden) in SHAPES {
            let mut least = Least::default();
            for row in 0..tokens {
                let (stream, stream_bytes) = (row * hidden * number, hidden * number);
                let (at, bytes) = (row * hidden * gpu.format.bytes(), hidden * gpu.format.bytes());
                least.run(Access::Read, "residual", stream, stream_bytes, WORD);
                if added == Added::Rows {
                    least.run(Access::Read, "delta", stream, stream_bytes, WORD);
                    least.run(Access::Write, "residual", stream, stream_bytes, WORD);
                }
                if (arithmetic, added) == (Arithmetic::Branch, Added::Rows) {
                    least.run(Access::Read, "branch_weight", 0, bytes, narrow);
                }
                least.run(Access::Read, "weight", 0, bytes, narrow);
                least.run(Access::Write, "out", at, bytes, narrow);
            }
            let what = format!("{arithmetic:?}: {tokens} x {hidden}, adding {added:?}");
            let launch = add_rms_norm(&ops, counters, (arithmetic, added), tokens, hidden);
            least.assert(&what, launch.counts, hidden * gpu.format.bytes());
        }
    }
}

/// Whether heads are normed before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Normed {
    No,
    Heads,
}

/// Heads of a row, the first to rotate, how many, their width.
type Rotated = (usize, usize, usize, usize);

fn rope(ops: &Ops, counters: Counters, positions: &[u32], rotated: Rotated, normed: Normed) -> Launch {
    let (in_row, first_head, heads, head_dim) = rotated;
    let rope_tables = RopeTables::new(ops, &vec![1.0; head_dim / 2], 512).unwrap();
    let row_stride = in_row * head_dim;
    let mut qkv = zeros(ops, positions.len() * row_stride * ops.format().bytes());
    let (tables, positions) = tables(ops, |tables| tables.row_indices(positions));
    let (qkv, tables, positions, rope_tables) = (&mut qkv, &tables, &positions, &rope_tables);
    let (q_weight, k_weight) = (zeros(ops, head_dim * 2), zeros(ops, head_dim * 2));
    // All of them are query heads.
    let (q_heads, eps) = (first_head + heads, 1e-5);
    let norms = HeadNorms { q_weight: q_weight.all(), k_weight: k_weight.all(), q_heads, eps };
    let kernel = if normed == Normed::No { "rope" } else { "rope_norm" };
    let args = Rope {
        qkv,
        first_row: 0,
        tables,
        positions,
        rope_tables,
        row_stride,
        first_head,
        heads,
        norms: (normed == Normed::Heads).then_some(norms),
    };
    counters.launch(ops, kernel, || ops.rope(args).unwrap())
}

fn rope_moves_the_least(gpu: &Gpu, counters: Counters) {
    for (positions, rotated, norms) in [
        (vec![0, 1, 2, 129], (3, 0, 2, 64), &[Normed::No, Normed::Heads][..]),
        (vec![7, 7, 300], (80, 0, 72, 128), &[Normed::No, Normed::Heads]),
        (vec![99, 0, 5], (5, 3, 1, 80), &[Normed::No]),
        (vec![511; 5], (4, 1, 2, 16), &[Normed::No, Normed::Heads]),
        (vec![300, 1], (3, 0, 3, 256), &[Normed::No, Normed::Heads]),
    ] {
        let (in_row, first_head, heads, head_dim) = rotated;
        let half = head_dim / 2 * gpu.format.bytes();
        // A thread's 16 bytes of the first half of a head: which head, and where in the half.
        let items: Vec<_> =
            (0..heads).flat_map(|head| (0..half).step_by(WORD).map(move |at| (head, at))).collect();
        for &normed in norms {
            let mut least = Least::default();
            for (row, &position) in positions.iter().enumerate() {
                // Norms are sums over whole warps, of which all lanes load the position.
                let loading = match normed {
                    Normed::No => items.len(),
                    Normed::Heads => items.len().next_multiple_of(LANES),
                };
                least.index(row, loading.min(THREADS));
                for warp in items.chunks(LANES) {
                    let places = |part: usize| -> Vec<usize> {
                        let head_at = |head| (row * in_row + first_head + head) * 2 * half;
                        warp.iter().map(|&(head, at)| head_at(head) + part * half + at).collect()
                    };
                    let of_table: Vec<_> =
                        warp.iter().map(|&(_, at)| position as usize * half + at).collect();
                    least.request(Access::Read, "cos", &of_table, WORD);
                    least.request(Access::Read, "sin", &of_table, WORD);
                    for part in [0, 1] {
                        least.request(Access::Read, "qkv", &places(part), WORD);
                        least.request(Access::Write, "qkv", &places(part), WORD);
                        if normed == Normed::Heads {
                            let of_weight: Vec<_> = warp.iter().map(|&(_, at)| part * half + at).collect();
                            least.request(Access::Read, "q_weight", &of_weight, WORD);
                        }
                    }
                }
            }
            // Where half a head is not whole sectors, its two halves meet within one.
            let launch = rope(&gpu.ops(head_dim), counters, &positions, rotated, normed);
            least.assert(&format!("{rotated:?}, {normed:?}"), launch.counts, half);
        }
    }
}

fn gate_mul(ops: &Ops, counters: Counters, gate: Gate, tokens: usize, ffn: usize) -> Launch {
    let mut gate_up = zeros(ops, tokens * 2 * ffn * ops.format().bytes());
    let args = GateMul { gate_up: &mut gate_up, tokens, ffn, gate, scale: 1.0 };
    counters.launch(ops, "gate_mul", || ops.gate_mul(args).unwrap())
}

fn gate_mul_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for (tokens, ffn) in SHAPES.into_iter().chain([(2, FFN)]) {
        let bytes = ffn * gpu.format.bytes();
        let mut least = Least::default();
        for row in 0..tokens {
            least.run(Access::Read, "gate_up", 2 * row * bytes, bytes, WORD);
            least.run(Access::Read, "gate_up", (2 * row + 1) * bytes, bytes, WORD);
            least.run(Access::Write, "gate_up", 2 * row * bytes, bytes, WORD);
        }
        for gate in [Gate::Silu, Gate::GeluTanh] {
            let counts = gate_mul(&ops, counters, gate, tokens, ffn).counts;
            least.assert(&format!("{gate:?}: {tokens} x {ffn}"), counts, bytes);
        }
    }
}

fn gather_rows(ops: &Ops, counters: Counters, rows: &[u32], row_bytes: usize) -> Launch {
    let (count, x_rows) = (rows.len(), 1 + *rows.iter().max().unwrap() as usize);
    let (x, mut out) = (zeros(ops, x_rows * row_bytes), zeros(ops, count * row_bytes));
    let (tables, rows) = tables(ops, |tables| tables.row_indices(rows));
    let args = GatherRows { x: x.all(), tables: &tables, rows: &rows, out: &mut out, row_bytes };
    counters.launch(ops, "gather_rows", || ops.gather_rows(args).unwrap())
}

fn gather_rows_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for (count, width) in SHAPES {
        let bytes = width * gpu.format.bytes();
        let rows: Vec<u32> = (0..count as u32).map(|i| (i * 5 + 8) % 9).collect();
        let mut least = Least::default();
        for (i, &row) in rows.iter().enumerate() {
            least.index(i, THREADS);
            least.run(Access::Read, "x", row as usize * bytes, bytes, WORD);
            least.run(Access::Write, "out", i * bytes, bytes, WORD);
        }
        least.assert(&format!("{count} x {width}"), gather_rows(&ops, counters, &rows, bytes).counts, bytes);
    }
}

fn score(ops: &Ops, counters: Counters, tokens: usize, labels: usize, hidden: usize) -> Launch {
    let (x, head) = (zeros(ops, tokens * hidden * 2), zeros(ops, labels * hidden * 2));
    let mut out = zeros(ops, tokens * labels * 4);
    let args = Score { x: x.all(), head: head.all(), out: &mut out, tokens, labels, hidden };
    counters.launch(ops, "score", || ops.score(args).unwrap())
}

fn score_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for (tokens, hidden) in SHAPES {
        for labels in [1, 3] {
            let bytes = hidden * gpu.format.bytes();
            let mut least = Least::default();
            for (token, label) in (0..tokens).flat_map(|token| (0..labels).map(move |label| (token, label))) {
                least.run(Access::Read, "x", token * bytes, bytes, WORD);
                least.run(Access::Read, "head", label * bytes, bytes, WORD);
                least.request(Access::Write, "out", &[(token * labels + label) * 4], 4);
            }
            let launch = score(&ops, counters, tokens, labels, hidden);
            least.assert(&format!("{tokens} x {hidden}, {labels} labels"), launch.counts, bytes);
        }
    }
}

fn seam_tiles(ops: &Ops, counters: Counters, heads: Heads, first_row: usize, sources: &[u32]) -> Launch {
    let width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
    let mut qkv = zeros(ops, (first_row + sources.len()) * width * ops.format().bytes());
    let (tables, sources) = tables(ops, |tables| tables.seam_sources(sources));
    let args = SeamTiles { qkv: &mut qkv, tables: &tables, sources: &sources, first_row, heads };
    counters.launch(ops, "seam_tiles", || ops.seam_tiles(args).unwrap())
}

fn seam_tiles_move_the_least(gpu: &Gpu, counters: Counters) {
    let first_row = 7;
    let mut sources = vec![NO_ROW; 64];
    sources[..5].copy_from_slice(&[6, 0, 3, 3, 1]);
    for heads in [HEADS, Heads { q_heads: 3, kv_heads: 1, head_dim: 64 }, Heads { head_dim: 8, ..HEADS }] {
        let q_bytes = heads.q_heads * heads.head_dim * gpu.format.bytes();
        let kv_bytes = 2 * heads.kv_heads * heads.head_dim * gpu.format.bytes();
        let mut least = Least::default();
        for (i, &source) in sources.iter().enumerate() {
            let place = |row: usize| row * (q_bytes + kv_bytes) + q_bytes;
            least.index(i, THREADS);
            if source != NO_ROW {
                least.run(Access::Read, "qkv", place(source as usize), kv_bytes, WORD);
            }
            least.run(Access::Write, "qkv", place(first_row + i), kv_bytes, WORD);
        }
        let launch = seam_tiles(&gpu.ops(heads.head_dim), counters, heads, first_row, &sources);
        least.assert(&format!("{heads:?}"), launch.counts, kv_bytes);
    }
}

fn fill_normal(ops: &Ops, counters: Counters, count: usize) -> Launch {
    let mut out = zeros(ops, count * ops.format().bytes());
    counters.launch(ops, "fill_normal", || ops.fill_normal(&mut out, count, 1, 0.02).unwrap())
}

fn fill_normal_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for count in [8, 264, 4104, HIDDEN] {
        let mut least = Least::default();
        least.run(Access::Write, "out", 0, count * gpu.format.bytes(), WORD);
        least.assert(&format!("{count}"), fill_normal(&ops, counters, count).counts, 0);
    }
}

/// `parts` ranks add a slice of `count` elements.
fn add_parts(ops: &Ops, counters: Counters, parts: usize, count: usize) -> Launch {
    let bytes = count * ops.format().residual_bytes();
    let (mut residual, own, received) = (zeros(ops, bytes), zeros(ops, bytes), zeros(ops, parts * bytes));
    let (own, received) = (own.all(), received.all());
    let args = AddParts { residual: &mut residual, first: 0, own, received, parts, rank: 1, count };
    counters.launch(ops, "add_parts", || ops.add_parts(args, ops.context().compute()).unwrap())
}

fn add_parts_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for (parts, count) in [(2, 8), (3, 264), (8, 4104), (9, HIDDEN)] {
        let bytes = count * gpu.format.residual_bytes();
        let mut least = Least::default();
        least.run(Access::Read, "residual", 0, bytes, WORD);
        for part in 0..parts {
            let (buffer, first) = if part == 1 { ("own", 0) } else { ("received", part * bytes) };
            least.run(Access::Read, buffer, first, bytes, WORD);
        }
        least.run(Access::Write, "residual", 0, bytes, WORD);
        least.assert(&format!("{count} of {parts}"), add_parts(&ops, counters, parts, count).counts, bytes);
    }
}

fn digest_rows(ops: &Ops, counters: Counters, rows: usize, row_bytes: usize) -> Launch {
    let (x, mut digests) = (zeros(ops, rows * row_bytes), zeros(ops, rows * 8));
    let args = DigestRows { x: x.all(), digests: &mut digests, rows, stride: row_bytes, row_bytes };
    counters.launch(ops, "digest_rows", || ops.digest_rows(args).unwrap())
}

fn digest_rows_moves_the_least(gpu: &Gpu, counters: Counters) {
    let ops = gpu.ops(64);
    for (rows, width) in SHAPES {
        let bytes = width * gpu.format.bytes();
        let mut least = Least::default();
        for row in 0..rows {
            least.run(Access::Read, "x", row * bytes, bytes, WORD);
            least.request(Access::Write, "digests", &[row * 8], 8);
        }
        least.assert(&format!("{rows} x {width}"), digest_rows(&ops, counters, rows, bytes).counts, bytes);
    }
}

/// The memory traffic of a kernel at the 70B model's width.
pub(crate) struct AtWidth {
    /// The kernel, and on what.
    pub(crate) what: &'static str,
    /// The entry that was launched.
    pub(crate) entry: String,
    /// Threads of its blocks.
    pub(crate) threads: usize,
    /// Bytes that each further token moves.
    pub(crate) each: u64,
    /// Bytes that a launch moves besides.
    pub(crate) once: u64,
}

/// From launches with 8 and with 16 tokens: indices fill whole sectors.
fn at_width(what: &'static str, launch: impl Fn(usize) -> Launch) -> AtWidth {
    let (few, many) = (launch(8), launch(16));
    let (few_bytes, many_bytes) = (few.counts.bytes_moved(), many.counts.bytes_moved());
    AtWidth {
        what,
        threads: few.threads(),
        entry: few.kernel,
        each: (many_bytes - few_bytes) / 8,
        once: 2 * few_bytes - many_bytes,
    }
}

/// Every memory-bound kernel at the 70B model's width.
pub(crate) fn all_at_70b_width(gpu: &Gpu, counters: Counters) -> Vec<AtWidth> {
    let ops = &gpu.ops(HEADS.head_dim);
    let norm = |what, arithmetic, added| {
        at_width(what, |tokens| add_rms_norm(ops, counters, (arithmetic, added), tokens, HIDDEN))
    };
    let gate = |what, gate| at_width(what, move |tokens| gate_mul(ops, counters, gate, tokens, FFN));
    let rotated = (80, 0, 72, HEADS.head_dim);
    let rows = |tokens: usize| (0..tokens as u32).collect::<Vec<_>>();
    let nothing: Vec<u32> = repeat_n(NO_ROW, 16).collect();
    vec![
        norm("`add_rms_norm`, with a delta", Arithmetic::Scale, Added::Rows),
        norm("`add_rms_norm`, without", Arithmetic::Scale, Added::Nothing),
        norm("`add_branch_rms_norm`, with a delta", Arithmetic::Branch, Added::Rows),
        norm("`add_branch_rms_norm`, without", Arithmetic::Branch, Added::Nothing),
        at_width("`rope`", |tokens| rope(ops, counters, &vec![3; tokens], rotated, Normed::No)),
        at_width("`rope_norm`", |tokens| rope(ops, counters, &vec![3; tokens], rotated, Normed::Heads)),
        gate("`gate_mul_silu`", Gate::Silu),
        gate("`gate_mul_gelu`", Gate::GeluTanh),
        at_width("`gather_rows`", |tokens| gather_rows(ops, counters, &rows(tokens), HIDDEN * 2)),
        at_width("`score`", |tokens| score(ops, counters, tokens, 1, HIDDEN)),
        at_width("`seam_tiles`, a row of keys", |tokens| seam_tiles(ops, counters, HEADS, 16, &rows(tokens))),
        at_width("`seam_tiles`, a row of zeros", |tokens| {
            seam_tiles(ops, counters, HEADS, 16, &nothing[..tokens])
        }),
        at_width("`add_parts` of 8 ranks, 8,192 elements", |rows| add_parts(ops, counters, 8, rows * HIDDEN)),
        at_width("`digest_rows`, 8,192 elements", |rows| digest_rows(ops, counters, rows, HIDDEN * 2)),
        at_width("`fill_normal`, 8,192 elements", |rows| fill_normal(ops, counters, rows * HIDDEN)),
    ]
}

fn a_layer_moves_the_least_at_70b_width(gpu: &Gpu, counters: Counters) {
    let all = all_at_70b_width(gpu, counters);
    let each = |what| all.iter().find(|kernel| kernel.what == what).expect("it is in the list").each;
    assert_eq!(each("`rope`") - INDEX_BYTES as u64, 36_864);
    assert_eq!(each("`gate_mul_silu`"), 172_032);
    if gpu.format == ActivationFormat::Bf16 {
        assert_eq!(2 * each("`add_rms_norm`, with a delta"), 131_072);
        assert_eq!(2 * each("`add_rms_norm`, without"), 65_536);
    }
}
