//! The README's samples: every `console` block is run, at a terminal, and shows what it shows.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::http;
use crate::process::Server;
use common::{kudos_path, root};

/// Runs a program at a terminal, copies what appears there to standard output, and ends as it did.
const ON_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

/// Returns a command of the README as it is run here: `make demo` by the recipe in the Makefile, without
/// the build.
fn runnable(command: &str) -> String {
    let command = if command == "make demo" {
        let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
        let (_, recipe) = makefile.split_once("\ndemo: demo-build\n\t").unwrap();
        recipe.lines().next().unwrap().replace("$(KUDOS)", "kudos").replace("$(DEMO)", "demo/model")
    } else {
        command.to_owned()
    };
    // The CPU, also on a machine with a GPU: the samples are its.
    command.replace("kudos score ", "kudos score --device cpu ")
}

/// Returns what the terminal shows of standard output when the commands run in `dir`, without line breaks' returns.
fn shown(commands: &str, dir: &Path) -> String {
    let kudos = kudos_path();
    let path = format!("{}:{}", kudos.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = format!("exec 2>/dev/null\n{commands}");
    let run = Command::new("python3")
        .args(["-c", ON_TERMINAL, "sh", "-ec", &script])
        .current_dir(dir)
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(run.status.success(), "{commands}: {run:?}");
    String::from_utf8(run.stdout).unwrap().replace('\r', "")
}

/// Whether two words are equal, or numbers that differ in the last digits of an f32 alone: from one kind of CPU to
/// another they do.
fn agree(found: &str, shown: &str) -> bool {
    let number = |word: &str| word.parse::<f64>().ok();
    match (number(found), number(shown)) {
        (Some(found), Some(shown)) => (found - shown).abs() <= 1e-4,
        _ => found == shown,
    }
}

#[test]
fn every_console_block_of_the_readme_is_true() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("demo"), dir.path().join("demo")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 4, "make demo, a file, what is scored, and a request");
    for block in blocks {
        let commands: Vec<String> =
            block.lines().filter_map(|line| line.strip_prefix("$ ")).map(runnable).collect();
        let expected: Vec<&str> = block.lines().filter(|line| !line.starts_with("$ ")).collect();
        let found = match commands[0].strip_prefix("curl ") {
            Some(arguments) => answered(arguments),
            None => shown(&commands.join("\n"), dir.path()),
        };
        assert_eq!(found.lines().count(), expected.len(), "{block}\n{found}");
        for (found, expected) in found.lines().zip(expected) {
            let words = |line: &str| -> Vec<String> {
                line.split([' ', ',', ':', '[', ']', '}']).map(str::to_owned).collect()
            };
            let (found_words, expected_words) = (words(found), words(expected));
            assert_eq!(found_words.len(), expected_words.len(), "{found}\n{expected}");
            let all = found_words.iter().zip(&expected_words).all(|(found, shown)| agree(found, shown));
            assert!(all, "found {found}\nshown {expected}");
        }
    }
}

/// Returns what a server of the demo model answers to a request of `curl`, which may not be installed,
/// with these arguments.
fn answered(arguments: &str) -> String {
    let server = Server::start(&[]);
    let (url, rest) = arguments.split_once(' ').unwrap();
    let path = url.strip_prefix("http://127.0.0.1:8000").unwrap();
    let quoted: Vec<&str> = rest.split('\'').collect();
    let [" -H " | "-H ", header, " -d ", body, ""] = quoted[..] else { panic!("{quoted:?}") };
    let (name, value) = header.split_once(": ").unwrap();
    let answer = http::request(server.address, "POST", path, &[(name, value)], body.as_bytes());
    assert_eq!(answer.status, 200);
    answer.text().to_owned() + "\n"
}
