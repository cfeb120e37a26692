//! The order of modules: a module of `src/` may use only those on lower floors.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors, from the lowest up. Modules of one floor do not use each other.
const FLOORS: [&[&str]; 9] = [
    &["elementary", "error", "lock", "random", "units"],
    &["files"],
    &["config", "conversation"],
    &["shard", "request"],
    &["weights", "prompt", "batch"],
    &["backend"],
    &["model"],
    &["engine"],
    &["results"],
];

/// Modules above all floors, which may use every module.
const TOP: [&str; 2] = ["fuzzing", "lib"];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module)).or(TOP.contains(&module).then_some(FLOORS.len()))
}

/// Returns every Rust file below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Returns the modules that `source` names as `crate::module`, or within `use crate::{...}`,
/// outside of comments.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let name =
        |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            None => vec![name(rest)],
            Some(list) => {
                let list = &list[..list.find("};").unwrap_or(list.len())];
                list.split(',').map(|item| name(item.trim_start())).collect()
            }
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn no_floor_uses_a_higher_one() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let relative = path.strip_prefix(&src).unwrap();
        let module =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let floor = floor_of(module).unwrap_or_else(|| panic!("`{module}` has no floor: add it to FLOORS"));
        for used in used_modules(&fs::read_to_string(&path).unwrap()) {
            match floor_of(&used) {
                Some(below) if below < floor || used == module => {}
                Some(_) => wrong.push(format!("src/{}: uses `crate::{used}`", relative.display())),
                None => wrong.push(format!("src/{}: `crate::{used}` has no floor", relative.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn used_modules_finds_both_spellings() {
    let text = "use crate::error::Result;\nuse crate::{batch::Packed, shard};\nlet x = crate::engine::y();";
    let names: Vec<String> = used_modules(text).into_iter().collect();
    assert_eq!(names, ["batch", "engine", "error", "shard"]);
}
