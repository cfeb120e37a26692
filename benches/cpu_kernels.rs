//! How fast the CPU kernels are against what this CPU can do.
//!
//! `cargo bench --profile release --bench cpu_kernels -- [THREADS] [gemm|small|attention|elementwise]`. Prints the peak of
//! a loop of nothing but multiply-adds in registers, measured in the same run, and each kernel as the best of several
//! runs: on a machine that others share, the best is what the kernel can do and the rest is the others.

use std::hint::black_box;
use std::time::Instant;

use kudos::backend::cpu::attention::{AttentionInput, AttentionPlan, Heads, Queries, attention};
use kudos::backend::cpu::elementwise::{Delta, RopeTable, add_rms_norm, rope, silu_mul};
use kudos::backend::cpu::gemm::{Gemm, Math, Store, gemm};
use kudos::backend::cpu::simd::Isa;
use kudos::backend::cpu::threads::Threads;
use kudos::backend::cpu::view::{Rows, RowsMut, WeightView};
use kudos::batch::Span;
use kudos::weights::Dtype;

/// Runs of each kernel, and more while the time lasts.
const RUNS: usize = 7;
const SECONDS: f64 = 1.0;

fn main() {
    // `cargo test --benches` passes --test, `cargo bench` --bench: neither is ours.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let as_test = std::env::args().any(|a| a == "--test");
    let threads = args.iter().find_map(|a| a.parse().ok()).unwrap_or(1);
    let wanted = |what: &str| args.iter().all(|a| a.parse::<usize>().is_ok() || a == what);
    let bench = Bench {
        isa: Isa::detect(),
        threads: Threads::new(threads).unwrap(),
        runs: if as_test { 1 } else { RUNS },
    };
    println!("{} on {threads} thread(s), best of at least {}", bench.isa.name(), bench.runs);
    let peak = bench.peak();
    println!("peak {:.1} GFLOP/s", peak / 1e9);
    if wanted("gemm") {
        let shapes = [
            (512, 576, 576),
            (512, 3072, 576),
            (512, 576, 1536),
            (2048, 3072, 576),
            (512, 4096, 4096),
            (64, 3072, 576),
        ];
        let shapes = if as_test { &shapes[5..] } else { &shapes[..] };
        for &(m, n, k) in shapes {
            bench.gemm(m, n, k, Dtype::BF16, peak);
        }
    }
    if wanted("attention") {
        let heads = Heads { q_heads: 9, kv_heads: 3, head_dim: 64 };
        bench.exp(peak);
        for tokens in if as_test { &[64][..] } else { &[512, 2048] } {
            bench.attention(heads, *tokens, peak);
        }
        if !as_test {
            bench.attention(Heads { q_heads: 8, kv_heads: 1, head_dim: 128 }, 2048, peak);
        }
    }
    if wanted("elementwise") {
        bench.elementwise(if as_test { 8 } else { 2048 });
    }
    if wanted("small") && !as_test {
        println!("read {:.1} GB/s", bench.read_bandwidth() / 1e9);
        for m in [1, 2, 4, 8, 16, 32] {
            bench.gemm(m, 14336, 4096, Dtype::BF16, peak);
        }
        bench.gemm(1, 14336, 4096, Dtype::F32, peak);
    }
}

struct Bench {
    isa: Isa,
    threads: Threads,
    runs: usize,
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

    /// Multiply-adds that stay in registers, FLOP/s of all threads.
    fn peak(&self) -> f64 {
        const STEPS: usize = 4_000_000;
        let workers = self.threads.count();
        let seconds = self.best(|| {
            self.threads.for_each_item(workers, |_, _| {
                black_box(register_fma(STEPS));
            })
        });
        (workers * STEPS * fma_flops_per_step()) as f64 / seconds
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

    /// The exponential, by way of silu_mul on rows that fit into the first-level cache: an upper bound of its cost.
    fn exp(&self, peak: f64) {
        const FFN: usize = 1536;
        let mut rows = vec![0.5f32; 2 * FFN];
        let seconds = self.best(|| {
            for _ in 0..1000 {
                silu_mul(self.isa, &self.threads, RowsMut::new(&mut rows, 1, 2 * FFN, 2 * FFN));
            }
        });
        let each = seconds / (1000 * FFN) as f64;
        println!(
            "silu_mul in cache, one thread: {:.3} ns each, {:.1} FLOP of one peak",
            each * 1e9,
            each * peak
        );
    }

    fn attention(&self, heads: Heads, tokens: usize, peak: f64) {
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
        let mut out = vec![0.0; tokens * q_width];
        let seconds = self.best(|| {
            let out = RowsMut::new(&mut out, tokens, q_width, q_width);
            attention(self.isa, &self.threads, &plan, &input, out);
        });
        let flops = (4 * q_width * tokens * (tokens + 1) / 2) as f64 / seconds;
        println!(
            "attention {tokens} tokens, {heads:?}: {:.2} ms, {:.1} GFLOP/s, {:.1} % of peak",
            seconds * 1e3,
            flops / 1e9,
            100.0 * flops / peak
        );
    }

    fn elementwise(&self, tokens: usize) {
        let (hidden, ffn, heads, half) = (576, 1536, 12, 32);
        let print = |name: &str, seconds: f64, bytes: usize| {
            let bytes_per_second = (bytes * tokens) as f64 / seconds;
            println!("{name} {tokens} tokens: {:.3} ms, {:.1} GB/s", seconds * 1e3, bytes_per_second / 1e9);
        };
        let (mut residual, mut delta) = (vec![0.5f32; tokens * hidden], vec![0.0f32; tokens * hidden]);
        let weight = vec![1.0; hidden];
        let seconds = self.best(|| {
            let rows = |x| RowsMut::new(x, tokens, hidden, hidden);
            let (residual, out) = (rows(&mut residual), rows(&mut delta));
            add_rms_norm(self.isa, &self.threads, residual, Delta::InOut, &weight, 1e-5, out);
        });
        print("add_rms_norm", seconds, 4 * 4 * hidden);
        let mut gate_up = vec![0.5f32; tokens * 2 * ffn];
        let seconds = self.best(|| {
            silu_mul(self.isa, &self.threads, RowsMut::new(&mut gate_up, tokens, 2 * ffn, 2 * ffn));
        });
        print("silu_mul", seconds, 3 * 4 * ffn);
        let width = heads * 2 * half;
        let (mut qk, table, positions) = (vec![0.5f32; tokens * width], vec![0.7f32; half], vec![0; tokens]);
        let (cos, sin) = (Rows::new(&table, 1, half, half), Rows::new(&table, 1, half, half));
        let seconds = self.best(|| {
            let rows = RowsMut::new(&mut qk, tokens, width, width);
            rope(self.isa, &self.threads, rows, heads, RopeTable { cos, sin }, &positions);
        });
        print("rope", seconds, 2 * 4 * width);
    }

    fn gemm(&self, m: usize, n: usize, k: usize, dtype: Dtype, peak: f64) {
        let x = vec![0.5f32; m * k];
        let mut out = vec![0.0f32; m * n];
        // Several weights in turn, so that none is still in a cache from the run before.
        let weight_bytes = n * k * dtype.size();
        let copies = if m <= 64 { (256usize << 20).div_ceil(weight_bytes) } else { 1 };
        let bytes: Vec<u8> = (0..copies * weight_bytes).map(|i| if i % 2 == 0 { 0 } else { 0x3f }).collect();
        let mut turn = 0;
        let seconds = self.best(|| {
            let weight = &bytes[turn % copies * weight_bytes..][..weight_bytes];
            turn += 1;
            let operands = Gemm {
                x: Rows::new(&x, m, k, k),
                weight: WeightView::new(weight, dtype, n, k, k),
                bias: None,
                store: Store::Replace,
                math: Math::F32,
            };
            gemm(self.isa, &self.threads, &operands, RowsMut::new(&mut out, m, n, n));
        });
        let flops = (2 * m * n * k) as f64 / seconds;
        println!(
            "gemm {m:5} {n:5} {k:5} {dtype:?}: {:6.1} GFLOP/s, {:5.1} % of peak, weight at {:5.1} GB/s",
            flops / 1e9,
            100.0 * flops / peak,
            weight_bytes as f64 / seconds / 1e9
        );
    }
}

#[cfg(target_arch = "x86_64")]
fn fma_flops_per_step() -> usize {
    if is_x86_feature_detected!("avx512f") { 12 * 16 * 2 } else { 12 * 8 * 2 }
}

/// Twelve independent chains of multiply-adds.
#[cfg(target_arch = "x86_64")]
fn register_fma(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn wide(steps: usize) -> f32 {
        let mut sums = [_mm512_set1_ps(1.0); 12];
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        for _ in 0..steps {
            sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, a, b));
        }
        sums.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum()
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow(steps: usize) -> f32 {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        for _ in 0..steps {
            sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, a, b));
        }
        sums.into_iter().map(|s| _mm256_cvtss_f32(s)).sum()
    }
    // SAFETY: each branch asks for its instructions first.
    unsafe {
        if is_x86_feature_detected!("avx512f") {
            wide(steps)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            narrow(steps)
        } else {
            0.0
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fma_flops_per_step() -> usize {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn register_fma(_: usize) -> f32 {
    0.0
}
