//! The software GPU of this process: planned faults, and counts of allocations and calls.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::{Library, Symbol};
use serde::Deserialize;
use serde_json::Value;

/// The software GPU of this process, for one test at a time.
pub(crate) struct Gpu {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

/// The allocations on all devices together, as the software GPU counts them.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) live_bytes: u64,
    pub(crate) peak_bytes: u64,
    /// Bytes that the end of the context freed instead of the program.
    pub(crate) reclaimed_bytes: u64,
    pub(crate) context_references: u64,
    pub(crate) pinned_bytes: u64,
}

/// One piece of work of a device, in logical time.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) device: usize,
    pub(crate) stream: usize,
    pub(crate) priority: i32,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) bytes: usize,
    /// Those that a matmul is planned for.
    pub(crate) multiprocessors: usize,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Gpu {
    pub(crate) fn take() -> Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let library = LIBRARY.get_or_init(|| {
            // SAFETY: the software GPU's initialisers are the Rust runtime's own.
            let library = unsafe { Library::new("libcuda.so") };
            library.expect("libcuda.so is not on LD_LIBRARY_PATH: `make test` sets it")
        });
        // A test that failed has dropped its engines as it unwound.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = Self { library, _turn: turn };
        gpu.plan("");
        gpu.assert_free();
        gpu
    }

    /// Plans faults, counted from this call on.
    pub(crate) fn plan(&self, plan: &str) {
        let plan = CString::new(plan).unwrap();
        // SAFETY: the function has this type in softgpu, which alone has one of this name; the
        // string ends in zero.
        unsafe {
            let function: Symbol<'_, unsafe extern "C" fn(*const c_char)> =
                self.library.get(b"softgpu_plan_faults").expect("libcuda.so is the software GPU");
            function(plan.as_ptr());
        }
    }

    /// Clears the trace and the counts of calls.
    pub(crate) fn reset_trace(&self) {
        // SAFETY: the function has this type in softgpu, which alone has one of this name.
        unsafe {
            let function: Symbol<'_, unsafe extern "C" fn()> =
                self.library.get(b"softgpu_reset_trace").expect("libcuda.so is the software GPU");
            function();
        }
    }

    /// Returns the work that ran since the last reset.
    pub(crate) fn trace(&self) -> Vec<Entry> {
        serde_json::from_value(self.json("softgpu_trace_json")).unwrap()
    }

    /// Returns the number of calls of an entry point.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        self.json("softgpu_calls_json")["calls"][name].as_u64().unwrap_or(0)
    }

    /// Returns the numbers of calls of all entry points, by name.
    pub(crate) fn all_calls(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.json("softgpu_calls_json")["calls"].clone()).unwrap()
    }

    /// Returns the number of contexts that were made.
    pub(crate) fn contexts(&self) -> u64 {
        self.json("softgpu_calls_json")["contexts"].as_u64().unwrap()
    }

    /// Returns the number of calls for which NCCL starts a thread of the host.
    pub(crate) fn nccl_jobs(&self) -> u64 {
        self.json("softgpu_calls_json")["nccl_jobs"].as_u64().unwrap()
    }

    /// Returns the most launches that were queued behind results when these were copied.
    pub(crate) fn launches_behind_results(&self) -> u64 {
        self.json("softgpu_calls_json")["launches_behind_results"].as_u64().unwrap()
    }

    /// Returns the bytes that were copied to the device from memory that is not pinned.
    pub(crate) fn copied_in_pageable(&self) -> u64 {
        self.json("softgpu_calls_json")["copied_in"]["pageable"].as_u64().unwrap()
    }

    /// Returns the bytes that were copied from the device to memory that is not pinned.
    pub(crate) fn copied_out_pageable(&self) -> u64 {
        self.json("softgpu_calls_json")["copied_out"]["pageable"].as_u64().unwrap()
    }

    /// Returns the bytes that were copied to the device from pinned memory.
    pub(crate) fn copied_in_pinned(&self) -> u64 {
        self.json("softgpu_calls_json")["copied_in"]["pinned"].as_u64().unwrap()
    }

    fn json(&self, function: &str) -> Value {
        // SAFETY: the functions named here have this type in softgpu.
        let function: Symbol<'_, unsafe extern "C" fn(*mut c_char, usize) -> usize> =
            unsafe { self.library.get(function) }.expect("libcuda.so is the software GPU");
        let mut json = vec![0_u8; 1 << 16];
        loop {
            // SAFETY: the buffer has that length.
            let length = unsafe { function(json.as_mut_ptr().cast(), json.len()) };
            // A thread of the engine may be running, and the JSON longer at the next call.
            if length < json.len() {
                return serde_json::from_slice(&json[..length]).unwrap();
            }
            json.resize(2 * length, 0);
        }
    }

    pub(crate) fn held(&self) -> Held {
        let memory = self.json("softgpu_memory_json");
        let devices = memory["devices"].as_array().unwrap();
        let device = |name: &str| devices.iter().map(|device| device[name].as_u64().unwrap()).sum();
        Held {
            live_bytes: device("live_bytes"),
            peak_bytes: device("peak_bytes"),
            reclaimed_bytes: device("reclaimed_bytes"),
            context_references: device("context_references"),
            pinned_bytes: memory["pinned_bytes"].as_u64().unwrap(),
        }
    }

    /// Asserts that the program has freed everything, and that no context had to.
    pub(crate) fn assert_free(&self) {
        let held = self.held();
        let sum = held.live_bytes + held.reclaimed_bytes + held.context_references + held.pinned_bytes;
        assert_eq!(sum, 0, "{held:?}");
    }

    /// Returns the number of kernels launched so far.
    pub(crate) fn launches(&self) -> usize {
        self.json("softgpu_counters_json").as_array().unwrap().len()
    }
}

/// The variable of the environment that names the case that a process is to run.
const CASE: &str = "KUDOS_TEST_CASE";

/// Runs each case of a test in a process of its own: a GPU that fails ends the use of CUDA in its
/// process. `test` is the test's name, with its module.
pub(crate) fn in_own_processes(test: &str, cases: &[&str], body: impl FnOnce(&str)) {
    if let Ok(case) = std::env::var(CASE) {
        return body(&case);
    }
    for case in cases {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args([test, "--exact", "--ignored", "--nocapture"]).env(CASE, case).output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let ran = stdout.contains("1 passed");
        assert!(output.status.success() && ran, "{test}, case {case}:\n{stdout}\n{stderr}");
        stdout.lines().filter(|line| line.starts_with("did not run")).for_each(|line| println!("{line}"));
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.plan("");
    }
}
