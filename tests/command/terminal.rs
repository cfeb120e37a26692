//! Output on a terminal: a pseudo-terminal of python3, which the build needs in any case.

use crate::common;

use std::fs;
use std::process::{Command, Stdio};

use common::{demo_model, kudos_path};

/// Runs a program on a terminal, copies the terminal to standard output, and exits with the
/// program's status.
const ON_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

/// Returns the terminal's text after `kudos score` of `lines` lines, with output to a file or to
/// the terminal itself.
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
fn a_bar_shows_rates_sharing_and_time_left_then_is_removed() {
    let screen = screen(60_000, true);
    let drawn: Vec<&str> =
        screen.split(['\r', '\n']).filter(|line| line.contains("% ") && line.contains(" left")).collect();
    assert!(!drawn.is_empty(), "{screen}");
    for words in [" conversations, ", "/s, ", " tokens/s, ", "% shared, "] {
        assert!(drawn.iter().all(|line| line.contains(words)), "{words}: {drawn:?}");
    }
    let last = screen.trim_end().lines().last().unwrap();
    assert!(last.contains("60,000 conversations, ") && last.contains(", in "), "{last}");
    assert!(!screen.contains("GB of weights"), "no weights are loaded to a device on the CPU: {screen}");
}

#[test]
fn no_bar_is_drawn_where_results_go_to_the_terminal() {
    let screen = screen(3, false);
    assert_eq!(screen.lines().filter(|line| line.starts_with("{\"index\":")).count(), 3, "{screen}");
    assert!(!screen.contains("conversations") && !screen.contains('\u{1b}'), "{screen}");
}
