//! `wgmma`: one matmul with results that are known, and kernels with one bug planted, which must be caught
//! and named.

mod common;

use std::sync::Once;

use common::Gpu;
use half::bf16;

const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_TIMEOUT: u32 = 702;
const ILLEGAL_INSTRUCTION: u32 = 715;
/// The swizzle of 128 bytes, and distances of 1,024 bytes between groups of eight rows.
const SWIZZLED: u64 = 1 << 62 | 64 << 32;
/// Bytes of an operand's place in shared memory, and words of both.
const OPERAND: usize = 8192;
const IMAGE: usize = 2 * OPERAND / 4;

fn gpu() -> Gpu {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: `call_once` runs before any other thread of this binary reads the environment.
        unsafe { std::env::set_var("SOFTGPU_CC", "90") };
    });
    Gpu::new()
}

/// The left operand: row r has one 1, at r % 32. So row r of a matmul is row r % 32 of the right one.
fn left(row: usize, k: usize) -> f32 {
    f32::from(row % 32 == k)
}

/// The right operand, exact in bfloat16.
fn right(k: usize, column: usize) -> f32 {
    let size = (1 + 8 * (k % 16) + 2 * (column % 8) + k / 16) as f32;
    if column < 64 { size } else { -size }
}

/// Writes an element where a row of 128 bytes has it: chunks of 16 bytes are exchanged by the row's
/// index in eight.
fn put(image: &mut [u8], base: usize, line: usize, byte: usize, value: f32) {
    let at = base + 128 * line + ((byte / 16) ^ (line % 8)) * 16 + byte % 16;
    image[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
}

/// Shared memory: 64 rows of the left operand; behind them the right one, of columns in rows, or, transposed,
/// of 32 lines of k for each 64 columns.
fn image(columns: usize, transposed: bool) -> Vec<u32> {
    let mut bytes = vec![0; 4 * IMAGE];
    for k in 0..32 {
        for row in 0..64 {
            put(&mut bytes, 0, row, 2 * k, left(row, k));
        }
        for column in 0..columns {
            let value = right(k, column);
            if transposed {
                put(&mut bytes, OPERAND + 4096 * (column / 64), k, 2 * (column % 64), value);
            } else {
                put(&mut bytes, OPERAND, column, 2 * k, value);
            }
        }
    }
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

/// `{%f0, %f1, ..}`
fn registers(prefix: &str, count: usize) -> String {
    let names: Vec<String> = (0..count).map(|i| format!("%{prefix}{i}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// A kernel of 128 threads `victim(out, in)` that copies the image to shared memory, sets %d4 to
/// the left operand's descriptor, %d5 to the right one's, which has `bits` beside its address, and
/// the accumulators to 1, runs `body`, and stores them: accumulator i of all threads side by side.
fn kernel(columns: usize, bits: u64, body: &str) -> String {
    let count = columns / 2;
    let ones: String = (0..count).map(|i| format!("mov.f32 %f{i}, 0f3F800000;\n")).collect();
    let stores: String = (0..count).map(|i| format!("st.global.f32 [%d1+{}], %f{i};\n", 512 * i)).collect();
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry victim(.param .u64 out_param, .param .u64 in_param)\n{{\n\
         .reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b32 %a<8>;\n.reg .f32 %f<128>;\n.reg .b64 %d<16>;\n\
         .shared .align 1024 .b8 tile[32768];\n\
         ld.param.u64 %d1, [out_param];\nld.param.u64 %d2, [in_param];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %d3, %r1, 4;\nadd.s64 %d1, %d1, %d3;\nmul.wide.u32 %d3, %r1, 16;\n\
         add.s64 %d6, %d2, %d3;\nmov.u32 %r2, tile;\nmad.lo.s32 %r3, %r1, 16, %r2;\nmov.u32 %r4, 0;\n\
         COPY: ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%d6];\n\
         st.shared.v4.u32 [%r3], {{%r5, %r6, %r7, %r8}};\n\
         add.s64 %d6, %d6, 2048;\nadd.s32 %r3, %r3, 2048;\nadd.s32 %r4, %r4, 1;\n\
         setp.lt.u32 %p1, %r4, {};\n@%p1 bra COPY;\n\
         {ones}setp.eq.u32 %p2, 0, 0;\nsetp.eq.u32 %p3, 0, 1;\n\
         cvt.u64.u32 %d4, %r2;\nshr.u64 %d4, %d4, 4;\nadd.s64 %d5, %d4, {};\n\
         or.b64 %d4, %d4, {SWIZZLED};\nor.b64 %d5, %d5, {bits};\n\
         fence.proxy.async;\nbar.sync 0;\n{body}\n{stores}ret;\n}}\n",
        4 * IMAGE / 2048,
        OPERAND / 16,
    )
}

fn matmul(columns: usize, left: &str, right: &str, accumulates: &str, modifiers: &str) -> String {
    let sums = registers("f", columns / 2);
    format!(
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {sums}, {left}, {right}, {accumulates}, \
         1, 1, {modifiers};\n"
    )
}

const FENCE: &str = "wgmma.fence.sync.aligned;\n";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;\n";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;\n";

/// Element (row, column) of the accumulators as they were stored.
fn element(out: &[u32], row: usize, column: usize) -> f32 {
    let i = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
    f32::from_bits(out[128 * i + thread])
}

/// Runs a kernel and compares all elements.
#[track_caller]
fn check(text: &str, input: &[u32], columns: usize, expected: impl Fn(usize, usize) -> f32) {
    let gpu = gpu();
    let (output, input) = (gpu.allocate(64 * columns * 4), gpu.upload(input));
    let function = gpu.function(text, "victim");
    assert_eq!(gpu.launch(function, 1, 128, &[output, input]), 0);
    let out = gpu.download(output, 64 * columns).unwrap_or_else(|_| panic!("{}", gpu.message()));
    for row in 0..64 {
        for column in 0..columns {
            assert_eq!(element(&out, row, column), expected(row, column), "element ({row}, {column})");
        }
    }
}

#[test]
fn a_matmul_of_shared_memory_has_known_results() {
    // The second matmul begins sixteen elements, 32 bytes, later in each row.
    let next = "add.s64 %d4, %d4, 2;\nadd.s64 %d5, %d5, 2;\n";
    for (first, ones) in [("%p3", 0.0), ("%p2", 1.0)] {
        let body = [
            FENCE,
            &matmul(16, "%d4", "%d5", first, "0, 0"),
            next,
            &matmul(16, "%d4", "%d5", "%p2", "0, 0"),
            COMMIT,
            WAIT,
        ];
        let text = kernel(16, SWIZZLED, &body.concat());
        check(&text, &image(16, false), 16, |row, column| ones + right(row % 32, column));
    }
}

#[test]
fn a_matmul_of_a_transposed_operand_has_known_results() {
    // 4,096 bytes from 64 columns to the next; sixteen lines, 2,048 bytes, to the next matmul.
    let bits = SWIZZLED | 256 << 16;
    let next = "add.s64 %d4, %d4, 2;\nadd.s64 %d5, %d5, 128;\n";
    let body = [
        FENCE,
        &matmul(128, "%d4", "%d5", "%p2", "0, 1"),
        next,
        &matmul(128, "%d4", "%d5", "%p2", "0, 1"),
        COMMIT,
        WAIT,
    ];
    let text = kernel(128, bits, &body.concat());
    check(&text, &image(128, true), 128, |row, column| 1.0 + right(row % 32, column));
}

/// Loads the fragments of the left operand, which lie behind the image, and multiplies them.
fn of_registers(after: &str) -> String {
    let loads: String =
        (0..4).map(|i| format!("ld.global.u32 %a{i}, [%d2+{}];\n", 4 * IMAGE + 512 * i)).collect();
    let mine = format!("mul.wide.u32 %d3, %r1, 4;\nadd.s64 %d2, %d2, %d3;\n{loads}");
    let matmul = matmul(16, &registers("a", 4), "%d5", "%p3", "0");
    let body = [&mine, FENCE, &matmul, COMMIT, WAIT, after];
    kernel(16, SWIZZLED, &body.concat())
}

/// The image, and the fragments of rows that have one 1, at r % 16.
fn with_fragments() -> Vec<u32> {
    let mut input = image(16, false);
    for part in 0..4 {
        for thread in 0..128 {
            let (row, k) = (thread % 32 / 4 + 8 * (part % 2), 2 * (thread % 4) + 8 * (part / 2));
            let bits = |k| u32::from(bf16::from_f32(f32::from(row == k)).to_bits());
            input.push(bits(k) | bits(k + 1) << 16);
        }
    }
    input
}

#[test]
fn a_matmul_of_registers_has_known_results() {
    check(&of_registers(""), &with_fragments(), 16, |row, column| right(row % 16, column));
}

/// Runs a kernel clean, then with the plant: the device must stop with all of the words.
#[track_caller]
fn caught(text: &str, plant: &str, status: u32, says: &[&str]) {
    let gpu = gpu();
    let (output, input) = (gpu.allocate(64 * 128 * 4), gpu.upload(&with_fragments()));
    let clean = gpu.function(text, "victim");
    assert_eq!(gpu.launch(clean, 1, 128, &[output, input]), 0);
    assert_eq!(gpu.synchronize(), 0, "without the plant: {}", gpu.message());
    let planted = gpu.planted_function(text, "victim", &format!("victim: {plant}")).expect("it loads");
    assert_eq!(gpu.launch(planted, 1, 128, &[output, input]), 0);
    assert_eq!(gpu.synchronize(), status, "`{plant}` was not caught");
    for word in says.iter().chain(&["kernel `victim`"]) {
        assert!(gpu.message().contains(word), "`{word}` is not in: {}", gpu.message());
    }
}

fn simple(after: &str) -> String {
    let body = [FENCE, &matmul(16, "%d4", "%d5", "%p2", "0, 0"), COMMIT, WAIT, after];
    kernel(16, SWIZZLED, &body.concat())
}

#[test]
fn dropped_fences_are_named() {
    let says = ["missing fence", "no wgmma.fence", "`wgmma.mma_async"];
    caught(&simple(""), "drop 1 wgmma.fence", ILLEGAL_ADDRESS, &says);
    let says = ["missing fence", "no fence.proxy.async after it", "written by warp", "`wgmma.mma_async"];
    caught(&simple(""), "drop 1 fence.proxy.async", ILLEGAL_ADDRESS, &says);
    // A register that is written between a fence and the matmul.
    let body =
        [FENCE, "mov.f32 %f3, 0f40000000;\n", FENCE, &matmul(16, "%d4", "%d5", "%p2", "0, 0"), COMMIT, WAIT];
    let says = ["missing fence", "a register was written", "`wgmma.mma_async"];
    caught(&kernel(16, SWIZZLED, &body.concat()), "drop 2 wgmma.fence", ILLEGAL_ADDRESS, &says);
}

#[test]
fn a_dropped_barrier_before_a_matmul_is_a_race() {
    let says = ["shared memory race", "written by", "`wgmma.mma_async"];
    caught(&simple(""), "drop 1 bar.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn a_dropped_wait_is_named() {
    let says = ["operand of a matmul in flight", "which was not waited for", "`st.global.f32"];
    caught(&simple(""), "drop 1 wgmma.wait_group", ILLEGAL_ADDRESS, &says);
    caught(&simple(""), "set 1 wgmma.wait_group 0 1", ILLEGAL_ADDRESS, &says);
    caught(&simple(""), "drop 1 wgmma.commit_group", ILLEGAL_ADDRESS, &says);
    // The left operand's registers belong to the matmul, too.
    let says = ["operand of a matmul in flight", "which was not waited for", "`mov.u32 %a2"];
    caught(
        &of_registers(&format!("mov.u32 %a2, 0;\n{WAIT}")),
        "drop 1 wgmma.wait_group",
        ILLEGAL_ADDRESS,
        &says,
    );
}

#[test]
fn an_operand_that_is_overwritten_early_is_named() {
    let write = "setp.eq.u32 %p5, %r1, 0;\nbar.sync 0;\n@%p5 st.shared.u32 [%r2+8208], %r4;\n";
    let after = format!("{write}{WAIT}");
    let says = ["operand of a matmul in flight", "shared byte 8208", "st.shared.u32"];
    caught(&simple(&after), "drop 1 wgmma.wait_group", ILLEGAL_ADDRESS, &says);
    // Another warp's matmul may read on where this warp has waited.
    let says = ["operand of a matmul in flight", "st.shared.u32"];
    caught(&simple(write), "drop 2 bar.sync", ILLEGAL_ADDRESS, &says);
}

#[test]
fn a_wrong_descriptor_is_named() {
    // The operand's second half would lie where nothing was written.
    let transposed = {
        let body = [FENCE, &matmul(128, "%d4", "%d5", "%p2", "0, 1"), COMMIT, WAIT];
        kernel(128, SWIZZLED | 256 << 16, &body.concat())
    };
    let leading = SWIZZLED | 768 << 16;
    let says = ["uninitialised read", "never written", "`wgmma.mma_async"];
    caught(&transposed, &format!("set 2 or.b64 2 {leading}"), ILLEGAL_ADDRESS, &says);
    let says = ["matrix descriptor", "swizzle 0"];
    caught(&simple(""), "set 2 or.b64 2 0", ILLEGAL_INSTRUCTION, &says);
    let by_thread = "and.b32 %r9, %r1, 0;\ncvt.u64.u32 %d7, %r9;\nadd.s64 %d4, %d4, %d7;\n";
    let body = [by_thread, FENCE, &matmul(16, "%d4", "%d5", "%p2", "0, 0"), COMMIT, WAIT];
    let says = ["matrix descriptor", "operands differ"];
    caught(&kernel(16, SWIZZLED, &body.concat()), "set 1 and.b32 2 1", ILLEGAL_INSTRUCTION, &says);
}

#[test]
fn a_warp_that_does_not_come_is_named() {
    let body = [
        "setp.lt.u32 %p4, %r1, 128;\n@%p4 bra PRODUCT;\nret;\nPRODUCT:\n",
        FENCE,
        &matmul(16, "%d4", "%d5", "%p2", "0, 0"),
        COMMIT,
        WAIT,
    ];
    let says = ["barrier error", "waits for its warpgroup", "warp 3 has returned"];
    caught(&kernel(16, SWIZZLED, &body.concat()), "set 2 setp.lt 2 96", LAUNCH_TIMEOUT, &says);
}
