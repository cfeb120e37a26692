//! Ranks that never join and a short deadline; devices of different sizes; an abort with the checks
//! off.

mod common;

use common::{BLOCKING, Gpu, NON_BLOCKING, join, state, unique_id};
use softgpu::driver::{context::*, memory::*};
use softgpu::nccl::*;
use std::sync::Once;

const OUT_OF_MEMORY: u32 = 2;
const SYSTEM_ERROR: u32 = 2;
const IN_PROGRESS: u32 = 7;
const LAUNCH_TIMEOUT: u32 = 702;
const SUM: u32 = 0;
const F32: u32 = 7;

/// Each test has devices of its own, as sticky errors are the device's.
fn device(index: i32) -> Gpu {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: `call_once` runs before any other thread of this binary reads the environment.
        unsafe {
            std::env::set_var("SOFTGPU_DEVICES", "8");
            std::env::set_var("SOFTGPU_MEMORY_GIB", "0.5, 0.25");
            std::env::set_var("SOFTGPU_NCCL_SECONDS", "1");
            std::env::set_var("SOFTGPU_CHECK", "0");
        }
        assert_eq!(cuInit(0), 0);
    });
    Gpu::on(index)
}

#[test]
fn memory_list_ends_with_the_size_of_all_other_devices() {
    let mut address = 0;
    for (index, mib) in [(0, 512), (1, 256), (7, 256)] {
        let _gpu = device(index);
        let mut total = 0;
        // SAFETY: the out parameters are locals.
        unsafe {
            assert_eq!(cuDeviceTotalMem_v2(&mut total, index), 0);
            assert_eq!(total, mib << 20);
            assert_eq!(cuMemAlloc_v2(&mut address, (mib << 20) + 1), OUT_OF_MEMORY);
            assert_eq!(cuMemAlloc_v2(&mut address, mib << 20), 0);
        }
    }
}

#[test]
fn init_ends_at_the_deadline_if_a_rank_never_joins() {
    let _gpu = device(2);
    let id = unique_id();
    assert_eq!(join(id, 2, 0, &BLOCKING), (SYSTEM_ERROR, 0));
    let (result, comm) = join(unique_id(), 2, 0, &NON_BLOCKING);
    assert_eq!(result, IN_PROGRESS);
    while state(comm) == IN_PROGRESS {
        std::thread::yield_now();
    }
    assert_eq!(state(comm), SYSTEM_ERROR);
    // Too late: the first rank has left.
    assert_eq!(join(id, 2, 1, &BLOCKING), (SYSTEM_ERROR, 0));
    assert_eq!(ncclCommAbort(comm), 0);
}

#[test]
fn collective_ends_at_the_deadline_if_a_rank_never_calls() {
    let id = unique_id();
    let _second = device(3);
    assert_eq!(join(id, 2, 1, &NON_BLOCKING).0, IN_PROGRESS);
    let gpu = device(4);
    let (result, comm) = join(id, 2, 0, &BLOCKING);
    assert_eq!(result, 0);
    let data = gpu.upload(&[0; 8]);
    assert_eq!(ncclAllReduce(data, data, 8, F32, SUM, comm, 0), 0);
    assert_eq!(gpu.synchronize(), LAUNCH_TIMEOUT);
    assert!(gpu.message().contains("rank 0 timed out waiting for ranks [1]"), "{}", gpu.message());
    assert_eq!(state(comm), SYSTEM_ERROR);
    assert_eq!(ncclAllReduce(data, data, 8, F32, SUM, comm, 0), SYSTEM_ERROR);
}

#[test]
fn aborted_collective_leaves_the_stream_usable_without_checks() {
    let id = unique_id();
    let _second = device(5);
    assert_eq!(join(id, 2, 1, &NON_BLOCKING).0, IN_PROGRESS);
    let gpu = device(6);
    let (result, comm) = join(id, 2, 0, &BLOCKING);
    assert_eq!(result, 0);
    let data = gpu.upload(&[7; 8]);
    assert_eq!(ncclAllReduce(data, data, 8, F32, SUM, comm, 0), 0);
    assert_eq!(ncclCommAbort(comm), 0);
    assert_eq!(gpu.synchronize(), 0);
    assert_eq!(gpu.download(data, 8), Ok(vec![7; 8]));
}
