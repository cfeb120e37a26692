//! Matmuls by cublasLt, as the backend uses them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use half::f16;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::gemm::algorithm::{Algorithm, Config};
use kudos::internals::backend::cuda::gemm::cache::Cache;
use kudos::internals::backend::cuda::gemm::classes::{BUCKETS, Proposals, Schedule, choose, classes};
use kudos::internals::backend::cuda::gemm::trial::Trial;
use kudos::internals::backend::cuda::gemm::tuning::{Stopwatch, Tuner};
use kudos::internals::backend::cuda::gemm::{BitCheck, Lt, Matmul, MatmulShape, Operands, Out, Share};
use kudos::internals::backend::cuda::ops::Ops;
use kudos::{GemmTuning, Result};

use crate::numbers::{Random, bits, half_ulp, upload, upload_raw, value};
use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("matmuls_match_naive", matmuls_match_naive),
    ("matmuls_with_a_bias_match_naive", matmuls_with_a_bias_match_naive),
    ("a_row_of_a_matmul_does_not_depend_on_the_count_of_rows", a_row_does_not_depend_on_the_count_of_rows),
    ("algorithms_and_classes_are_counted", algorithms_and_classes_are_counted),
    ("favourites_of_other_classes_are_seen", favourites_of_other_classes_are_seen),
    ("a_check_of_bits_finds_an_algorithm_that_changes", a_check_of_bits_finds_one_that_changes),
    ("rows_that_are_refused_are_computed_in_pieces", rows_that_are_refused_are_computed_in_pieces),
    ("collectives_beside_a_matmul_change_no_bit", collectives_beside_a_matmul_change_no_bit),
    ("algorithms_that_change_between_counts_are_dropped", algorithms_that_change_are_dropped),
    ("times_choose_within_a_class_and_are_kept", times_choose_within_a_class_and_are_kept),
];

const SHAPE: MatmulShape = MatmulShape {
    features: 48,
    width: 136,
    x_stride: 152,
    out_stride: 64,
    out: Out::Activation,
    bias: false,
};

/// The first of the result's columns in `out`: they are its last ones.
const COLUMN: usize = SHAPE.out_stride - SHAPE.features;

/// Elements of `out` before a matmul adds to them.
fn old(format: ActivationFormat, out: Out, count: usize) -> Vec<f64> {
    match out {
        Out::Activation | Out::AddActivation => Random::new(3).rows(format, count, 1.0),
        Out::F32 | Out::AddF32 => Random::new(3).rows(ActivationFormat::Bf16, count, 1.0),
    }
}

/// Runs the matmul into column 16 of rows 1 and on of `old`, and returns all of it.
fn run(ops: &Ops, lt: &Lt, matmul: &mut Matmul, shape: MatmulShape, rows: usize, alpha: f32) -> Vec<f64> {
    run_by(ops, shape, rows, alpha, |operands| lt.run(matmul, operands)).unwrap()
}

/// Runs it by any function.
fn run_by(
    ops: &Ops,
    shape: MatmulShape,
    rows: usize,
    alpha: f32,
    launch: impl FnOnce(Operands<'_>) -> Result<()>,
) -> Result<Vec<f64>> {
    let format = ops.format();
    let x = upload(ops, &x(format, rows));
    let weight = upload(ops, &weight(format));
    let is_f32 = matches!(shape.out, Out::F32 | Out::AddF32);
    let raw = |numbers: &[f64]| match is_f32 {
        true => upload_raw(ops, &numbers.iter().map(|&number| number as f32).collect::<Vec<_>>()),
        false => upload_raw(ops, &numbers.iter().map(|&number| bits(format, number)).collect::<Vec<_>>()),
    };
    let bias = raw(&bias(format));
    let mut out = raw(&old(format, shape.out, (rows + 1) * shape.out_stride));
    let operands = Operands {
        x: x.all(),
        weight: weight.all(),
        bias: shape.bias.then(|| bias.all()),
        out: &mut out,
        out_first: shape.out_stride + COLUMN,
        rows,
        alpha,
        share: Share::Whole,
    };
    launch(operands)?;
    let stream = ops.context().compute();
    Ok(match is_f32 {
        true => out.all().download::<f32>(stream)?.into_iter().map(f64::from).collect(),
        false => out.all().download::<u16>(stream)?.into_iter().map(|bits| value(format, bits)).collect(),
    })
}

fn x(format: ActivationFormat, rows: usize) -> Vec<f64> {
    Random::new(1).rows(format, rows * SHAPE.x_stride, 1.0)
}

fn weight(format: ActivationFormat) -> Vec<f64> {
    Random::new(2).rows(format, SHAPE.features * SHAPE.width, 0.05)
}

fn bias(format: ActivationFormat) -> Vec<f64> {
    Random::new(4).rows(format, SHAPE.features, 1.0)
}

fn matmuls_match_naive(gpu: &Gpu) {
    let without = [(Out::Activation, 1.0), (Out::AddActivation, 1.0), (Out::F32, 16.0), (Out::AddF32, 0.5)];
    matches_naive(gpu, &without.map(|(out, alpha)| (out, false, alpha)));
}

fn matmuls_with_a_bias_match_naive(gpu: &Gpu) {
    matches_naive(gpu, &[(Out::Activation, true, 1.0), (Out::AddActivation, true, 1.0)]);
}

fn matches_naive(gpu: &Gpu, kinds: &[(Out, bool, f32)]) {
    let ops = gpu.ops(64);
    let format = gpu.format;
    let lt = Lt::new(ops.context(), format).unwrap();
    for &(out, bias_too, alpha) in kinds {
        let shape = MatmulShape { out, bias: bias_too, ..SHAPE };
        let mut matmul = prepared(&ops, &lt, shape);
        for rows in [1, 3, 65] {
            let got = run(&ops, &lt, &mut matmul, shape, rows, alpha);
            let before = old(format, out, got.len());
            let (x, weight, bias) = (x(format, rows), weight(format), bias(format));
            for (i, (&got, &before)) in got.iter().zip(&before).enumerate() {
                let (row, column) = (i / shape.out_stride, i % shape.out_stride);
                if row == 0 || !(COLUMN..COLUMN + shape.features).contains(&column) {
                    assert_eq!(got, before, "{shape:?}: {row}, {column} is not the result's");
                    continue;
                }
                let feature = column - COLUMN;
                let (x, w) =
                    (&x[(row - 1) * shape.x_stride..], &weight[feature * shape.width..][..shape.width]);
                let dot = w.iter().zip(x).map(|(w, x)| w * x);
                let (sum, size) =
                    dot.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()));
                let added = if matches!(out, Out::AddActivation | Out::AddF32) { before } else { 0.0 };
                let want = f64::from(alpha) * sum + added + if bias_too { bias[feature] } else { 0.0 };
                // f32 sums of `width` terms in any order, then one rounding.
                let f32_error = 2f64.powi(-24) * shape.width as f64 * (f64::from(alpha) * size + added.abs());
                let rounding =
                    if matches!(out, Out::F32 | Out::AddF32) { 0.0 } else { half_ulp(format) * want.abs() };
                let bound = f32_error + 1.01 * rounding + f16::MIN_POSITIVE_SUBNORMAL.to_f64();
                assert!(
                    (got - want).abs() <= bound,
                    "{shape:?}, {rows} rows: {row}, {column}: {got}, expected {want}"
                );
            }
        }
    }
}

/// A matmul as an engine prepares it, but without a cache.
fn prepared(ops: &Ops, lt: &Lt, shape: MatmulShape) -> Matmul {
    tuner(ops, lt, None).matmul(shape, ROWS_MAX).unwrap()
}

fn tuner<'a>(ops: &'a Ops, lt: &'a Lt, folder: Option<&Path>) -> Tuner<'a> {
    let cache = Cache::new(folder.map(Path::to_owned), ops.context().info(), ops.format()).unwrap();
    Tuner::new(ops, lt, GemmTuning::Auto, cache).unwrap()
}

/// More rows than a whole number of any tile, in the bucket of more than 4,096.
const ROWS_MAX: usize = 4099;

/// Counts of rows in every bucket up to that, at its ends and within; few are a whole number of
/// tiles.
const ROWS: [usize; 17] = [1, 2, 15, 16, 17, 63, 65, 127, 129, 256, 300, 512, 1000, 1024, 1025, 2049, 4096];

/// The first count of rows whose result has other bits than these rows of a larger one.
fn rows_that_differ(ops: &Ops, lt: &Lt, matmul: &mut Matmul, shape: MatmulShape) -> Option<usize> {
    let many = run(ops, lt, matmul, shape, ROWS_MAX, 1.0);
    ROWS.into_iter().find(|&rows| {
        let few = run(ops, lt, matmul, shape, rows, 1.0);
        few != many[..few.len()]
    })
}

fn a_row_does_not_depend_on_the_count_of_rows(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    for out in [Out::Activation, Out::F32] {
        let shape = MatmulShape { out, ..SHAPE };
        for tuning in [GemmTuning::Auto, GemmTuning::Off] {
            let cache = Cache::new(None, gpu.info(), gpu.format).unwrap();
            let mut tuner = Tuner::new(&ops, &lt, tuning, cache).unwrap();
            let mut matmul = tuner.matmul(shape, ROWS_MAX).unwrap();
            assert_eq!(rows_that_differ(&ops, &lt, &mut matmul, shape), None, "{shape:?}, {tuning:?}");
        }
    }
}

/// The matmuls of a layer of Llama 3.3 70B: q, k and v; o; gate and up; down.
const SHAPES_70B: [(usize, usize, Out); 4] = [
    (10_240, 8192, Out::Activation),
    (8192, 8192, Out::AddActivation),
    (57_344, 8192, Out::Activation),
    (8192, 28_672, Out::AddActivation),
];

/// Every matmul has a class that is used, and the log has what the library offers: how many
/// algorithms, in how many classes, and the seconds that sorting them takes when an engine opens.
fn algorithms_and_classes_are_counted(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    let shape_70b = |(features, width, out)| {
        let out =
            if gpu.format == ActivationFormat::F16 && out == Out::AddActivation { Out::AddF32 } else { out };
        MatmulShape { features, width, x_stride: width, out_stride: features, out, bias: false }
    };
    let shapes = match gpu.info().has_clock {
        true => SHAPES_70B.map(shape_70b).to_vec(),
        // Larger ones take the software GPU hours.
        false => vec![SHAPE],
    };
    let mut counts = Vec::new();
    for shape in shapes {
        let mut problem = lt.problem(shape).unwrap();
        let proposals = Proposals::of(&lt, &mut problem).unwrap();
        let distinct: BTreeSet<String> =
            proposals.buckets.iter().flatten().map(|one| format!("{:?}", one.config())).collect();
        let mut trial = Trial::new(&ops, shape, 0).unwrap();
        let begun = Instant::now();
        let found = classes(&lt, &mut problem, &mut trial, &proposals).unwrap();
        let (seconds, members) =
            (begun.elapsed().as_secs_f64(), found.iter().map(|class| class.members.len()));
        let members = members.collect::<Vec<_>>();
        let used = choose(&lt, &mut problem, found).unwrap();
        let (features, width) = (shape.features, shape.width);
        counts.push(format!(
            "{features} x {width}: {} algorithms, classes of {members:?}, {} used, sorted in {seconds:.2} s",
            distinct.len(),
            used.members.len()
        ));
    }
    // On a line of its own, behind the name of the test.
    println!("\ndetail: {}", counts.join("; "));
}

/// The test of rows can fail: with the library's first proposal for each count of rows, whatever its
/// bits, rows change with their count.
fn favourites_of_other_classes_are_seen(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    // In f32 every bit of the sums shows.
    let shape = MatmulShape { out: Out::F32, ..SHAPE };
    let mut problem = lt.problem(shape).unwrap();
    let mut trial = Trial::new(&ops, shape, 0).unwrap();
    let proposals = Proposals::of(&lt, &mut problem).unwrap();
    let found = classes(&lt, &mut problem, &mut trial, &proposals).unwrap();
    // A library may happen to have one class for a shape. The software GPU has two, and one that is
    // in none.
    if gpu.info().has_clock && found.len() < 2 {
        return;
    }
    assert!(found.len() >= 2, "{found:?}");
    let mut matmul = Matmul::new(problem, Schedule::new(proposals.buckets));
    assert!(rows_that_differ(&ops, &lt, &mut matmul, shape).is_some(), "{:?}", matmul.schedule());
}

/// Rows that are computed again, alone, have the bits of a class, and other bits where an algorithm
/// changes its order of sums with the count of rows.
fn a_check_of_bits_finds_one_that_changes(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    // What a result is added to is that of its rows, too.
    let shape = MatmulShape { out: Out::AddF32, ..SHAPE };
    let mut problem = lt.problem(shape).unwrap();
    let mut trial = Trial::new(&ops, shape, 0).unwrap();
    let proposals = Proposals::of(&lt, &mut problem).unwrap();
    let found = classes(&lt, &mut problem, &mut trial, &proposals).unwrap();
    let in_class = |config| found.iter().flat_map(|class| &class.members).any(|one| one.config() == config);
    let changing = proposals.buckets.iter().flatten().find(|algorithm| !in_class(algorithm.config()));
    let mut check = BitCheck::new(ops.context(), gpu.format, [shape].into_iter()).unwrap();
    let mut checked = |matmul: &mut Matmul| {
        run_by(&ops, shape, 300, 0.5, |operands| check.run(ops.context(), &lt, matmul, operands))
    };
    let mut steady = prepared(&ops, &lt, shape);
    assert_eq!(checked(&mut steady).unwrap(), run(&ops, &lt, &mut steady, shape, 300, 0.5));
    let Some(&changing) = changing else {
        assert!(gpu.info().has_clock, "the software GPU has one that changes: {found:?}");
        return;
    };
    let error =
        checked(&mut Matmul::new(problem, Schedule::new(vec![vec![changing]; BUCKETS.len()]))).unwrap_err();
    assert!(error.message().contains("other bits than one of "), "{error}");
}

/// Rows that no algorithm takes at once are computed in pieces, with the same bits.
fn rows_that_are_refused_are_computed_in_pieces(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    let mut problem = lt.problem(SHAPE).unwrap();
    let mut trial = Trial::new(&ops, SHAPE, 0).unwrap();
    let proposals = Proposals::of(&lt, &mut problem).unwrap();
    let found = classes(&lt, &mut problem, &mut trial, &proposals).unwrap();
    let class = choose(&lt, &mut problem, found).unwrap();
    let refuses =
        |problem: &mut _, algorithm: &_| !lt.accepts(problem, algorithm, 100, Share::Whole).unwrap();
    let refusing = class.members.iter().find(|algorithm| refuses(&mut problem, algorithm)).copied();
    let Some(refusing) = refusing else {
        assert!(gpu.info().has_clock, "the software GPU has one that refuses: {class:?}");
        return;
    };
    let others: Vec<_> =
        class.members.iter().filter(|algorithm| algorithm.config() != refusing.config()).copied().collect();
    // 100 rows: 64 and 32 by the one that refuses 100, and 4 by another.
    let mut orders = vec![vec![refusing]; BUCKETS.len()];
    orders[0] = others;
    let mut matmul = Matmul::new(problem, Schedule::new(orders));
    let expected = run(&ops, &lt, &mut prepared(&ops, &lt, SHAPE), SHAPE, 100, 1.0);
    assert_eq!(run(&ops, &lt, &mut matmul, SHAPE, 100, 1.0), expected);
}

/// A stopwatch by which some algorithm is the fastest, and which counts its calls.
struct Favours<'a> {
    tile: u32,
    calls: &'a Cell<usize>,
}

impl Stopwatch for Favours<'_> {
    fn time(&mut self, _: usize, algorithm: &Config, run: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        self.calls.set(self.calls.get() + 1);
        run()?;
        Ok(if algorithm.tile == self.tile { 1.0 } else { 2.0 })
    }
}

/// A stopwatch by which one algorithm is the fastest.
struct FavoursOne(u32);

impl Stopwatch for FavoursOne {
    fn time(&mut self, _: usize, algorithm: &Config, run: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        run()?;
        Ok(if algorithm.id == self.0 { 1.0 } else { 2.0 })
    }
}

/// The software GPU's algorithms whose bits change at counts of rows that sorting into classes does
/// not see: between 5,000 and 6,000, and where few tiles are left for the last round.
const CHANGING: &str = "window,waves";

/// Whether a test has run in a process of its own: the software GPU offers further algorithms to a
/// process by its environment. The one with them runs the test itself.
fn runs_elsewhere(gpu: &Gpu, test: &str, algorithms: &str) -> bool {
    if std::env::var("SOFTGPU_ALGORITHMS").as_deref() == Ok(algorithms) {
        return false;
    }
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args([&format!("{test} ({:?})", gpu.format), "--exact"]);
    let run = own.env("SOFTGPU_ALGORITHMS", algorithms).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    true
}

/// Collectives beside matmuls leave fewer multiprocessors, for which the library may propose other
/// algorithms: whether they run beside them, sometimes or never, changes no bit.
fn collectives_beside_a_matmul_change_no_bit(gpu: &Gpu) {
    /// Algorithms that change where few tiles are left for the last round, and other proposals for
    /// a part of the multiprocessors.
    const ALGORITHMS: &str = "waves,shared";
    if !gpu.info().has_clock && runs_elsewhere(gpu, "collectives_beside_a_matmul_change_no_bit", ALGORITHMS) {
        return;
    }
    let ops = gpu.ops(64);
    // In f32 every bit of the sums shows.
    let shape = MatmulShape { out: Out::F32, ..SHAPE };
    let computed = |lt: &Lt, rows: usize, share| {
        let mut matmul = prepared(&ops, lt, shape);
        run_by(&ops, shape, rows, 1.0, |operands| lt.run(&mut matmul, Operands { share, ..operands }))
            .unwrap()
    };
    let lt = || Lt::new(ops.context(), gpu.format).unwrap();
    let alone = computed(&lt(), 1000, Share::Whole);
    let left = gpu.info().multiprocessors - 8;
    let never = computed(&lt().beside_collectives(left, usize::MAX), 1000, Share::Whole);
    // The class is that of the proposals for a part, which on the software GPU is another.
    assert!(gpu.info().has_clock || never != alone);
    for rows_min in [0, 512, usize::MAX] {
        let lt = lt().beside_collectives(left, rows_min);
        for (rows, share) in
            [(1000, Share::BesideCollectives), (1000, Share::Whole), (100, Share::BesideCollectives)]
        {
            let found = computed(&lt, rows, share);
            assert!(found[..] == never[..found.len()], "from {rows_min} rows, {rows} rows, {share:?}");
        }
    }
}

fn algorithms_that_change_are_dropped(gpu: &Gpu) {
    if gpu.info().has_clock {
        eprintln!("only the software GPU has such algorithms");
        return;
    }
    if runs_elsewhere(gpu, "algorithms_that_change_between_counts_are_dropped", CHANGING) {
        return;
    }
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    // In f32 every bit of the sums shows.
    let shape = MatmulShape { out: Out::F32, ..SHAPE };
    let ids =
        |algorithms: &[Algorithm]| -> Vec<u32> { algorithms.iter().map(|one| one.config().id).collect() };
    let mut problem = lt.problem(shape).unwrap();
    let mut trial = Trial::new(&ops, shape, 0).unwrap();
    let proposals = Proposals::of(&lt, &mut problem).unwrap();
    let found = classes(&lt, &mut problem, &mut trial, &proposals).unwrap();
    let class = choose(&lt, &mut problem, found).unwrap();
    let window = 8;
    assert!(ids(&class.members).contains(&window), "sorting does not see it: {class:?}");
    const LARGE: usize = 16_384;
    let mut matmul = tuner(&ops, &lt, None).with_stopwatch(FavoursOne(window)).matmul(shape, LARGE).unwrap();
    for rows in [16, 4096, 5500, LARGE] {
        assert!(!ids(matmul.schedule().at(rows)).contains(&window), "{rows}: {:?}", matmul.schedule());
    }
    let many = run(&ops, &lt, &mut matmul, shape, 5500, 1.0);
    let few = run(&ops, &lt, &mut matmul, shape, 100, 1.0);
    assert!(few == many[..few.len()]);
}

fn times_choose_within_a_class_and_are_kept(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.format).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let calls = Cell::new(0);
    let tuned = |tile, folder: &Path| {
        calls.set(0);
        let mut tuner = tuner(&ops, &lt, Some(folder)).with_stopwatch(Favours { tile, calls: &calls });
        tuner.matmul(SHAPE, ROWS_MAX).unwrap()
    };
    let tile_of = |matmul: &Matmul| matmul.schedule().at(4096)[0].config().tile;
    let expected = run(&ops, &lt, &mut prepared(&ops, &lt, SHAPE), SHAPE, 1000, 1.0);
    let members = tuned(0, &dir.path().join("first")).schedule().at(4096).to_vec();
    let tiles: BTreeSet<u32> = members.iter().map(|algorithm| algorithm.config().tile).collect();
    assert!(gpu.info().has_clock || tiles.len() > 1, "{members:?}");
    for &tile in &tiles {
        let folder = dir.path().join(tile.to_string());
        let mut matmul = tuned(tile, &folder);
        assert!(calls.get() > 0);
        let chosen = tile_of(&matmul);
        assert_eq!(
            run(&ops, &lt, &mut matmul, SHAPE, 1000, 1.0),
            expected,
            "tile {tile}: times change no bits"
        );
        // The next start uses no stopwatch, though another algorithm would be the fastest by this
        // one.
        assert_eq!((tile_of(&tuned(0, &folder)), calls.get()), (chosen, 0));
        let file = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        let lies = [
            "{".to_owned(),
            text.replace(&format!("\"gpu\": \"{}\"", gpu.info().name), "\"gpu\": \"another\""),
            // An algorithm that the library has not proposed.
            text.replace("\"stages\": 0", "\"stages\": 77"),
        ];
        for lie in lies.into_iter().filter(|lie| *lie != text) {
            fs::write(&file, lie).unwrap();
            let mut matmul = tuned(tile, &folder);
            assert!(calls.get() > 0, "entries that do not match are measured again");
            assert_eq!(tile_of(&matmul), chosen);
            assert_eq!(run(&ops, &lt, &mut matmul, SHAPE, 1000, 1.0), expected);
        }
    }
}
