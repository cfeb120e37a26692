//! Copies of the library. Links to one file are one library to the loader, which reports the name
//! under which it was loaded first; so the names with a version are copies of the file, whose
//! cublasLt tells by its file's name which one it is, and forwards calls to the one beside
//! `libcuda.so`, which has the devices.

use crate::driver::settings::variable;
use crate::driver::version::driver_version;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The versions of `libcublasLt.so`, `.so.12` and `.so.13`.
const DEFAULT_VERSIONS: [usize; 3] = [130_000, 120_900, 130_000];

/// The file of this copy.
fn own_file() -> Option<PathBuf> {
    // SAFETY: all fields of a `Dl_info` are pointers, which may be null.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; the out parameter is a local.
    let found = unsafe { libc::dladdr(own_file as *const c_void, &mut info) } != 0;
    if !found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's string, which lives as long as the library, and so as this code.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    // A link to a copy is that copy.
    PathBuf::from(OsStr::from_bytes(name.to_bytes())).canonicalize().ok()
}

/// The major version in the name `libcublasLt.so.12`.
fn major_in_name() -> Option<u32> {
    let file = own_file()?;
    let name = file.file_name()?.to_str()?;
    name.strip_prefix("libcublasLt.so.")?.split('.').next()?.parse().ok()
}

/// The version of cublasLt under this name: `SOFTGPU_CUBLASLT`, which is up to three of them.
pub(super) fn version() -> usize {
    static VERSION: OnceLock<usize> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let index = match major_in_name() {
            Some(12) => 1,
            Some(13) => 2,
            _ => 0,
        };
        let settings = variable("SOFTGPU_CUBLASLT").unwrap_or_default();
        let setting = settings.split(',').nth(index).and_then(|item| item.trim().parse().ok());
        setting.unwrap_or(DEFAULT_VERSIONS[index])
    })
}

/// Whether the driver is as new as the library of this name needs: CUDA 12's runs on every driver
/// from 12.0 on, CUDA 13's on those from 13.0 on.
pub(super) fn driver_suffices() -> bool {
    driver_version() >= (version() / 10_000 * 1000) as c_int
}

/// The library that `libcuda.so` in this copy's folder is; `None` where this one is that, or there
/// is no other.
fn library() -> Option<*mut c_void> {
    static LIBRARY: OnceLock<Option<usize>> = OnceLock::new();
    let found = LIBRARY.get_or_init(|| {
        major_in_name()?;
        let path = own_file()?.with_file_name("libcuda.so");
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: the path ends in a zero byte. Its initialisers are the Rust runtime's own.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            eprintln!("softgpu: cublasLt: there is no libcuda.so beside {}", own_file()?.display());
            return None;
        }
        Some(library as usize)
    });
    found.map(|library| library as *mut c_void)
}

/// The function of this name in the library that has the devices; `None` where that is this one.
///
/// `name` ends in a zero byte.
pub(super) fn function(name: &'static str, own: *const c_void) -> Option<*const c_void> {
    let library = library()?;
    // SAFETY: the library stays loaded; the name ends in a zero byte.
    let address = unsafe { libc::dlsym(library, name.as_ptr().cast::<c_char>()) }.cast_const();
    (!address.is_null() && address != own).then_some(address)
}

/// A function by its address.
///
/// # Safety
/// `F` is a pointer to a function, and that of the address is of its type.
pub(super) unsafe fn of_type<F: Copy>(_: F, address: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    // SAFETY: the caller's promise; the sizes are equal.
    unsafe { std::mem::transmute_copy(&address) }
}

/// Returns what the function of this name returns in the library that has the devices, unless that
/// is this one.
macro_rules! forward {
    ($name:ident($($argument:ident),* $(,)?)) => {
        static ELSEWHERE: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
        let own = $name as unsafe extern "C" fn($(forward!(@any $argument)),*) -> LtStatus;
        let elsewhere = ELSEWHERE.get_or_init(|| {
            let name = concat!(stringify!($name), "\0");
            $crate::blas::elsewhere::function(name, own as *const c_void).map(|address| address as usize)
        });
        if let Some(address) = *elsewhere {
            // SAFETY: a function of the same source, and so of the type of `own`; pointers to
            // functions have the size of a `usize`.
            let function = unsafe { $crate::blas::elsewhere::of_type(own, address) };
            // SAFETY: the caller's promises, which are those of this function.
            return unsafe { function($($argument),*) };
        }
    };
    (@any $argument:ident) => { _ };
}
pub(super) use forward;
