//! Plain technical English: words of this project's own that the field has a word for stay out of
//! sources, messages and docs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{files_below, root};

/// Phrases, and what to write instead.
const GLOSSARY: &[(&str, &str)] = &[
    ("nobody", "no thread, no caller; for a dropped future: its caller dropped the future"),
    ("somebody", "a caller, a process, a user"),
    ("anybody", "a caller, a process, a user"),
    ("everybody", "every caller, every rank"),
    ("whoever", "the caller, the process, the service"),
    ("befell", "failed with"),
    ("befall", "fail with"),
    ("matrix product", "matmul"),
    ("matrix products", "matmuls"),
    ("products of matrices", "matmuls"),
    ("sum over ranks", "all-reduce"),
    ("sums over ranks", "all-reduces"),
    ("rank sums", "all-reduces"),
    ("sign of life", "heartbeat"),
    ("signs of life", "heartbeats"),
    ("room", "capacity, memory"),
    ("rooms", "modules"),
    ("told", "notified"),
    ("said", "reported, warned"),
    ("is answered", "is completed"),
    ("are answered", "are completed"),
    ("was answered", "was completed"),
    ("facts", "metadata, settings"),
    ("ahead", "prefetch, next batch"),
    ("look at", "poll, read"),
    ("looks at", "polls, reads"),
    ("look for", "search"),
    ("looks for", "searches"),
    ("put down", "spill"),
    ("puts down", "spills"),
    ("take up", "reload"),
    ("takes up", "reloads"),
    ("taken up", "reloaded"),
    ("round of k", "k block"),
    ("rounds of k", "k blocks"),
    ("lives in each other", "are nested"),
    ("live in each other", "are nested"),
    ("let go of", "release"),
    ("lets go of", "releases"),
    ("goes on with", "continues"),
    ("gone on with", "continued"),
    ("without a word", "without reporting an error"),
    ("ways to compute", "algorithms"),
];

/// Beginnings of doc comments that name no thing and no action.
const DOC_STARTS: &[&str] = &["What ", "Of ", "The same ", "The same, "];

/// A file and a phrase that it has for a reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("tests/library/language.rs", "", "the list itself"),
    ("demo/arithmetic.py", "facts", "facts of arithmetic, which the demo model learns"),
    ("demo/train.py", "facts", "facts of arithmetic, which the demo model learns"),
    ("demo/tokenizer.py", "", "a list of common English words"),
    ("CHANGELOG.md", "rank sums", "an option's name before it was renamed"),
    ("benches/README.md", "takes up", "a matmul takes up to 7 % longer"),
    ("src/weights/map.rs", "ahead", "read-ahead, the name of a setting of Linux"),
    ("src/conversation.rs", "told", "two things that cannot be told apart"),
];

/// Folders and files that people write.
const WRITTEN: &[&str] = &[
    "src",
    "crates",
    "kernels",
    "tests",
    "examples",
    "docs",
    "demo",
    "benches",
    "fuzz",
    "tools",
    "build.rs",
    "Makefile",
    "Cargo.toml",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
];

fn is_written(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_data = path
        .components()
        .any(|part| ["target", "record", "corpus", "artifacts"].iter().any(|dir| part.as_os_str() == *dir));
    let is_source =
        [".rs", ".cu", ".cuh", ".md", ".py", ".sh", ".toml"].iter().any(|end| name.ends_with(end));
    !is_data && (is_source || name == "Makefile")
}

fn written() -> Vec<PathBuf> {
    let paths = WRITTEN.iter().map(|name| root().join(name));
    let all = paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    all.filter(|path| is_written(path.strip_prefix(root()).unwrap())).collect()
}

/// Lower-case words with single spaces between and around them; a comma stays with its word.
fn words(line: &str) -> String {
    let mut words = String::from(" ");
    for c in line.chars() {
        match c {
            _ if c.is_alphanumeric() => words.extend(c.to_lowercase()),
            ',' => words.push_str(", "),
            '\'' => words.push('\''),
            _ if !words.ends_with(' ') => words.push(' '),
            _ => {}
        }
    }
    words.push(' ');
    words
}

/// Returns what is wrong with a line, and what to write.
fn objections(line: &str) -> Vec<(&'static str, &'static str)> {
    let text = words(line);
    let is_used = |phrase: &str| {
        let end = if phrase.ends_with(',') { "" } else { " " };
        text.contains(&format!(" {phrase}{end}")) || text.contains(&format!(" {phrase},"))
    };
    let mut found: Vec<_> = GLOSSARY.iter().copied().filter(|(phrase, _)| is_used(phrase)).collect();
    let line = line.trim_start();
    let doc = line.strip_prefix("/// ").or_else(|| line.strip_prefix("//! "));
    if let Some(start) = DOC_STARTS.iter().find(|start| doc.is_some_and(|doc| doc.starts_with(**start))) {
        found.push((start, "name the thing, or begin with `Returns ..`, `Bytes of ..`"));
    }
    found
}

/// The first line of each doc comment, and all lines of other files.
fn first_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_doc = false;
    text.lines().enumerate().map(move |(index, line)| {
        let start = line.trim_start();
        let is_doc = start.starts_with("///") || start.starts_with("//!");
        // A sentence of a doc comment may go on with such a word on its next line.
        let shown = if is_doc && in_doc { start.trim_start_matches(['/', '!', ' ']) } else { line };
        in_doc = is_doc && !["///", "//!"].contains(&start.trim_end());
        (index + 1, shown)
    })
}

#[test]
fn the_field_s_words_are_used() {
    let mut wrong = Vec::new();
    let files = written();
    assert!(files.len() > 250, "{} files", files.len());
    for path in files {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (line, text) in first_lines(&text) {
            for (phrase, instead) in objections(text) {
                let excepted = |(file, allowed, _): &(&str, &str, &str)| {
                    *file == name && (allowed.is_empty() || *allowed == phrase)
                };
                if !EXCEPTIONS.iter().any(excepted) {
                    wrong.push(format!(
                        "{name}:{line}: `{}`: write `{instead}`\n    {}",
                        phrase.trim(),
                        text.trim()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} lines\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn phrases_are_found_as_whole_words() {
    let phrases = |line| objections(line).into_iter().map(|(phrase, _)| phrase).collect::<Vec<_>>();
    assert_eq!(phrases("    // Nobody waits: the rank_sums are done."), ["nobody", "rank sums"]);
    assert_eq!(phrases("/// What a rank is told."), ["told", "What "]);
    assert_eq!(phrases("/// The same, for longer."), ["The same, "]);
    assert!(phrases("let classroom = untold; // mushrooms").is_empty());
}

#[test]
fn names_of_tests_are_clauses_of_at_most_60_characters() {
    const CHARS_MAX: usize = 60;
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let mut long = Vec::new();
    for path in written().into_iter().filter(is_rust) {
        let text = fs::read_to_string(&path).unwrap();
        let after_test = text.split("#[test]\n").skip(1);
        let names = after_test.filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
        long.extend(names.map(|(name, _)| name.to_owned()).filter(|name| name.len() > CHARS_MAX));
    }
    assert!(long.is_empty(), "{long:?}");
}
