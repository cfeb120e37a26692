//! `rope` and `rope_norm`

use std::thread;

use cudarc::driver::PushKernelArg;
use half::{bf16, f16};

use super::launch::{Needs, Ops, WIDE};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::format::ActivationFormat;
use crate::backend::cuda::tables::{DeviceTables, RowIndices};
use crate::elementary;
use crate::error::{Error, ErrorKind, Result};

const THREADS_MAX: usize = 256;

/// Threads of the host that make the tables, at most, and the fewest rows that are worth one.
const THREADS_OF_HOST_MAX: usize = 8;
const ROWS_OF_THREAD_MIN: usize = 1024;

/// Cosines and sines `[positions, head_dim / 2]` on the device, computed by the host in f32 and
/// rounded to the activations' format.
#[derive(Debug)]
pub struct RopeTables {
    cos: DeviceBuffer,
    sin: DeviceBuffer,
    positions: usize,
    head_dim: usize,
}

impl RopeTables {
    /// The tables of positions `0..positions` for the model's frequencies, `[head_dim / 2]` radians
    /// per position.
    pub fn new(ops: &Ops, frequencies: &[f32], positions: usize) -> Result<Self> {
        let table = |function: fn(f32) -> f32| {
            let bits = table(ops.format(), frequencies, positions, function)?;
            let mut buffer = ops.context.allocate(bits.len() * ops.format().bytes())?;
            buffer.upload(0, &bits, ops.context.compute())?;
            Ok(buffer)
        };
        let (cos, sin) = (table(elementary::cos)?, table(elementary::sin)?);
        Ok(Self { cos, sin, positions, head_dim: 2 * frequencies.len() })
    }

    /// Bytes of the tables.
    pub fn bytes(format: ActivationFormat, head_dim: usize, positions: usize) -> usize {
        positions * head_dim * format.bytes()
    }
}

/// The function of every angle, `[positions, frequencies]`, as bits of a format.
fn table(
    format: ActivationFormat,
    frequencies: &[f32],
    positions: usize,
    function: fn(f32) -> f32,
) -> Result<Vec<u16>> {
    let mut bits = vec![0; positions * frequencies.len()];
    let fill = &|first: usize, rows: &mut [u16]| {
        for (position, row) in (first..).zip(rows.chunks_exact_mut(frequencies.len())) {
            for (bits, frequency) in row.iter_mut().zip(frequencies) {
                // The angle is rounded to f32 as in Transformers.
                let value = function(position as f32 * frequency);
                *bits = match format {
                    ActivationFormat::Bf16 => bf16::from_f32(value).to_bits(),
                    ActivationFormat::F16 => f16::from_f32(value).to_bits(),
                };
            }
        }
    };
    // 131,072 positions of a 70B take half a second of one core.
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS_OF_HOST_MAX));
    let rows_each = positions.div_ceil(threads).max(ROWS_OF_THREAD_MIN);
    thread::scope(|scope| {
        let mut chunks = bits.chunks_mut(rows_each * frequencies.len().max(1)).enumerate();
        // The first is this thread's.
        let own = chunks.next();
        for (index, rows) in chunks {
            let thread = thread::Builder::new().name("kudos-rope".to_owned());
            thread.spawn_scoped(scope, move || fill(index * rows_each, rows)).map_err(|error| {
                let message = "cannot start a thread that makes the tables of RoPE";
                Error::new(ErrorKind::Io, message).caused_by(error)
            })?;
        }
        if let Some((_, rows)) = own {
            fill(0, rows);
        }
        Ok(())
    })?;
    Ok(bits)
}

/// Rotates heads of consecutive rows of `qkv` in place, a row for each of `positions`.
#[derive(Debug)]
pub struct Rope<'a> {
    /// `[first_row + rows, row_stride]`
    pub qkv: &'a mut DeviceBuffer,
    /// The first row to rotate.
    pub first_row: usize,
    /// Tables that `positions` are of.
    pub tables: &'a DeviceTables,
    /// `[rows]`: positions of `rope_tables`.
    pub positions: &'a RowIndices,
    /// Cosines and sines.
    pub rope_tables: &'a RopeTables,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// The first head to rotate; head `h` starts at column `h * head_dim`.
    pub first_head: usize,
    /// Heads to rotate.
    pub heads: usize,
    /// The norms of heads, which come before their rotation, where there are norms.
    pub norms: Option<HeadNorms<'a>>,
}

/// The norms of heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// `[head_dim]`: of the heads below `q_heads`.
    pub q_weight: DeviceSlice<'a>,
    /// `[head_dim]`: of the others.
    pub k_weight: DeviceSlice<'a>,
    /// Query heads of a row of `qkv`.
    pub q_heads: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// Whether the kernels can norm heads of this width: the threads of a head are neighbours in one
/// warp.
pub fn norms_heads_of(head_dim: usize) -> bool {
    head_dim.is_power_of_two() && (2 * WIDE..=2 * WIDE * 32).contains(&head_dim)
}

impl Ops {
    /// Launches `rope`, or `rope_norm` where there are norms.
    pub fn rope(&self, args: Rope<'_>) -> Result<()> {
        let Rope { qkv, first_row, tables, positions, rope_tables, row_stride, first_head, heads, norms } =
            args;
        let needs = Needs(if norms.is_some() { "rope_norm" } else { "rope" });
        let (head_dim, rows) = (rope_tables.head_dim, positions.count());
        needs.that(head_dim > 0 && head_dim.is_multiple_of(2 * WIDE), || {
            format!("head_dim in multiples of {}, not {head_dim}", 2 * WIDE)
        })?;
        needs.wide("row_stride", row_stride)?;
        let head_end = first_head.saturating_add(heads);
        needs.that(head_end.saturating_mul(head_dim) <= row_stride, || {
            format!("heads within a row of {row_stride}, not {first_head} + {heads} of {head_dim}")
        })?;
        needs.that(positions.limit <= rope_tables.positions, || {
            format!("positions below {}, not below {}", rope_tables.positions, positions.limit)
        })?;
        needs.covers(
            "qkv",
            qkv.all(),
            [first_row.saturating_add(rows), row_stride, self.format().bytes()],
        )?;
        let items = heads * head_dim / (2 * WIDE);
        let config = needs.grid(rows, 1, items.next_multiple_of(32).clamp(32, THREADS_MAX), 0)?;
        let qkv = qkv.address() + (first_row * row_stride * self.format().bytes()) as u64;
        let positions = needs.table("positions", tables, &positions.table)?;
        let (cos, sin) = (rope_tables.cos.address(), rope_tables.sin.address());
        let row_stride = needs.int("row_stride", row_stride)?;
        let (head_dim, first_head, heads) = (head_dim as i32, first_head as i32, heads as i32);
        if let Some(HeadNorms { q_weight, k_weight, q_heads, eps }) = norms {
            needs.that(norms_heads_of(head_dim as usize), || {
                format!("a head_dim that is a power of two, not {head_dim}")
            })?;
            for (name, weight) in [("q_weight", q_weight), ("k_weight", k_weight)] {
                needs.covers(name, weight, [1, head_dim as usize, self.format().bytes()])?;
            }
            let (q_weight, k_weight) = (q_weight.address(), k_weight.address());
            let q_heads = needs.int("q_heads", q_heads)?;
            // SAFETY: types: six addresses, five ints, a float. bounds: as below, and the weights
            // are as wide as a head. aliases and lives: as below; the weights are only read.
            return unsafe {
                self.context
                    .compute()
                    .launch_builder(&self.kernels.rope_norm)
                    .arg(&qkv)
                    .arg(&positions)
                    .arg(&cos)
                    .arg(&sin)
                    .arg(&q_weight)
                    .arg(&k_weight)
                    .arg(&row_stride)
                    .arg(&head_dim)
                    .arg(&first_head)
                    .arg(&heads)
                    .arg(&q_heads)
                    .arg(&eps)
                    .launch(config)
            }
            .or_fault("launching `rope_norm`")
            .map(drop);
        }
        // SAFETY: types: four addresses, four ints. bounds: a block for each position, for whose
        // row fits into qkv; heads lie within a row; positions are below their limit, and the
        // cosines and sines are of as many. aliases: qkv is borrowed mutably, no two threads take
        // the same pairs. lives: see above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.rope)
                .arg(&qkv)
                .arg(&positions)
                .arg(&cos)
                .arg(&sin)
                .arg(&row_stride)
                .arg(&head_dim)
                .arg(&first_head)
                .arg(&heads)
                .launch(config)
        }
        .or_fault("launching `rope`")
        .map(drop)
    }
}
