//! NCCL: the collectives behind all-reduces, which a rank that fails aborts.
//!
//! Its functions are resolved here, because the bindings know neither the name that packages
//! install (`libnccl.so.2`) nor a communicator that can be aborted from another thread. All
//! communicators are non-blocking: no call waits for a rank that may never come; a thread that
//! waits polls, and heeds a timeout and [`Group::abort`].

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::{OrFault, behind};
use super::format::ActivationFormat;
use super::vendor::{VendorLibrary, file_of};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// File names of the library, that of packages first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

const SUCCESS: c_int = 0;

/// `ncclUnhandledCudaError`
const UNHANDLED_CUDA_ERROR: c_int = 1;
const IN_PROGRESS: c_int = 7;

/// `ncclRemoteError`: another rank's process ended, or cannot be reached.
const REMOTE_ERROR: c_int = 6;

/// `ncclSum`
const SUM: c_int = 0;

/// Multiprocessors that a collective may occupy where it runs beside other kernels: NCCL's
/// all-reduce is as fast with 4 to 8 as with more where the switch adds (published); an all-gather
/// and an exchange of 8 ranks were not measured. Matmuls beside it are planned for the others, also
/// where `NCCL_MAX_CTAS` in the environment sets another number.
pub const BLOCKS_BESIDE_MATMULS: u8 = 8;

/// Interval at which a waiting rank polls its communicator.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// `ncclUniqueId`: identifies a group of ranks.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; 128]);

/// `ncclConfig_t` as of version 2.18; later versions take it as it is, by its size and version.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    ctas_min: c_int,
    ctas_max: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// `ncclComm_t`
type RawComm = *mut c_void;

/// The functions of NCCL that are called.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut RawComm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(RawComm) -> c_int,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, RawComm, *mut c_void) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
}

impl Functions {
    /// NCCL, loaded on first use.
    fn get() -> Result<&'static Self> {
        static FUNCTIONS: OnceLock<Result<Functions>> = OnceLock::new();
        FUNCTIONS.get_or_init(|| Self::load(&NAMES)).as_ref().map_err(Error::clone)
    }

    /// Loads the first library of these names that is on the loader's path.
    fn load(names: &[&'static str]) -> Result<Self> {
        let Some(library) = VendorLibrary::load(names) else {
            let message = format!("NCCL is not on this machine (no {} was found)", names[0]);
            return Err(Error::new(ErrorKind::Device, message)
                .with_hint("several ranks need it: install NCCL 2, or put its folder on the loader's path"));
        };
        // SAFETY: these are the functions' types in nccl.h.
        let functions = || unsafe {
            Ok(Self {
                version: library.function("ncclGetVersion")?,
                unique_id: library.function("ncclGetUniqueId")?,
                init: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                abort: library.function("ncclCommAbort")?,
                all_reduce: library.function("ncclAllReduce")?,
                all_gather: library.function("ncclAllGather")?,
                group_start: library.function("ncclGroupStart")?,
                group_end: library.function("ncclGroupEnd")?,
                send: library.function("ncclSend")?,
                receive: library.function("ncclRecv")?,
                error_string: library.function("ncclGetErrorString")?,
                last_error: library.function("ncclGetLastError")?,
            })
        };
        functions().map_err(|error: libloading::Error| {
            let message = format!("{} is not NCCL, or is older than 2.14", library.name());
            Error::new(ErrorKind::Device, message)
                .caused_by(error)
                .with_hint("install a newer NCCL 2, or put its folder first on the loader's path")
        })
    }

    /// Makes the error of a failed call, with NCCL's last message. An allocation of NCCL's that
    /// fails is an error of memory.
    fn error(&self, doing: &str, code: c_int) -> Error {
        // SAFETY: the functions return strings that live as long as the library: for any number, and
        // without a communicator, which is unused.
        let words = unsafe { [(self.error_string)(code), (self.last_error)(ptr::null_mut())] };
        let [what, last] = words.map(|text| match text.is_null() {
            true => String::new(),
            // SAFETY: a string with an end, as above.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned(),
        });
        let (kind, hint) = kind_and_hint(code, &last);
        let detail = if last.is_empty() { last } else { format!(" ({last})") };
        Error::new(kind, format!("{doing} failed: NCCL says `{what}`{detail}")).with_hint(hint)
    }
}

/// Returns the kind of a failure by its code and NCCL's last message, and what to do.
fn kind_and_hint(code: c_int, last: &str) -> (ErrorKind, &'static str) {
    if code == UNHANDLED_CUDA_ERROR && last.to_lowercase().contains("out of memory") {
        return (
            ErrorKind::Memory,
            "NCCL's buffers did not fit: use smaller passes (`--batch-tokens`), or stop other programs on these GPUs",
        );
    }
    let hint = "`NCCL_DEBUG=WARN` in the environment prints more; in a container NCCL needs shared memory (`--shm-size=1g`)";
    (ErrorKind::Device, hint)
}

/// Loads NCCL and returns its version and file, such as `NCCL 2.28.3 (/usr/lib/libnccl.so.2)`; an
/// error where it cannot be loaded.
pub fn library() -> Result<String> {
    let nccl = Functions::get()?;
    let mut code = 0;
    // SAFETY: the call writes one int.
    match unsafe { (nccl.version)(&mut code) } {
        SUCCESS => {}
        error => return Err(nccl.error("querying NCCL's version", error)),
    }
    let file = file_of(nccl.version as *const () as usize).unwrap_or_else(|| NAMES[0].into());
    Ok(format!("NCCL {}.{}.{} ({})", code / 10_000, code / 100 % 100, code % 100, file.display()))
}

/// The ranks of one engine on GPUs: their id, and how they abort each other's collectives.
pub struct Group {
    nccl: &'static Functions,
    /// Set at the start where all ranks are in this process, or the process is that of rank 0.
    id: OnceLock<UniqueId>,
    ranks: usize,
    /// How long a rank waits for the others, in a pass or when it joins.
    timeout: Duration,
    /// The most blocks that a collective may occupy; `None` for NCCL's own choice.
    blocks_max: Option<u8>,
    ends: Mutex<Vec<Arc<End>>>,
    aborted: AtomicBool,
}

/// One rank's communicator, until it is aborted, and the context of its GPU.
struct End {
    comm: Mutex<Option<NonNull<c_void>>>,
    cuda: Weak<CudaContext>,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time, which the lock sees to.
unsafe impl Send for End {}
// SAFETY: as above.
unsafe impl Sync for End {}

impl End {
    fn lock(&self) -> MutexGuard<'_, Option<NonNull<c_void>>> {
        lock(&self.comm)
    }

    /// Aborts the communicator, and with it collectives on its stream that wait for other ranks.
    fn abort(&self, nccl: &Functions) {
        if let Some(comm) = self.lock().take() {
            // NCCL selects the thread's GPU again before it returns, which makes a context on the
            // first GPU where the thread has none. A rank drops its communicator before its
            // context.
            let _ = self.cuda.upgrade().map(|cuda| cuda.bind_to_thread());
            // SAFETY: the communicator is alive, and was taken out, so no other thread uses it.
            let _ = unsafe { (nccl.abort)(comm.as_ptr()) };
        }
    }
}

impl Group {
    /// A group that no rank has joined yet; an error where NCCL is missing.
    pub fn new(ranks: usize, timeout: Duration) -> Result<Self> {
        let group = Self::elsewhere(ranks, timeout)?;
        let mut id = UniqueId([0; 128]);
        // SAFETY: the call writes one id.
        match unsafe { (group.nccl.unique_id)(&mut id) } {
            SUCCESS => {}
            error => return Err(group.nccl.error("starting NCCL", error)),
        }
        Ok(Self { id: id.into(), ..group })
    }

    /// A group that another process makes: ranks join it after [`meet_at`](Self::meet_at) has set
    /// its id. An error where NCCL is missing.
    pub fn elsewhere(ranks: usize, timeout: Duration) -> Result<Self> {
        let nccl = Functions::get()?;
        let (ends, aborted) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { nccl, id: OnceLock::new(), ranks, timeout, blocks_max: None, ends, aborted })
    }

    /// Limits a collective to `blocks_max` multiprocessors of a GPU: the others are for kernels
    /// beside it. `NCCL_MAX_CTAS` in the environment overrides it.
    pub fn with_blocks_max(self, blocks_max: u8) -> Self {
        Self { blocks_max: Some(blocks_max), ..self }
    }

    /// The id by which other processes join this group; empty before it is set.
    pub fn id(&self) -> Vec<u8> {
        self.id.get().map(|id| id.0.map(|byte| byte as u8).to_vec()).unwrap_or_default()
    }

    /// Sets the id of a group that another process made: `id` is what [`id`](Self::id) returned
    /// there.
    pub fn meet_at(&self, id: &[u8]) -> Result<()> {
        let Ok(bytes) = <[u8; 128]>::try_from(id) else {
            let message = format!("an NCCL id has 128 bytes, and this one {}", id.len());
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        // A second id would be another group's: the first stays.
        let _ = self.id.set(UniqueId(bytes.map(|byte| byte as c_char)));
        Ok(())
    }

    /// The error of every rank, once one has failed and aborted the group.
    pub(super) fn failure(&self) -> Option<Error> {
        self.aborted.load(Ordering::SeqCst).then(gave_up)
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Joins as `rank` with this context's GPU. Returns when all have joined; an error when one
    /// does not join in time, or aborts.
    pub fn join(self: &Arc<Self>, context: &Context, rank: usize) -> Result<Comm> {
        let Some(&id) = self.id.get() else {
            return Err(Error::new(ErrorKind::Unsupported, "no rendezvous address was given"));
        };
        context.bind()?;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: c_int::MIN,
            ctas_min: c_int::MIN,
            ctas_max: self.blocks_max.map_or(c_int::MIN, c_int::from),
            net_name: ptr::null(),
            split_share: c_int::MIN,
        };
        let mut raw: RawComm = ptr::null_mut();
        let (ranks, rank_index) = (self.ranks as c_int, rank as c_int);
        // SAFETY: out parameter and configuration are locals; the id is one that NCCL made; the
        // context of the rank's GPU is current.
        let code = unsafe { (self.nccl.init)(&mut raw, ranks, id, rank_index, &mut config) };
        let end = Arc::new(End { comm: Mutex::new(NonNull::new(raw)), cuda: Arc::downgrade(context.cuda()) });
        lock(&self.ends).push(Arc::clone(&end));
        let comm = Comm { group: Arc::clone(self), end, rank };
        comm.settle("joining the other ranks", code, context.compute())?;
        Ok(comm)
    }

    /// Ends what every rank waits for, with an error. Any thread may call it.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        for end in lock(&self.ends).iter() {
            end.abort(self.nccl);
        }
    }
}

/// The format of an element of a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// That of activations.
    Activation(ActivationFormat),
    /// f32.
    F32,
}

impl Element {
    /// `ncclDataType_t`
    fn code(self) -> c_int {
        match self {
            Self::Activation(ActivationFormat::F16) => 6,
            Self::F32 => 7,
            Self::Activation(ActivationFormat::Bf16) => 9,
        }
    }

    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Activation(format) => format.bytes(),
            Self::F32 => size_of::<f32>(),
        }
    }
}

/// One rank's communicator of a group that all ranks have joined.
pub struct Comm {
    group: Arc<Group>,
    end: Arc<End>,
    rank: usize,
}

impl Comm {
    /// Queues on `stream` the all-reduce, in place, of `count` elements of `buffer` from element
    /// `first` on. Every rank calls this with the same count, in the same order.
    pub fn all_reduce(
        &self,
        buffer: &mut DeviceBuffer,
        first: usize,
        count: usize,
        element: Element,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let bytes = element.bytes();
        if first.saturating_add(count).saturating_mul(bytes) > buffer.bytes() {
            let message =
                format!("{count} elements at {first} leave their buffer of {} bytes", buffer.bytes());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let elements = (buffer.address() + (first * bytes) as u64) as *mut c_void;
        let code = {
            let end = self.end.lock();
            let comm = end.ok_or_else(gave_up)?;
            // SAFETY: the elements were checked to lie in the buffer, which is borrowed mutably and
            // outlives the work, since dropping it waits for the device; the communicator is alive
            // while the lock is held.
            unsafe {
                let stream = stream.cu_stream().cast();
                (self.group.nccl.all_reduce)(
                    elements.cast_const(),
                    elements,
                    count,
                    element.code(),
                    SUM,
                    comm.as_ptr(),
                    stream,
                )
            }
        };
        self.settle("all-reducing over ranks", code, stream)
    }

    /// Queues on `stream` the all-gather into `to`, rank after rank, of every rank's `count`
    /// elements of `from` from element `first` on. Every rank calls this with the same count, in
    /// the same order.
    pub fn all_gather(
        &self,
        from: &DeviceBuffer,
        first: usize,
        to: &mut DeviceBuffer,
        count: usize,
        element: Element,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let bytes = count.saturating_mul(element.bytes());
        let first_byte = first.saturating_mul(element.bytes());
        if first_byte.saturating_add(bytes) > from.bytes()
            || self.group.ranks.saturating_mul(bytes) > to.bytes()
        {
            let message = format!("{count} elements of each rank leave their buffers of {from:?} and {to:?}");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let (from, to) = ((from.address() + first_byte as u64) as *const c_void, to.address() as *mut c_void);
        let code = {
            let end = self.end.lock();
            let comm = end.ok_or_else(gave_up)?;
            // SAFETY: the elements were checked to lie in the buffers, of which `to` is borrowed
            // mutably; both outlive the work, since dropping one waits for the device; the
            // communicator is alive while the lock is held.
            unsafe {
                let stream = stream.cu_stream().cast();
                (self.group.nccl.all_gather)(from, to, count, element.code(), comm.as_ptr(), stream)
            }
        };
        self.settle("gathering from all ranks", code, stream)
    }

    /// Queues on `stream` an exchange of slices of `count` elements: to each other rank goes that
    /// rank's of the slices of `from`, which begin at element `first` in the order of ranks, and
    /// from each comes its own version of this rank's slice, into its place of the slices of `to`.
    /// The place of this rank stays as it is. Every rank calls this with the same count, in the same
    /// order.
    pub fn exchange_slices(
        &self,
        from: &DeviceBuffer,
        first: usize,
        to: &mut DeviceBuffer,
        count: usize,
        element: Element,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let ranks = self.group.ranks;
        let bytes = count.saturating_mul(element.bytes());
        let first_byte = first.saturating_mul(element.bytes());
        if first_byte.saturating_add(ranks.saturating_mul(bytes)) > from.bytes()
            || ranks.saturating_mul(bytes) > to.bytes()
        {
            let message = format!("{ranks} slices of {count} elements leave {from:?} or {to:?}");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let (from, to) = (from.address() + first_byte as u64, to.address());
        let (nccl, element) = (self.group.nccl, element.code());
        let code = {
            let end = self.end.lock();
            let comm = end.ok_or_else(gave_up)?.as_ptr();
            let stream = stream.cu_stream().cast();
            // SAFETY: the slices were checked to lie in the buffers, of which `to` is borrowed
            // mutably; both outlive the work, since dropping one waits for the device; the
            // communicator is alive while the lock is held. A group that was started is ended by
            // this thread, whatever its messages return.
            unsafe {
                match (nccl.group_start)() {
                    SUCCESS => {
                        let mut failed = None;
                        for peer in (0..ranks).filter(|&peer| peer != self.rank) {
                            let (offset, peer) = ((peer * bytes) as u64, peer as c_int);
                            let (from, to) = ((from + offset) as *const c_void, (to + offset) as *mut c_void);
                            for code in [
                                (nccl.send)(from, count, element, peer, comm, stream),
                                (nccl.receive)(to, count, element, peer, comm, stream),
                            ] {
                                let is_failure = !matches!(code, SUCCESS | IN_PROGRESS);
                                failed = failed.or(is_failure.then_some(code));
                            }
                        }
                        let ended = (nccl.group_end)();
                        failed.unwrap_or(ended)
                    }
                    error => error,
                }
            }
        };
        self.settle("exchanging slices with all ranks", code, stream)
    }

    /// Queues on `stream` the all-gather, in place, of a slice of `count` elements of each rank: the
    /// slices begin at element `first` of `buffer`, in the order of ranks. Every rank calls this
    /// with the same count, in the same order.
    pub fn gather_slices(
        &self,
        buffer: &mut DeviceBuffer,
        first: usize,
        count: usize,
        element: Element,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let slice_bytes = count.saturating_mul(element.bytes());
        let first_byte = first.saturating_mul(element.bytes());
        if first_byte.saturating_add(self.group.ranks.saturating_mul(slice_bytes)) > buffer.bytes() {
            let message = format!("{} slices of {count} elements leave {buffer:?}", self.group.ranks);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let to = buffer.address() + first_byte as u64;
        let from = (to + (self.rank * slice_bytes) as u64) as *const c_void;
        let code = {
            let end = self.end.lock();
            let comm = end.ok_or_else(gave_up)?;
            // SAFETY: as in `all_gather`, with the elements that are sent at their own place of
            // those that are received, which NCCL takes as a gather in place.
            unsafe {
                let (to, stream) = (to as *mut c_void, stream.cu_stream().cast());
                (self.group.nccl.all_gather)(from, to, count, element.code(), comm.as_ptr(), stream)
            }
        };
        self.settle("gathering slices from all ranks", code, stream)
    }

    /// Waits for an event that was recorded behind collectives; an error when a rank failed or does
    /// not come in time.
    pub(super) fn wait_for(&self, event: &CudaEvent) -> Result<()> {
        let doing = "waiting for the other ranks";
        self.poll(doing, || {
            self.healthy(doing)?;
            // An abort completes the event, too, without results.
            Ok(event.try_is_complete().or_fault(doing)? && self.healthy(doing)?)
        })
    }

    /// Waits while a call is in progress.
    fn settle(&self, doing: &str, code: c_int, stream: &Arc<CudaStream>) -> Result<()> {
        let settled = match code {
            SUCCESS => return Ok(()),
            IN_PROGRESS => self.poll(doing, || self.healthy(doing)),
            REMOTE_ERROR => return Err(gave_up()),
            error => Err(self.group.nccl.error(doing, error)),
        };
        settled.map_err(|error| match error.kind() {
            ErrorKind::Device => behind(error, stream, doing),
            _ => error,
        })
    }

    /// Whether no call is in progress; an error that happened meanwhile, here or on another rank.
    fn healthy(&self, doing: &str) -> Result<bool> {
        if let Some(error) = self.group.failure() {
            return Err(error);
        }
        let mut state = SUCCESS;
        let code = {
            let end = self.end.lock();
            let comm = end.ok_or_else(gave_up)?;
            // SAFETY: the communicator is alive while the lock is held; the call writes one int.
            unsafe { (self.group.nccl.async_error)(comm.as_ptr(), &mut state) }
        };
        match (code, state) {
            (SUCCESS, SUCCESS) => Ok(true),
            (SUCCESS, IN_PROGRESS) => Ok(false),
            // The rank that failed reports the cause.
            (SUCCESS, REMOTE_ERROR) | (REMOTE_ERROR, _) => Err(gave_up()),
            (SUCCESS, error) | (error, _) => Err(self.group.nccl.error(doing, error)),
        }
    }

    fn poll(&self, doing: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !done()? {
            let waited = begun.elapsed();
            if waited > self.group.timeout {
                let message = format!("{doing}: one did not come within {} s", self.group.timeout.as_secs());
                return Err(Error::new(ErrorKind::Device, message));
            }
            // Short passes are over before a sleeping thread would wake.
            if waited < Duration::from_millis(5) { thread::yield_now() } else { thread::sleep(POLL_INTERVAL) }
        }
        Ok(())
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        // Nothing of this rank's is queued any more; unlike a destroy, an abort does not wait for
        // the other ranks.
        self.end.abort(self.group.nccl);
    }
}

fn gave_up() -> Error {
    Error::new(ErrorKind::Stopped, "another rank of this engine failed")
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("ranks", &self.ranks).finish_non_exhaustive()
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comm").field("rank", &self.rank).field("ranks", &self.group.ranks).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_nccl_s_functions_is_not_missing() {
        let missing = Functions::load(&["libkudos-has-no-such-library.so"]).err().unwrap();
        assert!(missing.message().starts_with("NCCL is not on this machine"), "{missing}");
        // The C library is everywhere, and has none of them.
        let other = Functions::load(&["libkudos-has-no-such-library.so", "libc.so.6"]).err().unwrap();
        assert!(other.message().starts_with("libc.so.6 is not NCCL, or is older than 2.14: "), "{other}");
        assert!(other.message().contains("ncclGetVersion"), "{other}");
    }

    #[test]
    fn memory_that_nccl_lacks_is_an_error_of_memory() {
        let kind = |code, last| kind_and_hint(code, last).0;
        assert_eq!(kind(UNHANDLED_CUDA_ERROR, "Cuda failure 2 'out of memory'"), ErrorKind::Memory);
        assert_eq!(kind(UNHANDLED_CUDA_ERROR, "Cuda failure 700"), ErrorKind::Device);
        assert_eq!(kind(REMOTE_ERROR, ""), ErrorKind::Device);
    }
}
