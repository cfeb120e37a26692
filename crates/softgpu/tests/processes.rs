//! Ranks of two processes: this one, and one that runs an ignored test below. Each has its devices
//! from 0 on.

mod common;

use common::{BLOCKING, Gpu, NON_BLOCKING, join, state, unique_id};
use softgpu::driver::stream::*;
use softgpu::nccl::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const SYSTEM_ERROR: u32 = 2;
const REMOTE_ERROR: u32 = 6;
const IN_PROGRESS: u32 = 7;
const NOT_READY: u32 = 600;
const LAUNCH_FAILED: u32 = 719;
const SUM: u32 = 0;
const F32: u32 = 7;
/// More than a socket holds.
const COUNT: usize = 1 << 20;
/// Ranks 0 and 2 are in the process that serves, 1 and 3 in the other.
const RANKS: i32 = 4;
const ID: &str = "SOFTGPU_TEST_UNIQUE_ID";
/// Prefix of a child's lines that its parent reads.
const PREFIX: &str = "child: ";
const QUERIES: usize = 50;

fn to_text(id: &UniqueId) -> String {
    String::from_utf8_lossy(&id.bytes).trim_end_matches('\0').into()
}

fn from_text(text: &str) -> UniqueId {
    let mut id = UniqueId { bytes: [0; 128] };
    id.bytes[..text.len()].copy_from_slice(text.as_bytes());
    id
}

/// Another process, which runs one of the ignored tests.
struct Other {
    child: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Other {
    fn run(test: &str, id: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
        command.args([test, "--exact", "--ignored", "--nocapture"]).env(ID, id);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the child starts");
        let (input, lines) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, input, lines: BufReader::new(lines) }
    }

    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).expect("a line"), 0, "the child ended");
            // The harness's own output precedes it on the line.
            if let Some((_, message)) = line.trim_end().split_once(PREFIX) {
                return message.into();
            }
        }
    }

    fn resume(&mut self) {
        writeln!(self.input, "go on").expect("the child lives");
    }

    fn kill(&mut self) {
        self.child.kill().expect("it lives until now");
        self.child.wait().expect("it ends");
    }

    fn assert_passes(mut self) {
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child.
fn given_id() -> UniqueId {
    from_text(&std::env::var(ID).expect("the parent gives it"))
}

fn report(message: &str) {
    println!("{PREFIX}{message}");
}

fn wait_for_a_line() {
    std::io::stdin().read_line(&mut String::new()).expect("a line");
}

/// Runs all-reduces and all-gathers as two of the ranks, one thread each, several times.
fn two_ranks(id: UniqueId, ranks: [i32; 2]) {
    let rank = |rank: i32| {
        move || {
            let gpu = Gpu::new();
            let (result, comm) = join(id, RANKS, rank, &BLOCKING);
            assert_eq!(result, 0);
            let input: Vec<u32> =
                (0..COUNT).map(|i| ((i % 1000) as f32 * (rank + 1) as f32).to_bits()).collect();
            let (part, sum) = (gpu.upload(&input), gpu.allocate(COUNT * 4));
            let gathered = gpu.allocate(1000 * RANKS as usize * 4);
            for _ in 0..3 {
                assert_eq!(ncclAllReduce(part, sum, COUNT, F32, SUM, comm, 0), 0);
                assert_eq!(ncclAllGather(part, gathered, 1000, F32, comm, 0), 0);
                let sums = gpu.download(sum, COUNT).expect("the sum");
                assert!((0..COUNT).all(|i| f32::from_bits(sums[i]) == (i % 1000 * 10) as f32));
                let parts = gpu.download(gathered, 1000 * RANKS as usize).expect("the parts");
                let factor = |i: usize| f32::from_bits(parts[i]) == (i % 1000 * (i / 1000 + 1)) as f32;
                assert!((0..parts.len()).all(factor));
            }
            assert_eq!(state(comm), 0);
            assert_eq!(ncclCommDestroy(comm), 0);
        }
    };
    std::thread::scope(|s| {
        let threads = ranks.map(|r| s.spawn(rank(r)));
        threads.into_iter().for_each(|thread| thread.join().expect("the rank passes"));
    });
}

#[test]
fn ranks_of_two_processes_add_up() {
    let id = unique_id();
    let other = Other::run("child_two_ranks", &to_text(&id));
    two_ranks(id, [0, 2]);
    other.assert_passes();
}

#[test]
#[ignore = "runs in a child process, started by ranks_of_two_processes_add_up"]
fn child_two_ranks() {
    two_ranks(given_id(), [1, 3]);
}

/// An all-reduce that waits, and an event after it.
fn waiting_sum(gpu: &Gpu, comm: usize) -> usize {
    let data = gpu.upload(&[0; 64]);
    assert_eq!(gpu.synchronize(), 0);
    assert_eq!(ncclAllReduce(data, data, 64, F32, SUM, comm, 0), 0);
    let event = gpu.event_after_all();
    assert_eq!(cuEventQuery(event), NOT_READY);
    event
}

/// The other process has ended: the async error reports it, and the stream still waits for an
/// abort.
fn assert_lost(gpu: &Gpu, comm: usize, event: usize) {
    while state(comm) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(state(comm), REMOTE_ERROR);
    assert_eq!(ncclAllReduce(0, 0, 64, F32, SUM, comm, 0), REMOTE_ERROR);
    (0..QUERIES).for_each(|_| assert_eq!(cuEventQuery(event), NOT_READY));
    assert_eq!(ncclCommAbort(comm), 0);
    assert_eq!(gpu.synchronize(), LAUNCH_FAILED);
}

#[test]
fn killed_process_is_a_remote_error_for_the_server() {
    let (gpu, id) = (Gpu::new(), unique_id());
    let mut other = Other::run("child_joins", &to_text(&id));
    let (result, comm) = join(id, 2, 0, &BLOCKING);
    assert_eq!(result, 0);
    let event = waiting_sum(&gpu, comm);
    other.kill();
    assert_lost(&gpu, comm, event);
}

#[test]
#[ignore = "runs in a child process, started by killed_process_is_a_remote_error_for_the_one_that_serves"]
fn child_joins() {
    let _gpu = Gpu::new();
    assert_eq!(join(given_id(), 2, 1, &BLOCKING).0, 0);
    wait_for_a_line();
}

#[test]
fn killed_server_is_a_remote_error_for_the_others() {
    let gpu = Gpu::new();
    let mut other = Other::run("child_serves", "");
    let id = from_text(&other.hear());
    let (result, comm) = join(id, 2, 1, &BLOCKING);
    assert_eq!(result, 0);
    let event = waiting_sum(&gpu, comm);
    other.kill();
    assert_lost(&gpu, comm, event);
    // No process serves it any more.
    assert_eq!(join(id, 2, 1, &BLOCKING).0, SYSTEM_ERROR);
}

#[test]
#[ignore = "runs in a child process, started by killed_process_that_serves_is_a_remote_error_for_the_others"]
fn child_serves() {
    let (_gpu, id) = (Gpu::new(), unique_id());
    report(&to_text(&id));
    assert_eq!(join(id, 2, 0, &BLOCKING).0, 0);
    wait_for_a_line();
}

#[test]
fn abort_in_one_process_does_not_free_the_other() {
    let (gpu, id) = (Gpu::new(), unique_id());
    let mut other = Other::run("child_waits_for_an_abort", &to_text(&id));
    let (result, comm) = join(id, 2, 0, &NON_BLOCKING);
    assert_eq!(result, IN_PROGRESS);
    while state(comm) == IN_PROGRESS {
        std::thread::yield_now();
    }
    // The child has contributed, and this rank never will.
    assert_eq!(other.hear(), "waiting");
    assert_eq!(ncclCommAbort(comm), 0);
    other.resume();
    other.assert_passes();
    assert_eq!(gpu.synchronize(), 0);
}

#[test]
#[ignore = "runs in a child process, started by abort_in_one_process_does_not_free_the_other"]
fn child_waits_for_an_abort() {
    let gpu = Gpu::new();
    let (result, comm) = join(given_id(), 2, 1, &BLOCKING);
    assert_eq!(result, 0);
    let event = waiting_sum(&gpu, comm);
    report("waiting");
    wait_for_a_line();
    (0..QUERIES).for_each(|_| assert_eq!(cuEventQuery(event), NOT_READY));
    // An abort is not a remote error.
    assert_eq!(state(comm), 0);
    std::thread::scope(|s| {
        let waiting = s.spawn(|| {
            gpu.enter();
            gpu.synchronize()
        });
        assert_eq!(ncclCommAbort(comm), 0);
        assert_eq!(waiting.join().expect("it ends"), LAUNCH_FAILED);
    });
    assert_eq!(cuEventQuery(event), LAUNCH_FAILED);
}
