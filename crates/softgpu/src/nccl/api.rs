//! The entry points. A communicator is a number behind the opaque pointer: one that was given up is known as such.

use super::comm::{Collective, Comm, deadline};
use super::meeting::{Call, Group};
use super::sum::{Element, concat, ring_sum};
use crate::driver::queue::Op;
use crate::driver::trace::called;
use crate::driver::wait::{changed, changes, wait_for_change};
use crate::driver::world::world;
use crate::driver::{current_device, device_of, enter};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// `ncclResult_t`.
pub type NcclResult = c_uint;

pub(super) const SUCCESS: NcclResult = 0;
const UNHANDLED_CUDA_ERROR: NcclResult = 1;
pub(super) const SYSTEM_ERROR: NcclResult = 2;
const INTERNAL_ERROR: NcclResult = 3;
const INVALID_ARGUMENT: NcclResult = 4;
const INVALID_USAGE: NcclResult = 5;
pub(super) const IN_PROGRESS: NcclResult = 7;
const SUM: c_uint = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueId {
    bytes: [u8; 128],
}

/// The head of `ncclConfig_t`.
#[repr(C)]
#[allow(missing_docs)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
}

static GROUPS: LazyLock<Mutex<HashMap<UniqueId, Arc<Group>>>> = LazyLock::new(Mutex::default);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static COMMS: LazyLock<Mutex<HashMap<usize, Arc<Comm>>>> = LazyLock::new(Mutex::default);
static NEXT_COMM: AtomicUsize = AtomicUsize::new(16);

/// The communicator that a number stands for.
fn find(comm: usize) -> Result<Arc<Comm>, NcclResult> {
    COMMS.lock().unwrap_or_else(PoisonError::into_inner).get(&comm).cloned().ok_or(INVALID_ARGUMENT)
}

/// The same, for good.
fn give_up(comm: usize) -> Result<Arc<Comm>, NcclResult> {
    COMMS.lock().unwrap_or_else(PoisonError::into_inner).remove(&comm).ok_or(INVALID_ARGUMENT)
}

/// 2.28.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> NcclResult {
    called("ncclGetVersion");
    // SAFETY: the caller's out parameter.
    unsafe { version.write(22_800) };
    SUCCESS
}

/// An id that no other call got.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> NcclResult {
    called("ncclGetUniqueId");
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&NEXT_ID.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    // SAFETY: the caller's out parameter.
    unsafe { id.write(UniqueId { bytes }) };
    SUCCESS
}

/// Joins the current device as a rank, and waits for the others until the deadline. With `blocking = 0` it says that it is
/// in progress, and the async error says when all are there.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut usize,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> NcclResult {
    called("ncclCommInitRankConfig");
    let Ok(device) = current_device() else { return INVALID_USAGE };
    if comm.is_null() || ranks < 1 || !(0..ranks).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let (ranks, rank) = (ranks as usize, rank as usize);
    // SAFETY: the caller's configuration, whole where there is one.
    let blocking = config.is_null() || unsafe { (*config).blocking } != 0;
    let group = {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.entry(id).or_insert_with(|| Arc::new(Group::new(ranks))).clone()
    };
    if let Err(why) = group.join(rank, ranks, device) {
        eprintln!("softgpu: nccl: {why}");
        return INVALID_USAGE;
    }
    let made = Arc::new(Comm {
        group,
        rank,
        device,
        blocking,
        unasked: AtomicBool::new(!blocking),
        aborted: AtomicBool::new(false),
        error: AtomicU32::new(SUCCESS),
        next: AtomicU64::new(0),
        join_by: deadline(),
    });
    let number = NEXT_COMM.fetch_add(16, Ordering::Relaxed);
    COMMS.lock().unwrap_or_else(PoisonError::into_inner).insert(number, made.clone());
    // SAFETY: the caller's out parameter, which is not null.
    unsafe { comm.write(number) };
    if !blocking {
        return IN_PROGRESS;
    }
    loop {
        let seen = changes();
        if made.aborted.load(Ordering::Acquire) {
            return INTERNAL_ERROR;
        }
        match made.state() {
            IN_PROGRESS => wait_for_change(seen),
            SUCCESS => return SUCCESS,
            error => {
                if give_up(number).is_ok() {
                    made.group.leave(rank);
                }
                // SAFETY: as above.
                unsafe { comm.write(0) };
                return error;
            }
        }
    }
}

/// `ncclInProgress` until all ranks have joined, then the first error.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: usize, error: *mut NcclResult) -> NcclResult {
    called("ncclCommGetAsyncError");
    let comm = match find(comm) {
        Ok(comm) => comm,
        Err(result) => return result,
    };
    let state = comm.state();
    if state != IN_PROGRESS {
        comm.unasked.store(false, Ordering::Release);
    }
    // SAFETY: the caller's out parameter.
    unsafe { error.write(state) };
    SUCCESS
}

/// Ends this rank's collectives without a result, from any thread, and gives the communicator up. Other ranks that wait
/// for this one wait on, until their own communicator is aborted.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(comm: usize) -> NcclResult {
    called("ncclCommAbort");
    match give_up(comm) {
        Ok(comm) => {
            comm.aborted.store(true, Ordering::Release);
            comm.group.leave(comm.rank);
            SUCCESS
        }
        Err(result) => result,
    }
}

/// Gives the communicator up; queued collectives still run.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(comm: usize) -> NcclResult {
    called("ncclCommDestroy");
    give_up(comm).map_or_else(|result| result, |_| SUCCESS)
}

/// Queues a sum over the ranks of bf16, f16 or f32.
#[unsafe(no_mangle)]
pub extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    kind: c_uint,
    op: c_uint,
    comm: usize,
    stream: usize,
) -> NcclResult {
    called("ncclAllReduce");
    if op != SUM {
        eprintln!("softgpu: nccl: only sums are reduced, not operation {op}");
        return INVALID_ARGUMENT;
    }
    collective("ncclAllReduce", [send, receive], count, kind, comm, stream, ring_sum)
}

/// Queues the concatenation of the ranks' parts.
#[unsafe(no_mangle)]
pub extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    kind: c_uint,
    comm: usize,
    stream: usize,
) -> NcclResult {
    called("ncclAllGather");
    collective("ncclAllGather", [send, receive], count, kind, comm, stream, concat)
}

fn collective(
    name: &'static str,
    [send, receive]: [u64; 2],
    count: usize,
    kind: c_uint,
    comm: usize,
    stream: usize,
    join: fn(Element, &[&[u8]]) -> Vec<u8>,
) -> NcclResult {
    let Some(element) = Element::from_number(kind) else {
        eprintln!("softgpu: nccl: element type {kind} is not f32, f16 or bf16");
        return INVALID_ARGUMENT;
    };
    let (comm, world) = match (find(comm), world()) {
        (Ok(comm), Ok(world)) => (comm, world),
        (Err(result), _) => return result,
        (_, Err(_)) => return UNHANDLED_CUDA_ERROR,
    };
    let state = if comm.unasked.load(Ordering::Acquire) { IN_PROGRESS } else { comm.state() };
    if state != SUCCESS {
        eprintln!("softgpu: nccl: {name} before the previous call on the communicator has succeeded");
        return if state == IN_PROGRESS { INVALID_ARGUMENT } else { state };
    }
    if world.fails("nccl", comm.device) {
        return comm.fail(SYSTEM_ERROR);
    }
    let hangs = world.fails("hang", comm.device);
    let Ok(mut device) = device_of(stream).and_then(enter) else { return UNHANDLED_CUDA_ERROR };
    if device.index != comm.device {
        return INVALID_USAGE;
    }
    if count == 0 {
        return SUCCESS;
    }
    let mut queued = Collective {
        sequence: comm.next.fetch_add(1, Ordering::Relaxed),
        call: Call { name, element, count },
        send,
        receive,
        join,
        hangs,
        checked: world.settings.checked,
        until: None,
        brought: false,
        comm: comm.clone(),
    };
    let group = Arc::as_ptr(&comm.group) as usize;
    let poll = Box::new(move |memory: &mut _, ready| queued.poll(memory, ready));
    if device.push(stream, Op::Collective { name, bytes: count * element.bytes(), group, poll }).is_err() {
        return UNHANDLED_CUDA_ERROR;
    }
    changed();
    if comm.blocking {
        return SUCCESS;
    }
    comm.unasked.store(true, Ordering::Release);
    IN_PROGRESS
}

/// The text of a result.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(result: NcclResult) -> *const c_char {
    called("ncclGetErrorString");
    let text = match result {
        SUCCESS => c"no error",
        UNHANDLED_CUDA_ERROR => c"unhandled cuda error",
        SYSTEM_ERROR => c"unhandled system error",
        INTERNAL_ERROR => c"internal error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// Details are on stderr.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    called("ncclGetLastError");
    c"softgpu printed the details on stderr".as_ptr()
}
