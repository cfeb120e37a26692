//! Memory that libraries take beside the program's: cublasLt, its algorithms, communicators.

mod common;

use common::{BLOCKING, Gpu, NON_BLOCKING, assert_passed, child, join, state, unique_id};
use softgpu::blas::*;
use softgpu::driver::{context::*, memory::*, stream::*};
use softgpu::nccl::*;
use std::ffi::CStr;

const MIB: usize = 1 << 20;
const ALLOC_FAILED: u32 = 3;
const EXECUTION_FAILED: u32 = 13;
const NOT_READY: u32 = 600;
const UNHANDLED_CUDA_ERROR: u32 = 1;
const IN_PROGRESS: u32 = 7;
const SUM: u32 = 0;
const F32: u32 = 7;

/// Free bytes of the thread's device.
fn free() -> usize {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the out parameters are locals.
    assert_eq!(unsafe { cuMemGetInfo_v2(&mut free, &mut total) }, 0);
    free
}

fn create() -> (u32, usize) {
    let mut handle = 0;
    // SAFETY: the out parameter is a local.
    (unsafe { cublasLtCreate(&mut handle) }, handle)
}

/// D [1, 1] = A [1, 1] * B [1, 1] in f32, all at `data`, by the default algorithm.
fn multiply(handle: usize, data: u64) -> u32 {
    let (mut desc, mut layout) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (alpha, beta) = (1.0, 0.0);
    // SAFETY: the out parameters are locals, the descriptors live until the matmul is queued.
    unsafe {
        assert_eq!(cublasLtMatmulDescCreate(&mut desc, 68, 0), 0);
        assert_eq!(cublasLtMatrixLayoutCreate(&mut layout, 0, 1, 1, 1), 0);
        let status = cublasLtMatmul(
            handle,
            desc,
            &alpha,
            data,
            layout,
            data,
            layout,
            &beta,
            data,
            layout,
            data,
            layout,
            std::ptr::null(),
            0,
            0,
            0,
        );
        assert_eq!(cublasLtMatrixLayoutDestroy(layout), 0);
        assert_eq!(cublasLtMatmulDescDestroy(desc), 0);
        status
    }
}

#[test]
fn cublas_takes_memory_once_and_by_algorithm() {
    let gpu = Gpu::new();
    let data = gpu.upload(&[1.0f32.to_bits()]);
    let before = free();
    let (status, handle) = create();
    assert_eq!((status, before - free()), (0, 32 * MIB));
    let second = create().1;
    assert_eq!(before - free(), 32 * MIB, "once a device");
    assert_eq!(multiply(handle, data), 0);
    assert_eq!(before - free(), 33 * MIB);
    assert_eq!(multiply(second, data), 0);
    assert_eq!((cublasLtDestroy(handle), cublasLtDestroy(second)), (0, 0));
    assert_eq!(before - free(), 33 * MIB, "code stays loaded");
    // The program itself has freed everything.
    assert_eq!((cuMemFree_v2(data), cuDevicePrimaryCtxRelease_v2(gpu.device)), (0, 0));
    let other = Gpu::new();
    assert_eq!(free(), 256 * MIB, "device {} has loaded nothing", other.device);
}

#[test]
fn the_first_use_of_an_algorithm_waits_for_the_device() {
    let gpu = Gpu::new();
    let data = gpu.upload(&[1.0f32.to_bits()]);
    let handle = create().1;
    let mut stream = 0;
    // SAFETY: the out parameter is a local; 1 is a stream that does not wait for the default one.
    assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, 0);
    for expected in [0, NOT_READY] {
        let (mut event, spare) = (0, gpu.allocate(64));
        // SAFETY: the out parameter is a local.
        assert_eq!(unsafe { cuEventCreate(&mut event, 0) }, 0);
        assert_eq!(cuMemsetD8Async(spare, 0, 64, stream), 0);
        assert_eq!(cuEventRecord(event, stream), 0);
        assert_eq!(multiply(handle, data), 0);
        assert_eq!(cuEventQuery(event), expected);
    }
}

#[test]
fn a_first_use_behind_a_collective_without_peers_is_a_deadlock() {
    let stderr = assert_passed(&child("child_with_a_late_first_use", &[("SOFTGPU_NCCL_SECONDS", "2")]));
    assert!(stderr.contains("the first use of algorithm 0 on device 0 waits"), "{stderr}");
    assert_eq!(stderr.matches("a deadlock").count(), 1, "{stderr}");
}

#[test]
#[ignore = "runs in a child process, started by a_first_use_behind_a_collective_without_peers_is_a_deadlock"]
fn child_with_a_late_first_use() {
    let two = || {
        let id = unique_id();
        [0, 1].map(|rank| {
            let gpu = Gpu::new();
            let (result, comm) = join(id, 2, rank, &NON_BLOCKING);
            assert_eq!(result, IN_PROGRESS);
            (gpu, comm)
        })
    };
    let sum = |(gpu, comm): &(Gpu, usize)| {
        gpu.enter();
        assert_eq!(state(*comm), 0);
        let data = gpu.upload(&[1.0f32.to_bits()]);
        assert_eq!(ncclAllReduce(data, data, 1, F32, SUM, *comm, 0), IN_PROGRESS);
        data
    };
    let [alone, _peer] = two();
    let data = sum(&alone);
    let handle = create().1;
    assert_eq!(multiply(handle, data), EXECUTION_FAILED);
    // A peer that comes in time ends the wait.
    let [waiting, peer] = two();
    let data = sum(&waiting);
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            sum(&peer);
        });
        assert_eq!(multiply(handle, data), 0);
    });
    assert_eq!(waiting.0.download(data, 1), Ok(vec![4.0f32.to_bits()]));
}

#[test]
fn communicators_take_memory_when_made_and_when_first_used() {
    let id = unique_id();
    let mut ranks = Vec::new();
    for rank in 0..2 {
        let gpu = Gpu::new();
        let (result, comm) = join(id, 2, rank, &NON_BLOCKING);
        assert_eq!((result, free()), (IN_PROGRESS, (256 - 64) * MIB));
        ranks.push((gpu, comm));
    }
    let taken = |gpu: &Gpu| {
        gpu.enter();
        256 * MIB - free()
    };
    let mut data = Vec::new();
    for (gpu, comm) in &ranks {
        assert_eq!(state(*comm), 0);
        gpu.enter();
        data.push(gpu.upload(&[0; 8]));
    }
    for _ in 0..2 {
        for ((gpu, comm), &data) in ranks.iter().zip(&data) {
            gpu.enter();
            assert_eq!(ncclAllReduce(data, data, 8, F32, SUM, *comm, 0), IN_PROGRESS);
            assert_eq!(state(*comm), 0);
            assert_eq!(taken(gpu), 128 * MIB + 32);
        }
    }
    for (gpu, _) in &ranks {
        gpu.enter();
        assert_eq!(gpu.synchronize(), 0);
    }
    assert_eq!((ncclCommDestroy(ranks[0].1), ncclCommAbort(ranks[1].1)), (0, 0));
    for (gpu, _) in &ranks {
        assert_eq!(taken(gpu), 32);
    }
}

#[test]
fn libraries_that_do_not_fit_say_so() {
    assert_passed(&child("child_without_memory", &[("SOFTGPU_LIBRARY_MIB", "100,20,60.5")]));
}

#[test]
#[ignore = "runs in a child process, started by libraries_that_do_not_fit_say_so"]
fn child_without_memory() {
    let gpu = Gpu::new();
    let data = gpu.upload(&[1.0f32.to_bits()]);
    let most = gpu.allocate(157 * MIB);
    assert_eq!(create().0, ALLOC_FAILED);
    assert_eq!(cuMemFree_v2(most), 0);
    let handle = create().1;
    let most = gpu.allocate(137 * MIB);
    assert_eq!(multiply(handle, data), ALLOC_FAILED);
    assert_eq!(cuMemFree_v2(most), 0);
    // Out of memory is no fault: the next attempt succeeds.
    assert_eq!(multiply(handle, data), 0);
    assert_eq!(gpu.synchronize(), 0);

    let gpu = Gpu::new();
    let most = gpu.allocate(196 * MIB);
    let (result, comm) = join(unique_id(), 1, 0, &BLOCKING);
    assert_eq!((result, comm), (UNHANDLED_CUDA_ERROR, 0));
    let text = || {
        // SAFETY: a string that lives as long as the library.
        unsafe { CStr::from_ptr(ncclGetLastError(0)) }.to_str().expect("text")
    };
    assert!(text().contains("out of memory"), "{}", text());
    let (result, comm) = join(unique_id(), 1, 0, &NON_BLOCKING);
    assert_eq!((result, state(comm)), (IN_PROGRESS, UNHANDLED_CUDA_ERROR));
    assert_eq!(ncclCommAbort(comm), 0);
    assert_eq!(cuMemFree_v2(most), 0);
    // There is memory for a communicator, and none for its connections.
    let most = gpu.allocate(136 * MIB);
    let (result, comm) = join(unique_id(), 1, 0, &BLOCKING);
    assert_eq!(result, 0);
    let data = gpu.allocate(16);
    assert_eq!(ncclAllReduce(data, data, 4, F32, SUM, comm, 0), UNHANDLED_CUDA_ERROR);
    assert_eq!(state(comm), UNHANDLED_CUDA_ERROR);
    assert_eq!((ncclCommAbort(comm), cuMemFree_v2(most)), (0, 0));
    assert_eq!(gpu.synchronize(), 0, "it is no fault of the device");
}
