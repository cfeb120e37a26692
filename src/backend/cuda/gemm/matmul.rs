//! [`Matmul`]: a matmul that is ready to run for any number of rows.

use std::collections::HashMap;
use std::fmt;
use std::iter;

use super::algorithm::Algorithm;
use super::classes::Schedule;
use super::handles::OrFault;
use super::lt::{Lt, Operands, Problem};
use crate::error::{Error, ErrorKind, Result};

/// A product that is ready to run for any number of rows.
pub struct Matmul {
    problem: Problem,
    schedule: Schedule,
    /// For a number of rows that is left to do: how many are done next, and by which algorithm.
    pieces: HashMap<usize, (usize, Algorithm)>,
}

impl Lt {
    /// Queues a product on the compute stream.
    pub fn run(&self, product: &mut Matmul, mut operands: Operands<'_>) -> Result<()> {
        let (shape, rows, out_first) = (product.problem.shape, operands.rows, operands.out_first);
        product.problem.check(&operands)?;
        let x = operands.x;
        let mut first = 0;
        while first < rows {
            let (count, algorithm) = self.piece(product, rows - first)?;
            operands.x = x.after(first * shape.x_stride * product.problem.format.bytes());
            operands.out_first = out_first + first * shape.out_stride;
            operands.rows = count;
            self.launch(&mut product.problem, &algorithm, &mut operands)?
                .or_fault(format!("{shape} of {count} rows"))?;
            first += count;
        }
        Ok(())
    }

    /// Of so many rows, how many are computed next, and by what: all, wherever an algorithm takes them.
    fn piece(&self, product: &mut Matmul, rows: usize) -> Result<(usize, Algorithm)> {
        if let Some(&known) = product.pieces.get(&rows) {
            return Ok(known);
        }
        let below = (0..rows.ilog2() + u32::from(!rows.is_power_of_two())).rev().map(|log| 1 << log);
        for count in iter::once(rows).chain(below) {
            for algorithm in product.schedule.at(count) {
                if self.accepts(&mut product.problem, algorithm, count)? {
                    product.pieces.insert(rows, (count, *algorithm));
                    return Ok((count, *algorithm));
                }
            }
        }
        let shape = product.problem.shape;
        Err(Error::new(
            ErrorKind::Device,
            format!("no algorithm of cublasLt computes {shape} of {rows} rows"),
        ))
    }
}

impl Matmul {
    /// A product that is computed as the schedule says.
    pub fn new(problem: Problem, schedule: Schedule) -> Self {
        Self { problem, schedule, pieces: HashMap::new() }
    }

    /// How it is computed.
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
