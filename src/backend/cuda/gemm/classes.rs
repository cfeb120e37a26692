//! [`Class`]: algorithms that give the same bits, and so may replace each other. [`Schedule`]:
//! which of them is used for which count of rows.

use std::fmt;

use super::algorithm::{Algorithm, Config};
use super::lt::{Lt, Problem};
use super::trial::{Bits, Trial};
use crate::error::{Error, ErrorKind, Result};

/// The count of rows whose first proposal decides on the class: a usual batch.
pub const ROWS_NOMINAL: usize = 4096;

/// Counts of rows up to which one algorithm is about the fastest. Larger batches use that of the
/// last.
pub const BUCKETS: [usize; 10] = [16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Algorithms that compute the same bits.
#[derive(Clone, Debug)]
pub struct Class {
    /// The bits of the trial's rows, for any count of rows.
    pub bits: Bits,
    /// The library's favourite for [`ROWS_NOMINAL`] rows first.
    pub members: Vec<Algorithm>,
}

/// For each of [`BUCKETS`], algorithms of one class, in the order in which they are tried for a
/// count of rows.
#[derive(Clone)]
pub struct Schedule {
    buckets: Vec<Vec<Algorithm>>,
}

impl Schedule {
    /// A schedule with an order for each of [`BUCKETS`].
    ///
    /// # Panics
    ///
    /// When there is not one order for each.
    pub fn new(buckets: Vec<Vec<Algorithm>>) -> Self {
        assert_eq!(buckets.len(), BUCKETS.len(), "an order for each bucket");
        Self { buckets }
    }

    /// The algorithms for `rows` rows, in their order.
    pub fn at(&self, rows: usize) -> &[Algorithm] {
        &self.buckets[bucket(rows)]
    }
}

/// The index of the bucket for a count of rows.
pub fn bucket(rows: usize) -> usize {
    BUCKETS.iter().position(|&most| rows <= most).unwrap_or(BUCKETS.len() - 1)
}

/// The library's proposals for a matmul: for [`ROWS_NOMINAL`] rows, and for the most of each
/// bucket.
#[derive(Debug)]
pub struct Proposals {
    nominal: Vec<Algorithm>,
    /// For each of [`BUCKETS`], with the part of the GPU that such batches usually have.
    pub buckets: Vec<Vec<Algorithm>>,
    /// For each of [`BUCKETS`], with every part of the GPU: they may be of the class, too, which
    /// must not depend on whether collectives run beside matmuls.
    all: Vec<Algorithm>,
}

impl Proposals {
    /// The proposals that sum in one piece, from the library's host code. They do not depend on the
    /// size of batches.
    pub fn of(lt: &Lt, problem: &mut Problem) -> Result<Self> {
        let mut of = |rows, share| -> Result<Vec<Algorithm>> {
            let mut found = lt.proposals(problem, rows, share)?;
            found.retain(Algorithm::sums_in_one_piece);
            Ok(found)
        };
        let nominal = of(ROWS_NOMINAL, lt.shares()[0])?;
        let (mut buckets, mut all) = (Vec::new(), Vec::new());
        for rows in BUCKETS {
            for &share in lt.shares() {
                let found = of(rows, share)?;
                all.extend_from_slice(&found);
                if share == lt.usual_share(rows) {
                    buckets.push(found);
                }
            }
        }
        Ok(Self { nominal, buckets, all })
    }

    /// Each algorithm once, those for [`ROWS_NOMINAL`] rows first.
    fn distinct(&self) -> Vec<Algorithm> {
        let mut all: Vec<Algorithm> = Vec::new();
        for algorithm in self.nominal.iter().chain(&self.all) {
            if find(&all, algorithm.config()).is_none() {
                all.push(*algorithm);
            }
        }
        all
    }
}

/// The algorithm with this description.
pub fn find<'a>(among: &'a [Algorithm], config: &Config) -> Option<&'a Algorithm> {
    among.iter().find(|algorithm| algorithm.config() == config)
}

/// Sorts the proposals by the bits that they compute on the GPU: classes in the order of their
/// first members. Algorithms whose bits depend on the count of rows are in none.
pub fn classes(
    lt: &Lt,
    problem: &mut Problem,
    trial: &mut Trial<'_>,
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

/// The class that is used: the first that computes a single row with every part of the GPU, so that
/// any count of rows can be computed.
pub fn choose(lt: &Lt, problem: &mut Problem, classes: Vec<Class>) -> Result<Class> {
    for class in classes {
        let mut computes_all = true;
        for &share in lt.shares() {
            let mut computes = false;
            for member in &class.members {
                computes = computes || lt.accepts(problem, member, 1, share)?;
            }
            computes_all &= computes;
        }
        if computes_all {
            return Ok(class);
        }
    }
    let message =
        format!("cublasLt has no algorithm for {} that sums each element in one piece", problem.shape);
    Err(Error::new(ErrorKind::Device, message))
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = BUCKETS.iter().zip(&self.buckets).map(|(rows, order)| (rows, order.first()));
        f.debug_map().entries(first).finish()
    }
}
