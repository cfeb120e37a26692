//! [`LtLibrary`]: cublasLt's functions, resolved here, because the bindings would take the
//! unversioned library first, which is an older CUDA's where one is installed for development.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::cublaslt::sys;

use crate::backend::cuda::probe::{cuda_version, driver_version};
use crate::backend::cuda::vendor::{VendorLibrary, file_of};
use crate::error::{Error, ErrorKind, Result};

/// The driver that CUDA 13's library needs: 13.0, as `cuDriverGetVersion` writes it.
const DRIVER_OF_13: i32 = 13_000;

/// File names of the library, the newest that a driver can run first. That of CUDA 13 does not
/// start on an older driver.
fn names(driver: i32) -> &'static [&'static str] {
    const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
    if driver >= DRIVER_OF_13 { &NAMES } else { &NAMES[1..] }
}

/// `cublasStatus_t`, as a number: a newer library may return one that the bindings do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Status(u32);

impl Status {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const ALLOC_FAILED: Self = Self(3);
    pub(super) const NOT_SUPPORTED: Self = Self(15);

    /// An error unless it is success.
    pub(super) fn result(self) -> std::result::Result<(), Self> {
        if self == Self::SUCCESS { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "SUCCESS",
            1 => "NOT_INITIALIZED",
            3 => "ALLOC_FAILED",
            7 => "INVALID_VALUE",
            8 => "ARCH_MISMATCH",
            11 => "MAPPING_ERROR",
            13 => "EXECUTION_FAILED",
            14 => "INTERNAL_ERROR",
            15 => "NOT_SUPPORTED",
            16 => "LICENSE_ERROR",
            number => return write!(f, "cuBLAS status {number}"),
        };
        write!(f, "CUBLAS_STATUS_{name}")
    }
}

/// `cublasLtMatmulHeuristicResult_t`, with its status as a number.
#[repr(C)]
pub(super) struct HeuristicResult {
    pub(super) algorithm: sys::cublasLtMatmulAlgo_t,
    pub(super) workspace_bytes: usize,
    pub(super) state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

impl HeuristicResult {
    /// One to be overwritten.
    pub(super) fn of(algorithm: sys::cublasLtMatmulAlgo_t) -> Self {
        Self { algorithm, workspace_bytes: 0, state: Status::SUCCESS, waves: 0.0, reserved: [0; 4] }
    }
}

/// Declares the functions once: their fields, and how each is resolved.
macro_rules! functions {
    ($($field:ident = $name:literal, fn($($argument:ty),* $(,)?) -> $result:ty;)*) => {
        /// cublasLt, loaded for the life of the process.
        pub(super) struct LtLibrary {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// The name by which it was found.
            name: &'static str,
        }

        impl LtLibrary {
            /// Resolves all functions.
            fn resolve(library: &VendorLibrary) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: these are the functions' types in cublasLt.h, with its status as a
                    // number.
                    $($field: unsafe { library.function($name) }?,)*
                    name: library.name(),
                })
            }
        }
    };
}

functions! {
    get_version = "cublasLtGetVersion", fn() -> usize;
    create = "cublasLtCreate", fn(*mut sys::cublasLtHandle_t) -> Status;
    destroy = "cublasLtDestroy", fn(sys::cublasLtHandle_t) -> Status;
    layout_create = "cublasLtMatrixLayoutCreate",
        fn(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64) -> Status;
    layout_set = "cublasLtMatrixLayoutSetAttribute",
        fn(sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayoutAttribute_t, *const c_void, usize) -> Status;
    layout_destroy = "cublasLtMatrixLayoutDestroy", fn(sys::cublasLtMatrixLayout_t) -> Status;
    desc_create = "cublasLtMatmulDescCreate",
        fn(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType) -> Status;
    desc_set = "cublasLtMatmulDescSetAttribute",
        fn(sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize) -> Status;
    desc_destroy = "cublasLtMatmulDescDestroy", fn(sys::cublasLtMatmulDesc_t) -> Status;
    preference_create = "cublasLtMatmulPreferenceCreate",
        fn(*mut sys::cublasLtMatmulPreference_t) -> Status;
    preference_set = "cublasLtMatmulPreferenceSetAttribute",
        fn(
            sys::cublasLtMatmulPreference_t,
            sys::cublasLtMatmulPreferenceAttributes_t,
            *const c_void,
            usize,
        ) -> Status;
    preference_destroy = "cublasLtMatmulPreferenceDestroy", fn(sys::cublasLtMatmulPreference_t) -> Status;
    heuristic = "cublasLtMatmulAlgoGetHeuristic",
        fn(
            sys::cublasLtHandle_t,
            sys::cublasLtMatmulDesc_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatmulPreference_t,
            c_int,
            *mut HeuristicResult,
            *mut c_int,
        ) -> Status;
    check = "cublasLtMatmulAlgoCheck",
        fn(
            sys::cublasLtHandle_t,
            sys::cublasLtMatmulDesc_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            sys::cublasLtMatrixLayout_t,
            *const sys::cublasLtMatmulAlgo_t,
            *mut HeuristicResult,
        ) -> Status;
    config_get = "cublasLtMatmulAlgoConfigGetAttribute",
        fn(
            *const sys::cublasLtMatmulAlgo_t,
            sys::cublasLtMatmulAlgoConfigAttributes_t,
            *mut c_void,
            usize,
            *mut usize,
        ) -> Status;
    matmul = "cublasLtMatmul",
        fn(
            sys::cublasLtHandle_t,
            sys::cublasLtMatmulDesc_t,
            *const c_void,
            *const c_void,
            sys::cublasLtMatrixLayout_t,
            *const c_void,
            sys::cublasLtMatrixLayout_t,
            *const c_void,
            *const c_void,
            sys::cublasLtMatrixLayout_t,
            *mut c_void,
            sys::cublasLtMatrixLayout_t,
            *const sys::cublasLtMatmulAlgo_t,
            *mut c_void,
            usize,
            sys::cudaStream_t,
        ) -> Status;
}

impl LtLibrary {
    /// cublasLt, loaded on first use; [`ErrorKind::Device`] where it is missing or does not fit the
    /// driver.
    pub(super) fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<LtLibrary>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::load(driver_version()?)).as_ref().map_err(Error::clone)
    }

    fn load(driver: i32) -> Result<Self> {
        let major = driver.min(DRIVER_OF_13) / 1000;
        let hint = format!("install cuBLAS of CUDA {major}, or put its folder first on the loader's path");
        let Some(loaded) = VendorLibrary::load(names(driver)) else {
            let message = format!("cublasLt is not on this machine (no {} was found)", names(driver)[0]);
            return Err(Error::new(ErrorKind::Device, message).with_hint(hint));
        };
        let library = Self::resolve(&loaded).map_err(|error| {
            let message = format!("{} is not cublasLt of CUDA 12 or later", loaded.name());
            Error::new(ErrorKind::Device, message).caused_by(error).with_hint(&hint)
        })?;
        library.check_driver(driver).map_err(|error| error.with_hint(hint))?;
        Ok(library)
    }

    /// Checks that a driver of this version can run the library.
    fn check_driver(&self, driver: i32) -> Result<()> {
        if self.version() < 130_000 || driver >= DRIVER_OF_13 {
            return Ok(());
        }
        let message =
            format!("{self} needs a driver for CUDA 13, and this one is for {}", cuda_version(driver));
        Err(Error::new(ErrorKind::Device, message))
    }

    /// The version, as the library writes it: 130401 is 13.4.1.
    pub(super) fn version(&self) -> usize {
        // SAFETY: the call takes nothing.
        unsafe { (self.get_version)() }
    }

    /// The file that it was loaded from, or its name.
    fn path(&self) -> PathBuf {
        file_of(self.get_version as *const () as usize).unwrap_or_else(|| self.name.into())
    }
}

impl fmt::Display for LtLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version();
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        write!(f, "cublasLt {major}.{minor}.{patch} ({})", self.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_driver_is_not_given_the_library_of_cuda_13() {
        assert_eq!(names(12_040)[0], "libcublasLt.so.12");
        assert_eq!(names(13_000)[0], "libcublasLt.so.13");
        assert_eq!(names(13_010).last(), Some(&"libcublasLt.so"));
    }

    #[test]
    fn a_status_is_named_or_numbered() {
        assert_eq!(Status::NOT_SUPPORTED.to_string(), "CUBLAS_STATUS_NOT_SUPPORTED");
        assert_eq!(Status(99).to_string(), "cuBLAS status 99");
    }
}
