//! Functions of the software GPU alone: it counts the memory traffic of launches, plants bugs, and
//! reports errors in words.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

use kudos::internals::backend::cuda::ops::Ops;
use libloading::Library;
use serde::Deserialize;

/// Counts of one launch.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Distinct 32-byte sectors read.
    pub(crate) sectors_read: u64,
    /// Distinct 32-byte sectors written.
    pub(crate) sectors_written: u64,
    /// Bytes that threads asked to read.
    pub(crate) bytes_read: u64,
    /// Bytes that threads asked to write.
    pub(crate) bytes_written: u64,
    /// Loads and stores of a warp.
    pub(crate) requests: u64,
    /// The sum over those of the distinct sectors of each.
    pub(crate) request_sectors: u64,
    /// Passes that shared memory's banks needed beyond the fewest.
    pub(crate) bank_conflicts: u64,
    /// Matmul instructions of warps on tensor cores.
    pub(crate) mma: u64,
}

impl Counts {
    /// Bytes that memory transfers.
    pub(crate) fn bytes_moved(&self) -> u64 {
        32 * (self.sectors_read + self.sectors_written)
    }
}

/// One launch.
#[derive(Debug, Deserialize)]
pub(crate) struct Launch {
    /// The entry that was launched.
    pub(crate) kernel: String,
    /// Threads of a block, by axis.
    block: [usize; 3],
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

impl Launch {
    /// Threads of a block.
    pub(crate) fn threads(&self) -> usize {
        self.block.iter().product()
    }
}

type Reset = unsafe extern "C" fn();
type Json = unsafe extern "C" fn(*mut c_char, usize) -> usize;
type Message = unsafe extern "C" fn(usize, *mut c_char, usize) -> usize;
type Plant = unsafe extern "C" fn(*const c_char);
type Planted = unsafe extern "C" fn() -> usize;
type Order = unsafe extern "C" fn(u64);

/// Counts of calls.
#[derive(Debug, Deserialize)]
struct Calls {
    calls: BTreeMap<String, u64>,
}

/// The driver's own functions for tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    reset: Reset,
    json: Json,
    message: Message,
    plant: Plant,
    planted: Planted,
    order: Order,
    reset_trace: Reset,
    calls: Json,
}

impl Counters {
    /// The functions of the driver that was loaded, if it counts.
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: the driver was loaded when the GPU was found; this opens it once more and runs
        // nothing.
        let driver = unsafe { Library::new("libcuda.so") }.ok()?;
        // SAFETY: a library that has functions of these names has them with these types.
        let found = unsafe {
            Some(Self {
                reset: *driver.get::<Reset>(b"softgpu_reset_counters\0").ok()?,
                json: *driver.get::<Json>(b"softgpu_counters_json\0").ok()?,
                message: *driver.get::<Message>(b"softgpu_last_message\0").ok()?,
                plant: *driver.get::<Plant>(b"softgpu_plant\0").ok()?,
                planted: *driver.get::<Planted>(b"softgpu_planted\0").ok()?,
                order: *driver.get::<Order>(b"softgpu_order\0").ok()?,
                reset_trace: *driver.get::<Reset>(b"softgpu_reset_trace\0").ok()?,
                calls: *driver.get::<Json>(b"softgpu_calls_json\0").ok()?,
            })
        };
        // Never unloaded: the functions outlive this.
        std::mem::forget(driver);
        found
    }

    /// The counts of the one launch in `run`. No other thread may launch meanwhile.
    pub(crate) fn of(self, ops: &Ops, kernel: &str, run: impl FnOnce()) -> Counts {
        self.launch(ops, kernel, run).counts
    }

    /// The one launch in `run`, with its counts. No other thread may launch meanwhile.
    pub(crate) fn launch(self, ops: &Ops, kernel: &str, run: impl FnOnce()) -> Launch {
        ops.context().synchronize().unwrap();
        // SAFETY: the library is still loaded; it locks what it changes.
        unsafe { (self.reset)() };
        run();
        ops.context().synchronize().unwrap();
        let mut launches: Vec<Launch> = serde_json::from_slice(&text_of(self.json)).unwrap();
        assert_eq!(launches.len(), 1, "{kernel}: one launch");
        let launch = launches.remove(0);
        assert!(launch.kernel.starts_with(kernel), "{} was launched, not {kernel}", launch.kernel);
        launch
    }

    /// The calls of the driver in `run`, by name. No other thread may call it meanwhile.
    pub(crate) fn calls(self, run: impl FnOnce()) -> BTreeMap<String, u64> {
        // SAFETY: the library is still loaded; it locks what it changes.
        unsafe { (self.reset_trace)() };
        run();
        let Calls { calls } = serde_json::from_slice(&text_of(self.calls)).unwrap();
        calls
    }

    /// Plants bugs into kernels that are loaded from here on, in the language of
    /// `crates/softgpu/README.md`; an empty string plants none.
    pub(crate) fn plant(self, text: &str) {
        let text = CString::new(text).unwrap();
        // SAFETY: the string ends in a zero byte and is read during the call.
        unsafe { (self.plant)(text.as_ptr()) };
    }

    /// Has warps run in a random order by this seed from here on; 0: by index.
    pub(crate) fn order(self, seed: u64) {
        // SAFETY: the library is still loaded; it stores a number.
        unsafe { (self.order)(seed) };
    }

    /// The count of instructions that were changed since.
    pub(crate) fn planted(self) -> usize {
        // SAFETY: it takes nothing and locks what it reads.
        unsafe { (self.planted)() }
    }

    /// The first device's description of its error.
    pub(crate) fn message(self) -> String {
        let mut text = vec![0_u8; 4096];
        // SAFETY: `text` has one byte more than the length that is passed.
        unsafe { (self.message)(0, text.as_mut_ptr().cast(), text.len() - 1) };
        CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
    }
}

/// The text that a function of the driver writes.
fn text_of(json: Json) -> Vec<u8> {
    // SAFETY: a null pointer requests the length only.
    let mut text = vec![0_u8; 1 + unsafe { json(std::ptr::null_mut(), 0) }];
    // SAFETY: `text` holds `text.len()` bytes.
    let length = unsafe { json(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    text
}
