//! Products by cublasLt, as the backend asks for them.

use half::f16;
use kudos::backend::cuda::Storage;
use kudos::backend::cuda::gemm::{Lt, Operands, Out, Product, ProductShape};
use kudos::backend::cuda::ops::Ops;

use crate::numbers::{Random, bits, half_ulp, upload, upload_raw, value};
use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("products_match_naive", products_match_naive),
    ("products_with_a_bias_match_naive", products_with_a_bias_match_naive),
    ("a_row_of_a_product_does_not_depend_on_the_number_of_rows", a_row_does_not_depend_on_the_number_of_rows),
];

const SHAPE: ProductShape = ProductShape {
    features: 48,
    width: 136,
    x_stride: 152,
    out_stride: 64,
    out: Out::Storage,
    bias: false,
    rows_nominal: 64,
};

/// Numbers of `out` before a product adds to them.
fn old(storage: Storage, out: Out, count: usize) -> Vec<f64> {
    match out {
        Out::Storage | Out::AddStorage => Random::new(3).rows(storage, count, 1.0),
        Out::F32 | Out::AddF32 => Random::new(3).rows(Storage::Bf16, count, 1.0),
    }
}

/// Runs the product into column 8 of rows 1 and on of `old`, and returns all of it.
fn run(ops: &Ops, lt: &Lt, product: &mut Product, shape: ProductShape, rows: usize, alpha: f32) -> Vec<f64> {
    let storage = ops.storage();
    let x = upload(ops, &x(storage, rows));
    let weight = upload(ops, &weight(storage));
    let is_f32 = matches!(shape.out, Out::F32 | Out::AddF32);
    let raw = |numbers: &[f64]| match is_f32 {
        true => upload_raw(ops, &numbers.iter().map(|&number| number as f32).collect::<Vec<_>>()),
        false => upload_raw(ops, &numbers.iter().map(|&number| bits(storage, number)).collect::<Vec<_>>()),
    };
    let bias = raw(&bias(storage));
    let mut out = raw(&old(storage, shape.out, (rows + 1) * shape.out_stride));
    let operands = Operands {
        x: x.all(),
        weight: weight.all(),
        bias: shape.bias.then(|| bias.all()),
        out: &mut out,
        out_first: shape.out_stride + 8,
        rows,
        alpha,
    };
    lt.run(product, operands).unwrap();
    let stream = ops.context().compute();
    match is_f32 {
        true => out.all().download::<f32>(stream).unwrap().into_iter().map(f64::from).collect(),
        false => {
            out.all().download::<u16>(stream).unwrap().into_iter().map(|bits| value(storage, bits)).collect()
        }
    }
}

fn x(storage: Storage, rows: usize) -> Vec<f64> {
    Random::new(1).rows(storage, rows * SHAPE.x_stride, 1.0)
}

fn weight(storage: Storage) -> Vec<f64> {
    Random::new(2).rows(storage, SHAPE.features * SHAPE.width, 0.05)
}

fn bias(storage: Storage) -> Vec<f64> {
    Random::new(4).rows(storage, SHAPE.features, 1.0)
}

fn products_match_naive(gpu: &Gpu) {
    let without = [(Out::Storage, 1.0), (Out::AddStorage, 1.0), (Out::F32, 16.0), (Out::AddF32, 0.5)];
    matches_naive(gpu, &without.map(|(out, alpha)| (out, false, alpha)));
}

fn products_with_a_bias_match_naive(gpu: &Gpu) {
    matches_naive(gpu, &[(Out::Storage, true, 1.0), (Out::AddStorage, true, 1.0)]);
}

fn matches_naive(gpu: &Gpu, kinds: &[(Out, bool, f32)]) {
    let ops = gpu.ops(64);
    let storage = gpu.storage;
    let lt = Lt::new(ops.context(), storage).unwrap();
    for &(out, bias_too, alpha) in kinds {
        let shape = ProductShape { out, bias: bias_too, ..SHAPE };
        let mut product = lt.product(shape).unwrap();
        for rows in [1, 3, 65] {
            let got = run(&ops, &lt, &mut product, shape, rows, alpha);
            let before = old(storage, out, got.len());
            let (x, weight, bias) = (x(storage, rows), weight(storage), bias(storage));
            for (i, (&got, &before)) in got.iter().zip(&before).enumerate() {
                let (row, column) = (i / shape.out_stride, i % shape.out_stride);
                if row == 0 || !(8..8 + shape.features).contains(&column) {
                    assert_eq!(got, before, "{shape:?}: {row}, {column} is not the product's");
                    continue;
                }
                let feature = column - 8;
                let (x, w) =
                    (&x[(row - 1) * shape.x_stride..], &weight[feature * shape.width..][..shape.width]);
                let dot = w.iter().zip(x).map(|(w, x)| w * x);
                let (sum, size) =
                    dot.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()));
                let added = if matches!(out, Out::AddStorage | Out::AddF32) { before } else { 0.0 };
                let want = f64::from(alpha) * sum + added + if bias_too { bias[feature] } else { 0.0 };
                // f32 sums of `width` terms in any order, then one rounding.
                let f32_error = 2f64.powi(-24) * shape.width as f64 * (f64::from(alpha) * size + added.abs());
                let rounding =
                    if matches!(out, Out::F32 | Out::AddF32) { 0.0 } else { half_ulp(storage) * want.abs() };
                let bound = f32_error + 1.01 * rounding + f16::MIN_POSITIVE_SUBNORMAL.to_f64();
                assert!(
                    (got - want).abs() <= bound,
                    "{shape:?}, {rows} rows: {row}, {column}: {got}, expected {want}"
                );
            }
        }
    }
}

fn a_row_does_not_depend_on_the_number_of_rows(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let lt = Lt::new(ops.context(), gpu.storage).unwrap();
    let mut product = lt.product(SHAPE).unwrap();
    let many = run(&ops, &lt, &mut product, SHAPE, 200, 1.0);
    for rows in [1, 2, 17, 64, 199] {
        let few = run(&ops, &lt, &mut product, SHAPE, rows, 1.0);
        assert_eq!(few, many[..few.len()], "{rows} rows");
    }
}
