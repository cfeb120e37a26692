//! Ranks of a communicator, threads of one process: joining, waiting, aborting, planned faults.

mod common;

use common::{BLOCKING, Gpu, NON_BLOCKING, join, state, unique_id};
use softgpu::driver::{context::*, memory::*, stream::*};
use softgpu::nccl::*;
use softgpu::report::*;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;
use std::time::Duration;

const SYSTEM_ERROR: u32 = 2;
const INTERNAL_ERROR: u32 = 3;
const INVALID_ARGUMENT: u32 = 4;
const IN_PROGRESS: u32 = 7;
const NOT_READY: u32 = 600;
const LAUNCH_FAILED: u32 = 719;
const SUM: u32 = 0;
const F32: u32 = 7;
/// Queries after which a wait that ends by itself would have ended.
const QUERIES: usize = 50;

/// A rank's device and communicator, and 64 floats that are all `rank + 1`.
struct Rank {
    gpu: Gpu,
    comm: usize,
    data: u64,
}

impl Rank {
    /// Leaves the device current in this thread; joins without waiting for the others.
    fn join(id: UniqueId, ranks: i32, rank: i32) -> Self {
        let gpu = Gpu::new();
        let (result, comm) = join(id, ranks, rank, &NON_BLOCKING);
        assert_eq!(result, IN_PROGRESS);
        let data = gpu.upload(&[(rank as f32 + 1.0).to_bits(); 64]);
        assert_eq!(gpu.synchronize(), 0);
        Self { gpu, comm, data }
    }

    /// All ranks of a communicator, whose state is success.
    fn all<const N: usize>() -> [Self; N] {
        let id = unique_id();
        let ranks = std::array::from_fn(|rank| Self::join(id, N as i32, rank as i32));
        ranks.iter().for_each(|rank| assert_eq!(rank.state(), 0));
        ranks
    }

    fn state(&self) -> u32 {
        state(self.comm)
    }

    /// Queues an all-reduce in place, and returns its result once it is no longer in progress.
    fn sum(&self) -> u32 {
        self.gpu.enter();
        match ncclAllReduce(self.data, self.data, 64, F32, SUM, self.comm, 0) {
            IN_PROGRESS => self.state(),
            result => result,
        }
    }

    fn assert_holds(&self, value: f32) {
        self.gpu.enter();
        assert_eq!(self.gpu.download(self.data, 64), Ok(vec![value.to_bits(); 64]));
    }

    /// Queries the event repeatedly: it is not ready every time.
    fn assert_waits(&self, event: usize) {
        self.gpu.enter();
        for _ in 0..QUERIES {
            assert_eq!(cuEventQuery(event), NOT_READY);
        }
    }

    fn synchronize(&self) -> u32 {
        self.gpu.enter();
        self.gpu.synchronize()
    }
}

#[test]
fn one_ranks_abort_frees_that_rank_only() {
    let [first, second, third] = Rank::all();
    assert_eq!((first.sum(), second.sum()), (0, 0));
    first.gpu.enter();
    let event = first.gpu.event_after_all();
    assert_eq!(ncclCommAbort(third.comm), 0);
    first.assert_waits(event);
    scope(|s| {
        let waiting = s.spawn(|| second.synchronize());
        assert_eq!(ncclCommAbort(first.comm), 0);
        assert_eq!(first.synchronize(), LAUNCH_FAILED);
        assert!(first.gpu.message().contains("aborted"), "{}", first.gpu.message());
        // A watchdog: from another thread than the one that waits.
        assert_eq!(ncclCommAbort(second.comm), 0);
        assert_eq!(waiting.join().expect("it ends"), LAUNCH_FAILED);
    });
}

#[test]
fn undefined_output_of_an_abort_ends_with_the_context() {
    let [first, second] = Rank::all();
    assert_eq!(first.sum(), 0);
    assert_eq!((ncclCommAbort(second.comm), ncclCommAbort(first.comm)), (0, 0));
    assert_eq!(first.synchronize(), LAUNCH_FAILED);
    // NCCL's reference to the context keeps the memory, but hardware has no such error.
    assert_eq!(cuDevicePrimaryCtxRelease_v2(first.gpu.device), 0);
    let gpu = Gpu::on(first.gpu.device);
    assert_eq!(gpu.synchronize(), 0);
    first.assert_holds(1.0);
}

#[test]
fn contribution_of_a_rank_that_aborts_is_removed() {
    let [first, second] = Rank::all();
    assert_eq!(first.sum(), 0);
    first.gpu.enter();
    let event = first.gpu.event_after_all();
    // The query starts the all-reduce, which finds no other rank.
    assert_eq!(cuEventQuery(event), NOT_READY);
    assert_eq!(ncclCommAbort(first.comm), 0);
    assert_eq!(second.sum(), 0);
    second.gpu.enter();
    second.assert_waits(second.gpu.event_after_all());
    assert_eq!(ncclCommAbort(second.comm), 0);
    assert_eq!(second.synchronize(), LAUNCH_FAILED);
}

#[test]
fn destroyed_communicator_is_an_invalid_argument() {
    let [first, second] = Rank::all();
    assert_eq!((ncclCommAbort(first.comm), ncclCommDestroy(second.comm)), (0, 0));
    assert_eq!(
        (ncclCommAbort(first.comm), ncclCommDestroy(second.comm)),
        (INVALID_ARGUMENT, INVALID_ARGUMENT)
    );
    first.gpu.enter();
    let sum = |rank: &Rank| ncclAllReduce(rank.data, rank.data, 64, F32, SUM, rank.comm, 0);
    assert_eq!((sum(&first), sum(&second)), (INVALID_ARGUMENT, INVALID_ARGUMENT));
}

#[test]
fn rank_whose_thread_does_not_wait_still_contributes() {
    let [first, second] = Rank::all();
    assert_eq!((first.sum(), second.sum()), (0, 0));
    assert_eq!(first.synchronize(), 0);
    first.assert_holds(3.0);
    second.assert_holds(3.0);
    // By queries of one rank alone.
    assert_eq!((first.sum(), second.sum()), (0, 0));
    first.gpu.enter();
    let event = first.gpu.event_after_all();
    while cuEventQuery(event) == NOT_READY {}
    first.assert_holds(6.0);
}

#[test]
fn device_can_be_called_while_it_waits_for_other_ranks() {
    let [first, second] = Rank::all();
    assert_eq!(first.sum(), 0);
    first.gpu.enter();
    let event = first.gpu.event_after_all();
    scope(|s| {
        let waiting = s.spawn(|| first.synchronize());
        for _ in 0..QUERIES {
            first.assert_waits(event);
            let spare = first.gpu.allocate(64);
            assert_eq!(cuMemsetD8Async(spare, 0, 64, 0), 0);
            // Frees wait for their own device's work only.
            second.gpu.enter();
            assert_eq!(cuMemFree_v2(second.gpu.allocate(64)), 0);
        }
        assert_eq!(second.sum(), 0);
        assert_eq!(second.synchronize(), 0);
        assert_eq!(waiting.join().expect("it ends"), 0);
    });
    first.assert_holds(3.0);
}

#[test]
fn nonblocking_init_is_in_progress_until_all_have_joined() {
    let id = unique_id();
    let first = Rank::join(id, 2, 0);
    assert_eq!(first.state(), IN_PROGRESS);
    let sum = |rank: &Rank| ncclAllReduce(rank.data, rank.data, 64, F32, SUM, rank.comm, 0);
    assert_eq!(sum(&first), INVALID_ARGUMENT);
    let second = Rank::join(id, 2, 1);
    // All have joined, but this rank has not queried its state.
    assert_eq!(sum(&second), INVALID_ARGUMENT);
    assert_eq!((first.state(), second.state()), (0, 0));
    first.gpu.enter();
    assert_eq!(sum(&first), IN_PROGRESS);
    assert_eq!(sum(&first), INVALID_ARGUMENT);
    assert_eq!(first.state(), 0);
    assert_eq!(second.sum(), 0);
    second.assert_holds(3.0);
}

#[test]
fn blocking_init_waits_for_all_and_ends_by_an_abort() {
    let id = unique_id();
    let joins = |rank: i32| {
        move || {
            let _gpu = Gpu::new();
            let (result, comm) = join(id, 3, rank, &BLOCKING);
            (result, comm != 0)
        }
    };
    scope(|s| {
        let ranks = [0, 1, 2].map(|rank| s.spawn(joins(rank)));
        ranks.into_iter().for_each(|rank| assert_eq!(rank.join().expect("it joins"), (0, true)));
    });
    let (id, comm) = (unique_id(), AtomicUsize::new(0));
    scope(|s| {
        let alone = s.spawn(|| {
            let _gpu = Gpu::new();
            // SAFETY: the out parameter outlives the call.
            unsafe { ncclCommInitRankConfig(comm.as_ptr(), 2, id, 0, &BLOCKING) }
        });
        while comm.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(ncclCommAbort(comm.load(Ordering::Acquire)), 0);
        assert_eq!(alone.join().expect("it ends"), INTERNAL_ERROR);
    });
    // A rank that joins later finds that one has left: it waits, as on hardware, until it is
    // aborted.
    let late = Rank::join(id, 2, 1);
    (0..QUERIES).for_each(|_| assert_eq!(late.state(), IN_PROGRESS));
    assert_eq!(ncclCommAbort(late.comm), 0);
}

/// A kernel that writes nothing.
const EMPTY: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry empty()\n{\nret;\n}\n";
/// Launches of a stream that can be pending.
const LAUNCHES_MAX: usize = 1024;

#[test]
fn launch_beyond_the_queue_blocks_until_a_peer_comes() {
    let [first, second] = Rank::all();
    first.gpu.enter();
    let function = first.gpu.function(EMPTY, "empty");
    assert_eq!(first.sum(), 0);
    // The collective is one of them.
    for _ in 1..LAUNCHES_MAX {
        assert_eq!(first.gpu.launch(function, 1, 1, &[]), 0);
    }
    let returned = AtomicBool::new(false);
    scope(|s| {
        let launching = s.spawn(|| {
            first.gpu.enter();
            let status = first.gpu.launch(function, 1, 1, &[]);
            returned.store(true, Ordering::Release);
            status
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!returned.load(Ordering::Acquire), "the queue is full, and nothing of it can run");
        assert_eq!(second.sum(), 0);
        assert_eq!(launching.join().expect("it ends"), 0);
    });
    // Without a collective that waits, any number of launches can be queued.
    for _ in 0..2 * LAUNCHES_MAX {
        assert_eq!(first.gpu.launch(function, 1, 1, &[]), 0);
    }
    assert_eq!(first.synchronize(), 0);
}

#[test]
fn abort_frees_a_launch_that_the_full_queue_blocks() {
    let [first, second] = Rank::all();
    first.gpu.enter();
    let function = first.gpu.function(EMPTY, "empty");
    assert_eq!(first.sum(), 0);
    scope(|s| {
        let launching = s.spawn(|| {
            first.gpu.enter();
            (0..).map(|_| first.gpu.launch(function, 1, 1, &[])).position(|status| status == LAUNCH_FAILED)
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!launching.is_finished());
        assert_eq!((ncclCommAbort(first.comm), ncclCommAbort(second.comm)), (0, 0));
        assert_eq!(launching.join().expect("it ends"), Some(LAUNCHES_MAX - 1));
    });
}

#[test]
fn ranks_with_different_calls_get_an_error() {
    let [first, second] = Rank::all();
    first.gpu.enter();
    assert_eq!(ncclAllReduce(first.data, first.data, 32, F32, SUM, first.comm, 0), IN_PROGRESS);
    assert_eq!(second.sum(), 0);
    assert_eq!(second.synchronize(), LAUNCH_FAILED);
    assert!(second.gpu.message().contains("count: 32"), "{}", second.gpu.message());
}

#[test]
fn planned_faults_count_the_calls_of_the_device_they_name() {
    let plan = |text: &str| {
        let text = CString::new(text).expect("no zero byte");
        // SAFETY: the string ends in a zero byte.
        unsafe { softgpu_plan_faults(text.as_ptr()) };
    };
    let [first, second, third] = Rank::all();
    let (a, b) = (first.gpu.device, second.gpu.device);
    plan(&format!("{b}/alloc:2, {a}/nccl:3,{b}/nccl:9,frobnicate:1,{b}/hang:1"));
    let out_of_memory = |rank: &Rank| {
        rank.gpu.enter();
        let mut address = 0;
        // SAFETY: the out parameter is a local.
        unsafe { cuMemAlloc_v2(&mut address, 64) }
    };
    for expected in [0, 2, 0] {
        assert_eq!((out_of_memory(&first), out_of_memory(&second)), (0, expected));
    }
    // The second rank's first collective hangs, the others' wait for it; the first rank's third
    // fails at the call.
    assert_eq!([first.sum(), second.sum(), third.sum()], [0; 3]);
    assert_eq!([first.sum(), second.sum(), third.sum()], [0; 3]);
    assert_eq!([first.sum(), second.sum(), third.sum()], [SYSTEM_ERROR, 0, 0]);
    plan("");
    assert_eq!([&first, &second, &third].map(Rank::state), [SYSTEM_ERROR, 0, 0]);
    assert_eq!(first.sum(), SYSTEM_ERROR, "it stays");
    for rank in [&first, &second, &third] {
        rank.gpu.enter();
        rank.assert_waits(rank.gpu.event_after_all());
    }
    for rank in [&third, &first, &second] {
        assert_eq!(ncclCommAbort(rank.comm), 0);
        assert_eq!(rank.synchronize(), LAUNCH_FAILED);
    }
}
