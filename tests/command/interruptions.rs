//! Interrupted runs: after `--resume` the file is that of an uninterrupted run.

use crate::common;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{demo_model, kudos_path};
use serde_json::json;

/// A folder with an input and its output.
struct Workspace {
    dir: tempfile::TempDir,
}

/// The exit status and the messages of a run.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stderr: String,
}

impl Workspace {
    fn new(input: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("in.jsonl"), input).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `kudos score in.jsonl -o out.jsonl`, with `options`.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(kudos_path());
        command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap()]);
        command.arg(self.path("in.jsonl")).arg("-o").arg(self.path("out.jsonl")).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a run from standard input, which gets the whole input and then stays open, so that
    /// the run cannot end yet. Dropping the handle's result ends the input.
    fn held(&self, options: &[&str]) -> (Child, JoinHandle<ChildStdin>) {
        let mut command = Command::new(kudos_path());
        command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap(), "-", "-o"]);
        command.arg(self.path("out.jsonl")).args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), fs::read(self.path("in.jsonl")).unwrap());
        let feeder = thread::spawn(move || {
            // Fails when the run is killed before it has read all.
            let _ = stdin.write_all(&input);
            stdin
        });
        (child, feeder)
    }

    fn run(&self, options: &[&str]) -> Ended {
        ended(self.command(options).spawn().unwrap())
    }

    fn output(&self) -> Vec<u8> {
        fs::read(self.path("out.jsonl")).unwrap_or_default()
    }

    fn write_output(&self, bytes: &[u8]) {
        fs::write(self.path("out.jsonl"), bytes).unwrap();
    }
}

fn ended(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "data on standard output: {}", String::from_utf8_lossy(&output.stdout));
    Ended { status: output.status, stderr: String::from_utf8(output.stderr).unwrap() }
}

/// Lines of every kind: with `id` and without, blank, wrong, with several responses, with ids
/// beyond the vocabulary.
fn mixed(lines: usize) -> String {
    let line = |index: usize| {
        match index % 7 {
        0 => json!({"id": index, "prompt": format!("What is {index}+1?"), "response": "2"}).to_string(),
        1 => json!({"input_ids": [5, index % 50, 7]}).to_string(),
        2 => String::new(),
        3 => json!({"id": format!("n{index}"), "prompt": "What is 1+1?", "responses": ["2", "3", "Two."]}).to_string(),
        4 => "{\"messages\": ".to_owned(),
        5 => json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": index.to_string()}]})
            .to_string(),
        _ => json!({"id": {"of": [index, null, 1.5e-7]}, "input_ids": [index, 999_999]}).to_string(),
    }
    };
    (0..lines).map(|index| line(index) + "\n").collect()
}

/// Waits until the output has so many bytes of results, or the run has ended. Before its first
/// result a run writes blanks, to find a full disk.
fn wait_for_bytes(child: &mut Child, path: &Path, bytes: u64) {
    let began = Instant::now();
    let has_results = || fs::read(path).is_ok_and(|file| file.len() as u64 >= bytes && !file.ends_with(b" "));
    while child.try_wait().unwrap().is_none() && !has_results() {
        assert!(began.elapsed() < Duration::from_secs(120), "no progress");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_killed_six_times_and_resumed_writes_the_whole_file() {
    let workspace = Workspace::new(&mixed(4000));
    let whole = workspace.run(&[]);
    assert_eq!(whole.status.code(), Some(1), "{whole:?}");
    let expected = workspace.output();
    fs::remove_file(workspace.path("out.jsonl")).unwrap();

    let mut seed = 12_345_u64;
    for kill in 1..=6 {
        let (mut child, feeder) = workspace.held(&["--resume"]);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let more = 1 + (seed >> 33) % (expected.len() as u64 / 7);
        let bytes = (workspace.output().len() as u64 + more).min(expected.len() as u64);
        wait_for_bytes(&mut child, &workspace.path("out.jsonl"), bytes);
        child.kill().unwrap();
        assert_eq!(ended(child).status.signal(), Some(9));
        drop(feeder.join().unwrap());
        if kill % 3 == 0 {
            // As if the kill had come during a write.
            let torn = workspace.output().len().saturating_sub(kill);
            workspace.write_output(&workspace.output()[..torn]);
        }
    }
    let resumed = workspace.run(&["--resume"]);
    assert!(workspace.output() == expected);
    assert_eq!(resumed.status.code(), Some(1), "earlier lines with errors count: {resumed:?}");
    let summary = |ended: &Ended| ended.stderr.lines().last().unwrap().to_owned();
    assert_eq!(summary(&resumed), summary(&whole));
}

#[test]
fn sigterm_ends_the_run_with_whole_lines_in_the_file() {
    let workspace = Workspace::new(&mixed(400));
    let (mut child, feeder) = workspace.held(&[]);
    wait_for_bytes(&mut child, &workspace.path("out.jsonl"), 2000);
    // Not SIGINT: a shell starts background processes with that signal ignored.
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(ended(child).status.signal(), Some(15));
    drop(feeder.join().unwrap());
    assert!(workspace.output().ends_with(b"}\n"));
}

#[test]
fn resume_keeps_a_finished_file_and_begins_a_missing_one() {
    let workspace = Workspace::new("{\"input_ids\": [5, 6]}\n{\"input_ids\": [7]}\n");
    let begun = workspace.run(&["--resume"]);
    assert_eq!(begun.status.code(), Some(0), "{begun:?}");
    let expected = workspace.output();
    assert_eq!(expected.iter().filter(|&&byte| byte == b'\n').count(), 2);
    let again = workspace.run(&["--resume"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(again.stderr.contains("continuing after 2 results in `"), "{again:?}");
    assert!(workspace.output() == expected);
}

#[test]
fn a_line_written_in_part_is_cut_off_at_any_length() {
    let workspace = Workspace::new("{\"id\": \"ü\", \"input_ids\": [5, 6]}\n\n{\"input_ids\": [7]}");
    assert_eq!(workspace.run(&[]).status.code(), Some(0));
    let expected = workspace.output();
    let first = expected.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for torn in [0, 1, 8, first - 1, first, first + 1, expected.len() - 1] {
        workspace.write_output(&expected[..torn]);
        let resumed = workspace.run(&["--resume"]);
        assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
        assert!(workspace.output() == expected, "torn after {torn} bytes");
    }
    // As a file may be after a crash of the machine.
    workspace.write_output(&[&expected[..first], &[0; 5000]].concat());
    assert_eq!(workspace.run(&["--resume"]).status.code(), Some(0));
    assert!(workspace.output() == expected);
    // As a file is after a run that was killed during its test for a full disk.
    for whole in [0, first, expected.len()] {
        workspace.write_output(&[&expected[..whole], &[b' '; 65_536]].concat());
        assert_eq!(workspace.run(&["--resume"]).status.code(), Some(0));
        assert!(workspace.output() == expected, "blanks behind {whole} bytes");
    }
}

#[test]
fn an_output_of_another_input_is_refused_and_unchanged() {
    let workspace = Workspace::new(
        "{\"id\": 1, \"prompt\": \"a\", \"responses\": [\"b\", \"c\"]}\n{\"input_ids\": [7]}\n{\"input_ids\": [8]}\n",
    );
    let first = "{\"id\":1,\"rewards\":[0.5,0.5]}\n";
    for (output, word) in [
        ("{\"id\":2,\"rewards\":[0.5,0.5]}\n", "line 1 of `"),
        ("{\"id\":2,\"rewards\":[0.5,0.5]}\n", "it has `id` 2, expected `id` 1"),
        ("{\"index\":0,\"rewards\":[0.5,0.5]}\n", "it has `index` 0, expected `id` 1"),
        ("{\"rewards\":[0.5,0.5]}\n", "it has no `id`, expected 1"),
        ("{\"id\":1,\"rewards\":[0.5]}\n", "it has 1 rewards, expected 2"),
        ("{\"id\":1,\"reward\":0.5}\n", "it has no `rewards`"),
        ("one\n", "it is not a JSON object"),
        (&format!("{first}{{\"index\":1}}\n"), "it has no `reward`"),
        (&format!("{first}{{\"index\":2,\"reward\":1}}\n"), "expected `index` 1"),
        (&format!("{first}{{\"index\":1,\"reward\":1}}\n{{\"index\":2,\"reward\":1}}\n{{}}\n"), "has only 3"),
        // The keys are right: only scoring again shows the difference.
        (first, "than this run"),
    ] {
        workspace.write_output(output.as_bytes());
        let refused = workspace.run(&["--resume"]);
        assert_eq!(refused.status.code(), Some(2), "{output}: {refused:?}");
        assert!(refused.stderr.contains(word) && refused.stderr.contains("hint: "), "{output}: {refused:?}");
        assert_eq!(String::from_utf8(workspace.output()).unwrap(), output);
    }
}

#[test]
fn resuming_with_other_options_is_refused() {
    let workspace = Workspace::new(
        "{\"prompt\": \"one two three\", \"response\": \"four five\"}\n{\"input_ids\": [7]}\n",
    );
    assert_eq!(workspace.run(&[]).status.code(), Some(0));
    let expected = workspace.output();
    let refused = workspace.run(&["--resume", "--max-tokens", "12", "--truncate", "left"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("for input line 1") && refused.stderr.contains("hint: "), "{refused:?}");
    assert!(workspace.output() == expected);
}

#[test]
fn standard_input_is_resumed_from_its_start() {
    let input = mixed(60);
    let workspace = Workspace::new("");
    let feed = |options: &[&str]| {
        let mut command = Command::new(kudos_path());
        command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap(), "-", "-o"]);
        command.arg(workspace.path("out.jsonl")).args(options);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        ended(child)
    };
    assert_eq!(feed(&[]).status.code(), Some(1));
    let expected = workspace.output();
    workspace.write_output(&expected[..expected.len() / 2]);
    let resumed = feed(&["--resume"]);
    assert_eq!(resumed.status.code(), Some(1), "{resumed:?}");
    assert!(workspace.output() == expected);
}

#[test]
fn an_unusable_output_is_an_error_before_the_model_loads() {
    let workspace = Workspace::new("{\"input_ids\": [7]}\n");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(kudos_path());
        command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap()]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = ended(command.spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.contains("running on"), "the model was opened: {ended:?}");
        ended.stderr
    };
    let input = workspace.path("in.jsonl");
    let input = input.to_str().unwrap();
    assert!(run(&[input, "-o", "/dev/null", "--resume"]).contains("`/dev/null` cannot be resumed"));
    assert!(run(&[input, "-o", "-", "--resume"]).contains("standard output cannot be resumed"));
    assert!(run(&[input, "--resume"]).contains("--output"));
    assert!(run(&[input, "-o", input]).contains("is the input and the output at once"));
    assert_eq!(fs::read_to_string(input).unwrap(), "{\"input_ids\": [7]}\n");
    let nowhere = workspace.path("no/such/folder");
    assert!(run(&[input, "-o", nowhere.to_str().unwrap()]).contains("cannot write"));
}

#[test]
fn a_file_that_another_run_writes_is_refused() {
    let workspace = Workspace::new(&mixed(400));
    let (mut first, feeder) = workspace.held(&[]);
    wait_for_bytes(&mut first, &workspace.path("out.jsonl"), 2000);
    let second = workspace.run(&["--resume"]);
    assert_eq!(second.status.code(), Some(2), "{second:?}");
    assert!(second.stderr.contains("is being written by another kudos"), "{second:?}");
    drop(feeder.join().unwrap());
    assert_eq!(ended(first).status.code(), Some(1));
    assert_eq!(workspace.run(&["--resume"]).status.code(), Some(1));
}

#[test]
fn a_full_disk_is_an_error_and_the_run_is_resumed_later() {
    let workspace = Workspace::new(&mixed(2000));
    assert_eq!(workspace.run(&[]).status.code(), Some(1));
    let expected = workspace.output();
    fs::remove_file(workspace.path("out.jsonl")).unwrap();
    // A shell's limit counts blocks of 512 bytes or of 1024: in either case more than the probe and
    // less than all.
    let blocks = 160;
    assert!(expected.len() > blocks * 1024, "{}", expected.len());
    let shell = |script: String| {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("trap '' XFSZ; {script}"), "sh"]).arg(kudos_path());
        let command = workspace.command(&[]);
        limited.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ended(limited.spawn().unwrap())
    };
    let failed = shell(format!("ulimit -f {blocks}; exec \"$@\""));
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    assert!(failed.stderr.contains("error: cannot write `"), "{failed:?}");
    assert!(failed.stderr.contains("continue with the same command and `--resume`"), "{failed:?}");
    assert!(!workspace.output().is_empty() && workspace.output().len() < expected.len());
    assert_eq!(workspace.run(&["--resume"]).status.code(), Some(1));
    assert!(workspace.output() == expected);
    // A disk without any space is found before the model loads.
    let full = shell("ulimit -f 1; exec \"$@\"".to_owned());
    assert_eq!(full.status.code(), Some(2), "{full:?}");
    assert!(!full.stderr.contains("running on"), "{full:?}");
    assert!(workspace.output() == expected, "earlier results are kept");

    let mut command = Command::new(kudos_path());
    command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap()]);
    command.arg(workspace.path("in.jsonl")).args(["-o", "/dev/full"]);
    let full = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("error: cannot write `/dev/full`: No space left"), "{stderr}");
}

#[test]
fn a_closed_standard_error_does_not_end_the_run() {
    let workspace = Workspace::new(&mixed(50));
    let mut child = workspace.command(&[]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let lines = workspace.output().iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines, (0..50).filter(|index| index % 7 != 2).count());
}
