//! cublasLt's descriptors and algorithms: sizes of attributes, promised alignments, workspaces, and
//! algorithms whose bits change with the number of columns.

mod common;

use common::{Gpu, assert_passed, child};
use softgpu::blas::*;
use softgpu::driver::memory::*;
use std::ffi::{c_int, c_uint, c_void};

const INVALID_VALUE: u32 = 7;
const NOT_SUPPORTED: u32 = 15;
const COMPUTE_32F: c_uint = 68;
const F32: c_uint = 0;
const ILLEGAL_ADDRESS: u32 = 700;

/// Attributes by their numbers in cublasLt.h.
const LAYOUT_COLUMNS: c_uint = 3;
const DESC_TRANSPOSE_A: c_uint = 3;
const DESC_EPILOGUE: c_uint = 7;
const DESC_BIAS_POINTER: c_uint = 8;
const DESC_MULTIPROCESSORS: c_uint = 15;
const WORKSPACE: c_uint = 1;
const ALIGNMENT_A: c_uint = 5;
const ID: c_uint = 0;
const INNER_SHAPE: c_uint = 7;
const EPILOGUE_BIAS: i32 = 4;

/// The algorithm that needs a workspace of this size.
const NEEDS_WORKSPACE: u32 = 7;
const NEEDED: usize = 1 << 20;
const IN_WINDOW: u32 = 8;
const IN_WAVES: u32 = 9;

type Setter<T> = unsafe extern "C" fn(*mut T, c_uint, *const c_void, usize) -> LtStatus;

/// Sets an attribute to a value, given as that many bytes.
fn set<T, V>(function: Setter<T>, object: *mut T, attribute: c_uint, value: V, bytes: usize) -> u32 {
    let mut value_bytes = [0u8; 16];
    assert!(size_of::<V>() <= value_bytes.len() && bytes <= value_bytes.len());
    // SAFETY: the array has as many bytes as the value; the object lives, and the value that is
    // read lies in the array.
    unsafe {
        value_bytes.as_mut_ptr().cast::<V>().write_unaligned(value);
        function(object, attribute, value_bytes.as_ptr().cast(), bytes)
    }
}

/// The descriptors of D [m, n] = A [m, k] * B [k, n] in f32, columns contiguous.
struct Problem {
    desc: *mut Description,
    /// A, B, and both C and D.
    layouts: [*mut Layout; 3],
    preference: *mut Preference,
}

/// Addresses of A, B and D.
type Operands = [u64; 3];

impl Problem {
    fn new(m: u64, n: u64, k: u64) -> Self {
        let layout = |rows: u64, columns: u64| {
            let mut made = std::ptr::null_mut();
            // SAFETY: the out parameter is a local.
            assert_eq!(unsafe { cublasLtMatrixLayoutCreate(&mut made, F32, rows, columns, rows as i64) }, 0);
            made
        };
        let (mut desc, mut preference) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the out parameters are locals.
        unsafe {
            assert_eq!(cublasLtMatmulDescCreate(&mut desc, COMPUTE_32F, F32), 0);
            assert_eq!(cublasLtMatmulPreferenceCreate(&mut preference), 0);
        }
        Self { desc, layouts: [layout(m, k), layout(k, n), layout(m, n)], preference }
    }

    fn allow_workspace(&self, bytes: u64) {
        assert_eq!(set(cublasLtMatmulPreferenceSetAttribute, self.preference, WORKSPACE, bytes, 8), 0);
    }

    fn plan_for(&self, multiprocessors: i32) {
        let set = set(cublasLtMatmulDescSetAttribute, self.desc, DESC_MULTIPROCESSORS, multiprocessors, 4);
        assert_eq!(set, 0);
    }

    fn promise_alignments(&self, alignments: [u32; 4]) {
        for (attribute, alignment) in (ALIGNMENT_A..).zip(alignments) {
            let set = set(cublasLtMatmulPreferenceSetAttribute, self.preference, attribute, alignment, 4);
            assert_eq!(set, 0);
        }
    }

    fn proposals(&self) -> Vec<Algorithm> {
        let [a, b, d] = self.layouts;
        let mut results = [const { std::mem::MaybeUninit::<HeuristicResult>::uninit() }; 16];
        let mut count: c_int = 0;
        // SAFETY: the descriptors live; there is memory for 16 results, of which `count` are
        // written.
        unsafe {
            let first = results.as_mut_ptr().cast();
            let preference = self.preference;
            let status =
                cublasLtMatmulAlgoGetHeuristic(1, self.desc, a, b, d, d, preference, 16, first, &mut count);
            assert_eq!(status, 0);
            results[..count as usize].iter().map(|result| result.assume_init_ref().algorithm()).collect()
        }
    }

    fn proposal(&self, id: u32) -> Option<Algorithm> {
        self.proposals().into_iter().find(|algorithm| id_of(algorithm) == id)
    }

    /// The workspace that an algorithm needs.
    fn check(&self, algorithm: &Algorithm) -> Result<usize, u32> {
        let [a, b, d] = self.layouts;
        let mut result = std::mem::MaybeUninit::<HeuristicResult>::uninit();
        // SAFETY: the descriptors live; the result is written where the call succeeds.
        unsafe {
            match cublasLtMatmulAlgoCheck(1, self.desc, a, b, d, d, algorithm, result.as_mut_ptr()) {
                0 => Ok(result.assume_init_ref().workspace_bytes()),
                status => Err(status),
            }
        }
    }

    fn run(&self, algorithm: &Algorithm, at: Operands, workspace: (u64, usize)) -> u32 {
        let [a, b, d] = self.layouts;
        let (alpha, beta) = (1.0, 0.0);
        // SAFETY: the descriptors live until the matmul is queued.
        unsafe {
            cublasLtMatmul(
                1,
                self.desc,
                &alpha,
                at[0],
                a,
                at[1],
                b,
                &beta,
                at[2],
                d,
                at[2],
                d,
                algorithm,
                workspace.0,
                workspace.1,
                0,
            )
        }
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was made in `new`, and is destroyed here only.
        unsafe {
            self.layouts.into_iter().for_each(|layout| assert_eq!(cublasLtMatrixLayoutDestroy(layout), 0));
            assert_eq!(cublasLtMatmulDescDestroy(self.desc), 0);
            assert_eq!(cublasLtMatmulPreferenceDestroy(self.preference), 0);
        }
    }
}

fn id_of(algorithm: &Algorithm) -> u32 {
    let (mut id, mut written) = (u32::MAX, 0);
    // SAFETY: the out parameters are locals, the first of 4 bytes.
    let status =
        unsafe { cublasLtMatmulAlgoConfigGetAttribute(algorithm, ID, (&raw mut id).cast(), 4, &mut written) };
    assert_eq!((status, written), (0, 4));
    id
}

#[test]
fn attributes_of_a_wrong_size_are_refused() {
    let problem = Problem::new(4, 4, 4);
    let layout =
        |bytes| set(cublasLtMatrixLayoutSetAttribute, problem.layouts[0], LAYOUT_COLUMNS, 4u64, bytes);
    let transpose = |bytes| set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_TRANSPOSE_A, 0u64, bytes);
    let bias = |bytes| set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_BIAS_POINTER, 0u64, bytes);
    let multiprocessors =
        |bytes| set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_MULTIPROCESSORS, 0u64, bytes);
    let preference =
        |bytes| set(cublasLtMatmulPreferenceSetAttribute, problem.preference, WORKSPACE, 0u64, bytes);
    let alignment =
        |bytes| set(cublasLtMatmulPreferenceSetAttribute, problem.preference, ALIGNMENT_A, 16u64, bytes);
    let mut algorithm = problem.proposals()[0];
    let mut id = |bytes| {
        let id = id_of(&algorithm);
        set(cublasLtMatmulAlgoConfigSetAttribute, &raw mut algorithm, ID, id, bytes)
    };
    for (wrong, right, set) in [
        (4, 8, &layout as &dyn Fn(usize) -> u32),
        (8, 4, &transpose),
        (4, 8, &bias),
        (8, 4, &multiprocessors),
        (4, 8, &preference),
        (8, 4, &alignment),
    ] {
        assert_eq!((set(wrong), set(right)), (INVALID_VALUE, 0));
    }
    assert_eq!((id(8), id(2), id(4)), (INVALID_VALUE, INVALID_VALUE, 0));
    let get = |attribute, bytes| {
        let (mut value, mut written) = ([0u8; 8], 0);
        // SAFETY: the value has `bytes` bytes; the out parameters are locals.
        let status = unsafe {
            let value = value.as_mut_ptr().cast();
            cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, value, bytes, &mut written)
        };
        (status, written)
    };
    assert_eq!((get(ID, 4), get(ID, 8)), ((0, 4), (INVALID_VALUE, 0)));
    assert_eq!((get(INNER_SHAPE, 2), get(INNER_SHAPE, 4)), ((0, 2), (INVALID_VALUE, 0)));
    // Without memory for a value, its size.
    assert_eq!((get(ID, 0), get(INNER_SHAPE, 0)), ((0, 4), (0, 2)));
}

#[test]
fn operands_keep_the_alignments_promised_to_the_heuristic() {
    let gpu = Gpu::new();
    let problem = Problem::new(2, 2, 2);
    let [a, b, d] = [0; 3].map(|_: i32| gpu.upload(&[1.0f32.to_bits(); 8]));
    // The default promises 256 bytes.
    let of_256 = problem.proposals()[0];
    problem.promise_alignments([4, 8, 16, 16]);
    let of_less = problem.proposals()[0];
    assert_eq!(id_of(&of_256), id_of(&of_less));
    let run = |algorithm, operands| problem.run(algorithm, operands, (0, 0));
    assert_eq!(run(&of_256, [a, b, d]), 0);
    for operands in [[a + 4, b, d], [a, b + 8, d], [a, b, d + 16]] {
        assert_eq!(run(&of_256, operands), INVALID_VALUE);
        assert_eq!(run(&of_less, operands), 0);
    }
    for operands in [[a, b + 4, d], [a, b, d + 8]] {
        assert_eq!(run(&of_less, operands), INVALID_VALUE);
    }
    // Algorithms with other promises are the same algorithm.
    assert_eq!((problem.check(&of_256), problem.check(&of_less)), (Ok(0), Ok(0)));
    assert_eq!(gpu.synchronize(), 0);
}

#[test]
fn a_bias_keeps_the_alignment_of_the_one_at_the_heuristic() {
    let gpu = Gpu::new();
    let problem = Problem::new(2, 2, 2);
    let [a, b, d, bias] = [0; 4].map(|_: i32| gpu.upload(&[1.0f32.to_bits(); 8]));
    let set_bias = |address: u64| {
        assert_eq!(set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_BIAS_POINTER, address, 8), 0);
    };
    assert_eq!(set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_EPILOGUE, EPILOGUE_BIAS, 4), 0);
    set_bias(bias);
    let of_256 = problem.proposals()[0];
    set_bias(bias + 4);
    let of_4 = problem.proposals()[0];
    assert_eq!(problem.run(&of_256, [a, b, d], (0, 0)), INVALID_VALUE);
    assert_eq!(problem.run(&of_4, [a, b, d], (0, 0)), 0);
    assert_eq!(gpu.download(d, 4), Ok(vec![3.0f32.to_bits(); 4]));
}

#[test]
fn a_null_bias_at_the_heuristic_is_reported_once() {
    let stderr = assert_passed(&child("child_with_a_null_bias", &[]));
    assert_eq!(stderr.matches("a bias at a null address").count(), 1, "{stderr}");
}

#[test]
#[ignore = "runs in a child process, started by a_null_bias_at_the_heuristic_is_reported_once"]
fn child_with_a_null_bias() {
    let problem = Problem::new(2, 2, 2);
    assert_eq!(set(cublasLtMatmulDescSetAttribute, problem.desc, DESC_EPILOGUE, EPILOGUE_BIAS, 4), 0);
    assert!(!problem.proposals().is_empty() && !problem.proposals().is_empty());
}

#[test]
fn an_algorithm_with_a_workspace_needs_and_writes_it() {
    let gpu = Gpu::new();
    let problem = Problem::new(2, 2, 2);
    let [a, b, d] = [0; 3].map(|_: i32| gpu.upload(&[1.0f32.to_bits(); 4]));
    let (large, small) = (gpu.allocate(NEEDED + 256), gpu.allocate(NEEDED - 256));
    assert!(problem.proposal(NEEDS_WORKSPACE).is_none(), "the default is no workspace");
    problem.allow_workspace(NEEDED as u64 - 1);
    assert!(problem.proposal(NEEDS_WORKSPACE).is_none());
    problem.allow_workspace(NEEDED as u64);
    let algorithm = problem.proposal(NEEDS_WORKSPACE).expect("it is proposed");
    assert_eq!(problem.check(&algorithm), Ok(NEEDED));
    let run = |workspace| problem.run(&algorithm, [a, b, d], workspace);
    assert_eq!(run((large, NEEDED - 256)), INVALID_VALUE, "too small");
    assert_eq!(run((large + 16, NEEDED)), INVALID_VALUE, "not aligned to 256 bytes");
    assert_eq!(run((large, NEEDED)), 0);
    assert_eq!(gpu.download(d, 4), Ok(vec![2.0f32.to_bits(); 4]));
    // All of it was written, and no more.
    assert_eq!(gpu.download(large, NEEDED / 4), Ok(vec![u32::MAX; NEEDED / 4]));
    assert_eq!(cuMemsetD8Async(large + NEEDED as u64, 0, 256, 0), 0);
    assert_eq!(gpu.download(large + NEEDED as u64, 64), Ok(vec![0; 64]));
    // One that overlaps an operand spoils it: NaN.
    assert_eq!(cuMemcpyDtoDAsync_v2(large, a, 16, 0), 0);
    assert_eq!(problem.run(&algorithm, [large, b, d], (large, NEEDED)), 0);
    let spoilt = gpu.download(d, 4).expect("it runs");
    assert!(spoilt.iter().all(|&bits| f32::from_bits(bits).is_nan()), "{spoilt:?}");
    // A size that is not true is an access beyond the allocation.
    assert_eq!(run((small, NEEDED)), 0);
    assert_eq!(gpu.synchronize(), ILLEGAL_ADDRESS);
    assert!(gpu.message().contains("out of bounds in the workspace"), "{}", gpu.message());
}

#[test]
fn algorithms_that_hide_from_probes_are_off_by_default() {
    let problem = Problem::new(8, 5500, 8);
    problem.allow_workspace(NEEDED as u64);
    let ids: Vec<u32> = problem.proposals().iter().map(id_of).collect();
    assert!(!ids.contains(&IN_WINDOW) && !ids.contains(&IN_WAVES), "{ids:?}");
    assert_passed(&child("child_with_hidden_algorithms", &[("SOFTGPU_ALGORITHMS", "window, waves")]));
}

#[test]
fn proposals_for_fewer_multiprocessors_differ_where_they_should() {
    let first = |multiprocessors: i32| {
        let problem = Problem::new(8, 4096, 8);
        problem.plan_for(multiprocessors);
        id_of(&problem.proposals()[0])
    };
    assert_eq!(first(100), first(0));
    assert_passed(&child("child_with_other_proposals", &[("SOFTGPU_ALGORITHMS", "shared, waves")]));
}

#[test]
#[ignore = "runs in a child process, started by proposals_for_fewer_multiprocessors_differ_where_they_should"]
fn child_with_other_proposals() {
    let gpu = Gpu::new();
    let first = |multiprocessors: i32| {
        let problem = Problem::new(8, 4096, 8);
        problem.plan_for(multiprocessors);
        id_of(&problem.proposals()[0])
    };
    assert_ne!(first(100), first(0));
    // Few tiles are left for the last round of 108 multiprocessors, and others for one of 100.
    let tiles = |count: usize| count * 128;
    let of_all = first_column_on(&gpu, IN_WAVES, 128, tiles(109), 0);
    assert_eq!(first_column_on(&gpu, IN_WAVES, 128, tiles(101), 100), of_all);
    assert_ne!(first_column_on(&gpu, IN_WAVES, 128, tiles(109), 80), of_all);
}

/// The bits of column 0 of D with that many columns. Terms cancel, so that only rounding is left.
fn first_column(gpu: &Gpu, id: u32, m: usize, n: usize) -> Vec<u32> {
    first_column_on(gpu, id, m, n, 0)
}

/// That column of a matmul which is planned for so many multiprocessors.
fn first_column_on(gpu: &Gpu, id: u32, m: usize, n: usize, multiprocessors: i32) -> Vec<u32> {
    const K: usize = 64;
    let problem = Problem::new(m as u64, n as u64, K as u64);
    problem.plan_for(multiprocessors);
    let value = |i: usize| {
        let size = 1.0 + (i * 37 % 101) as f32 / 97.0;
        if i < K / 2 { size } else { -(1.0 + ((K - 1 - i) * 37 % 101) as f32 / 97.0) }
    };
    // A is constant along its rows, B along its columns.
    let a: Vec<u32> = (0..K).flat_map(|i| vec![value(i).to_bits(); m]).collect();
    let b: Vec<u32> = (0..n).flat_map(|_| (0..K).map(|i| (1.0 + (i % 2) as f32 / 8.0).to_bits())).collect();
    let (a, b, d) = (gpu.upload(&a), gpu.upload(&b), gpu.allocate(m * n * 4));
    let algorithm = problem.proposal(id).expect("it is proposed");
    assert_eq!(problem.run(&algorithm, [a, b, d], (0, 0)), 0);
    let bits = gpu.download(d, m).expect("it runs");
    [a, b, d].into_iter().for_each(|address| assert_eq!(cuMemFree_v2(address), 0));
    bits
}

#[test]
#[ignore = "runs in a child process, started by algorithms_that_hide_from_probes_are_off_by_default"]
fn child_with_hidden_algorithms() {
    let gpu = Gpu::new();
    let in_window = |n| first_column(&gpu, IN_WINDOW, 8, n);
    let usual = in_window(1);
    for n in [257, 4096, 5000, 6000] {
        assert_eq!(in_window(n), usual, "{n} columns");
    }
    for n in [5001, 5999] {
        assert_ne!(in_window(n), usual, "{n} columns");
    }
    // 108 multiprocessors, tiles of 128 x 128: up to 13 tiles more than a multiple are few.
    let in_waves = |n| first_column(&gpu, IN_WAVES, 128, n);
    let few = in_waves(1);
    assert_eq!(in_waves(13 * 128), few);
    let many = in_waves(13 * 128 + 1);
    assert_ne!(many, few);
    assert_eq!(in_waves(108 * 128), many);
    assert_eq!(in_waves(108 * 128 + 1), few);
}

#[test]
fn an_algorithm_that_the_caller_changed_is_refused() {
    let problem = Problem::new(4, 17, 4);
    let mut algorithm = problem.proposals()[0];
    let set = |algorithm: &mut Algorithm, attribute, value: u32| {
        set(cublasLtMatmulAlgoConfigSetAttribute, algorithm, attribute, value, 4)
    };
    const TILE: c_uint = 1;
    assert_eq!(set(&mut algorithm, TILE, 77), 0);
    assert_eq!(problem.check(&algorithm), Err(INVALID_VALUE));
    // One that takes multiples of 16 columns.
    let mut other = problem.proposals()[0];
    for (attribute, value) in [(ID, 4), (TILE, 20), (2, 1), (3, 0)] {
        assert_eq!(set(&mut other, attribute, value), 0);
    }
    assert_eq!(problem.check(&other), Err(NOT_SUPPORTED));
}
