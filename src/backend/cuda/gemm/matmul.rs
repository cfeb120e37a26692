//! [`Matmul`]: a matmul that is ready to run for any count of rows.

use std::collections::HashMap;
use std::fmt;
use std::iter;

use super::algorithm::Algorithm;
use super::classes::Schedule;
use super::handles::OrFault;
use super::lt::{Lt, Operands, Problem, Share};
use super::shape::MatmulShape;
use crate::backend::cuda::fault::behind;
use crate::error::{Error, ErrorKind, Result};

/// A matmul with its algorithms, ready to run.
pub struct Matmul {
    problem: Problem,
    schedule: Schedule,
    /// For a count of rows that are left, and a part of the GPU: how many of them are computed next,
    /// and by which algorithm.
    pieces: HashMap<(usize, Share), (usize, Algorithm)>,
}

impl Lt {
    /// Queues a matmul on the compute stream.
    pub fn run(&self, matmul: &mut Matmul, mut operands: Operands<'_>) -> Result<()> {
        let (shape, rows, out_first) = (matmul.problem.shape, operands.rows, operands.out_first);
        matmul.problem.check(&operands)?;
        let x = operands.x;
        let mut first = 0;
        while first < rows {
            let (count, algorithm) = self.piece(matmul, rows - first, operands.share)?;
            operands.x = x.after(first * shape.x_stride * matmul.problem.format.bytes());
            operands.out_first = out_first + first * shape.out_stride;
            operands.rows = count;
            let doing = || format!("{shape} of {count} rows");
            self.launch(&mut matmul.problem, &algorithm, &mut operands)?
                .or_fault(doing())
                .map_err(|error| behind(error, &self.stream, doing()))?;
            first += count;
        }
        Ok(())
    }

    /// How many of `rows` rows are computed next, and by which algorithm: all, where one takes
    /// them.
    fn piece(&self, matmul: &mut Matmul, rows: usize, share: Share) -> Result<(usize, Algorithm)> {
        if let Some(&known) = matmul.pieces.get(&(rows, share)) {
            return Ok(known);
        }
        let below = (0..rows.ilog2() + u32::from(!rows.is_power_of_two())).rev().map(|log| 1 << log);
        for count in iter::once(rows).chain(below) {
            for algorithm in matmul.schedule.at(count) {
                if self.accepts(&mut matmul.problem, algorithm, count, share)? {
                    matmul.pieces.insert((rows, share), (count, *algorithm));
                    return Ok((count, *algorithm));
                }
            }
        }
        let shape = matmul.problem.shape;
        Err(Error::new(
            ErrorKind::Device,
            format!("no algorithm of cublasLt computes {shape} of {rows} rows"),
        ))
    }
}

impl Matmul {
    /// A matmul that is computed by this schedule.
    pub fn new(problem: Problem, schedule: Schedule) -> Self {
        Self { problem, schedule, pieces: HashMap::new() }
    }

    /// Its shape.
    pub fn shape(&self) -> MatmulShape {
        self.problem.shape
    }

    /// The algorithms for counts of rows.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

impl fmt::Debug for Matmul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matmul")
            .field("shape", &self.problem.shape)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}
