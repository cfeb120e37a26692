//! Which algorithms may stand in for each other: those that give the same bits. And which of them is used when.

use std::fmt;

use super::algorithm::{Algorithm, Config};
use super::lt::{Lt, Problem};
use super::trial::{Bits, Trial};
use crate::error::{Error, ErrorKind, Result};

/// The number of rows whose first proposal decides on the class: a usual batch.
pub const ROWS_NOMINAL: usize = 4096;

/// Numbers of rows up to which one algorithm is the fastest, more or less. Beyond the last, its own serves.
pub const BUCKETS: [usize; 10] = [16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Algorithms that compute the same bits.
#[derive(Clone, Debug)]
pub struct Class {
    /// Those of equal rows, whatever their number.
    pub bits: Bits,
    /// The library's favourite for [`ROWS_NOMINAL`] rows first.
    pub members: Vec<Algorithm>,
}

/// For each of [`BUCKETS`], algorithms of one class, in the order in which they are asked whether they take a number of
/// rows.
#[derive(Clone)]
pub struct Schedule {
    buckets: Vec<Vec<Algorithm>>,
}

impl Schedule {
    /// The orders for [`BUCKETS`].
    ///
    /// # Panics
    ///
    /// When it is not one order for each.
    pub fn new(buckets: Vec<Vec<Algorithm>>) -> Self {
        assert_eq!(buckets.len(), BUCKETS.len(), "an order for each bucket");
        Self { buckets }
    }

    /// The algorithms for so many rows.
    pub fn at(&self, rows: usize) -> &[Algorithm] {
        &self.buckets[bucket(rows)]
    }
}

/// The bucket of a number of rows.
pub fn bucket(rows: usize) -> usize {
    BUCKETS.iter().position(|&most| rows <= most).unwrap_or(BUCKETS.len() - 1)
}

/// What the library proposes for a product: for [`ROWS_NOMINAL`] rows, and for the most of each bucket.
#[derive(Debug)]
pub struct Proposals {
    nominal: Vec<Algorithm>,
    /// For each of [`BUCKETS`].
    pub buckets: Vec<Vec<Algorithm>>,
}

impl Proposals {
    /// Asks the library's host code. Those that sum in one piece; nothing depends on how large batches may get.
    pub fn of(lt: &Lt, problem: &mut Problem) -> Result<Self> {
        let mut of = |rows| -> Result<Vec<Algorithm>> {
            let mut found = lt.proposals(problem, rows)?;
            found.retain(Algorithm::sums_in_one_piece);
            Ok(found)
        };
        let nominal = of(ROWS_NOMINAL)?;
        Ok(Self { nominal, buckets: BUCKETS.into_iter().map(of).collect::<Result<_>>()? })
    }

    /// Each once, those for [`ROWS_NOMINAL`] rows first.
    fn distinct(&self) -> Vec<Algorithm> {
        let mut all: Vec<Algorithm> = Vec::new();
        for algorithm in self.nominal.iter().chain(self.buckets.iter().flatten()) {
            if find(&all, algorithm.config()).is_none() {
                all.push(*algorithm);
            }
        }
        all
    }
}

/// The algorithm that a library's answer names.
pub fn find<'a>(among: &'a [Algorithm], config: &Config) -> Option<&'a Algorithm> {
    among.iter().find(|algorithm| algorithm.config() == config)
}

/// Sorts the proposals by the bits of their products, which are computed on the GPU: classes in the order of their first
/// members. Those whose bits depend on the number of rows are in none.
pub fn classes(
    lt: &Lt,
    problem: &mut Problem,
    trial: &mut Trial,
    proposals: &Proposals,
) -> Result<Vec<Class>> {
    let mut classes: Vec<Class> = Vec::new();
    for algorithm in proposals.distinct() {
        let Some(bits) = trial.bits(lt, problem, &algorithm)? else { continue };
        match classes.iter_mut().find(|class| class.bits == bits) {
            Some(class) => class.members.push(algorithm),
            None => classes.push(Class { bits, members: vec![algorithm] }),
        }
    }
    Ok(classes)
}

/// The class that is used: the first with a member that computes a single row, of which any number can be made.
pub fn choose(lt: &Lt, problem: &mut Problem, classes: Vec<Class>) -> Result<Class> {
    for class in classes {
        for member in &class.members {
            if lt.accepts(problem, member, 1)? {
                return Ok(class);
            }
        }
    }
    let message =
        format!("cublasLt has no algorithm for {} that sums each number in one piece", problem.shape);
    Err(Error::new(ErrorKind::Device, message))
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = BUCKETS.iter().zip(&self.buckets).map(|(rows, order)| (rows, order.first()));
        f.debug_map().entries(first).finish()
    }
}
