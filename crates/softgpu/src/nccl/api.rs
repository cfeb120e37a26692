//! The entry points. A communicator is a reference-counted box behind the opaque pointer.

use super::meeting::{Comm, Element, Group, Outcome, ring_sum};
use crate::device::{Access, DeviceMemory};
use crate::driver::queue::Op;
use crate::driver::world::world;
use crate::driver::{current_device, device_of, enter};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `ncclResult_t`.
pub type NcclResult = c_uint;

const SUCCESS: NcclResult = 0;
const UNHANDLED_CUDA_ERROR: NcclResult = 1;
const SYSTEM_ERROR: NcclResult = 2;
const INVALID_ARGUMENT: NcclResult = 4;
const INVALID_USAGE: NcclResult = 5;
const IN_PROGRESS: NcclResult = 7;
const SUM: c_uint = 0;
/// `SOFTGPU_NCCL_SECONDS` replaces it.
const DEADLINE_SECONDS: u64 = 60;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueId {
    bytes: [u8; 128],
}

/// The head of `ncclConfig_t`.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

static GROUPS: LazyLock<Mutex<HashMap<UniqueId, Arc<Group>>>> = LazyLock::new(Mutex::default);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn deadline() -> Instant {
    let seconds =
        std::env::var("SOFTGPU_NCCL_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(DEADLINE_SECONDS);
    Instant::now() + Duration::from_secs(seconds)
}

/// 2.28.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> NcclResult {
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
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&NEXT_ID.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    // SAFETY: the caller's out parameter.
    unsafe { id.write(UniqueId { bytes }) };
    SUCCESS
}

/// Joins the current device as a rank. With `blocking = 0` it returns at once, and the async error says when all are there.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut *const Comm,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> NcclResult {
    let Ok(device) = current_device() else { return INVALID_USAGE };
    if ranks < 1 || !(0..ranks).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let group = {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.entry(id).or_insert_with(|| Arc::new(Group::new(ranks as usize))).clone()
    };
    {
        let mut joined = group.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if joined.len() != ranks as usize || joined[rank as usize].is_some() {
            return INVALID_USAGE;
        }
        if joined.contains(&Some(device)) {
            eprintln!("softgpu: nccl: two ranks on device {device}");
            return INVALID_USAGE;
        }
        joined[rank as usize] = Some(device);
    }
    let made = Arc::new(Comm {
        group: group.clone(),
        rank: rank as usize,
        device,
        aborted: AtomicBool::new(false),
        error: AtomicU32::new(SUCCESS),
        next: AtomicU64::new(0),
    });
    // SAFETY: the caller's out parameter; the configuration is null or whole.
    let blocking = unsafe {
        comm.write(Arc::into_raw(made));
        config.is_null() || (*config).blocking != 0
    };
    if !blocking {
        return if group.is_complete() { SUCCESS } else { IN_PROGRESS };
    }
    let until = deadline();
    while !group.is_complete() {
        if Instant::now() > until {
            eprintln!("softgpu: nccl: rank {rank} waited for the other ranks in vain");
            return SYSTEM_ERROR;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    SUCCESS
}

/// `ncclInProgress` until all ranks have joined, then the first error.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: *const Comm, error: *mut NcclResult) -> NcclResult {
    // SAFETY: the caller's live communicator and out parameter.
    unsafe {
        let c = &*comm;
        let now = c.error.load(Ordering::Acquire);
        error.write(if now == SUCCESS && !c.group.is_complete() { IN_PROGRESS } else { now });
    }
    SUCCESS
}

/// Lets this rank's collectives end without a result, and frees the communicator.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *const Comm) -> NcclResult {
    // SAFETY: made by `ncclCommInitRankConfig`, given up once; collectives in flight hold their own reference.
    let comm = unsafe { Arc::from_raw(comm) };
    comm.aborted.store(true, Ordering::Release);
    SUCCESS
}

/// Frees the communicator; queued collectives still run.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *const Comm) -> NcclResult {
    // SAFETY: made by `ncclCommInitRankConfig`, given up once.
    drop(unsafe { Arc::from_raw(comm) });
    SUCCESS
}

/// Queues a sum over the ranks of bf16, f16 or f32.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    kind: c_uint,
    op: c_uint,
    comm: *const Comm,
    stream: usize,
) -> NcclResult {
    if op != SUM {
        eprintln!("softgpu: nccl: only sums are reduced, not operation {op}");
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller's live communicator.
    unsafe { collective("ncclAllReduce", send, receive, count, kind, comm, stream, ring_sum) }
}

/// Queues the concatenation of the ranks' parts.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    kind: c_uint,
    comm: *const Comm,
    stream: usize,
) -> NcclResult {
    // SAFETY: the caller's live communicator.
    unsafe {
        collective("ncclAllGather", send, receive, count, kind, comm, stream, |_, parts| parts.concat())
    }
}

/// # Safety
/// `comm` is a live communicator.
#[allow(clippy::too_many_arguments)]
unsafe fn collective(
    name: &'static str,
    send: u64,
    receive: u64,
    count: usize,
    kind: c_uint,
    comm: *const Comm,
    stream: usize,
    join: fn(Element, &[Vec<u8>]) -> Vec<u8>,
) -> NcclResult {
    let Some(element) = Element::from_number(kind) else {
        eprintln!("softgpu: nccl: element type {kind} is not f32, f16 or bf16");
        return INVALID_ARGUMENT;
    };
    // SAFETY: the pointer came from `Arc::into_raw` and is live; the clone keeps it so while the work is queued.
    let comm = unsafe {
        Arc::increment_strong_count(comm);
        Arc::from_raw(comm)
    };
    if world().is_ok_and(|w| w.fails("nccl")) {
        comm.error.store(SYSTEM_ERROR, Ordering::Release);
        return SYSTEM_ERROR;
    }
    let hangs = world().is_ok_and(|w| w.fails("hang"));
    let Ok(mut device) = device_of(stream).and_then(enter) else { return UNHANDLED_CUDA_ERROR };
    if device.index != comm.device {
        return INVALID_USAGE;
    }
    let sequence = comm.next.fetch_add(1, Ordering::Relaxed);
    // A hanging collective meets under a number that nobody else uses.
    let sequence = if hangs { sequence | 1 << 63 } else { sequence };
    let bytes = count * element.bytes();
    let work = Box::new(move |memory: &mut DeviceMemory| {
        memory
            .range(send, bytes, Access::Read)
            .map_err(|(v, detail)| format!("{v} in the input: {detail}"))?;
        // SAFETY: `range` found the input inside a live allocation of this device.
        let part = unsafe { std::slice::from_raw_parts(send as *const u8, bytes) }.to_vec();
        match comm.group.meet(&comm, sequence, part, deadline()) {
            Outcome::All(parts) if parts.iter().all(|p| p.len() == bytes) => {
                let result = join(element, &parts);
                memory
                    .range(receive, result.len(), Access::Write)
                    .map_err(|(v, d)| format!("{v} in the output: {d}"))?;
                // SAFETY: `range` found the output inside a live allocation of this device.
                unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), receive as *mut u8, result.len()) };
                Ok(())
            }
            Outcome::All(_) => Err("the ranks disagree about the number of elements".into()),
            Outcome::Aborted => Ok(()),
            Outcome::Missing(ranks) => {
                comm.error.store(SYSTEM_ERROR, Ordering::Release);
                Err(format!("rank {} waited for ranks {ranks:?} in vain", comm.rank))
            }
        }
    });
    match device.push(stream, Op::Work { name, work }) {
        Ok(()) => SUCCESS,
        Err(_) => UNHANDLED_CUDA_ERROR,
    }
}

/// The text of a result.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(result: NcclResult) -> *const c_char {
    let text = match result {
        SUCCESS => c"no error",
        UNHANDLED_CUDA_ERROR => c"unhandled cuda error",
        SYSTEM_ERROR => c"unhandled system error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// Details are on stderr.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: *const Comm) -> *const c_char {
    c"softgpu printed the details on stderr".as_ptr()
}
