//! cublasLt under the names of several versions, which share the devices of `libcuda.so`.

use cudarc::driver::{CudaContext, CudaStream};
use softgpu::blas::{HeuristicResult, LtStatus};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const NOT_INITIALIZED: u32 = 1;
const NOT_SUPPORTED: u32 = 15;
const COMPUTE_32F: c_uint = 68;
const F32: c_uint = 0;
const BF16: c_uint = 14;

/// Runs one of the ignored tests below in a process whose libraries are those of `link`.
fn assert_child_passes(test: &str, settings: &[(&str, &str)]) {
    let exe = std::env::current_exe().expect("the test's own path");
    let library = exe.parent().expect("it lies in a folder").join("libsoftgpu.so");
    let folder: PathBuf = std::env::temp_dir().join(format!("softgpu-{}-{test}", std::process::id()));
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join("link");
    // Twice, as a folder that exists already must be no obstacle.
    for _ in 0..2 {
        assert!(Command::new(&link).args([&folder, &library]).status().expect("link starts").success());
    }
    // A link in another folder, as a program may be given one.
    let links = folder.join("links");
    std::fs::create_dir(&links).expect("a folder for the link");
    symlink(folder.join("libcublasLt.so.12"), links.join("liblinked.so")).expect("a link");
    let path = std::env::join_paths([&folder, &links]).expect("paths without a colon");
    let mut command = Command::new(exe);
    command.args([test, "--exact", "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", path);
    let output = command.envs(settings.iter().copied()).output().expect("the child starts");
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{}", text(&output.stderr));
}

/// cublasLt under one of its names.
struct Lt(*mut c_void);

impl Lt {
    fn open(name: &str) -> Self {
        let name = CString::new(name).expect("no zero byte");
        // SAFETY: the name ends in a zero byte; the library's initialisers are the Rust runtime's.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "{name:?} is not found");
        Self(library)
    }

    /// # Safety
    /// `F` is the type of the function of this name, which ends in a zero byte.
    unsafe fn function<F>(&self, name: &'static str) -> F {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        // SAFETY: the library stays open; the name ends in a zero byte.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr().cast::<c_char>()) };
        assert!(!address.is_null(), "there is no {name}");
        // SAFETY: the caller's promise.
        unsafe { std::mem::transmute_copy(&address) }
    }

    fn version(&self) -> usize {
        // SAFETY: the function is of this type.
        unsafe { self.function::<extern "C" fn() -> usize>("cublasLtGetVersion\0")() }
    }

    fn create(&self) -> (LtStatus, usize) {
        let mut handle = 0;
        // SAFETY: the function is of this type; the out parameter is a local.
        let status = unsafe {
            self.function::<unsafe extern "C" fn(*mut usize) -> LtStatus>("cublasLtCreate\0")(&mut handle)
        };
        (status, handle)
    }

    /// D [n, m] = X [m, k] * W [n, k]^T of ones by the first proposal, and the status of the
    /// heuristic.
    fn ones(&self, handle: usize, stream: &Arc<CudaStream>) -> Result<Vec<u16>, LtStatus> {
        type Layout = unsafe extern "C" fn(*mut usize, c_uint, u64, u64, i64) -> LtStatus;
        type Make = unsafe extern "C" fn(*mut usize, c_uint, c_uint) -> LtStatus;
        type Set = unsafe extern "C" fn(usize, c_uint, *const c_void, usize) -> LtStatus;
        type Prefer = unsafe extern "C" fn(*mut usize) -> LtStatus;
        type Heuristic = unsafe extern "C" fn(
            usize,
            usize,
            usize,
            usize,
            usize,
            usize,
            usize,
            c_int,
            *mut HeuristicResult,
            *mut c_int,
        ) -> LtStatus;
        type Matmul = unsafe extern "C" fn(
            usize,
            usize,
            *const f32,
            u64,
            usize,
            u64,
            usize,
            *const f32,
            u64,
            usize,
            u64,
            usize,
            *const HeuristicResult,
            u64,
            usize,
            usize,
        ) -> LtStatus;
        let (m, n, k) = (4u64, 8u64, 16u64);
        let one = half::bf16::ONE.to_bits();
        let ones = |count: u64| stream.clone_htod(&vec![one; count as usize]).expect("memory");
        let (w, x, d) = (ones(n * k), ones(m * k), ones(m * n));
        let address = |slice: &cudarc::driver::CudaSlice<u16>| {
            use cudarc::driver::DevicePtr;
            slice.device_ptr(stream).0
        };
        // SAFETY: the functions have these types; every out parameter is a local, the buffers have
        // the sizes of the layouts and live until the stream has run.
        unsafe {
            let layout = |rows: u64, columns: u64| {
                let mut made = 0;
                let create: Layout = self.function("cublasLtMatrixLayoutCreate\0");
                assert_eq!(create(&mut made, BF16, rows, columns, rows as i64), 0);
                made
            };
            let (lw, lx, ld) = (layout(k, n), layout(k, m), layout(n, m));
            let (mut desc, mut preference) = (0, 0);
            let make: Make = self.function("cublasLtMatmulDescCreate\0");
            assert_eq!(make(&mut desc, COMPUTE_32F, F32), 0);
            let set: Set = self.function("cublasLtMatmulDescSetAttribute\0");
            let transposed = 1i32;
            assert_eq!(set(desc, 3, (&raw const transposed).cast(), 4), 0);
            let prefer: Prefer = self.function("cublasLtMatmulPreferenceCreate\0");
            assert_eq!(prefer(&mut preference), 0);
            let mut found = std::mem::MaybeUninit::<HeuristicResult>::zeroed();
            let mut count = 0;
            let heuristic: Heuristic = self.function("cublasLtMatmulAlgoGetHeuristic\0");
            let status =
                heuristic(handle, desc, lw, lx, ld, ld, preference, 1, found.as_mut_ptr(), &mut count);
            if status != 0 {
                return Err(status);
            }
            assert_eq!(count, 1);
            let (alpha, beta) = (1.0, 0.0);
            let matmul: Matmul = self.function("cublasLtMatmul\0");
            let status = matmul(
                handle,
                desc,
                &alpha,
                address(&w),
                lw,
                address(&x),
                lx,
                &beta,
                address(&d),
                ld,
                address(&d),
                ld,
                found.as_ptr(),
                0,
                0,
                stream.cu_stream() as usize,
            );
            assert_eq!(status, 0);
        }
        Ok(stream.clone_dtoh(&d).expect("the result"))
    }
}

fn stream() -> Arc<CudaStream> {
    CudaContext::new(0).expect("a context").new_stream().expect("a stream")
}

#[test]
fn versions_differ_by_name_and_share_the_devices() {
    assert_child_passes("child_versions", &[("SOFTGPU_MEMORY_GIB", "1")]);
}

#[test]
#[ignore = "runs in a child process, started by versions_differ_by_name_and_share_the_devices"]
fn child_versions() {
    let stream = stream();
    let sixteen = half::bf16::from_f32(16.0).to_bits();
    for (name, version) in [
        ("libcublasLt.so", 130_000),
        ("liblinked.so", 120_900),
        ("libcublasLt.so.12", 120_900),
        ("libcublasLt.so.13", 130_000),
    ] {
        let lt = Lt::open(name);
        assert_eq!(lt.version(), version, "{name}");
        let (status, handle) = lt.create();
        assert_eq!(status, 0, "{name}");
        // On memory of libcuda.so's device.
        assert_eq!(lt.ones(handle, &stream), Ok(vec![sixteen; 32]), "{name}");
    }
}

#[test]
fn versions_are_set_one_a_name() {
    let settings = [("SOFTGPU_MEMORY_GIB", "1"), ("SOFTGPU_CUBLASLT", "110800,120400")];
    assert_child_passes("child_set_versions", &settings);
}

#[test]
#[ignore = "runs in a child process, started by versions_are_set_one_a_name"]
fn child_set_versions() {
    let stream = stream();
    let [plain, of_12, of_13] = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"].map(Lt::open);
    assert_eq!([&plain, &of_12, &of_13].map(Lt::version), [110_800, 120_400, 130_000]);
    // One that is older than the device has nothing for it, which does not reach the others.
    let handle = plain.create().1;
    assert_eq!(plain.ones(handle, &stream), Err(NOT_SUPPORTED));
    for lt in [&of_12, &of_13] {
        let handle = lt.create().1;
        assert!(lt.ones(handle, &stream).is_ok());
    }
}

#[test]
fn version_13_does_not_start_on_a_driver_of_12() {
    let settings = [("SOFTGPU_MEMORY_GIB", "1"), ("SOFTGPU_DRIVER", "12040")];
    assert_child_passes("child_of_an_older_driver", &settings);
}

#[test]
#[ignore = "runs in a child process, started by version_13_does_not_start_on_a_driver_of_12"]
fn child_of_an_older_driver() {
    let stream = stream();
    let [plain, of_12, of_13] = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"].map(Lt::open);
    assert_eq!((plain.create().0, of_13.create().0), (NOT_INITIALIZED, NOT_INITIALIZED));
    let (status, handle) = of_12.create();
    assert_eq!(status, 0);
    assert!(of_12.ones(handle, &stream).is_ok());
}
