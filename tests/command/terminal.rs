//! What a person sees at a terminal, which is a pseudo-terminal that python3 makes here: the build needs that anyway.

use crate::common;

use std::fs;
use std::process::{Command, Stdio};

use common::{demo_model, kudos_path};

/// Runs a program with a terminal for its streams, copies what appears there to standard output, and ends as it did.
const ON_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

/// The screen after `kudos score` of `lines` lines, with output to a file or to the terminal itself.
fn screen(lines: usize, to_file: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines: String = (0..lines).map(|id| format!("{{\"input_ids\": [5, {}]}}\n", id % 1000)).collect();
    fs::write(&input, lines).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", ON_TERMINAL]).arg(kudos_path());
    command.args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap()]).arg(&input);
    if to_file {
        command.arg("-o").arg(&output);
    }
    let run = command.stdin(Stdio::null()).env("TERM", "xterm").output().unwrap();
    let screen = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{screen} {}", String::from_utf8_lossy(&run.stderr));
    screen
}

#[test]
fn a_bar_shows_rates_what_is_shared_and_the_time_left_and_is_taken_away() {
    let screen = screen(60_000, true);
    let drawn: Vec<&str> =
        screen.split(['\r', '\n']).filter(|line| line.contains("% ") && line.contains(" left")).collect();
    assert!(!drawn.is_empty(), "{screen}");
    for words in [" conversations, ", "/s, ", " tokens/s, ", "% shared, "] {
        assert!(drawn.iter().all(|line| line.contains(words)), "{words}: {drawn:?}");
    }
    let last = screen.trim_end().lines().last().unwrap();
    assert!(last.contains("60,000 conversations, ") && last.contains(", in "), "{last}");
    assert!(!screen.contains("GB of weights"), "nothing is brought anywhere on the CPU: {screen}");
}

#[test]
fn results_that_appear_on_the_terminal_themselves_have_no_bar_among_them() {
    let screen = screen(3, false);
    assert_eq!(screen.lines().filter(|line| line.starts_with("{\"index\":")).count(), 3, "{screen}");
    assert!(!screen.contains("conversations") && !screen.contains('\u{1b}'), "{screen}");
}
