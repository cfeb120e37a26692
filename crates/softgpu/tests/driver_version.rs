//! Drivers of other versions: entry points that they lack, and code that they do not load.

mod common;

use common::{Gpu, assert_passed, child};
use softgpu::driver::{entry_points::*, launch::*, stream::*, version::*};
use std::ffi::{CString, c_void};
use std::os::unix::process::ExitStatusExt;

const SIGABRT: i32 = 6;
const INVALID_VALUE: u32 = 1;
const UNSUPPORTED_PTX: u32 = 222;
const NO_BINARY: u32 = 209;
/// `CUdriverProcAddressQueryResult`.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;
const VERSION_NOT_SUFFICIENT: u32 = 2;

type Elapsed = unsafe extern "C" fn(*mut f32, usize, usize) -> u32;

fn version() -> i32 {
    let mut version = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cuDriverGetVersion(&mut version) }, 0);
    version
}

/// The status of a look-up, its address, and what it says of the name.
fn look_up(name: &str, version: i32) -> (u32, *const c_void, u32) {
    let name = CString::new(name).expect("no zero byte");
    let (mut function, mut found) = (std::ptr::dangling(), u32::MAX);
    // SAFETY: the name ends in a zero byte; the out parameters are locals.
    let status = unsafe { cuGetProcAddress_v2(name.as_ptr(), &mut function, version, 0, &mut found) };
    (status, function, found)
}

fn two_passed_events(gpu: &Gpu) -> (usize, usize) {
    let (first, second) = (gpu.event_after_all(), gpu.event_after_all());
    assert_eq!(gpu.synchronize(), 0);
    (first, second)
}

#[test]
fn driver_of_12_4_measures_by_the_first_variant_alone() {
    let settings = [("SOFTGPU_DRIVER", "12040")];
    assert_passed(&child("child_of_12_4", &settings));
    let called = child("child_that_calls_the_second_variant", &settings);
    assert_eq!(called.status.signal(), Some(SIGABRT), "{called:?}");
    let stderr = String::from_utf8_lossy(&called.stderr).into_owned();
    assert!(stderr.contains("this driver has no cuEventElapsedTime_v2"), "{stderr}");
    // The same test passes where the driver has it.
    assert_passed(&child("child_that_calls_the_second_variant", &[("SOFTGPU_DRIVER", "12080")]));
}

#[test]
#[ignore = "runs in a child process, started by driver_of_12_4_measures_by_the_first_variant_alone"]
fn child_of_12_4() {
    assert_eq!(version(), 12_040);
    let (status, function, found) = look_up("cuEventElapsedTime", 12_040);
    assert_eq!((status, found), (0, FOUND));
    assert_eq!(function, cuEventElapsedTime as *const c_void);
    let gpu = Gpu::new();
    let (first, second) = two_passed_events(&gpu);
    // SAFETY: the look-up gave the function of this type.
    let elapsed: Elapsed = unsafe { std::mem::transmute(function) };
    let mut ms = -1.0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { elapsed(&mut ms, first, second) }, 0);
    assert!(ms >= 0.0, "{ms}");
    // A newer interface than the driver's.
    assert_eq!(look_up("cuEventElapsedTime", 12_080).0, INVALID_VALUE);
}

#[test]
#[ignore = "runs in a child process, started by driver_of_12_4_measures_by_the_first_variant_alone"]
fn child_that_calls_the_second_variant() {
    let gpu = Gpu::new();
    let (first, second) = two_passed_events(&gpu);
    let mut ms = -1.0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cuEventElapsedTime_v2(&mut ms, first, second) }, 0);
}

#[test]
fn entry_points_are_found_by_name_and_version() {
    assert_eq!(version(), 13_000);
    assert_eq!(look_up("cuEventElapsedTime", 12_070).1, cuEventElapsedTime as *const c_void);
    assert_eq!(look_up("cuEventElapsedTime", 12_080).1, cuEventElapsedTime_v2 as *const c_void);
    let (status, function, found) = look_up("cuGetProcAddress", 11_000);
    assert!(function.is_null());
    assert_eq!((status, found), (0, VERSION_NOT_SUFFICIENT));
    // Names are without the suffix of a variant.
    for name in ["cuEventElapsedTime_v2", "cuFrobnicate"] {
        let (status, function, found) = look_up(name, 13_000);
        assert!(function.is_null());
        assert_eq!((status, found), (0, NOT_FOUND), "{name}");
    }
}

const PTX: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry empty()\n{\nret;\n}\n";

/// A fatbin with PTX for 8.0 and machine code for this architecture by this toolkit.
fn fatbin(architecture: u32, toolkit: u16) -> Vec<u8> {
    let entry = |kind: u16, architecture: u32, payload: &[u8]| {
        let mut entry = vec![0u8; 64];
        entry[..2].copy_from_slice(&kind.to_le_bytes());
        entry[4..8].copy_from_slice(&64u32.to_le_bytes());
        entry[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        entry[28..32].copy_from_slice(&architecture.to_le_bytes());
        entry.extend(payload);
        entry
    };
    let mut elf = b"\x7FELF, which is not read but for this note:".to_vec();
    elf.extend(b"\x0C\0\0\0\x08\0\0\0\xE8\x03\0\0NVIDIA Corp\0\x02\0");
    elf.extend([architecture as u16, toolkit, 0].map(u16::to_le_bytes).concat());
    let entries = [entry(1, 80, PTX.as_bytes()), entry(2, architecture, &elf)].concat();
    let mut image = 0xBA55_ED50u32.to_le_bytes().to_vec();
    image.extend([1, 0, 16, 0]);
    image.extend((entries.len() as u64).to_le_bytes());
    image.extend(entries);
    image
}

fn load(image: &[u8]) -> u32 {
    let mut module = 0;
    // SAFETY: the image is a whole fatbin, or text with a zero byte at its end.
    unsafe { cuModuleLoadData(&mut module, image.as_ptr().cast()) }
}

#[test]
fn machine_code_is_loaded_by_drivers_of_its_major_version() {
    let stderr = assert_passed(&child("child_that_loads", &[("SOFTGPU_DRIVER", "12040")]));
    assert!(stderr.contains("its machine code is of CUDA 13.0, and its PTX 9.0 is newer than"), "{stderr}");
    assert!(stderr.contains("it has no machine code for this device, and its PTX 9.0"), "{stderr}");
}

#[test]
#[ignore = "runs in a child process, started by machine_code_is_loaded_by_drivers_of_its_major_version"]
fn child_that_loads() {
    let _gpu = Gpu::new();
    assert_eq!(load(&fatbin(80, 120)), 0);
    assert_eq!(load(&fatbin(80, 129)), 0, "newer, but of the same major version");
    assert_eq!(load(&fatbin(80, 130)), UNSUPPORTED_PTX);
    assert_eq!(load(&fatbin(75, 120)), UNSUPPORTED_PTX, "machine code for another GPU");
    let text = |version: &str| PTX.replace("9.0", version) + "\0";
    assert_eq!(load(text("8.4").as_bytes()), 0);
    assert_eq!(load(text("8.5").as_bytes()), UNSUPPORTED_PTX);
}

#[test]
fn driver_of_13_0_loads_code_of_12_and_13() {
    let _gpu = Gpu::new();
    for image in [fatbin(80, 129), fatbin(80, 130), fatbin(75, 130)] {
        assert_eq!(load(&image), 0);
    }
    let for_another = fatbin(80, 130).windows(4).position(|bytes| bytes == 80u32.to_le_bytes());
    let mut image = fatbin(80, 130);
    // PTX for 9.0 alone does not run on 8.0.
    image[for_another.expect("the PTX's architecture")] = 90;
    assert_eq!(load(&image), NO_BINARY);
}
