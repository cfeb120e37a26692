//! A small driver client over the library's own C ABI, in process. Each [`Gpu`] is a device of its
//! own, so that a sticky error of one test does not reach another.
#![allow(dead_code, unreachable_pub)]

use softgpu::driver::{context::*, launch::*, memory::*, stream::*};
use softgpu::nccl::*;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Devices of a test binary: one for each [`Gpu`] that its tests make.
const DEVICES: i32 = 60;
static START: Once = Once::new();
static NEXT: AtomicI32 = AtomicI32::new(0);

/// One device with its context current in this thread.
pub struct Gpu {
    pub device: i32,
}

impl Gpu {
    pub fn new() -> Self {
        START.call_once(|| {
            // SAFETY: `call_once` runs before any other thread of this binary reads the
            // environment.
            unsafe {
                std::env::set_var("SOFTGPU_DEVICES", DEVICES.to_string());
                std::env::set_var("SOFTGPU_MEMORY_GIB", "0.25");
            }
            assert_eq!(cuInit(0), 0);
        });
        let device = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(device < DEVICES, "more tests than devices");
        Self::on(device)
    }

    /// A device by its index, where the test binary starts the driver itself.
    pub fn on(device: i32) -> Self {
        let mut context = 0;
        // SAFETY: the out parameter is a local.
        assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&mut context, device) }, 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        Self { device }
    }

    /// Makes the device's context the thread's own.
    pub fn enter(&self) {
        assert_eq!(cuCtxSetCurrent(self.device as usize + 1), 0);
    }

    pub fn event_after_all(&self) -> usize {
        let mut event = 0;
        // SAFETY: the out parameter is a local.
        assert_eq!(unsafe { cuEventCreate(&mut event, 0) }, 0);
        assert_eq!(cuEventRecord(event, 0), 0);
        event
    }

    pub fn allocate(&self, bytes: usize) -> u64 {
        let mut address = 0;
        // SAFETY: the out parameter is a local.
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, 0);
        address
    }

    pub fn upload(&self, data: &[u32]) -> u64 {
        let address = self.allocate(data.len() * 4);
        // SAFETY: the source is a slice of that length, read at the call.
        assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(address, data.as_ptr().cast(), data.len() * 4, 0) }, 0);
        address
    }

    /// Copies back and synchronises; the status is that of the copy.
    pub fn download(&self, address: u64, words: usize) -> Result<Vec<u32>, u32> {
        let mut out = vec![0u32; words];
        // SAFETY: the target is a slice of that length; a pageable copy is done when the call
        // returns.
        match unsafe { cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), address, words * 4, 0) } {
            0 => Ok(out),
            status => Err(status),
        }
    }

    /// A function of a module given as PTX text.
    pub fn function(&self, ptx: &str, name: &str) -> usize {
        self.planted_function(ptx, name, "").expect("the module loads")
    }

    /// Like [`function`](Self::function), with bugs planted; or the status of the module's load.
    pub fn planted_function(&self, ptx: &str, name: &str, plants: &str) -> Result<usize, u32> {
        self.planted_and_counted(ptx, name, plants).map(|(function, _)| function)
    }

    /// Like [`planted_function`](Self::planted_function), with the count of edited instructions.
    pub fn planted_and_counted(&self, ptx: &str, name: &str, plants: &str) -> Result<(usize, usize), u32> {
        // Plants are the process's: another test's module must not be loaded among them.
        static PLANTING: Mutex<()> = Mutex::new(());
        let alone = PLANTING.lock().unwrap_or_else(PoisonError::into_inner);
        let [text, name, plants] = [ptx, name, plants].map(|text| CString::new(text).expect("no zero byte"));
        let (mut module, mut function) = (0, 0);
        // SAFETY: the strings end in a zero byte; the out parameters are locals.
        unsafe {
            softgpu::report::softgpu_plant(plants.as_ptr());
            let status = cuModuleLoadData(&mut module, text.as_ptr().cast());
            let planted = softgpu::report::softgpu_planted();
            softgpu::report::softgpu_plant(std::ptr::null());
            drop(alone);
            if status != 0 {
                return Err(status);
            }
            assert_eq!(cuModuleGetFunction(&mut function, module, name.as_ptr()), 0);
            Ok((function, planted))
        }
    }

    /// Queues a kernel whose parameters are all 64-bit.
    pub fn launch(&self, function: usize, blocks: u32, threads: u32, params: &[u64]) -> u32 {
        self.launch_on(0, function, blocks, threads, params)
    }

    /// Like [`launch`](Self::launch), on a stream.
    pub fn launch_on(
        &self,
        stream: usize,
        function: usize,
        blocks: u32,
        threads: u32,
        params: &[u64],
    ) -> u32 {
        let mut values = params.to_vec();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| (v as *mut u64).cast()).collect();
        // SAFETY: one pointer a parameter, each to 8 bytes, copied at the call.
        unsafe {
            cuLaunchKernel(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
    }

    pub fn synchronize(&self) -> u32 {
        cuStreamSynchronize(0)
    }

    /// A counter of this device's last launch.
    pub fn counter(&self, name: &str) -> u64 {
        let mut buffer = vec![0u8; 1 << 18];
        // SAFETY: the buffer has that length.
        let length =
            unsafe { softgpu::report::softgpu_counters_json(buffer.as_mut_ptr().cast(), buffer.len()) };
        let text = String::from_utf8_lossy(&buffer[..length.min(buffer.len())]).into_owned();
        let mine = format!("\"device\":{},", self.device);
        let launch =
            text.split("{\"kernel\"").filter(|part| part.contains(&mine)).last().expect("a launch is listed");
        let (_, after) = launch.split_once(&format!("\"{name}\":")).expect("the counter is there");
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// The message that was printed with the device's error.
    pub fn message(&self) -> String {
        let mut buffer = vec![0u8; 4096];
        // SAFETY: the buffer has that length.
        let length = unsafe {
            softgpu::report::softgpu_last_message(
                self.device as usize,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        String::from_utf8_lossy(&buffer[..length.min(buffer.len())]).into_owned()
    }
}

/// Runs an ignored test of this binary in a process of its own, whose settings are read anew.
pub fn child(test: &str, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.envs(settings.iter().copied()).output().expect("the child starts")
}

/// Asserts that the test of [`child`] ran and passed, and returns what it wrote to stderr.
pub fn assert_passed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    stderr
}

/// A communicator's configuration: init and collectives return at once.
pub const NON_BLOCKING: Config = Config { size: 0, magic: 0, version: 0, blocking: 0 };
/// A configuration: init and collectives wait until they have succeeded.
pub const BLOCKING: Config = Config { blocking: 1, ..NON_BLOCKING };

pub fn unique_id() -> UniqueId {
    let mut id = std::mem::MaybeUninit::uninit();
    // SAFETY: the call writes the whole id.
    unsafe {
        assert_eq!(ncclGetUniqueId(id.as_mut_ptr()), 0);
        id.assume_init()
    }
}

/// Joins the thread's device as a rank: the result of the call, and the communicator.
pub fn join(id: UniqueId, ranks: i32, rank: i32, config: &Config) -> (u32, usize) {
    let mut comm = usize::MAX;
    // SAFETY: the out parameter is a local.
    let result = unsafe { ncclCommInitRankConfig(&mut comm, ranks, id, rank, config) };
    (result, comm)
}

/// The communicator's async error.
pub fn state(comm: usize) -> u32 {
    let mut state = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { ncclCommGetAsyncError(comm, &mut state) }, 0);
    state
}

/// The content of `tests/ptx/NAME.ptx`.
pub fn ptx(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/ptx").join(format!("{name}.ptx"));
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}
