//! `mbarrier`: a producer and a consumer with results that are known, and kernels with one bug planted,
//! which must be caught and named.

mod common;

use std::sync::Once;

use common::Gpu;

const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_TIMEOUT: u32 = 702;
const ROUNDS: u32 = 4;

fn gpu() -> Gpu {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: `call_once` runs before any other thread of this binary reads the environment.
        unsafe { std::env::set_var("SOFTGPU_CC", "90") };
    });
    Gpu::new()
}

/// Two warps: the first writes a word for each lane in each round, the second adds them up and stores the
/// sums. `full` expects all lanes of the first, `empty` one of the second. `begin` follows the barrier of
/// the block.
fn kernel(begin: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry victim(.param .u64 out_param)\n{{\n\
         .reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b64 %d<8>;\n.shared .align 16 .b8 place[144];\n\
         ld.param.u64 %d1, [out_param];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, place;\nadd.s32 %r3, %r2, 8;\n\
         and.b32 %r4, %r1, 31;\nmad.lo.s32 %r5, %r4, 4, %r2;\n\
         setp.ne.u32 %p1, %r1, 0;\n@%p1 bra READY;\n\
         mbarrier.init.shared::cta.b64 [%r2], 32;\nmbarrier.init.shared::cta.b64 [%r3], 1;\n\
         fence.mbarrier_init.release.cluster;\n\
         READY:\nbar.sync 0;\n{begin}\
         mov.u32 %r6, 0;\nmov.u32 %r7, 0;\nmov.u32 %r8, 1;\nmov.u32 %r9, 0;\n\
         setp.ge.u32 %p2, %r1, 32;\n@%p2 bra CONSUME;\n\
         PRODUCE:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], %r8;\n@!%p3 bra PRODUCE;\n\
         mad.lo.s32 %r10, %r6, 100, %r4;\nst.shared.u32 [%r5+16], %r10;\n\
         mbarrier.arrive.shared::cta.b64 _, [%r2];\n\
         xor.b32 %r8, %r8, 1;\nadd.s32 %r6, %r6, 1;\nsetp.lt.u32 %p4, %r6, {ROUNDS};\n@%p4 bra PRODUCE;\nret;\n\
         CONSUME:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], %r7;\n@!%p3 bra CONSUME;\n\
         ld.shared.u32 %r10, [%r5+16];\nadd.s32 %r9, %r9, %r10;\nbar.warp.sync 0xffffffff;\n\
         setp.ne.u32 %p5, %r4, 0;\n@%p5 bra NEXT;\nmbarrier.arrive.shared::cta.b64 _, [%r3], 1;\n\
         NEXT:\nxor.b32 %r7, %r7, 1;\nadd.s32 %r6, %r6, 1;\nsetp.lt.u32 %p4, %r6, {ROUNDS};\n@%p4 bra CONSUME;\n\
         mov.u32 %r11, %ctaid.x;\nmad.lo.s32 %r11, %r11, 32, %r4;\nmul.wide.u32 %d2, %r11, 4;\nadd.s64 %d1, %d1, %d2;\nst.global.u32 [%d1], %r9;\nret;\n}}\n"
    )
}

#[test]
fn a_producer_and_a_consumer_have_known_results() {
    let gpu = gpu();
    let output = gpu.allocate(3 * 128);
    let function = gpu.function(&kernel(""), "victim");
    assert_eq!(gpu.launch(function, 3, 64, &[output]), 0);
    let sums = gpu.download(output, 3 * 32).unwrap_or_else(|_| panic!("{}", gpu.message()));
    let expected = |lane: u32| (0..ROUNDS).map(|round| 100 * round + lane).sum::<u32>();
    assert_eq!(sums, (0..3 * 32).map(|at| expected(at % 32)).collect::<Vec<_>>());
}

/// Runs the kernel clean, then with the plant: the device must stop with all of the words.
#[track_caller]
fn caught(begin: &str, plant: &str, status: u32, says: &[&str]) {
    let (gpu, text) = (gpu(), kernel(begin));
    let output = gpu.allocate(128);
    let clean = gpu.function(&text, "victim");
    assert_eq!(gpu.launch(clean, 1, 64, &[output]), 0);
    assert_eq!(gpu.synchronize(), 0, "without the plant: {}", gpu.message());
    let planted = gpu.planted_function(&text, "victim", &format!("victim: {plant}")).expect("it loads");
    assert_eq!(gpu.launch(planted, 1, 64, &[output]), 0);
    assert_eq!(gpu.synchronize(), status, "`{plant}` was not caught");
    for word in says.iter().chain(&["kernel `victim`"]) {
        assert!(gpu.message().contains(word), "`{word}` is not in: {}", gpu.message());
    }
}

#[test]
fn warps_that_nothing_wakes_are_named() {
    let says =
        ["barrier error", "warp 0 waits for parity 0", "shared byte 8", "1 arrivals and 0 bytes missing"];
    caught("", "drop 2 mbarrier.arrive", LAUNCH_TIMEOUT, &says);
    let says = ["barrier error", "warp 1 waits for parity 0", "shared byte 0, in phase 0 with 1 arrivals"];
    caught("", "set 1 mbarrier.init 1 33", LAUNCH_TIMEOUT, &says);
    // A phase that is taken for the one before it.
    let says = ["barrier error", "warp 0 waits for parity 0", "shared byte 8", "warp 1 waits for parity 0"];
    caught("", "set 1 mov.u32 %r8, 1 0", LAUNCH_TIMEOUT, &says);
}

#[test]
fn a_wait_that_is_not_repeated_is_a_race() {
    // The producer writes what the consumer has not read, the consumer reads before it is written.
    let says = ["shared memory race", "written by warp 0, read by warp 1", "`st.shared.u32"];
    caught("", "drop 3 bra", ILLEGAL_ADDRESS, &says);
    let says = ["shared memory race", "read by warp 1, written by warp 0", "`ld.shared.u32"];
    caught("", "drop 5 bra", ILLEGAL_ADDRESS, &says);
}

#[test]
fn barriers_that_are_used_wrongly_are_named() {
    let says = ["shared memory race", "was initialised by warp 0", "`mbarrier.try_wait"];
    caught("", "drop 1 bar.sync", ILLEGAL_ADDRESS, &says);
    let says = ["mbarrier", "shared byte 8 was not initialised"];
    caught("", "drop 2 mbarrier.init", ILLEGAL_ADDRESS, &says);
    let says = ["mbarrier", "2 arrivals where 1 are missing"];
    caught("", "set 2 mbarrier.arrive 2 2", ILLEGAL_ADDRESS, &says);
    let touch = "setp.eq.u32 %p6, 0, 1;\n@%p6 st.shared.u32 [%r2], %r4;\n";
    caught(touch, "set 1 setp.eq 2 0", ILLEGAL_ADDRESS, &["mbarrier", "shared byte 0 is a barrier's"]);
}

#[test]
fn more_registers_than_there_are_are_named() {
    let text = ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry victim()\n{\n\
                setmaxnreg.inc.sync.aligned.u32 240;\nret;\n}\n";
    let gpu = gpu();
    let function = gpu.function(text, "victim");
    // 61,440 of 65,536.
    assert_eq!(gpu.launch(function, 1, 256, &[]), 0);
    assert_eq!(gpu.synchronize(), 0, "{}", gpu.message());
    assert_eq!(gpu.launch(function, 1, 288, &[]), 0);
    assert_eq!(gpu.synchronize(), LAUNCH_TIMEOUT);
    assert!(gpu.message().contains("69120 registers of 65536"), "{}", gpu.message());
}
