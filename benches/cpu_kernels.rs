//! Measures the CPU kernels against the peak of this CPU.
//!
//! `cargo bench --profile release --bench cpu_kernels -- [THREADS] [avx2+fma] [vectors] [bf16]
//! [gemm|llama8b|small|attention|elementwise] [MxNxK]`. Each GEMM is printed with its share of the
//! peak: a loop of multiply-adds in registers, run right before and right after every run of the
//! kernel, because a shared CPU's clock moves by a fifth within a minute. Attention has a peak of
//! its own where its arithmetic differs. The share is the median over the runs; speeds are the best
//! run's.

use std::hint::black_box;
use std::time::Instant;

use kudos::CpuMath;
use kudos::internals::backend::cpu::attention::{
    AttentionInput, AttentionPlan, Heads, Queries, Scoring, attention,
};
use kudos::internals::backend::cpu::elementwise::{RopeTable, add_rms_norm, gate_mul, rope};
use kudos::internals::backend::cpu::gemm::{Gemm, Math, Store, gemm};
use kudos::internals::backend::cpu::peak;
use kudos::internals::backend::cpu::simd::Isa;
use kudos::internals::backend::cpu::threads::Threads;
use kudos::internals::backend::cpu::view::{Rows, RowsMut, WeightView};
use kudos::internals::batch::Span;
use kudos::internals::config::{Gate, Scores};
use kudos::internals::weights::Dtype;

/// The fewest runs of each kernel.
const RUNS: usize = 7;
const SECONDS: f64 = 1.0;

/// N and K of SmolLM2-135M's matmuls: k and v, q and o, gate and up, down.
const SMOLLM2: [(usize, usize); 4] = [(192, 576), (576, 576), (1536, 576), (576, 1536)];
/// N and K of Llama-3.1-8B's matmuls.
const LLAMA_8B: [(usize, usize); 4] = [(1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336)];

fn main() {
    // `cargo bench` passes --bench, which is not an argument of this program; `cargo test
    // --benches` passes nothing.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let as_test = std::env::args().len() == 1;
    let threads = args.iter().find_map(|a| a.parse().ok()).unwrap_or(1);
    let isa = Isa::available().into_iter().find(|isa| args.iter().any(|a| a == isa.name()));
    let isa = isa.unwrap_or_else(Isa::detect);
    let math = match (args.iter().any(|a| a == "bf16"), args.iter().any(|a| a == "vectors")) {
        (false, false) => Math::of(isa, CpuMath::F32),
        (false, true) => Math::F32,
        (true, false) => Math::bf16(isa).expect("this CPU has no faster bf16 matmuls"),
        (true, true) => Math::Bf16(isa.bf16().expect("this CPU has no bf16 instructions")),
    };
    let topics = ["gemm", "llama8b", "small", "attention", "elementwise"];
    let shapes: Vec<Vec<usize>> = args
        .iter()
        .filter_map(|a| a.split('x').map(|n| n.parse().ok()).collect())
        .filter(|s: &Vec<_>| s.len() == 3)
        .collect();
    let chosen = args.iter().any(|a| topics.contains(&a.as_str())) || !shapes.is_empty();
    let wanted = |what: &str| !chosen || args.iter().any(|a| a == what);
    let bench = Bench {
        isa,
        math,
        threads: Threads::new(threads).unwrap(),
        runs: if as_test { 1 } else { RUNS },
        begin: Instant::now(),
    };
    println!("{} {math:?} on {threads} thread(s), at least {} runs", isa.name(), bench.runs);
    let peak_of = |peak: Peak| bench.peak_flops(peak) / bench.best(|| bench.peak_once(peak));
    println!("peak {:.1} GFLOP/s", peak_of(bench.peak_of_gemm()) / 1e9);
    for shape in shapes {
        bench.gemm(shape[0], shape[1], shape[2], Dtype::BF16);
    }
    for (topic, sizes) in [("gemm", SMOLLM2), ("llama8b", LLAMA_8B)] {
        for m in [64, 512, 4096] {
            for (n, k) in sizes {
                if wanted(topic) && (!as_test || m * n * k < 10_000_000) {
                    bench.gemm(m, n, k, Dtype::BF16);
                }
            }
        }
    }
    if wanted("attention") {
        let heads = Heads { q_heads: 9, kv_heads: 3, head_dim: 64 };
        let peak = peak_of(bench.peak_of_attention());
        println!("peak of attention {:.1} GFLOP/s", peak / 1e9);
        bench.exp(peak);
        for tokens in if as_test { &[64][..] } else { &[512, 2048] } {
            bench.attention(heads, *tokens);
        }
        if !as_test {
            bench.attention(Heads { q_heads: 8, kv_heads: 1, head_dim: 128 }, 2048);
        }
    }
    if wanted("elementwise") {
        bench.elementwise(if as_test { 8 } else { 2048 });
    }
    if wanted("small") && !as_test {
        println!("read {:.1} GB/s", bench.read_bandwidth() / 1e9);
        for m in [1, 2, 4, 8, 16, 32] {
            bench.gemm(m, 14336, 4096, Dtype::BF16);
        }
        bench.gemm(1, 14336, 4096, Dtype::F32);
    }
}

struct Bench {
    isa: Isa,
    math: Math,
    threads: Threads,
    runs: usize,
    begin: Instant,
}

/// The peak of a kernel: an arithmetic, and the share of its rate.
#[derive(Clone, Copy)]
struct Peak {
    math: Math,
    share: f64,
}

/// The speed of a kernel.
struct Reached {
    /// Time of the fastest run.
    seconds: f64,
    /// The median share of the peak measured around each run.
    share: f64,
}

impl Bench {
    /// Seconds of the fastest of several runs.
    fn best(&self, mut run: impl FnMut()) -> f64 {
        run();
        let begin = std::time::Instant::now();
        (0..)
            .take_while(|i| *i < self.runs || self.runs > 1 && begin.elapsed().as_secs_f64() < SECONDS)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min)
    }

    fn peak_of_gemm(&self) -> Peak {
        Peak { math: self.math, share: 1.0 }
    }

    fn peak_of_attention(&self) -> Peak {
        let (math, share) = peak::of_attention(self.math);
        Peak { math, share }
    }

    /// Measures a kernel of `flops`, each run between two runs of the peak.
    fn reached(&self, peak: Peak, flops: f64, mut run: impl FnMut()) -> Reached {
        let timed = |run: &mut dyn FnMut()| {
            let start = self.clock();
            run();
            self.clock() - start
        };
        let (mut shares, mut fastest, mut before) = (Vec::new(), f64::INFINITY, f64::INFINITY);
        // The first run warms up.
        let runs = self.best_runs();
        for seconds in runs.map(|_| timed(&mut run)) {
            let after = timed(&mut || self.peak_once(peak));
            shares.push(flops / seconds / (self.peak_flops(peak) / before.min(after)));
            fastest = fastest.min(seconds);
            before = after;
        }
        shares.remove(0);
        shares.sort_by(f64::total_cmp);
        Reached { seconds: fastest, share: shares.get(shares.len() / 2).copied().unwrap_or(f64::NAN) }
    }

    /// CPU time of this thread, which other work on the machine does not lengthen; with several
    /// threads the wall clock.
    fn clock(&self) -> f64 {
        if self.threads.count() > 1 {
            return self.begin.elapsed().as_secs_f64();
        }
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one timespec.
        let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(status, 0, "the system has no clock of a thread's CPU time");
        time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
    }

    /// Times `run`: a warm-up, then at least `runs` runs, and more while the time lasts.
    fn best_runs(&self) -> impl Iterator<Item = usize> + use<> {
        let (runs, begin) = (self.runs, Instant::now());
        (0..).take_while(move |i| *i <= runs || runs > 1 && begin.elapsed().as_secs_f64() < SECONDS)
    }

    /// Runs multiply-adds in registers, on every thread.
    fn peak_once(&self, peak: Peak) {
        self.threads.for_each_item(self.threads.count(), |_, _| {
            black_box(peak::run(self.isa, peak.math, peak::STEPS));
        })
    }

    /// FLOP of [`peak_once`](Self::peak_once).
    fn peak_flops(&self, peak: Peak) -> f64 {
        let steps = (self.threads.count() * peak::STEPS) as f64;
        steps * peak.share * peak::flops_per_step(self.isa, peak.math)
    }

    /// Bytes per second of reading 512 MiB, all threads.
    fn read_bandwidth(&self) -> f64 {
        let data = vec![1u64; 64 << 20];
        let chunk = data.len() / (16 * self.threads.count());
        let seconds = self.best(|| {
            self.threads.for_each_item(data.len() / chunk, |item, _| {
                let part = &data[item * chunk..][..chunk];
                black_box(part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
            })
        });
        (data.len() * 8) as f64 / seconds
    }

    /// The cost of an exponential, an upper bound: `gate_mul` on rows that fit into the first-level
    /// cache.
    fn exp(&self, peak: f64) {
        const FFN: usize = 1536;
        let mut rows = vec![0.5f32; 2 * FFN];
        let seconds = self.best(|| {
            for _ in 0..1000 {
                gate_mul(self.isa, &self.threads, Gate::Silu, RowsMut::new(&mut rows, 1, 2 * FFN, 2 * FFN));
            }
        });
        let each = seconds / (1000 * FFN) as f64;
        println!(
            "gate_mul in cache, one thread: {:.3} ns each, {:.1} FLOP of one peak",
            each * 1e9,
            each * peak
        );
    }

    fn attention(&self, heads: Heads, tokens: usize) {
        let (q_width, kv_width) = (heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let stride = q_width + 2 * kv_width;
        let qkv: Vec<f32> = (0..tokens * stride).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let spans = [Span { start: 0, len: tokens }];
        let plan = AttentionPlan::new(heads, [Queries { rows: 0..tokens, first_position: 0, spans: &spans }]);
        let input = AttentionInput {
            q: Rows::new(&qkv, tokens, q_width, stride),
            k: Rows::new(&qkv[q_width..], tokens, kv_width, stride),
            v: Rows::new(&qkv[q_width + kv_width..], tokens, kv_width, stride),
        };
        let scores = Scores { query_scalar: heads.head_dim as f64, cap: None };
        let scoring = Scoring { scores, window: None };
        let mut out = vec![0.0; tokens * q_width];
        let flops = (4 * q_width * tokens * (tokens + 1) / 2) as f64;
        let Reached { seconds, share } = self.reached(self.peak_of_attention(), flops, || {
            let out = RowsMut::new(&mut out, tokens, q_width, q_width);
            attention(self.isa, &self.threads, &plan, &input, scoring, self.math, out);
        });
        println!(
            "attention {tokens} tokens, {heads:?}: {:.2} ms, {:.1} GFLOP/s, {:.1} % of peak",
            seconds * 1e3,
            flops / seconds / 1e9,
            100.0 * share
        );
    }

    fn elementwise(&self, tokens: usize) {
        let (hidden, ffn, heads, half) = (576, 1536, 12, 32);
        let print = |name: &str, seconds: f64, bytes: usize| {
            let bytes_per_second = (bytes * tokens) as f64 / seconds;
            println!("{name} {tokens} tokens: {:.3} ms, {:.1} GB/s", seconds * 1e3, bytes_per_second / 1e9);
        };
        let (mut residual, mut out) = (vec![0.5f32; tokens * hidden], vec![0.0f32; tokens * hidden]);
        let weight = vec![1.0; hidden];
        let seconds = self.best(|| {
            let rows = |x| RowsMut::new(x, tokens, hidden, hidden);
            let (residual, out) = (rows(&mut residual), rows(&mut out));
            add_rms_norm(self.isa, &self.threads, residual, None, &weight, 1e-5, out);
        });
        // One rank adds in other ops: the residual stream is read, the norm written.
        print("add_rms_norm", seconds, 2 * 4 * hidden);
        let mut gate_up = vec![0.5f32; tokens * 2 * ffn];
        let seconds = self.best(|| {
            gate_mul(
                self.isa,
                &self.threads,
                Gate::Silu,
                RowsMut::new(&mut gate_up, tokens, 2 * ffn, 2 * ffn),
            );
        });
        print("gate_mul", seconds, 3 * 4 * ffn);
        let width = heads * 2 * half;
        let (mut qk, table, positions) = (vec![0.5f32; tokens * width], vec![0.7f32; half], vec![0; tokens]);
        let (cos, sin) = (Rows::new(&table, 1, half, half), Rows::new(&table, 1, half, half));
        let seconds = self.best(|| {
            let rows = RowsMut::new(&mut qk, tokens, width, width);
            rope(self.isa, &self.threads, rows, heads, None, RopeTable { cos, sin }, &positions);
        });
        print("rope", seconds, 2 * 4 * width);
    }

    fn gemm(&self, m: usize, n: usize, k: usize, dtype: Dtype) {
        // The stride of the backend's activations.
        let (x_stride, out_stride) = (row_stride(k), row_stride(n));
        let x = vec![0.5f32; m * x_stride];
        let mut out = vec![0.0f32; m * out_stride];
        // Several weights in turn, so that none is in a cache from the run before.
        let weight_bytes = n * k * dtype.size();
        let copies = if m <= 64 { (256usize << 20).div_ceil(weight_bytes) } else { 1 };
        let bytes: Vec<u8> = (0..copies * weight_bytes).map(|i| if i % 2 == 0 { 0 } else { 0x3f }).collect();
        let mut turn = 0;
        let flops = (2 * m * n * k) as f64;
        let Reached { seconds, share } = self.reached(self.peak_of_gemm(), flops, || {
            let weight = &bytes[turn % copies * weight_bytes..][..weight_bytes];
            turn += 1;
            let operands = Gemm {
                x: Rows::new(&x, m, k, x_stride).into(),
                weight: WeightView::new(weight, dtype, n, k, k),
                bias: None,
                store: Store::Replace,
                math: self.math,
            };
            gemm(self.isa, &self.threads, &operands, RowsMut::new(&mut out, m, n, out_stride));
        });
        println!(
            "gemm {m:5} {n:5} {k:5} {dtype:?}: {:6.1} GFLOP/s, {:5.1} % of peak, weight at {:5.1} GB/s",
            flops / seconds / 1e9,
            100.0 * share,
            weight_bytes as f64 / seconds / 1e9
        );
    }
}

fn row_stride(width: usize) -> usize {
    (width.div_ceil(16) | 1) * 16
}
