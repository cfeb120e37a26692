//! The entry points. The opaque pointer of a communicator is a key, so that one that was destroyed
//! is detected.

use super::abi::{
    Config, IN_PROGRESS, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, NcclResult, REMOTE_ERROR, SUCCESS,
    SYSTEM_ERROR, UNHANDLED_CUDA_ERROR, UniqueId,
};
use super::call::{Call, NAMES};
use super::comm::{Collective, Comm, Join, Part, deadline, last_error};
use super::element::Element;
use super::exchange::{self, Direction, Message};
use super::group::{DeviceId, Group};
use super::remote::{Link, Remote, serve, wake};
use super::sum::{chunks_for, concat, ring_sum};
use super::wire::listen;
use crate::driver::calls::{called, nccl_job};
use crate::driver::op::Op;
use crate::driver::wait::{changed, changes, wait_for_change};
use crate::driver::world::world;
use crate::driver::{current_device, device_of, enter, lock};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

const SUM: c_uint = 0;

/// The groups that this process serves.
static GROUPS: LazyLock<Mutex<HashMap<UniqueId, Arc<Group>>>> = LazyLock::new(Mutex::default);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static COMMS: LazyLock<Mutex<HashMap<usize, Arc<Comm>>>> = LazyLock::new(Mutex::default);
static NEXT_COMM: AtomicUsize = AtomicUsize::new(16);

/// The communicator of a key.
fn find(comm: usize) -> Result<Arc<Comm>, NcclResult> {
    COMMS.lock().unwrap_or_else(PoisonError::into_inner).get(&comm).cloned().ok_or(INVALID_ARGUMENT)
}

/// Removes the communicator of a key.
fn remove(comm: usize) -> Result<Arc<Comm>, NcclResult> {
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

/// An id that is unique on this machine; this process serves ranks of other processes that join
/// with it.
///
/// # Safety
/// As NCCL documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> NcclResult {
    called("ncclGetUniqueId");
    let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let name = format!("softgpu-nccl-{}-{number}-{now:x}", std::process::id());
    let mut made = UniqueId { bytes: [0; 128] };
    made.bytes[..name.len()].copy_from_slice(name.as_bytes());
    let listener = match listen(&made) {
        Ok(listener) => listener,
        Err(why) => {
            eprintln!("softgpu: nccl: no socket {name}: {why}");
            return SYSTEM_ERROR;
        }
    };
    let group = Arc::<Group>::default();
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(made, group.clone());
    serve(made, listener, group);
    // SAFETY: the caller's out parameter.
    unsafe { id.write(made) };
    SUCCESS
}

/// Joins a group of this process, or that of the process that made the id.
fn link(id: &UniqueId, rank: usize, ranks: usize, device: usize) -> Result<Link, NcclResult> {
    let place = DeviceId { process: std::process::id(), device };
    let group = GROUPS.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
    let joined = match group {
        Some(group) => group.join(rank, ranks, place, None).map_err(Some).map(|()| {
            if group.is_complete() {
                wake(id);
            }
            Link::Here(group)
        }),
        None => Remote::join(id, rank, ranks, place).map(Link::There),
    };
    joined.map_err(|why| {
        let text = why
            .as_deref()
            .unwrap_or("no process serves this unique id; check whether the process that made it has ended");
        eprintln!("softgpu: nccl: {text}");
        if why.is_some() { INVALID_USAGE } else { SYSTEM_ERROR }
    })
}

/// Joins the current device as a rank, and waits for the others until the deadline. With `blocking
/// = 0` it returns that it is in progress, and the async error reports when all ranks have joined.
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
    // The CUDA runtime within NCCL holds the context from now on.
    match lock(device) {
        Ok(mut state) => state.held_by_library = true,
        Err(_) => return UNHANDLED_CUDA_ERROR,
    }
    if comm.is_null() || ranks < 1 || !(0..ranks).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let (ranks, rank) = (ranks as usize, rank as usize);
    // SAFETY: the caller's configuration, whole where there is one.
    let blocking = config.is_null() || unsafe { (*config).blocking } != 0;
    let link = match link(&id, rank, ranks, device) {
        Ok(link) => link,
        Err(result) => return result,
    };
    let made = Arc::new(Comm {
        link,
        group: BuildHasherDefault::<DefaultHasher>::default().hash_one(id) as usize,
        rank,
        ranks,
        device,
        blocking,
        unasked: AtomicBool::new(!blocking),
        aborted: AtomicBool::new(false),
        error: AtomicU32::new(SUCCESS),
        next: AtomicU64::new(0),
        join_by: deadline(),
        memory: Mutex::default(),
    });
    let memory = enter(device).map_err(|_| made.fail(UNHANDLED_CUDA_ERROR)).and_then(|mut state| {
        let bytes = world().map_or(0, |world| world.settings.library_bytes.nccl);
        made.take_memory(&mut state, bytes, 1)
    });
    let number = NEXT_COMM.fetch_add(16, Ordering::Relaxed);
    COMMS.lock().unwrap_or_else(PoisonError::into_inner).insert(number, made.clone());
    // SAFETY: the caller's out parameter, which is not null.
    unsafe { comm.write(number) };
    let forget = || {
        if remove(number).is_ok() {
            made.link.leave(rank);
            made.free_memory();
        }
        // SAFETY: as above.
        unsafe { comm.write(0) };
    };
    // An init that is in progress reports this as the communicator's async error.
    if !blocking {
        nccl_job();
        return IN_PROGRESS;
    }
    if let Err(error) = memory {
        forget();
        return error;
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
                forget();
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

/// Ends this rank's collectives without a result, from any thread, and removes the communicator.
/// Other ranks that wait for this one keep waiting until their own communicator is aborted.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(comm: usize) -> NcclResult {
    called("ncclCommAbort");
    match remove(comm) {
        Ok(comm) => {
            comm.aborted.store(true, Ordering::Release);
            comm.link.leave(comm.rank);
            comm.free_memory();
            SUCCESS
        }
        Err(result) => result,
    }
}

/// Removes the communicator; queued collectives still run.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(comm: usize) -> NcclResult {
    called("ncclCommDestroy");
    match remove(comm) {
        Ok(comm) => {
            comm.free_memory();
            SUCCESS
        }
        Err(result) => result,
    }
}

/// Queues an all-reduce of bf16, f16 or f32.
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
        eprintln!("softgpu: nccl: ncclAllReduce supports only ncclSum, not operation {op}");
        return INVALID_ARGUMENT;
    }
    whole(NAMES[0], [send, receive], count, kind, comm, stream, ring_sum)
}

/// Queues an all-gather.
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
    whole(NAMES[1], [send, receive], count, kind, comm, stream, concat)
}

/// A collective whose input and output are one part each.
fn whole(
    name: &'static str,
    [send, receive]: [u64; 2],
    count: usize,
    kind: c_uint,
    comm: usize,
    stream: usize,
    join: fn(Element, &[&[u8]]) -> Vec<u8>,
) -> NcclResult {
    if exchange::is_open() {
        eprintln!("softgpu: nccl: {name} within a group, which may have sends and receives");
        return INVALID_USAGE;
    }
    let Some(element) = element(kind) else { return INVALID_ARGUMENT };
    let ranks = if name == NAMES[1] { find(comm).map_or(1, |comm| comm.ranks) } else { 1 };
    let bytes = count * element.bytes();
    let call = Call { name, element, count };
    collective(call, vec![(send, bytes)], vec![(receive, ranks * bytes)], comm, stream, |_| Box::new(join))
}

fn element(kind: c_uint) -> Option<Element> {
    let element = Element::from_number(kind);
    if element.is_none() {
        eprintln!("softgpu: nccl: element type {kind} is not f32, f16 or bf16");
    }
    element
}

/// Opens a group of sends and receives, or one within it.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> NcclResult {
    called("ncclGroupStart");
    exchange::open();
    SUCCESS
}

/// Adds a send to the thread's group.
#[unsafe(no_mangle)]
pub extern "C" fn ncclSend(
    send: u64,
    count: usize,
    kind: c_uint,
    peer: c_int,
    comm: usize,
    stream: usize,
) -> NcclResult {
    called("ncclSend");
    exchange::add(Direction::To, peer, Message { address: send, count, kind, comm, stream })
}

/// Adds a receive to the thread's group.
#[unsafe(no_mangle)]
pub extern "C" fn ncclRecv(
    receive: u64,
    count: usize,
    kind: c_uint,
    peer: c_int,
    comm: usize,
    stream: usize,
) -> NcclResult {
    called("ncclRecv");
    exchange::add(Direction::From, peer, Message { address: receive, count, kind, comm, stream })
}

/// Queues what the thread's group has: an exchange between all ranks of one communicator, with as
/// much for each. Other groups are refused.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> NcclResult {
    called("ncclGroupEnd");
    let messages = match exchange::close() {
        Ok(Some(messages)) => messages,
        Ok(None) => return SUCCESS,
        Err(result) => return result,
    };
    let Some(Message { count, kind, comm, stream, .. }) = messages.first() else { return SUCCESS };
    let made = match find(comm) {
        Ok(made) => made,
        Err(result) => return result,
    };
    let Some(element) = element(kind) else { return INVALID_ARGUMENT };
    let parts = match messages.parts(made.rank, made.ranks, count * element.bytes()) {
        Ok(parts) => parts,
        Err(why) => {
            eprintln!("softgpu: nccl: rank {}: {why}", made.rank);
            return INVALID_USAGE;
        }
    };
    let call = Call { name: NAMES[2], element, count };
    collective(call, parts.to, parts.from, comm, stream, |rank| {
        Box::new(move |_, parts: &[&[u8]]| chunks_for(rank, parts))
    })
}

/// Queues a collective. `join` makes the function that a rank calls on all inputs.
fn collective(
    call: Call,
    send: Vec<Part>,
    receive: Vec<Part>,
    comm: usize,
    stream: usize,
    join: impl FnOnce(usize) -> Join,
) -> NcclResult {
    let Call { name, count, .. } = call;
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
    // Connections are made at the first collective.
    if let Err(error) = comm.take_memory(&mut device, world.settings.library_bytes.nccl, 2) {
        return error;
    }
    let bytes = send.iter().map(|(_, bytes)| bytes).sum();
    let mut queued = Collective {
        sequence: comm.next.fetch_add(1, Ordering::Relaxed),
        call,
        send,
        receive,
        join: join(comm.rank),
        hangs,
        checked: world.settings.checked,
        until: None,
        contributed: false,
        comm: comm.clone(),
    };
    let group = comm.group;
    let poll = Box::new(move |memory: &mut _, ready| queued.poll(memory, ready));
    if device.push(stream, Op::Collective { name, bytes, group, poll }).is_err() {
        return UNHANDLED_CUDA_ERROR;
    }
    changed();
    if comm.blocking {
        return SUCCESS;
    }
    comm.unasked.store(true, Ordering::Release);
    nccl_job();
    IN_PROGRESS
}

/// The description of a result.
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
        REMOTE_ERROR => c"remote process exited or there was a network error",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// "out of memory", or that details are on stderr.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    called("ncclGetLastError");
    last_error().as_ptr()
}
