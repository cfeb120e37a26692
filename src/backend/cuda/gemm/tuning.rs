//! [`Tuner`]: measures, once at load, the fastest member of a matmul's class for each size of
//! batch.
//!
//! Cost: for the 70B on one GPU with batches of 4,096 tokens there are 6 matmuls and 8 sizes of
//! batch, at most 17 algorithms each, and 4 runs of those: 3,264 runs at the most, of 10^15
//! additions and multiplications in all, which is about two seconds at 700 TFLOP/s; over N ranks an
//! Nth. Sorting algorithms into classes takes 403 rows of each, less than one such batch. Later
//! starts read files ([`cache`](super::cache)), and run 403 rows of each algorithm and one matmul
//! of each size. [`SECONDS_MAX`] bounds the time on a slow GPU.
//!
//! The algorithm that is used first for a size of batch is run for a few more counts of rows of
//! that size, measured or not: one that splits sums by the number of tiles on the GPU's
//! multiprocessors would change its bits between the counts above.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::algorithm::{Algorithm, Config};
use super::cache::{Cache, Fastest};
use super::classes::{self, BUCKETS, Class, Proposals, Schedule, find};
use super::lt::{Lt, Problem, Share};
use super::matmul::Matmul;
use super::shape::MatmulShape;
use super::trial::Trial;
use crate::backend::GemmTuning;
use crate::backend::cuda::context::Context;
use crate::backend::cuda::nccl::Group;
use crate::backend::cuda::ops::Ops;
use crate::backend::cuda::stopwatch;
use crate::error::{Error, ErrorKind, Result};
use crate::random::Random;

/// Seconds after which nothing more is measured: sizes that are left use the library's order.
pub const SECONDS_MAX: u64 = 30;

/// Runs that are timed together, after one that is not counted.
const TIMED_RUNS: usize = 3;

/// Times matmuls.
pub trait Stopwatch {
    /// Microseconds of one matmul of `rows` rows by this algorithm, which `run` queues.
    fn time(&mut self, rows: usize, algorithm: &Config, run: &mut dyn FnMut() -> Result<()>) -> Result<f32>;
}

/// A stopwatch by the GPU's clock.
pub struct Events<'a> {
    context: &'a Context,
    watch: stopwatch::Stopwatch,
}

impl<'a> Events<'a> {
    /// A stopwatch for work on the compute stream.
    pub fn new(context: &'a Context) -> Result<Self> {
        Ok(Self { context, watch: stopwatch::Stopwatch::new(context)? })
    }
}

impl Stopwatch for Events<'_> {
    fn time(&mut self, _: usize, _: &Config, run: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        let seconds = self.watch.time(self.context, || (0..TIMED_RUNS).try_for_each(|_| run()))?;
        Ok(1e6 * seconds as f32 / TIMED_RUNS as f32)
    }
}

/// Prepares a rank's matmuls.
pub struct Tuner<'a> {
    ops: &'a Ops,
    lt: &'a Lt,
    tuning: GemmTuning,
    /// `None` where nothing is measured.
    stopwatch: Option<Box<dyn Stopwatch + 'a>>,
    cache: Cache,
    /// The ranks, for which nothing more is prepared once one of them has failed.
    group: Option<Arc<Group>>,
    deadline: Instant,
}

impl<'a> Tuner<'a> {
    /// A tuner that measures if `tuning` asks for it and the GPU has a clock; otherwise the order
    /// of the library's proposals replaces times.
    pub fn new(ops: &'a Ops, lt: &'a Lt, tuning: GemmTuning, cache: Cache) -> Result<Self> {
        let context = ops.context();
        let measures = tuning == GemmTuning::Auto && context.info().has_clock;
        let stopwatch = match measures {
            true => Some(Box::new(Events::new(context)?) as Box<dyn Stopwatch + 'a>),
            false => None,
        };
        let deadline = Instant::now() + Duration::from_secs(SECONDS_MAX);
        Ok(Self { ops, lt, tuning, stopwatch, cache, group: None, deadline })
    }

    /// Sets the group of the rank: the tuner ends with an error as soon as another rank has failed.
    pub fn with_group(self, group: Option<Arc<Group>>) -> Self {
        Self { group, ..self }
    }

    /// Replaces the stopwatch.
    pub fn with_stopwatch(self, stopwatch: impl Stopwatch + 'a) -> Self {
        Self { stopwatch: Some(Box::new(stopwatch)), ..self }
    }

    /// Prepares a matmul of up to `rows_max` rows, or more. This allocates operands, and frees them
    /// again.
    pub fn matmul(&mut self, shape: MatmulShape, rows_max: usize) -> Result<Matmul> {
        self.check_group()?;
        let mut problem = self.lt.problem(shape)?;
        // A GPU without a clock is a simulated one, on which so many rows take too long.
        let is_fast = self.stopwatch.is_some() || self.ops.context().info().has_clock;
        let rows = if is_fast { rows_max.min(BUCKETS[BUCKETS.len() - 1]) } else { 0 };
        let mut trial = Trial::new(self.ops, shape, rows)?;
        let proposals = Proposals::of(self.lt, &mut problem)?;
        let found = classes::classes(self.lt, &mut problem, &mut trial, &proposals)?;
        let class = classes::choose(self.lt, &mut problem, found)?;
        let mut orders = match self.tuning {
            GemmTuning::Off => vec![class.members.clone(); BUCKETS.len()],
            GemmTuning::Auto => self.orders(&mut problem, &mut trial, &proposals, &class, rows)?,
        };
        self.drop_changing(&mut problem, &mut trial, &class, rows, &mut orders)?;
        Ok(Matmul::new(problem, Schedule::new(orders)))
    }

    /// An error when a rank of the group has failed.
    fn check_group(&self) -> Result<()> {
        self.group.as_ref().and_then(|group| group.failure()).map_or(Ok(()), Err)
    }

    /// The order of the class's members for each of [`BUCKETS`].
    fn orders(
        &mut self,
        problem: &mut Problem,
        trial: &mut Trial<'_>,
        proposals: &Proposals,
        class: &Class,
        rows_max: usize,
    ) -> Result<Vec<Vec<Algorithm>>> {
        let kept = self.cache.load(problem.shape);
        let mut stopwatch = self.stopwatch.take();
        let (mut fastest, mut orders, mut below) = (Vec::new(), Vec::new(), 0);
        for (&most, proposed) in BUCKETS.iter().zip(&proposals.buckets) {
            let members = proposed.iter().filter_map(|algorithm| find(&class.members, algorithm.config()));
            let favourites: Vec<Algorithm> = members.copied().collect();
            // No batch has more rows than `rows_max`.
            let rows = most.min(rows_max);
            orders.push(match &mut stopwatch {
                Some(stopwatch) if rows > below => {
                    let share = self.lt.usual_share(rows);
                    let mut size = Size { rows, share, lt: self.lt, class, problem, trial };
                    let (order, found) = self.measure(&mut size, &favourites, &kept, &mut **stopwatch)?;
                    fastest.extend(found);
                    order
                }
                _ => followed_by(favourites, &class.members),
            });
            below = most;
        }
        self.stopwatch = stopwatch;
        // Those of other parts of the GPU stay, for a start that needs them.
        let is_known = |other: &Fastest| {
            fastest.iter().any(|known| (known.rows, known.share) == (other.rows, other.share))
        };
        let others: Vec<Fastest> = kept.iter().filter(|other| !is_known(other)).copied().collect();
        if !fastest.is_empty() && fastest.iter().any(|found| !kept.contains(found)) {
            self.cache.store(problem.shape, &[fastest, others].concat());
        }
        Ok(orders)
    }

    /// Drops members that give other bits for one of [`more_rows`], until the first of each order
    /// gives those of the class.
    fn drop_changing(
        &self,
        problem: &mut Problem,
        trial: &mut Trial<'_>,
        class: &Class,
        rows_max: usize,
        orders: &mut [Vec<Algorithm>],
    ) -> Result<()> {
        let (shape, multiprocessors) = (problem.shape, self.ops.context().info().multiprocessors);
        let mut below = 0;
        for (bucket, &most) in BUCKETS.iter().enumerate() {
            let most = most.min(rows_max);
            if most <= below {
                break;
            }
            self.check_group()?;
            let counts: Vec<(usize, Share)> = (self.lt.shares().iter())
                .flat_map(|&share| {
                    let multiprocessors = self.lt.multiprocessors(share, multiprocessors);
                    let counts = more_rows(shape, multiprocessors, below, most);
                    counts.into_iter().chain([most]).map(move |rows| (rows, share))
                })
                .collect();
            below = most;
            loop {
                let Some(first) = orders[bucket].first().copied() else {
                    let message = format!(
                        "cublasLt has no algorithm for {shape} with the same bits for all counts of rows"
                    );
                    return Err(Error::new(ErrorKind::Device, message));
                };
                let mut keeps_bits = true;
                for &(rows, share) in &counts {
                    // Rows that it does not take are another's.
                    keeps_bits &= !self.lt.accepts(problem, &first, rows, share)?
                        || trial.confirms(self.lt, problem, &first, (rows, share), &class.bits)?;
                }
                if keeps_bits {
                    break;
                }
                for order in orders.iter_mut() {
                    order.retain(|algorithm| algorithm.config() != first.config());
                }
            }
        }
        Ok(())
    }

    /// The order of algorithms for one size of batch, the fastest first, and that one: by the
    /// cache, if it is confirmed, or by the stopwatch.
    fn measure(
        &self,
        size: &mut Size<'_, '_>,
        favourites: &[Algorithm],
        kept: &[Fastest],
        stopwatch: &mut dyn Stopwatch,
    ) -> Result<(Vec<Algorithm>, Option<Fastest>)> {
        // The one that decided on the class competes everywhere.
        let able = followed_by(favourites.to_vec(), &size.class.members[..1]);
        let mut others = size.class.members.clone();
        others.retain(|other| find(&able, other.config()).is_none());
        let known = kept.iter().find(|kept| kept.rows == size.rows && kept.share == size.share);
        if let Some((known, algorithm)) =
            known.and_then(|known| Some((known, find(&able, &known.algorithm)?)))
            && size.confirms(algorithm)?
        {
            return Ok((followed_by(vec![*algorithm], &others), Some(*known)));
        }
        let mut timed = Vec::new();
        for algorithm in &able {
            self.check_group()?;
            if Instant::now() >= self.deadline {
                return Ok((followed_by(able, &others), None));
            }
            // A first run, which is not timed, and which shows that the bits are those of the class
            // for so many rows too.
            if size.confirms(algorithm)? {
                timed.push((size.time(stopwatch, algorithm)?, *algorithm));
            }
        }
        timed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let fastest = timed.first().map(|(microseconds, algorithm)| Fastest {
            rows: size.rows,
            share: size.share,
            algorithm: *algorithm.config(),
            microseconds: *microseconds,
        });
        let order = timed.into_iter().map(|(_, algorithm)| algorithm).collect();
        Ok((followed_by(order, &others), fastest))
    }
}

/// One size of batch of one matmul.
struct Size<'a, 'b> {
    rows: usize,
    share: Share,
    lt: &'a Lt,
    class: &'a Class,
    problem: &'a mut Problem,
    trial: &'a mut Trial<'b>,
}

impl Size<'_, '_> {
    fn confirms(&mut self, algorithm: &Algorithm) -> Result<bool> {
        let size = (self.rows, self.share);
        self.trial.confirms(self.lt, self.problem, algorithm, size, &self.class.bits)
    }

    fn time(&mut self, stopwatch: &mut dyn Stopwatch, algorithm: &Algorithm) -> Result<f32> {
        let Self { rows, share, lt, ref mut problem, ref mut trial, .. } = *self;
        // The library took it a moment ago, so it takes it again.
        let mut run = || trial.launch(lt, problem, algorithm, (rows, share)).map(drop);
        stopwatch.time(rows, algorithm.config(), &mut run)
    }
}

/// Counts of rows above `below` and up to `most` that are checked beside those that are measured:
/// two that a fixed seed draws, and the one whose tiles leave the fewest of the multiprocessors
/// busy in the last round.
fn more_rows(shape: MatmulShape, multiprocessors: usize, below: usize, most: usize) -> [usize; 3] {
    /// Rows and columns of a usual tile.
    const TILE: usize = 128;
    let mut random = Random::new(most as u64);
    let mut drawn = || below + 1 + random.next_bits() as usize % (most - below);
    let in_last_round = |rows: &usize| {
        let tiles = rows.div_ceil(TILE) * shape.features.div_ceil(TILE);
        (tiles - 1) % multiprocessors.max(1)
    };
    let whole = (below / TILE + 1..=most / TILE).map(|tiles| tiles * TILE);
    [drawn(), drawn(), whole.min_by_key(in_last_round).unwrap_or(most)]
}

/// An order, followed by the algorithms that are not in it.
fn followed_by(mut order: Vec<Algorithm>, others: &[Algorithm]) -> Vec<Algorithm> {
    for other in others {
        if find(&order, other.config()).is_none() {
            order.push(*other);
        }
    }
    order
}
