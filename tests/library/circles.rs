//! No circle among the files of a crate: a file imports, directly or through others, no file that imports it.
//!
//! A `mod.rs` is a file like any other. Declaring modules and re-exporting their items imports nothing;
//! who imports a re-exported item imports the file that has it. Test code may import what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose files are checked.
const CRATES: [&str; 5] =
    ["src", "crates/cli/src", "crates/bench/src", "crates/capi/src", "crates/softgpu/src"];

/// A path such as `crate::backend::cpu`, segment by segment.
type Segments = Vec<String>;

/// One file's code, without test code, comments and strings.
struct Module {
    /// Its path within the crate: none for `lib.rs`.
    name: Segments,
    children: BTreeSet<String>,
    /// Names that the file re-exports, with their paths.
    exports: BTreeMap<String, Segments>,
    /// Paths that the file uses.
    uses: Vec<Segments>,
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    files
}

/// Blanks comments, strings and characters, and ends where test code begins.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            let next = lines.peek().copied().unwrap_or_default();
            if next.contains("mod ") && next.ends_with('{') {
                break;
            }
            // One item: an import, a declaration, or a block up to its closing brace.
            for line in lines.by_ref() {
                if line == "}" || line.ends_with(';') && !line.starts_with(' ') {
                    break;
                }
            }
            continue;
        }
        if line.trim_start().starts_with("//") {
            continue;
        }
        // A visibility such as `pub(in crate::engine)` imports nothing.
        let line = match line.split_once("pub(in ").map(|(before, rest)| (before, rest.split_once(')'))) {
            Some((before, Some((_, rest)))) => &format!("{before}pub{rest}"),
            _ => line,
        };
        let (mut quoted, mut last) = (false, ' ');
        for c in line.chars() {
            match c {
                '"' if last != '\\' && last != '\'' => quoted = !quoted,
                '/' if last == '/' && !quoted => break,
                _ if quoted => {}
                _ => code.push(c),
            }
            last = c;
        }
        code.push('\n');
    }
    code
}

/// Expands `a::{b, c::{self, d}}` into its paths.
fn expand(tree: &str) -> Vec<Segments> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap();
        return vec![
            path.split("::").map(|part| part.trim().to_owned()).filter(|part| part != "self").collect(),
        ];
    };
    let prefix: Segments =
        tree[..open].split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let inner = &tree[open + 1..tree.rfind('}').unwrap()];
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (index, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&inner[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    let items = items.into_iter().filter(|item| !item.trim().is_empty()).flat_map(expand);
    items.map(|item| prefix.iter().cloned().chain(item).collect()).collect()
}

impl Module {
    fn new(name: Segments, text: &str) -> Self {
        let code = code(text);
        let (mut children, mut exports, mut uses) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        let mut rest = String::new();
        for statement in code.split_inclusive(';') {
            let line = statement.trim_end_matches(';');
            let last = line.rsplit(['}', '\n', ']']).find(|part| !part.trim().is_empty()).unwrap_or_default();
            if let Some(child) = last.trim().rsplit("mod ").next().filter(|_| last.contains("mod ")) {
                children.insert(child.trim().to_owned());
                continue;
            }
            let Some(at) = line.rfind("use ").filter(|&at| at == 0 || line[..at].ends_with(['\n', ' ']))
            else {
                rest.push_str(statement);
                continue;
            };
            let before = line[..at].rsplit('\n').next().unwrap_or_default().trim();
            rest.push_str(&line[..at]);
            for path in expand(&line[at + 4..]) {
                if before.starts_with("pub") {
                    exports.insert(path.last().cloned().unwrap_or_default(), path);
                } else {
                    uses.push(path);
                }
            }
        }
        // Paths within expressions and signatures.
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for path in rest.split(|c| !is_path(c)).filter(|path| !path.is_empty()) {
            let path: Segments =
                path.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect();
            match path.first().and_then(|first| exports.get(first)) {
                // What a file re-exports and uses itself, it imports.
                Some(exported) => uses.push(exported.clone()),
                None if path.len() > 1 => uses.push(path),
                None => {}
            }
        }
        Self { name, children, exports, uses }
    }

    /// Makes a path absolute, from the crate's root; `None` for one that leads out of the crate.
    fn absolute(&self, path: &[String]) -> Option<Segments> {
        let mut base = self.name.clone();
        let mut path = path.iter().peekable();
        match path.peek().map(|first| first.as_str())? {
            "crate" => {
                base.clear();
                path.next();
            }
            "super" => {
                while path.next_if(|part| *part == "super").is_some() {
                    base.pop();
                }
            }
            "self" => drop(path.next()),
            first if self.children.contains(first) => {}
            _ => return None,
        }
        Some(base.into_iter().chain(path.cloned()).collect())
    }
}

/// Returns the module whose file has the item at `path`.
fn owner(modules: &BTreeMap<Segments, Module>, path: &[String]) -> Segments {
    let length = (0..=path.len()).rev().find(|&length| modules.contains_key(&path[..length])).unwrap_or(0);
    let module = &modules[&path[..length]];
    let exported = path.get(length).and_then(|item| module.exports.get(item));
    match exported.and_then(|path| module.absolute(path)) {
        Some(target) if target != path => owner(modules, &target),
        _ => module.name.clone(),
    }
}

/// Returns the imports of each module, by name.
fn graph(sources: &[(Segments, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeMap<Segments, Module> =
        sources.iter().map(|(name, text)| (name.clone(), Module::new(name.clone(), text))).collect();
    let edges = |module: &Module| {
        let paths = module.uses.iter().filter_map(|path| module.absolute(path));
        let owners = paths.map(|path| owner(&modules, &path)).filter(|owner| *owner != module.name);
        owners.map(|owner| owner.join("::")).collect()
    };
    modules.values().map(|module| (module.name.join("::"), edges(module))).collect()
}

/// Returns the members of circles: modules that reach each other, a set per circle.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |start: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(next) = open.pop().and_then(|name| graph.get(name)) {
            open.extend(next.iter().filter(|name| seen.insert((*name).clone())));
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|name| (name, reached(name))).collect();
    let circle = |name: &String| -> BTreeSet<String> {
        reach[name]
            .iter()
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(name)))
            .cloned()
            .collect()
    };
    graph.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

fn module_name(path: &Path) -> Segments {
    let mut name: Segments =
        path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if ["mod", "lib", "main"].contains(&name.last().unwrap().as_str()) {
        name.pop();
    }
    name
}

#[test]
fn no_file_imports_a_file_that_imports_it() {
    let mut wrong = Vec::new();
    for crate_dir in CRATES {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(crate_dir);
        let is_test = |path: &Path| path.ends_with("tests.rs") || path.ends_with("testing.rs");
        let sources: Vec<(Segments, String)> = files(&src)
            .into_iter()
            .filter(|path| !is_test(path) && !path.ends_with("cli/src/main.rs"))
            .map(|path| (module_name(path.strip_prefix(&src).unwrap()), fs::read_to_string(&path).unwrap()))
            .collect();
        let graph = graph(&sources);
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > sources.len(), "{crate_dir}: {graph:?}");
        for circle in circles(&graph) {
            let edges = circle.iter().map(|name| {
                let within: Vec<&str> = graph[name].intersection(&circle).map(String::as_str).collect();
                format!("    {name} -> {}", within.join(", "))
            });
            wrong.push(format!("{crate_dir}:\n{}", edges.collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(wrong.is_empty(), "files import each other\n{}", wrong.join("\n"));
}

#[test]
fn circles_are_found_through_other_files_and_re_exports() {
    let source = |name: &str, text: &str| {
        (name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect(), text.to_owned())
    };
    let found = |sources: &[(Segments, String)]| {
        let circles = circles(&graph(sources));
        circles.into_iter().map(|circle| circle.into_iter().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let lobby = source("", "mod a;\nmod b;\nmod c;\npub use a::A;\npub use b::B;\n");
    let [a, b] = [source("a", "use crate::B;\n"), source("b", "use super::c::{self, C};\n")];
    let back = source("c", "fn f(_: super::a::A) {}\n");
    assert_eq!(found(&[lobby.clone(), a.clone(), b.clone(), back]), ["a b c"]);
    let tests = source("c", "// crate::a::A\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n");
    assert!(found(&[lobby.clone(), a.clone(), b.clone(), tests]).is_empty());
    // The lobby uses its children itself, and a child uses an item of the lobby.
    let uses = source("", "mod a;\nmod b;\nmod c;\nuse a::A;\npub struct B;\n");
    assert_eq!(found(&[uses, a, b, source("c", "")]), [" a"]);
}
