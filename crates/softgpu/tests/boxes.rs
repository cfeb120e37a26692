//! `cp.async.bulk.tensor`: boxes with contents that are known, and kernels with one bug planted, which
//! must be caught and named.

mod common;

use std::ffi::c_void;
use std::sync::Once;

use common::Gpu;
use softgpu::driver::tensor_map::cuTensorMapEncodeTiled;

const INVALID_VALUE: u32 = 1;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_TIMEOUT: u32 = 702;
const ILLEGAL_INSTRUCTION: u32 = 715;
const NOT_SUPPORTED: u32 = 801;
/// The tensor: columns, heads, rows; and a box.
const DIMS: [u64; 3] = [64, 3, 100];
const BOX: [u32; 3] = [64, 1, 8];
const BOX_WORDS: usize = 256;
/// `CUtensorMapDataType` and `CUtensorMapSwizzle`.
const BFLOAT16: u32 = 9;
const SWIZZLE_NONE: u32 = 0;
const SWIZZLE_128B: u32 = 3;

/// A map's 128 bytes, at a multiple of 64.
#[repr(C, align(64))]
struct Map([u32; 32]);

fn gpu() -> Gpu {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: `call_once` runs before any other thread of this binary reads the environment.
        unsafe { std::env::set_var("SOFTGPU_CC", "90") };
    });
    Gpu::new()
}

fn element(column: i64, head: i64, row: i64) -> u16 {
    let inside = |index: i64, dim: u64| (0..dim as i64).contains(&index);
    let is_inside = inside(column, DIMS[0]) && inside(head, DIMS[1]) && inside(row, DIMS[2]);
    if is_inside { (1 + column + 64 * head + 192 * row) as u16 } else { 0 }
}

/// Encodes a map of the tensor at this address.
fn encode(address: u64, strides: [u64; 2], data_type: u32, swizzle: u32) -> Result<Map, u32> {
    let mut map = Map([0; 32]);
    let ones = [1u32; 3];
    // SAFETY: the arrays have three elements, the strides two, and the map is a local.
    let status = unsafe {
        cuTensorMapEncodeTiled(
            (&raw mut map).cast::<c_void>(),
            data_type,
            3,
            address as *const c_void,
            DIMS.as_ptr(),
            strides.as_ptr(),
            BOX.as_ptr(),
            ones.as_ptr(),
            0,
            swizzle,
            0,
            0,
        )
    };
    if status == 0 { Ok(map) } else { Err(status) }
}

/// Uploads the tensor, and returns its address.
fn upload_tensor(gpu: &Gpu) -> u64 {
    let indices = (0..DIMS[2] as i64).flat_map(|row| (0..DIMS[1] as i64).map(move |head| (row, head)));
    let elements =
        indices.flat_map(|(row, head)| (0..DIMS[0] as i64).map(move |column| element(column, head, row)));
    let elements: Vec<u16> = elements.collect();
    let words: Vec<u32> =
        elements.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect();
    gpu.upload(&words)
}

/// Uploads the tensor and its map, and returns the map's address.
fn upload(gpu: &Gpu, swizzle: u32) -> u64 {
    let map = encode(upload_tensor(gpu), [128, 384], BFLOAT16, swizzle);
    gpu.upload(&map.unwrap_or_else(|status| panic!("error {status}")).0)
}

/// Two warps: a thread of the first brings the box at (`column`, head, `row`) of two heads to one place,
/// one after the other; the second stores the contents. `map_param` has the map's address.
fn kernel(column: i32, row: i32) -> String {
    kernel_with(column, row, [".param .u64 map_param", "ld.param.u64 %d2, [map_param];\n", ""])
}

/// Like [`kernel`], with a parameter, the instructions that set %d2 to the map's address, and instructions
/// behind the copy.
fn kernel_with(column: i32, row: i32, [parameter, set_map, after]: [&str; 3]) -> String {
    let copies: String = (0..8)
        .map(|j| format!("ld.shared.u32 %r12, [%r11+{}];\nst.global.u32 [%d4+{}], %r12;\n", 128 * j, 128 * j))
        .collect();
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry victim(.param .u64 out_param, {parameter})\n{{\n\
         .reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b64 %d<8>;\n.shared .align 1024 .b8 place[1040];\n\
         ld.param.u64 %d1, [out_param];\n{set_map}mov.u32 %r1, %tid.x;\n\
         mov.u32 %r2, place;\nadd.s32 %r3, %r2, 1024;\nadd.s32 %r4, %r2, 1032;\nand.b32 %r5, %r1, 31;\n\
         setp.ne.u32 %p1, %r1, 0;\n@%p1 bra READY;\n\
         mbarrier.init.shared::cta.b64 [%r3], 1;\nmbarrier.init.shared::cta.b64 [%r4], 1;\n\
         fence.mbarrier_init.release.cluster;\nREADY:\nbar.sync 0;\n\
         mov.u32 %r6, 0;\nmov.u32 %r7, 0;\nmov.u32 %r8, 1;\nmov.u32 %r9, {column};\nmov.u32 %r10, {row};\n\
         setp.ge.u32 %p2, %r1, 32;\n@%p2 bra CONSUME;\n@%p1 bra END;\n\
         PRODUCE:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r4], %r8;\n@!%p3 bra PRODUCE;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 1024;\n\
         cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], \
         [%d2, {{%r9, %r6, %r10}}], [%r3];\n{after}\
         xor.b32 %r8, %r8, 1;\nadd.s32 %r6, %r6, 1;\nsetp.lt.u32 %p4, %r6, 2;\n@%p4 bra PRODUCE;\nret;\n\
         CONSUME:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], %r7;\n@!%p3 bra CONSUME;\n\
         mad.lo.s32 %r11, %r5, 4, %r2;\nmad.lo.s32 %r13, %r6, 1024, 0;\nmad.lo.s32 %r13, %r5, 4, %r13;\n\
         cvt.u64.u32 %d3, %r13;\nadd.s64 %d4, %d1, %d3;\n{copies}\
         bar.warp.sync 0xffffffff;\nsetp.ne.u32 %p5, %r5, 0;\n@%p5 bra NEXT;\n\
         mbarrier.arrive.shared::cta.b64 _, [%r4];\n\
         NEXT:\nxor.b32 %r7, %r7, 1;\nadd.s32 %r6, %r6, 1;\nsetp.lt.u32 %p4, %r6, 2;\n@%p4 bra CONSUME;\n\
         END:\nret;\n}}\n"
    )
}

#[test]
fn boxes_have_known_contents_within_the_tensor_and_beyond() {
    for (column, row, swizzle) in [
        (0, 0, SWIZZLE_128B),
        (0, 0, SWIZZLE_NONE),
        (0, 96, SWIZZLE_128B),
        (24, -3, SWIZZLE_128B),
        (-9, 5, SWIZZLE_NONE),
        (64, 0, SWIZZLE_128B),
    ] {
        let gpu = gpu();
        let (output, map) = (gpu.allocate(8 * BOX_WORDS), upload(&gpu, swizzle));
        let function = gpu.function(&kernel(column, row), "victim");
        assert_eq!(gpu.launch(function, 1, 64, &[output, map]), 0);
        check(&gpu, output, (column, row), swizzle);
    }
}

/// Compares the boxes of two heads that were stored.
#[track_caller]
fn check(gpu: &Gpu, output: u64, (column, row): (i32, i32), swizzle: u32) {
    let words = gpu.download(output, 2 * BOX_WORDS).unwrap_or_else(|_| panic!("{}", gpu.message()));
    for head in 0..2 {
        for line in 0..8 {
            for at in 0..64 {
                // Chunks of eight elements are exchanged by the line's index.
                let exchanged = if swizzle == SWIZZLE_128B { line } else { 0 };
                let place = at ^ (8 * exchanged);
                let word = words[head * BOX_WORDS + line * 32 + place / 2];
                let found = (word >> (16 * (place % 2))) as u16;
                let expected =
                    element(i64::from(column) + at as i64, head as i64, i64::from(row) + line as i64);
                assert_eq!(found, expected, "box at ({column}, {head}, {row}), line {line}, element {at}");
            }
        }
    }
}

#[test]
fn a_map_may_be_a_parameter() {
    let gpu = gpu();
    let output = gpu.allocate(8 * BOX_WORDS);
    let map = encode(upload_tensor(&gpu), [128, 384], BFLOAT16, SWIZZLE_128B);
    let map = map.unwrap_or_else(|status| panic!("error {status}"));
    let parameter = ".param .align 64 .b8 map_param[128]";
    let set_map = "mov.b64 %d2, map_param;\ncvta.param.u64 %d2, %d2;\n";
    let function = gpu.function(&kernel_with(0, 40, [parameter, set_map, ""]), "victim");
    // The driver reads 128 bytes from the place of the second value on.
    let map = map.0.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32);
    let values: Vec<u64> = [output].into_iter().chain(map).collect();
    assert_eq!(gpu.launch(function, 1, 64, &values), 0);
    check(&gpu, output, (0, 40), SWIZZLE_128B);
}

/// Runs the kernel clean, then with the plant: the device must stop with all of the words.
#[track_caller]
fn caught(plant: &str, status: u32, says: &[&str]) {
    caught_in(&kernel(0, 0), plant, status, says);
}

#[track_caller]
fn caught_in(text: &str, plant: &str, status: u32, says: &[&str]) {
    let gpu = gpu();
    let (output, map) = (gpu.allocate(8 * BOX_WORDS), upload(&gpu, SWIZZLE_128B));
    let clean = gpu.function(text, "victim");
    assert_eq!(gpu.launch(clean, 1, 64, &[output, map]), 0);
    assert_eq!(gpu.synchronize(), 0, "without the plant: {}", gpu.message());
    let planted = gpu.planted_function(text, "victim", &format!("victim: {plant}")).expect("it loads");
    assert_eq!(gpu.launch(planted, 1, 64, &[output, map]), 0);
    assert_eq!(gpu.synchronize(), status, "`{plant}` was not caught");
    for word in says.iter().chain(&["kernel `victim`"]) {
        assert!(gpu.message().contains(word), "`{word}` is not in: {}", gpu.message());
    }
}

#[test]
fn bytes_that_are_not_those_of_the_box_stop_everything() {
    let says = ["barrier error", "0 arrivals and -512 bytes missing"];
    caught("set 1 mbarrier.arrive.expect_tx 2 512", LAUNCH_TIMEOUT, &says);
    let says = ["barrier error", "0 arrivals and 1024 bytes missing"];
    caught("set 1 mbarrier.arrive.expect_tx 2 2048", LAUNCH_TIMEOUT, &says);
}

#[test]
fn a_wait_that_is_not_repeated_is_a_race() {
    let says = ["shared memory race", "written by a copy", "`ld.shared.u32"];
    caught("drop 6 bra", ILLEGAL_ADDRESS, &says);
    let says = ["shared memory race", "written by warp 0, written by a copy", "`cp.async.bulk"];
    caught("drop 4 bra", ILLEGAL_ADDRESS, &says);
}

#[test]
fn a_target_that_is_touched_early_is_named() {
    let says = ["asynchronous copy in flight", "shared byte 0 before"];
    for (access, opcode) in [
        ("ld.shared.u32 %r12, [%r2];\n", "`@%p6 ld.shared.u32"),
        ("st.shared.u32 [%r2], %r6;\n", "`@%p6 st.shared.u32"),
    ] {
        let after = format!("setp.eq.u32 %p6, 0, 1;\n@%p6 {access}");
        let map = [".param .u64 map_param", "ld.param.u64 %d2, [map_param];\n", &after];
        let text = kernel_with(0, 0, map);
        caught_in(&text, "set 1 setp.eq 2 0", ILLEGAL_ADDRESS, &[&says[..], &[opcode]].concat());
    }
}

#[test]
fn a_copy_that_no_warp_waits_for_is_named() {
    let says = ["asynchronous copy in flight", "the block ends before this copy"];
    caught("set 1 setp.lt 2 3", ILLEGAL_ADDRESS, &says);
}

#[test]
fn a_barrier_that_a_copy_does_not_know_is_named() {
    let says = ["missing fence", "no fence.mbarrier_init after it", "`cp.async.bulk"];
    caught("drop 1 fence.mbarrier_init", ILLEGAL_ADDRESS, &says);
}

#[test]
fn what_is_no_map_is_named() {
    let gpu = gpu();
    let (output, zeros) = (gpu.allocate(8 * BOX_WORDS), gpu.upload(&[0; 64]));
    let function = gpu.function(&kernel(0, 0), "victim");
    assert_eq!(gpu.launch(function, 1, 64, &[output, zeros]), 0);
    assert_eq!(gpu.synchronize(), ILLEGAL_INSTRUCTION);
    assert!(gpu.message().contains("this is no tensor map"), "{}", gpu.message());
}

#[test]
fn maps_that_the_driver_refuses_are_refused() {
    let gpu = gpu();
    let address = gpu.allocate(1 << 16);
    assert!(encode(address, [128, 384], BFLOAT16, SWIZZLE_128B).is_ok());
    assert_eq!(encode(address + 8, [128, 384], BFLOAT16, SWIZZLE_128B).err(), Some(INVALID_VALUE));
    assert_eq!(encode(address, [120, 384], BFLOAT16, SWIZZLE_128B).err(), Some(INVALID_VALUE));
    assert_eq!(encode(address, [128, 256], BFLOAT16, SWIZZLE_128B).err(), Some(INVALID_VALUE));
    // FLOAT32, and the swizzle of 64 bytes.
    assert_eq!(encode(address, [128, 384], 7, SWIZZLE_128B).err(), Some(NOT_SUPPORTED));
    assert_eq!(encode(address, [128, 384], BFLOAT16, 2).err(), Some(NOT_SUPPORTED));
}
