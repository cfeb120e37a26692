//! Tests of the tests: kernels that run clean, and the same kernels with one bug planted, which
//! must be caught and named.

mod common;

use common::Gpu;
use softgpu::driver::{memory::*, stream::*};
use softgpu::ptx::{Plants, parse};

const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_TIMEOUT: u32 = 702;
const INVALID_PTX: u32 = 218;

/// A kernel `victim(out, in)`. `%r1` is the thread, `%d1` and `%d2` are the pointers plus 4 *
/// thread; `%r2` is the first byte of 4,096 shared ones, `%r3` is `%r2` plus 4 * thread. Line n of
/// the body is `planted.cu:n`.
fn kernel(body: &str) -> String {
    let lines = body.trim().lines().enumerate();
    let body: String = lines.map(|(n, line)| format!(".loc 1 {} 0\n{}\n", n + 1, line.trim())).collect();
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.file 1 \"planted.cu\"\n\
         .visible .entry victim(.param .u64 out_param, .param .u64 in_param)\n{{\n\
         .reg .pred %p<8>;\n.reg .b16 %h<8>;\n.reg .b32 %r<32>;\n.reg .f32 %f<8>;\n.reg .b64 %d<8>;\n\
         .shared .align 128 .b8 tile[4096];\n\
         ld.param.u64 %d1, [out_param];\nld.param.u64 %d2, [in_param];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %d3, %r1, 4;\nadd.s64 %d1, %d1, %d3;\nadd.s64 %d2, %d2, %d3;\n\
         mov.u32 %r2, tile;\nmad.lo.s32 %r3, %r1, 4, %r2;\n{body}ret;\n}}\n"
    )
}

/// Runs `body` as one block, clean, then with the plant: the device must stop with that status and
/// all of the words.
#[track_caller]
fn caught(body: &str, threads: u32, words: (usize, usize), plant: &str, status: u32, says: &[&str]) {
    let (gpu, text) = (Gpu::new(), kernel(body));
    let (output, input) = (gpu.allocate(words.0 * 4), gpu.upload(&vec![1; words.1]));
    let clean = gpu.function(&text, "victim");
    assert_eq!(gpu.launch(clean, 1, threads, &[output, input]), 0);
    assert_eq!(gpu.synchronize(), 0, "without the plant: {}", gpu.message());
    let planted = gpu.planted_function(&text, "victim", &format!("victim: {plant}")).expect("it loads");
    assert_eq!(gpu.launch(planted, 1, threads, &[output, input]), 0);
    assert_eq!(gpu.synchronize(), status, "`{plant}` was not caught");
    for word in says.iter().chain(&["kernel `victim`"]) {
        assert!(gpu.message().contains(word), "`{word}` is not in: {}", gpu.message());
    }
}

/// Three tiles, one after another through the same shared words; each thread adds up the word that
/// `%r5` points to.
fn tile_loop(whose: &str) -> String {
    format!(
        "{whose}
        mad.lo.s32 %r5, %r5, 4, %r2;
        mov.u32 %r6, 0;
        mov.u32 %r7, 0;
        LOOP: bar.sync 0;
        ld.global.u32 %r8, [%d2];
        st.shared.u32 [%r3], %r8;
        bar.sync 0;
        ld.shared.u32 %r9, [%r5];
        add.s32 %r6, %r6, %r9;
        add.s64 %d2, %d2, 256;
        add.s32 %r7, %r7, 1;
        setp.lt.u32 %p1, %r7, 3;
        @%p1 bra LOOP;
        st.global.u32 [%d1], %r6;"
    )
}

/// The first warp's word; the second warp's.
const FIRST_WARPS: &str = "and.b32 %r5, %r1, 31;";
const SECOND_WARPS: &str = "or.b32 %r5, %r1, 32;";

#[test]
fn dropped_barrier_between_write_and_read_is_a_race() {
    let says =
        ["shared memory race", "planted.cu:9", "ld.shared.u32", "thread [32, 0, 0]", "written by warp 0"];
    caught(&tile_loop(FIRST_WARPS), 64, (64, 192), "drop 2 bar.sync", ILLEGAL_ADDRESS, &says);
    // A word that was never written is reported as such.
    let says = ["uninitialised read", "planted.cu:9", "ld.shared.u32", "thread [0, 0, 0]"];
    caught(&tile_loop(SECOND_WARPS), 64, (64, 192), "drop 2 bar.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn dropped_barrier_between_read_and_overwrite_is_a_race() {
    let says =
        ["shared memory race", "planted.cu:7", "st.shared.u32", "thread [32, 0, 0]", "read by several warps"];
    caught(&tile_loop(SECOND_WARPS), 64, (64, 192), "drop 1 bar.sync", ILLEGAL_ADDRESS, &says);
    let says =
        ["shared memory race", "planted.cu:9", "ld.shared.u32", "thread [32, 0, 0]", "written by warp 0"];
    caught(&tile_loop(FIRST_WARPS), 64, (64, 192), "drop 1 bar.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn bound_off_by_one_is_out_of_bounds() {
    let bounded = "setp.ge.u32 %p1, %r1, 33;
                   @%p1 bra DONE;
                   ld.global.u32 %r4, [%d2];
                   st.global.u32 [%d1], %r4;
                   DONE:";
    let says = ["out of bounds", "planted.cu:3", "ld.global.u32", "thread [33, 0, 0]", "132 bytes"];
    caught(bounded, 64, (64, 33), "set 1 setp 2 34", ILLEGAL_ADDRESS, &says);
    let says = ["out of bounds", "planted.cu:4", "st.global.u32", "thread [33, 0, 0]", "132 bytes"];
    caught(bounded, 64, (33, 64), "set 1 setp 2 34", ILLEGAL_ADDRESS, &says);
    // A bound that is too small writes too little: reading the result is an error.
    let (gpu, text) = (Gpu::new(), kernel(bounded));
    let (output, input) = (gpu.allocate(33 * 4), gpu.upload(&[1; 33]));
    let planted = gpu.planted_function(&text, "victim", "victim: set 1 setp 2 32").expect("it loads");
    assert_eq!(gpu.launch(planted, 1, 64, &[output, input]), 0);
    assert_eq!(gpu.download(output, 33), Err(ILLEGAL_ADDRESS));
    assert!(gpu.message().contains("byte 128 of an allocation of 132 bytes was never written"));
}

/// Four tiles through two stages; every thread adds up the first warp's words.
const PIPELINE: &str = "and.b32 %r5, %r1, 31;
    mad.lo.s32 %r5, %r5, 4, %r2;
    mov.u32 %r6, 0;
    mov.u32 %r7, 0;
    cp.async.ca.shared.global [%r3], [%d2], 4;
    cp.async.commit_group;
    LOOP: add.s64 %d2, %d2, 256;
    xor.b32 %r3, %r3, 256;
    setp.lt.u32 %p1, %r7, 3;
    @%p1 cp.async.ca.shared.global [%r3], [%d2], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    ld.shared.u32 %r8, [%r5];
    add.s32 %r6, %r6, %r8;
    xor.b32 %r5, %r5, 256;
    bar.sync 0;
    add.s32 %r7, %r7, 1;
    setp.lt.u32 %p2, %r7, 4;
    @%p2 bra LOOP;
    st.global.u32 [%d1], %r6;";

#[test]
fn copy_without_its_wait_is_in_flight() {
    let says =
        ["asynchronous copy in flight", "planted.cu:14", "ld.shared.u32", "thread [0, 0, 0]", "cp.async"];
    for plant in ["drop 1 cp.async.wait_group", "set 1 cp.async.wait_group 0 2"] {
        caught(PIPELINE, 64, (64, 256), plant, ILLEGAL_ADDRESS, &says);
    }
}

#[test]
fn copy_that_only_its_own_warp_waits_for_is_a_race() {
    let says =
        ["shared memory race", "planted.cu:14", "ld.shared.u32", "thread [32, 0, 0]", "written by warp 0"];
    caught(PIPELINE, 64, (64, 256), "drop 1 bar.sync", ILLEGAL_ADDRESS, &says);
    // The next copy goes into a stage that another warp is still reading.
    let says = ["asynchronous copy in flight", "planted.cu:14", "ld.shared.u32", "thread [32, 0, 0]"];
    caught(PIPELINE, 64, (64, 256), "drop 2 bar.sync", ILLEGAL_ADDRESS, &says);
}

/// The point at which the event between the upload and the kernel is recorded.
#[derive(Clone, Copy)]
enum Event {
    AfterTheUpload,
    BeforeTheUpload,
    Nowhere,
}

/// Uploads 5s from pinned memory on one stream into `buffer`, copies it by a kernel on another;
/// returns the result.
fn upload_beside_compute(gpu: &Gpu, buffer: u64, event: Event) -> Result<Vec<u32>, u32> {
    let copy = gpu.function(&kernel("ld.global.u32 %r4, [%d2];\nst.global.u32 [%d1], %r4;"), "victim");
    let output = gpu.allocate(128);
    let (mut copies, mut compute, mut uploaded, mut pinned) = (0, 0, 0, std::ptr::null_mut());
    // SAFETY: the out parameters are locals; the pinned block has 128 bytes and lives until the end
    // of the process.
    unsafe {
        assert_eq!(cuStreamCreate(&mut copies, 1), 0);
        assert_eq!(cuStreamCreate(&mut compute, 1), 0);
        assert_eq!(cuEventCreate(&mut uploaded, 0), 0);
        assert_eq!(cuMemHostAlloc(&mut pinned, 128, 0), 0);
        std::slice::from_raw_parts_mut(pinned.cast::<u32>(), 32).fill(5);
        if matches!(event, Event::BeforeTheUpload) {
            assert_eq!(cuEventRecord(uploaded, copies), 0);
        }
        assert_eq!(cuMemcpyHtoDAsync_v2(buffer, pinned, 128, copies), 0);
        if matches!(event, Event::AfterTheUpload) {
            assert_eq!(cuEventRecord(uploaded, copies), 0);
        }
    }
    if !matches!(event, Event::Nowhere) {
        assert_eq!(cuStreamWaitEvent(compute, uploaded, 0), 0);
    }
    assert_eq!(gpu.launch_on(compute, copy, 1, 32, &[output, buffer]), 0);
    match cuStreamSynchronize(compute) {
        0 => gpu.download(output, 32),
        status => Err(status),
    }
}

#[test]
fn event_missing_or_too_early_is_an_uninitialised_read() {
    for event in [Event::Nowhere, Event::BeforeTheUpload] {
        let gpu = Gpu::new();
        let fresh = gpu.allocate(128);
        assert_eq!(upload_beside_compute(&gpu, fresh, Event::AfterTheUpload), Ok(vec![5; 32]));
        let fresh = gpu.allocate(128);
        assert_eq!(upload_beside_compute(&gpu, fresh, event), Err(ILLEGAL_ADDRESS));
        for word in ["uninitialised read", "`victim`", "planted.cu:1", "ld.global.u32", "thread [0, 0, 0]"] {
            assert!(gpu.message().contains(word), "`{word}` is not in: {}", gpu.message());
        }
    }
}

#[test]
fn event_missing_or_too_early_always_gives_the_stale_value() {
    let gpu = Gpu::new();
    for event in [Event::Nowhere, Event::BeforeTheUpload, Event::Nowhere, Event::BeforeTheUpload] {
        let used = gpu.upload(&[3; 32]);
        assert_eq!(gpu.synchronize(), 0);
        assert_eq!(upload_beside_compute(&gpu, used, event), Ok(vec![3; 32]));
        assert_eq!(upload_beside_compute(&gpu, used, Event::AfterTheUpload), Ok(vec![5; 32]));
    }
}

#[test]
fn lost_zero_fill_lets_a_nan_through_a_weight_of_zero() {
    // One row of V, four f32, a lane. Rows from 20 on are another conversation's: zero filled, with
    // weight 0.
    let body = "setp.lt.u32 %p1, %r1, 20;
        selp.b32 %r4, 16, 0, %p1;
        mad.wide.u32 %d2, %r1, 12, %d2;
        mad.lo.s32 %r5, %r1, 16, %r2;
        cp.async.cg.shared.global [%r5], [%d2], 16, %r4;
        cp.async.commit_group;
        cp.async.wait_group 0;
        bar.sync 0;
        and.b32 %r6, %r1, 3;
        mad.lo.s32 %r6, %r6, 4, %r2;
        mov.u32 %r7, 0;
        mov.f32 %f1, 0f00000000;
        LOOP: setp.lt.u32 %p2, %r7, 20;
        selp.f32 %f2, 0f3F800000, 0f00000000, %p2;
        ld.shared.f32 %f3, [%r6];
        fma.rn.f32 %f1, %f2, %f3, %f1;
        add.s32 %r6, %r6, 16;
        add.s32 %r7, %r7, 1;
        setp.lt.u32 %p3, %r7, 32;
        @%p3 bra LOOP;
        st.global.f32 [%d1], %f1;";
    let (gpu, text) = (Gpu::new(), kernel(body));
    let rows: Vec<u32> = (0..128).map(|i| if i < 80 { 1.0f32 } else { f32::NAN }.to_bits()).collect();
    let (input, output) = (gpu.upload(&rows), gpu.allocate(128));
    let sums = |plants: &str| {
        let function = gpu.planted_function(&text, "victim", plants).expect("it loads");
        assert_eq!(gpu.launch(function, 1, 32, &[output, input]), 0);
        gpu.download(output, 32).expect("it runs").into_iter().map(f32::from_bits).collect::<Vec<_>>()
    };
    assert_eq!(sums(""), vec![20.0; 32]);
    assert!(sums("victim: set 1 cp.async.cg 3 16").iter().all(|sum| sum.is_nan()));
}

/// Each lane stores a 16-byte chunk, column lane / 8 of row lane % 8, and `ldmatrix` reads the four
/// 8 x 8 matrices back. Rows have 128 bytes; chunk c of row r stands at place c ^ r.
const SWIZZLE: &str = "and.b32 %r4, %r1, 7;
    shr.u32 %r5, %r1, 3;
    xor.b32 %r6, %r5, %r4;
    mad.lo.s32 %r7, %r4, 128, %r2;
    mad.lo.s32 %r7, %r6, 16, %r7;
    st.shared.v4.b32 [%r7], {%r1, %r1, %r1, %r1};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8, %r9, %r10, %r11}, [%r7];
    st.global.u32 [%d1], %r8;";

#[test]
fn lost_swizzle_costs_the_bank_conflicts_that_it_saved() {
    let (gpu, text) = (Gpu::new(), kernel(SWIZZLE));
    let output = gpu.allocate(128);
    let conflicts = |plants: &str| {
        let function = gpu.planted_function(&text, "victim", plants).expect("it loads");
        assert_eq!(gpu.launch(function, 1, 32, &[output, output]), 0);
        assert_eq!(gpu.synchronize(), 0, "{}", gpu.message());
        gpu.counter("bank_conflicts")
    };
    assert_eq!(conflicts(""), 0);
    // Without the XOR the eight rows of a chunk lie in the same four banks: 7 passes more than one.
    // The store makes one such access of each quarter of the warp, ldmatrix one of each of its four
    // matrices.
    assert_eq!(conflicts("victim: set 1 xor.b32 2 0"), 4 * 7 + 4 * 7);
}

#[test]
fn two_warps_writing_one_word_are_a_race() {
    let partial_sums = "shr.u32 %r4, %r1, 5;
        mad.lo.s32 %r4, %r4, 4, %r2;
        and.b32 %r5, %r1, 31;
        setp.eq.u32 %p1, %r5, 0;
        @%p1 st.shared.u32 [%r4], %r1;
        bar.sync 0;
        ld.shared.u32 %r6, [tile];
        st.global.u32 [%d1], %r6;";
    let says =
        ["shared memory race", "planted.cu:5", "st.shared.u32", "thread [32, 0, 0]", "written by warp 0"];
    caught(partial_sums, 64, (64, 64), "set 1 shr.u32 2 6", ILLEGAL_ADDRESS, &says);
}

#[test]
fn barrier_in_a_branch_that_splits_a_warp_is_an_error() {
    let branch = "setp.ge.u32 %p1, %r1, 64;
        @%p1 bra SKIP;
        bar.sync 0;
        SKIP: st.global.u32 [%d1], %r1;";
    let says = ["barrier error", "planted.cu:3", "bar.sync 0;", "lanes 0x0000ffff of 0xffffffff"];
    caught(branch, 64, (64, 64), "set 1 setp 2 16", LAUNCH_TIMEOUT, &says);
}

#[test]
fn warps_that_meet_at_different_barriers_are_an_error() {
    // Both warps turn twice; planted, the first one turns three times, and its third barrier is the
    // other's last.
    let body = "setp.lt.u32 %p1, %r1, 32;
        selp.b32 %r4, 2, 2, %p1;
        mov.u32 %r5, 0;
        LOOP: bar.sync 0;
        add.s32 %r5, %r5, 1;
        setp.lt.u32 %p2, %r5, %r4;
        @%p2 bra LOOP;
        bar.sync 0;
        st.global.u32 [%d1], %r1;";
    let says = [
        "barrier error",
        "planted.cu:8",
        "thread [32, 0, 0]",
        "warp 0 waits at `bar.sync 0;` at planted.cu:4",
    ];
    caught(body, 64, (64, 64), "set 1 selp 1 3", LAUNCH_TIMEOUT, &says);
}

/// Neighbouring lanes of a warp exchange words, twice.
const EXCHANGE: &str = "xor.b32 %r5, %r1, 1;
    mad.lo.s32 %r5, %r5, 4, %r2;
    st.shared.u32 [%r3], %r1;
    bar.warp.sync -1;
    ld.shared.u32 %r6, [%r5];
    bar.warp.sync -1;
    st.shared.u32 [%r3], %r6;
    bar.warp.sync -1;
    ld.shared.u32 %r6, [%r5];
    st.global.u32 [%d1], %r6;";

#[test]
fn lanes_exchanging_words_without_a_sync_are_a_race() {
    let by_block = EXCHANGE.replace("bar.warp.sync -1;", "bar.sync 0;");
    for (n, instruction) in [("1", "ld.shared.u32"), ("2", "st.shared.u32"), ("3", "ld.shared.u32")] {
        let says = [
            "shared memory race",
            "within warp 0, no bar.warp.sync between",
            "thread [0, 0, 0]",
            instruction,
        ];
        caught(EXCHANGE, 64, (64, 64), &format!("drop {n} bar.warp.sync"), ILLEGAL_ADDRESS, &says);
        caught(&by_block, 64, (64, 64), &format!("drop {n} bar.sync"), ILLEGAL_ADDRESS, &says);
    }
    // The second store goes to the neighbour's word.
    let rewrite = EXCHANGE.replace(
        "ld.shared.u32 %r6, [%r5];\n    bar.warp.sync -1;\n    st.shared.u32 [%r3]",
        "mov.u32 %r6, 7;\n    bar.warp.sync -1;\n    st.shared.u32 [%r5]",
    );
    let says = ["shared memory race", "planted.cu:7", "written by lane 0, written by lane 1 within warp 0"];
    caught(&rewrite, 64, (64, 64), "drop every bar.warp.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn ldmatrix_reads_for_all_lanes_and_waits_are_per_lane() {
    let says = [
        "shared memory race",
        "planted.cu:8",
        "ldmatrix",
        "read by several lanes, written by lane 0 within warp 0",
    ];
    caught(SWIZZLE, 32, (32, 32), "drop 1 bar.warp.sync", ILLEGAL_ADDRESS, &says);
    let copied = "cp.async.ca.shared.global [%r3], [%d2], 4;
        cp.async.wait_all;
        bar.warp.sync -1;
        xor.b32 %r5, %r1, 1;
        mad.lo.s32 %r5, %r5, 4, %r2;
        ld.shared.u32 %r6, [%r5];
        st.global.u32 [%d1], %r6;";
    let says = ["shared memory race", "planted.cu:6", "read by lane 0, written by lane 1 within warp 0"];
    caught(copied, 32, (32, 32), "drop 1 bar.warp.sync", ILLEGAL_ADDRESS, &says);
    // A vote makes lanes converge and orders no memory.
    let voted = copied.replace("bar.warp.sync -1;", "bar.warp.sync -1;\nvote.sync.any.pred %p1, %p1, -1;");
    let says = ["shared memory race", "planted.cu:7", "read by lane 0, written by lane 1 within warp 0"];
    caught(&voted, 32, (32, 32), "drop 1 bar.warp.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn lanes_that_keep_to_their_own_bytes_need_no_sync() {
    // Halves of one word by two lanes, each read back and overwritten by its own lane; a word that
    // all lanes write at once.
    let body = "mad.lo.s32 %r4, %r1, 2, %r2;
        cvt.u16.u32 %h1, %r1;
        st.shared.u16 [%r4], %h1;
        ld.shared.u16 %h2, [%r4];
        st.shared.u16 [%r4], %h2;
        ld.shared.u16 %h2, [%r4];
        cvt.u32.u16 %r5, %h2;
        st.shared.u32 [tile+256], 9;
        bar.warp.sync -1;
        ld.shared.u32 %r6, [tile+256];
        add.s32 %r5, %r5, %r6;
        st.global.u32 [%d1], %r5;";
    let (gpu, text) = (Gpu::new(), kernel(body));
    let output = gpu.allocate(128);
    let function = gpu.function(&text, "victim");
    assert_eq!(gpu.launch(function, 1, 32, &[output, output]), 0);
    assert_eq!(gpu.synchronize(), 0, "{}", gpu.message());
    assert_eq!(gpu.download(output, 32), Ok((9..41).collect()));
}

#[test]
fn plant_that_misses_fails_the_load_with_the_count() {
    let gpu = Gpu::new();
    let text = kernel(&tile_loop(FIRST_WARPS));
    assert_eq!(gpu.planted_function(&text, "victim", "victim: drop 3 bar.sync"), Err(INVALID_PTX));
    assert_eq!(gpu.planted_function(&text, "victim", "victim: frob 1 bar.sync"), Err(INVALID_PTX));
    // A missing kernel may be in another module; the count shows that it was in none.
    let counted = |plants: &str| gpu.planted_and_counted(&text, "victim", plants).map(|(_, planted)| planted);
    assert_eq!(counted("another: drop 3 bar.sync"), Ok(0));
    assert_eq!(counted("vic*: drop every bar.sync"), Ok(2));

    let apply = |plants: &str| Plants::parse(plants)?.apply(&mut parse(&text)?);
    let refused = |plants: &str, why: &str| {
        let message = apply(plants).expect_err(plants);
        assert!(message.contains(why), "`{why}` is not in: {message}");
    };
    refused("vic*: drop 9 bar.sync", "kernel `victim` has 2 instructions that start with `bar.sync`, not 9");
    refused("victim: drop every ldmatrix", "kernel `victim` has 0 instructions that start with `ldmatrix`");
    refused("victim: set 1 bar.sync 1 0", "has 1 operands; there is no operand 1");
    refused("victim drop 1 bar.sync", "is a malformed plant: no `KERNEL:` before it");
    refused("vic*m: drop 1 bar.sync", "is a malformed plant: the kernel must be a name or a prefix");
    refused("victim: drop 0 bar.sync", "is a malformed plant: the instruction's index");
    refused("victim: drop 1", "is a malformed plant: no instruction");
    refused("victim: set 1 setp two 3", "is a malformed plant: the operand's index");

    let planted = apply("vic*: drop every bar.sync; victim: drop 1 bra; victim: set 1 setp.lt.u32 2 -0x1;")
        .expect("all match");
    assert_eq!(planted.len(), 4);
    assert!(
        planted[2].contains("`@%p1 bra LOOP;`"),
        "guards are not part of what is matched: {}",
        planted[2]
    );
    assert_eq!(apply("").expect("no plants"), Vec::<String>::new());
}
