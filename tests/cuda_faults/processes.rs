//! Ranks in several processes: the rewards of one process, and one cause with which all end when
//! one fails.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{ModelSizes, Run, kudos_in, kudos_path, random_model, root};
use crate::{LINE, MODEL};

/// Far more than it takes for all ranks to end, and far less than a hang.
const SOON: Duration = Duration::from_secs(30);

/// Returns an address whose port was free just before.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Starts a rank of two on the GPU with the rank's number.
fn start(rank: usize, address: &str, more: &[&str], variables: &[(&str, &str)]) -> Child {
    start_of("2", &root().join(MODEL), rank, address, more, variables)
}

fn start_of(
    world_size: &str,
    model: &Path,
    rank: usize,
    address: &str,
    more: &[&str],
    variables: &[(&str, &str)],
) -> Child {
    let number = rank.to_string();
    Command::new(kudos_path())
        .args(["score", "--device", "cuda", "--model", model.to_str().unwrap()])
        .args(["--rank", &number, "--world-size", world_size, "--rendezvous", address, "--devices", &number])
        .args(["--batch-tokens", "16", "--max-tokens", "64"])
        .args(more)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn end(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn assert_failed(run: &Run, parts: &[&str]) {
    assert_eq!(run.status, Some(2), "{run:?}");
    for part in parts {
        assert!(run.stderr.contains(part), "`{part}` is not in: {}", run.stderr);
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn two_processes_give_the_bits_of_two_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines: String = (1..7).map(|id| format!("{{\"input_ids\":[{id},2,3,4,{id}]}}\n")).collect();
    fs::write(&input, &lines).unwrap();
    let model = root().join(MODEL);
    let threads = ["score", "--device", "cuda", "--ranks", "2", "--model", model.to_str().unwrap(), "-"];
    let threads = kudos_in(&[], &[&threads[..], &["--batch-tokens", "16"]].concat(), &lines);
    assert_eq!(threads.status, Some(0), "{threads:?}");
    // Also where the host waits for every matmul, while the next full batch is known.
    for variables in [&[][..], &[("KUDOS_CHECK_BITS", "1")]] {
        let address = free_address();
        let second = start(1, &address, &["--peer-timeout", "30"], variables);
        let more = [input.to_str().unwrap(), "-o", output.to_str().unwrap(), "--peer-timeout", "30"];
        let (first, second) = (end(start(0, &address, &more, variables)), end(second));
        assert_eq!((first.status, first.stdout.as_str()), (Some(0), ""), "{variables:?}: {first:?}");
        assert_eq!((second.status, second.stdout.as_str()), (Some(0), ""), "{variables:?}: {second:?}");
        assert!(second.stderr.contains("rank 1 of 2"), "{second:?}");
        assert_eq!(fs::read_to_string(&output).unwrap(), threads.stdout, "{variables:?}");
        fs::remove_file(&output).unwrap();
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_that_fails_ends_both_processes_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    fs::write(&input, LINE).unwrap();
    for (fault, cause) in [
        ("alloc:3", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("launch:4", "CUDA_ERROR_LAUNCH_FAILED"),
        ("launch@add_rms_norm_bf16:2", "CUDA_ERROR_LAUNCH_FAILED"),
        ("nccl:1", "NCCL says"),
        ("nccl:3", "NCCL says"),
    ] {
        let address = free_address();
        let begun = Instant::now();
        let second = start(1, &address, &["--peer-timeout", "20"], &[("SOFTGPU_FAIL", fault)]);
        let first = start(0, &address, &[input.to_str().unwrap(), "--peer-timeout", "20"], &[]);
        let (first, second) = (end(first), end(second));
        assert_failed(&first, &["rank 1 of 2: ", cause]);
        assert_failed(&second, &["rank 1 of 2: ", cause]);
        assert!(begun.elapsed() < SOON, "{fault}: {:?}", begun.elapsed());
    }
}

/// Starts both ranks with an open input at rank 0, feeds that, and waits for the first result.
fn start_both_and_score(address: &str, lines: &str) -> ([Child; 2], impl BufRead + use<>) {
    let second = start(1, address, &["--peer-timeout", "20"], &[]);
    let mut first = start(0, address, &["-", "--peer-timeout", "20"], &[]);
    first.stdin.as_mut().unwrap().write_all(lines.as_bytes()).unwrap();
    let mut results = BufReader::new(first.stdout.take().unwrap());
    let mut result = String::new();
    results.read_line(&mut result).unwrap();
    assert!(result.contains("\"reward\""), "{result}");
    ([first, second], results)
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_killed_process_ends_the_other_one() {
    // With one line the ranks wait for the next; with many, passes are running.
    for (killed, lines) in [(0, 1), (1, 1), (0, 300), (1, 300)] {
        let lines: String =
            (0..lines).map(|id| format!("{{\"input_ids\":[{id},2,3,4,{id},6,7]}}\n")).collect();
        let (mut both, results) = start_both_and_score(&free_address(), &lines);
        let begun = Instant::now();
        both[killed].kill().unwrap();
        // Rank 0's input stays open.
        let input = both[0].stdin.take();
        let [first, second] = both.map(end);
        assert_failed(&[second, first][killed], &[&format!("rank {killed} of 2 disconnected")]);
        drop((input, results));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_closed_output_ends_all_ranks_without_an_error() {
    let lines: String = (0..300).map(|id| format!("{{\"input_ids\":[{id},2,3,4,{id},6,7]}}\n")).collect();
    let (mut both, results) = start_both_and_score(&free_address(), &lines);
    let input = both[0].stdin.take();
    drop(results);
    let [first, second] = both.map(end);
    assert_eq!((first.status, second.status), (Some(0), Some(0)), "{first:?} {second:?}");
    drop(input);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn all_ranks_keep_as_many_layers_as_the_fullest_gpu() {
    let dir = tempfile::tempdir().unwrap();
    // Layers of 8 MiB, half of them on each rank.
    random_model(dir.path(), ModelSizes { hidden: 512, ffn: 2048, layers: 8, vocab: 64 });
    let input = dir.path().join("in.jsonl");
    fs::write(&input, LINE).unwrap();
    let run = |memory_gib: &str| {
        let variables = [("SOFTGPU_MEMORY_GIB", memory_gib), ("SOFTGPU_LIBRARY_MIB", "0,0,0")];
        let address = free_address();
        let timeout = ["--peer-timeout", "20", "--gpu-reserve-gib", "0"];
        let second = start_of("2", dir.path(), 1, &address, &timeout, &variables);
        let more = [&timeout[..], &[input.to_str().unwrap()]].concat();
        let first = start_of("2", dir.path(), 0, &address, &more, &variables);
        let runs = [first, second].map(end);
        assert!(runs.iter().all(|run| run.status == Some(0)), "{runs:?}");
        runs
    };
    let [expected, _] = run("8");
    for (memory_gib, fullest) in [("0.06,8", 0), ("8,0.06", 1)] {
        let runs = run(memory_gib);
        assert_eq!(runs[0].stdout, expected.stdout);
        assert!(runs[fullest].stderr.contains("of 8 layers stay on it"), "{runs:?}");
        assert!(runs[1 - fullest].stderr.contains("another rank's GPU has memory for "), "{runs:?}");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn missing_and_mismatched_ranks_are_named() {
    let address = free_address();
    let second = start_of("4", &root().join(MODEL), 1, &address, &["--peer-timeout", "6"], &[]);
    let first = start(0, &address, &["-", "--peer-timeout", "6"], &[]);
    let [first, second] = [first, second].map(end);
    assert_failed(&first, &["rank 1 of 2 did not join within 6 s", "its world size is 4, and rank 0's is 2"]);
    assert_failed(&second, &["rank 0 refused rank 1 of 4: its world size is 4, and rank 0's is 2"]);

    let address = free_address();
    let alone = [start(0, &address, &["-", "--peer-timeout", "1"], &[])].map(end);
    assert_failed(&alone[0], &["rank 1 of 2 did not join within 1 s", "hint: start them with the same"]);
    let alone = [start(1, &address, &["--peer-timeout", "1"], &[])].map(end);
    assert_failed(&alone[0], &["rank 0 was not found within 1 s", "hint: start rank 0 with the same"]);

    let address = free_address();
    let mut first = start(0, &address, &["-", "--peer-timeout", "20"], &[]);
    // Clients of another protocol delay no rank.
    let mut client = loop {
        match TcpStream::connect(&address) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let silent = TcpStream::connect(&address).unwrap();
    let second = start(1, &address, &["--peer-timeout", "20"], &[]);
    first.stdin.take().unwrap().write_all(LINE.as_bytes()).unwrap();
    let runs = [first, second].map(end);
    assert!(runs.iter().all(|run| run.status == Some(0)), "{runs:?}");
    assert!(runs[0].stdout.contains("\"reward\""), "{runs:?}");
    drop((client, silent));
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn mismatched_ranks_report_their_differences() {
    let address = free_address();
    let second = start(1, &address, &["--peer-timeout", "6", "--all-reduce", "nccl"], &[]);
    let first = start(0, &address, &["-", "--peer-timeout", "6"], &[]);
    assert_failed(&end(first), &["rank 1 of 2 did not join within 6 s", "its all-reduce is nccl"]);
    assert_failed(&end(second), &["rank 0 refused rank 1 of 2", "its all-reduce is nccl"]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn impossible_options_are_refused_before_ranks_are_waited_for() {
    let address = free_address();
    let begun = Instant::now();
    assert_failed(&end(start(0, &address, &[], &[])), &["rank 0 has no input"]);
    assert_failed(&end(start(1, &address, &["-"], &[])), &["rank 1 takes neither INPUT nor `--output`"]);
    let model = root().join(MODEL);
    let cpu = ["score", "--device", "cpu", "--model", model.to_str().unwrap(), "-"];
    let process = ["--rank", "0", "--world-size", "2", "--rendezvous", &address];
    let run = kudos_in(&[], &[&cpu[..], &process].concat(), LINE);
    assert_failed(&run, &["`--rendezvous` is an option of GPUs, and `--device cpu` was given", "hint: "]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}
