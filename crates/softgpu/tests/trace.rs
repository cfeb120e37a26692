//! Overlaps in logical time, and the counts of calls.

mod common;

use common::{Gpu, NON_BLOCKING, join, state, unique_id};
use softgpu::driver::{memory::*, stream::*};
use softgpu::nccl::*;
use softgpu::report::*;
use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, PoisonError};

const IN_PROGRESS: u32 = 7;
const SUM: u32 = 0;
const F32: u32 = 7;
/// Bytes of a layer: 4 microseconds of the link, longer than the kernel.
const LAYER_BYTES: usize = 100_000;
const LAYERS: usize = 4;

/// A kernel of one warp that writes 128 bytes.
const LAYER: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry layer(.param .u64 layer_out)\n{\n\
    .reg .b32 %r<2>; .reg .b64 %d<3>;\n\
    ld.param.u64 %d1, [layer_out]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2;\n\
    st.global.u32 [%d1], %r1;\nret;\n}\n";

/// The trace and the counts of calls belong to the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(of: unsafe extern "C" fn(*mut c_char, usize) -> usize) -> String {
    // SAFETY: no buffer; then one that holds the whole string and its zero byte.
    unsafe {
        let mut buffer = vec![0u8; of(std::ptr::null_mut(), 0) + 1];
        let length = of(buffer.as_mut_ptr().cast(), buffer.len());
        buffer.truncate(length);
        String::from_utf8(buffer).expect("text")
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    device: usize,
    stream: usize,
    kind: String,
    name: String,
    bytes: usize,
    start: u64,
    end: u64,
}

impl Entry {
    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

fn trace() -> Vec<Entry> {
    let entry = |object: &str| {
        let field = |name: &str| {
            let (_, after) = object.split_once(&format!("\"{name}\":")).expect("the field is there");
            after.split([',', '}']).next().expect("a value").trim_matches('"').to_string()
        };
        let number = |name: &str| field(name).parse::<u64>().expect("a number");
        Entry {
            device: number("device") as usize,
            stream: number("stream") as usize,
            kind: field("kind"),
            name: field("name"),
            bytes: number("bytes") as usize,
            start: number("start"),
            end: number("end"),
        }
    };
    text(softgpu_trace_json).split('{').skip(1).map(entry).collect()
}

fn of_kind(trace: &[Entry], kind: &str) -> Vec<Entry> {
    trace.iter().filter(|e| e.kind == kind).cloned().collect()
}

fn stream() -> usize {
    let mut stream = 0;
    // SAFETY: the out parameter is a local; 1 is a stream that does not wait for the default
    // stream.
    assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, 0);
    stream
}

fn event() -> usize {
    let mut event = 0;
    // SAFETY: the out parameter is a local.
    assert_eq!(unsafe { cuEventCreate(&mut event, 0) }, 0);
    event
}

fn record(event: usize, stream: usize) {
    assert_eq!(cuEventRecord(event, stream), 0);
}

fn wait(stream: usize, event: usize) {
    assert_eq!(cuStreamWaitEvent(stream, event, 0), 0);
}

/// Weights in pinned memory, two slots on the device, and a kernel.
struct Model {
    gpu: Gpu,
    pinned: *mut u8,
    slots: [u64; 2],
    layer: usize,
    out: u64,
}

impl Model {
    fn new() -> Self {
        let gpu = Gpu::new();
        let mut pinned = std::ptr::null_mut();
        // SAFETY: the out parameter is a local.
        assert_eq!(unsafe { cuMemHostAlloc(&mut pinned, LAYER_BYTES, 0) }, 0);
        let slots = [gpu.allocate(LAYER_BYTES), gpu.allocate(LAYER_BYTES)];
        let (layer, out) = (gpu.function(LAYER, "layer"), gpu.allocate(128));
        Self { gpu, pinned, slots, layer, out }
    }

    fn copy(&self, layer: usize, stream: usize) {
        // SAFETY: the pinned block has these bytes and lives as long as the model.
        let status = unsafe { cuMemcpyHtoDAsync_v2(self.slots[layer % 2], self.pinned, LAYER_BYTES, stream) };
        assert_eq!(status, 0);
    }

    fn compute(&self, stream: usize) {
        assert_eq!(self.gpu.launch_on(stream, self.layer, 1, 32, &[self.out]), 0);
    }

    /// A pass over all layers: a layer's copy waits for its slot, its kernel for the copy.
    fn pass(&self, compute: usize, copy: usize) {
        let (copied, used) = ([event(), event()], [event(), event()]);
        for layer in 0..LAYERS {
            wait(copy, used[layer % 2]);
            self.copy(layer, copy);
            record(copied[layer % 2], copy);
            wait(compute, copied[layer % 2]);
            self.compute(compute);
            record(used[layer % 2], compute);
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made by `cuMemHostAlloc`, and every test has waited for its streams.
        unsafe { cuMemFreeHost(self.pinned) };
    }
}

#[test]
fn streams_without_an_event_overlap_and_with_one_do_not() {
    let _alone = alone();
    let model = Model::new();
    let (compute, copy, done) = (stream(), stream(), event());
    softgpu_reset_trace();
    model.compute(compute);
    model.copy(0, copy);
    assert_eq!(model.gpu.synchronize() | cuStreamSynchronize(copy) | cuStreamSynchronize(compute), 0);
    let [copied, computed] = trace().try_into().expect("two entries");
    assert!(copied.overlaps(&computed), "{copied:?} {computed:?}");
    assert_eq!(
        (copied.kind.as_str(), copied.name.as_str(), copied.bytes),
        ("copy_in", "pinned", LAYER_BYTES)
    );
    assert_eq!((copied.stream, copied.start, copied.end), (copy, 0, 4000));
    assert_eq!((computed.kind.as_str(), computed.name.as_str()), ("kernel", "layer"));
    assert_eq!((computed.stream, computed.start, computed.bytes), (compute, 0, 0));
    assert_eq!(computed.device, model.gpu.device as usize);

    softgpu_reset_trace();
    model.compute(compute);
    record(done, compute);
    wait(copy, done);
    model.copy(0, copy);
    assert_eq!(cuStreamSynchronize(copy), 0);
    let [computed, copied] = trace().try_into().expect("two entries");
    assert!(!copied.overlaps(&computed));
    assert_eq!((computed.start, copied.start), (0, computed.end));
}

#[test]
fn copy_after_an_event_within_a_stream_starts_there() {
    let _alone = alone();
    let model = Model::new();
    let (compute, copy, middle) = (stream(), stream(), event());
    // In either order of waits.
    for order in [[compute, copy], [copy, compute]] {
        softgpu_reset_trace();
        model.compute(compute);
        model.compute(compute);
        record(middle, compute);
        model.compute(compute);
        wait(copy, middle);
        model.copy(0, copy);
        order.into_iter().for_each(|stream| assert_eq!(cuStreamSynchronize(stream), 0));
        let (kernels, copies) = (of_kind(&trace(), "kernel"), of_kind(&trace(), "copy_in"));
        assert_eq!((kernels.len(), copies.len()), (3, 1));
        assert_eq!(copies[0].start, kernels[1].end);
        assert_eq!(copies[0].start, kernels[2].start);
        assert!(copies[0].overlaps(&kernels[2]));
    }
}

#[test]
fn next_layers_copy_overlaps_the_kernel_of_another_stream() {
    let _alone = alone();
    let model = Model::new();
    let (compute, copy) = (stream(), stream());
    let overlaps = || -> Vec<bool> {
        let trace = trace();
        let (kernels, copies) = (of_kind(&trace, "kernel"), of_kind(&trace, "copy_in"));
        assert_eq!((kernels.len(), copies.len()), (LAYERS, LAYERS));
        assert!((0..LAYERS).all(|i| copies[i].end <= kernels[i].start), "a layer waits for its weights");
        assert!((2..LAYERS).all(|i| kernels[i - 2].end <= copies[i].start), "a copy waits for its slot");
        (1..LAYERS).map(|i| copies[i].overlaps(&kernels[i - 1])).collect()
    };
    softgpu_reset_trace();
    model.pass(compute, copy);
    assert_eq!(cuStreamSynchronize(compute), 0);
    assert_eq!(overlaps(), [true; LAYERS - 1]);
    softgpu_reset_trace();
    model.pass(compute, compute);
    assert_eq!(cuStreamSynchronize(compute), 0);
    assert_eq!(overlaps(), [false; LAYERS - 1]);
}

#[test]
fn default_stream_and_destroyed_streams_are_waited_for() {
    let _alone = alone();
    let model = Model::new();
    let mut blocking = 0;
    // SAFETY: the out parameter is a local; 0 is a stream that waits for the default stream.
    assert_eq!(unsafe { cuStreamCreate(&mut blocking, 0) }, 0);
    softgpu_reset_trace();
    model.copy(0, 0);
    model.compute(blocking);
    assert_eq!(cuStreamSynchronize(blocking), 0);
    let [copied, computed] = trace().try_into().expect("two entries");
    assert_eq!(computed.start, copied.end);

    let (short, later, done) = (stream(), stream(), event());
    softgpu_reset_trace();
    model.copy(0, short);
    record(done, short);
    assert_eq!(cuStreamDestroy_v2(short), 0);
    wait(later, done);
    model.compute(later);
    assert_eq!(cuStreamSynchronize(later), 0);
    let [copied, computed] = trace().try_into().expect("two entries");
    assert_eq!((copied.end, computed.start), (4000, 4000));
}

#[test]
fn collective_starts_when_its_last_rank_can() {
    let _alone = alone();
    let id = unique_id();
    let ranks = [0, 1].map(|rank| {
        let model = Model::new();
        let (result, comm) = join(id, 2, rank, &NON_BLOCKING);
        assert_eq!(result, IN_PROGRESS);
        let data = model.gpu.upload(&[0; 250]);
        assert_eq!(model.gpu.synchronize(), 0);
        (model, comm, data)
    });
    softgpu_reset_trace();
    for (rank, (model, comm, data)) in ranks.iter().enumerate() {
        model.gpu.enter();
        (0..=rank).for_each(|_| model.compute(0));
        assert_eq!(state(*comm), 0);
        assert_eq!(ncclAllReduce(*data, *data, 250, F32, SUM, *comm, 0), IN_PROGRESS);
        model.compute(0);
    }
    for (model, ..) in &ranks {
        model.gpu.enter();
        assert_eq!(model.gpu.synchronize(), 0);
    }
    let (kernels, sums) = (of_kind(&trace(), "kernel"), of_kind(&trace(), "collective"));
    assert_eq!((kernels.len(), sums.len()), (5, 2));
    let last = kernels[3].end;
    assert!(last > kernels[0].end, "the second rank is later");
    for (sum, next) in [(&sums[0], &kernels[1]), (&sums[1], &kernels[4])] {
        assert_eq!((sum.name.as_str(), sum.bytes, sum.start), ("ncclAllReduce", 1000, last));
        assert_eq!(next.start, sum.end);
    }
}

#[test]
fn calls_and_copied_bytes_are_counted_since_the_reset() {
    let _alone = alone();
    let model = Model::new();
    let mut words = [0u32; 4];
    softgpu_reset_trace();
    assert_eq!(text(softgpu_trace_json), "[]");
    assert_eq!(
        text(softgpu_calls_json),
        "{\"calls\":{},\"copied_in\":{\"pinned\":0,\"pageable\":0},\"copied_out\":{\"pinned\":0,\"pageable\":0},\"contexts\":0,\"nccl_jobs\":0,\"launches_behind_results\":0}"
    );
    model.copy(0, 0);
    model.copy(1, 0);
    let rows = Memcpy2D {
        source_x: 0,
        source_y: 0,
        source_kind: 1,
        source_host: words.as_ptr().cast(),
        source_device: 0,
        source_array: 0,
        source_pitch: 8,
        target_x: 0,
        target_y: 0,
        target_kind: 2,
        target_host: std::ptr::null_mut(),
        target_device: model.slots[0],
        target_array: 0,
        target_pitch: 8,
        width: 8,
        height: 2,
    };
    // SAFETY: two rows of 8 bytes lie in `words` and in the slot; the target of the second copy is
    // `words`.
    unsafe {
        assert_eq!(cuMemcpy2DAsync_v2(&rows, 0), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(words.as_mut_ptr().cast(), model.slots[0], 12, 0), 0);
    }
    assert_eq!(model.gpu.synchronize(), 0);
    assert_eq!(
        text(softgpu_calls_json),
        "{\"calls\":{\"cuMemcpy2DAsync_v2\":1,\"cuMemcpyDtoHAsync_v2\":1,\"cuMemcpyHtoDAsync_v2\":2,\"cuStreamSynchronize\":1},\
         \"copied_in\":{\"pinned\":200000,\"pageable\":16},\"copied_out\":{\"pinned\":0,\"pageable\":12},\"contexts\":0,\"nccl_jobs\":0,\"launches_behind_results\":0}"
    );
}
