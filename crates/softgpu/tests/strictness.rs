//! Violations that the software GPU detects and names; streams, events, faults, counters.

mod common;

use common::{Gpu, assert_passed, child};
use softgpu::blas::{cublasLtCreate, cublasLtDestroy};
use softgpu::driver::{context::*, memory::*, stream::*};
use softgpu::report::*;

const ILLEGAL_ADDRESS: u32 = 700;
const MISALIGNED_ADDRESS: u32 = 716;
const OUT_OF_MEMORY: u32 = 2;
const NOT_READY: u32 = 600;

/// A kernel over `in` and `out` with the given body; `%r1` is the thread, `%d1`/`%d2` are the
/// pointers plus 4 * thread.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.file 1 \"planted.cu\"\n.visible .entry planted(.param .u64 planted_out, .param .u64 planted_in)\n{{\n\
         .reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %d<8>;\n{declarations}\n.loc 1 42 0\n\
         ld.param.u64 %d1, [planted_out];\nld.param.u64 %d2, [planted_in];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %d3, %r1, 4;\nadd.s64 %d1, %d1, %d3;\nadd.s64 %d2, %d2, %d3;\n{body}\nret;\n}}\n"
    )
}

const COPY: &str = "ld.global.u32 %r2, [%d2];\nst.global.u32 [%d1], %r2;";

/// A number in the report of the device's memory.
fn of_device(gpu: &Gpu, field: &str) -> usize {
    let mut buffer = vec![0_u8; 1 << 14];
    // SAFETY: the buffer has that length.
    let length = unsafe { softgpu_memory_json(buffer.as_mut_ptr().cast(), buffer.len()) };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let device = text.split("{\"live_bytes\"").nth(gpu.device as usize + 1).expect("an object a device");
    let fields = format!("\"live_bytes\"{device}");
    let (_, after) = fields.split_once(&format!("\"{field}\":")).expect("the field is there");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn assert_fault(gpu: &Gpu, status: u32, words: &[&str]) {
    assert_eq!(gpu.synchronize(), status);
    let message = gpu.message();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    // Sticky: every later call returns it.
    assert_eq!(gpu.synchronize(), status);
    let mut address = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 16) }, status);
}

#[test]
fn read_past_an_allocation_names_its_line_and_thread() {
    let gpu = Gpu::new();
    let input = gpu.upload(&[7; 33]);
    let output = gpu.allocate(4 * 64);
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(gpu.launch(function, 1, 64, &[output, input]), 0, "a launch itself succeeds");
    let words =
        ["out of bounds", "`planted`", "planted.cu:42", "ld.global.u32", "thread [33, 0, 0]", "132 bytes"];
    assert_fault(&gpu, ILLEGAL_ADDRESS, &words);
}

#[test]
fn read_of_freed_memory_is_named_as_such() {
    let gpu = Gpu::new();
    let (input, output) = (gpu.upload(&[7; 32]), gpu.allocate(128));
    assert_eq!(cuMemFree_v2(input), 0);
    gpu.allocate(128);
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, input]), 0);
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["use after free", "thread [0, 0, 0]"]);
}

#[test]
fn uninitialised_global_and_shared_reads_are_errors() {
    let gpu = Gpu::new();
    let (input, output) = (gpu.allocate(128), gpu.allocate(128));
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(cuMemsetD8Async(input, 0, 124, 0), 0);
    assert_eq!(gpu.launch(function, 1, 32, &[output, input]), 0);
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["uninitialised read", "thread [31, 0, 0]"]);

    let gpu = Gpu::new();
    let output = gpu.allocate(128);
    let body = "ld.shared.u32 %r2, [word];\nst.global.u32 [%d1], %r2;";
    let function = gpu.function(&kernel(".shared .align 4 .b8 word[4];", body), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, output]), 0);
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["uninitialised read", "shared byte 0"]);
}

#[test]
fn misaligned_access_is_an_error() {
    let gpu = Gpu::new();
    let (input, output) = (gpu.upload(&[7; 33]), gpu.allocate(128));
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, input + 2]), 0);
    assert_fault(&gpu, MISALIGNED_ADDRESS, &["misaligned access"]);
}

#[test]
fn two_warps_on_one_shared_word_without_a_barrier_are_a_race() {
    let exchange = |barrier: &str| {
        format!(
            "mov.u32 %r3, buffer;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r4, %r3, %r4;\nst.shared.u32 [%r4], %r1;\n{barrier}\n\
             xor.b32 %r5, %r1, 32;\nshl.b32 %r5, %r5, 2;\nadd.s32 %r5, %r3, %r5;\nld.shared.u32 %r6, [%r5];\nst.global.u32 [%d1], %r6;"
        )
    };
    let shared = ".shared .align 4 .b8 buffer[256];";
    let gpu = Gpu::new();
    let output = gpu.allocate(256);
    let function = gpu.function(&kernel(shared, &exchange("bar.sync 0;")), "planted");
    assert_eq!(gpu.launch(function, 1, 64, &[output, output]), 0);
    assert_eq!(gpu.download(output, 64), Ok((0..64).map(|i| i ^ 32).collect()));
    // The first warp reads what the second has not written: uninitialised. With both written
    // before, it is the race.
    let twice = format!(
        "{}\nbar.sync 0;\nst.shared.u32 [%r4], %r1;\nld.shared.u32 %r6, [%r5];",
        exchange("bar.sync 0;")
    );
    let function = gpu.function(&kernel(shared, &twice), "planted");
    assert_eq!(gpu.launch(function, 1, 64, &[output, output]), 0);
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["shared memory race", "warp 0", "warp 1"]);
}

/// Runs a body in three blocks of a thread, over three zeros and what it reads.
fn three_blocks(gpu: &Gpu, body: &str) -> u64 {
    let (output, input) = (gpu.upload(&[0; 3]), gpu.upload(&[7; 3]));
    let blocks = format!("mov.u32 %r7, %ctaid.x;\nmul.wide.u32 %d5, %r7, 4;\nadd.s64 %d6, %d1, %d5;\n{body}");
    let function = gpu.function(&kernel(".shared .align 16 .b8 tile[16];", &blocks), "planted");
    for _ in 0..2 {
        // A launch after another may read and write what that one wrote.
        assert_eq!(gpu.launch(function, 3, 1, &[output, input]), 0);
    }
    output
}

#[test]
fn a_block_that_touches_what_another_block_wrote_is_a_race() {
    // Each block writes its word first.
    let own = "st.global.u32 [%d6], %r7;\n";
    let first_word = |gpu: &Gpu, touch: &str| {
        three_blocks(gpu, &format!("{own}{touch}"));
        assert_fault(
            gpu,
            ILLEGAL_ADDRESS,
            &["race between blocks", "block [1, 0, 0]", "block [0, 0, 0] wrote", "byte 0"],
        );
    };
    first_word(&Gpu::new(), "ld.global.u32 %r2, [%d1];");
    first_word(&Gpu::new(), "st.global.u32 [%d1], %r7;");
    first_word(&Gpu::new(), "ld.global.u8 %r2, [%d1];");
    let copy = "mov.u32 %r3, tile;\ncp.async.ca.shared.global [%r3], [%d1], 4;\ncp.async.wait_all;";
    first_word(&Gpu::new(), copy);
}

#[test]
fn blocks_that_share_no_byte_but_by_atomics_do_not_race() {
    let gpu = Gpu::new();
    let output =
        three_blocks(&gpu, "ld.global.u32 %r2, [%d6];\nadd.s32 %r2, %r2, %r7;\nst.global.u32 [%d6], %r2;");
    assert_eq!(gpu.download(output, 3), Ok(vec![0, 2, 4]));
    // All read what the launch does not write.
    let output = three_blocks(&gpu, "ld.global.u32 %r2, [%d2];\nst.global.u32 [%d6], %r2;");
    assert_eq!(gpu.download(output, 3), Ok(vec![7; 3]));
    let output = three_blocks(&gpu, "atom.global.add.u32 %r2, [%d1], 1;");
    assert_eq!(gpu.download(output, 3), Ok(vec![6, 0, 0]));
    // Bytes of one word.
    let bytes =
        "cvt.u64.u32 %d7, %r7;\nadd.s64 %d7, %d1, %d7;\nst.global.u8 [%d7], %r7;\nld.global.u8 %r2, [%d7];";
    let output = three_blocks(&gpu, bytes);
    assert_eq!(gpu.download(output, 3), Ok(vec![0x0002_0100, 0, 0]));
}

#[test]
fn bytes_of_a_copy_in_flight_are_poison() {
    let gpu = Gpu::new();
    let (input, output) = (gpu.upload(&[7; 32]), gpu.allocate(128));
    let body = "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r4, %r3, %r4;\ncp.async.ca.shared.global [%r4], [%d2], 4;\n\
                cp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %r2, [%r4];\nst.global.u32 [%d1], %r2;";
    let function = gpu.function(&kernel(".shared .align 16 .b8 tile[128];", body), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, input]), 0);
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["asynchronous copy in flight", "cp.async"]);
}

#[test]
fn barrier_met_by_half_a_warp_is_reported() {
    let gpu = Gpu::new();
    let output = gpu.allocate(128);
    let body = "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra L;\nbar.sync 0;\nL:\nst.global.u32 [%d1], %r1;";
    let function = gpu.function(&kernel("", body), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, output]), 0);
    assert_eq!(gpu.synchronize(), 702);
    assert!(gpu.message().contains("barrier"), "{}", gpu.message());
}

#[test]
fn last_release_of_the_context_frees_memory_and_keeps_a_fault() {
    let gpu = Gpu::new();
    fault_and_release(&gpu);
    // The context is there again, and so is the fault.
    let (mut context, mut free, mut total) = (0, 0, 0);
    // SAFETY: the out parameters are locals.
    unsafe {
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, gpu.device), 0);
        assert_eq!(cuMemGetInfo_v2(&mut free, &mut total), ILLEGAL_ADDRESS);
    }
    assert_eq!(of_device(&gpu, "live_bytes"), 0);
    // It is that device's alone.
    Gpu::new().allocate(128);
}

#[test]
fn faults_end_with_the_context_where_that_is_set() {
    assert_passed(&child("child_whose_faults_end", &[("SOFTGPU_STICKY", "context")]));
}

#[test]
#[ignore = "runs in a child process, started by faults_end_with_the_context_where_that_is_set"]
fn child_whose_faults_end() {
    let gpu = Gpu::new();
    let mut handle = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cublasLtCreate(&mut handle) }, 0);
    fault_and_release(&gpu);
    let (mut context, mut free, mut total) = (0, 0, 0);
    // SAFETY: the out parameters are locals.
    unsafe {
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, gpu.device), 0);
        assert_eq!(cuMemGetInfo_v2(&mut free, &mut total), 0);
    }
    assert_eq!((free, total), (256 << 20, 256 << 20));
}

/// Reads out of bounds, and releases the context with memory in it.
fn fault_and_release(gpu: &Gpu) {
    let output = gpu.allocate(128);
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(gpu.launch(function, 1, 32, &[output, 64]), 0);
    assert_fault(gpu, ILLEGAL_ADDRESS, &["out of bounds"]);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(gpu.device), 0);
}

#[test]
fn memory_stays_taken_where_a_library_holds_the_context() {
    let gpu = Gpu::new();
    let mut handle = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cublasLtCreate(&mut handle) }, 0);
    let (kept, freed) = (gpu.allocate(1000), gpu.allocate(500));
    assert_eq!(cuMemFree_v2(freed), 0);
    let stream = 0;
    assert_eq!(cuMemsetD8Async(kept, 7, 1000, stream), 0);
    assert_eq!(cublasLtDestroy(handle), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(gpu.device), 0);
    assert_eq!((of_device(&gpu, "live_bytes"), of_device(&gpu, "reclaimed_bytes")), (1000, 0));
    assert_eq!(of_device(&gpu, "context_references"), 0);
    let gpu = Gpu::on(gpu.device);
    assert_eq!(gpu.download(kept, 250), Ok(vec![0x0707_0707; 250]));
    assert_eq!(cuMemFree_v2(kept), 0);
    assert_eq!(of_device(&gpu, "live_bytes"), 0);
}

#[test]
fn allocation_beyond_the_limit_is_not_a_sticky_error() {
    let gpu = Gpu::new();
    let mut address = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 257 << 20) }, OUT_OF_MEMORY);
    gpu.allocate(128 << 20);
    // SAFETY: as above.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 129 << 20) }, OUT_OF_MEMORY);
    gpu.allocate(128 << 20);
}

#[test]
fn streams_run_only_as_far_as_waits_and_events_force() {
    let gpu = Gpu::new();
    let (source, target) = (gpu.upload(&[1; 32]), gpu.upload(&[2; 32]));
    assert_eq!(gpu.synchronize(), 0);
    let (mut first, mut second, mut event) = (0, 0, 0);
    // SAFETY: the out parameters are locals.
    unsafe {
        assert_eq!(cuStreamCreate(&mut first, 1), 0);
        assert_eq!(cuStreamCreate(&mut second, 1), 0);
        assert_eq!(cuEventCreate(&mut event, 0), 0);
    }
    // `second` reads what `first` writes, without an event: it sees the old bytes, every time.
    assert_eq!(cuMemsetD8Async(source, 9, 128, first), 0);
    assert_eq!(cuMemcpyDtoDAsync_v2(target, source, 128, second), 0);
    assert_eq!(cuStreamSynchronize(second), 0);
    assert_eq!(gpu.download(target, 1), Ok(vec![1]));
    // With the event it sees the new ones.
    assert_eq!(cuEventRecord(event, first), 0);
    assert_eq!(cuStreamWaitEvent(second, event, 0), 0);
    assert_eq!(cuMemcpyDtoDAsync_v2(target, source, 128, second), 0);
    assert_eq!(cuEventQuery(event), NOT_READY);
    assert_eq!(cuStreamSynchronize(second), 0);
    assert_eq!(cuEventQuery(event), 0);
    assert_eq!(gpu.download(target, 1), Ok(vec![0x0909_0909]));
}

#[test]
fn pinned_memory_is_read_by_the_copy_and_pageable_at_the_call() {
    let gpu = Gpu::new();
    let target = gpu.allocate(8);
    let mut pinned = std::ptr::null_mut();
    // SAFETY: the out parameter is a local; the block has 4 bytes.
    unsafe {
        assert_eq!(cuMemHostAlloc(&mut pinned, 4, 0), 0);
        let mut pageable = 1u32;
        pinned.cast::<u32>().write(1);
        assert_eq!(cuMemcpyHtoDAsync_v2(target, pinned, 4, 0), 0);
        assert_eq!(cuMemcpyHtoDAsync_v2(target + 4, (&raw const pageable).cast(), 4, 0), 0);
        pinned.cast::<u32>().write(5);
        pageable = 5;
        assert_eq!(gpu.download(target, 2), Ok(vec![5, 1]));
        assert_eq!(pageable, 5);
        assert_eq!(cuMemFreeHost(pinned), 0);
    }
}

#[test]
fn pageable_memory_can_be_set_to_be_read_late() {
    let stderr = assert_passed(&child("child_that_reads_late", &[("SOFTGPU_PAGEABLE", "late")]));
    assert_eq!(stderr.matches("4 bytes of pageable memory").count(), 1, "{stderr}");
}

#[test]
#[ignore = "runs in a child process, started by pageable_memory_can_be_set_to_be_read_late"]
fn child_that_reads_late() {
    let gpu = Gpu::new();
    let target = gpu.allocate(4096);
    let mut changed = Box::new(1u32);
    let copy = |from: *const u32, bytes: usize| {
        // SAFETY: the source is read at the call, and after it only where it still is.
        assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(target, from.cast(), bytes, 0) }, 0);
    };
    copy(&raw const *changed, 4);
    *changed = 5;
    assert_eq!(gpu.download(target, 1), Ok(vec![5]));
    // A source that waits for its copy is as good as any.
    copy(&raw const *changed, 4);
    assert_eq!(gpu.synchronize(), 0);
    *changed = 6;
    assert_eq!(gpu.download(target, 1), Ok(vec![5]));
    // One that the process no longer has is a fault.
    // SAFETY: a fresh anonymous mapping, of which nothing else knows, is unmapped again.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapped = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        assert_ne!(mapped, libc::MAP_FAILED);
        copy(mapped.cast(), 4096);
        assert_eq!(libc::munmap(mapped, 4096), 0);
    }
    assert_fault(&gpu, ILLEGAL_ADDRESS, &["pageable memory", "which is gone"]);
}

#[test]
fn coalesced_copy_moves_each_sector_once() {
    let gpu = Gpu::new();
    let (input, output) = (gpu.upload(&[7; 64]), gpu.allocate(256));
    let function = gpu.function(&kernel("", COPY), "planted");
    assert_eq!(gpu.launch(function, 1, 64, &[output, input]), 0);
    assert_eq!(gpu.synchronize(), 0);
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: the buffer has that length.
    let length = unsafe { softgpu_counters_json(buffer.as_mut_ptr().cast(), buffer.len()) };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mine = format!("\"device\":{}", gpu.device);
    let launch = text.split("{\"kernel\"").find(|part| part.contains(&mine)).expect("the launch is listed");
    for field in [
        "\"sectors_read\":8",
        "\"sectors_written\":8",
        "\"bytes_read\":256",
        "\"requests\":4",
        "\"request_sectors\":16",
    ] {
        assert!(launch.contains(field), "{field} is not in {launch}");
    }
}

#[test]
fn unknown_instructions_are_listed_all_at_once() {
    let module = softgpu::ptx::parse(&kernel(
        "",
        "frobnicate.u32 %r2, %r1;\nadd.s32 %r2, %r1, 1;\nquux.b64 %d1, %d2;",
    ))
    .expect("it parses");
    let lines = softgpu::decode::decode_module(&module).expect_err("two instructions are unknown");
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("frobnicate.u32") && lines[0].contains("planted.cu:42"), "{}", lines[0]);
    assert!(lines[1].contains("quux.b64"), "{}", lines[1]);
}

#[test]
fn memory_is_reported_while_live_and_once_reclaimed() {
    let gpu = Gpu::new();
    let of_device = |field: &str| of_device(&gpu, field);
    let (kept, freed) = (gpu.allocate(1000), gpu.allocate(500));
    assert_ne!(kept, freed);
    assert_eq!(cuMemFree_v2(freed), 0);
    assert_eq!(of_device("live_bytes"), 1000);
    assert_eq!(of_device("allocations"), 1);
    assert_eq!(of_device("peak_bytes"), 1500);
    assert_eq!((of_device("reclaimed_bytes"), of_device("context_references")), (0, 1));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(gpu.device), 0);
    assert_eq!((of_device("live_bytes"), of_device("context_references")), (0, 0));
    assert_eq!(of_device("reclaimed_bytes"), 1000);
}
