//! The C library: its header, its example, its threads and its errors, by programs in C that are
//! compiled against an installed copy, also with the address sanitizer.

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::{Arc, LazyLock};
use std::{env, fs};

use kudos_capi::{KudosStatus, kudos_error_kind, kudos_error_message, kudos_open};
use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

use common::{demo_model, root};

/// Flags of every program: C11, and no warning.
const STRICT: [&str; 5] = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g"];

/// Flags of the address sanitizer, which finds leaks too.
const SANITIZED: [&str; 2] = ["-fsanitize=address", "-fno-omit-frame-pointer"];

/// Options of `kudos score` that an engine in this process does not have.
const OF_THE_COMMAND: [&str; 18] = [
    "help",
    "json",
    "model",
    "output",
    "prefix",
    "prompt",
    "rank",
    "rendezvous",
    "rendezvous_secret_file",
    "response",
    "resume",
    "rows",
    "columns",
    "shard",
    "whole",
    "window",
    "version",
    "world_size",
];

/// The C library as `make capi` installs it.
static INSTALLED: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let install = root().join("crates/capi/install");
    run(Command::new(install).arg(libraries()).arg(dir.path()).env_remove("DESTDIR"));
    dir
});

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let sanitizer = has_sanitizer();
    if !sanitizer {
        eprintln!("capi: not run with the address sanitizer: gcc has no libasan here");
    }
    let pkg_config = has_pkg_config();
    if !pkg_config {
        eprintln!("capi: not linked by pkg-config: it is not installed here");
    }
    let command = command();
    if command.is_none() {
        eprintln!(
            "capi: not compared with the command: cargo has not built `kudos` here, or set KUDOS_TEST_BIN"
        );
    }
    let old_glibc = glibc().is_some_and(|version| version <= (2, 36));
    if !old_glibc {
        eprintln!("capi: not run: the newest glibc that the library needs, which depends on this machine's");
    }
    let trials = vec![
        trial("the_header_is_what_cbindgen_makes", header_is_made),
        trial("the_header_is_c11_and_cpp", header_compiles),
        trial("the_library_exports_what_the_header_declares", exports_are_declared),
        trial("the_library_needs_the_glibc_of_the_docs", glibc_of_the_docs).with_ignored_flag(!old_glibc),
        trial("the_example_of_the_docs_is_in_the_example", docs_have_the_example),
        trial("a_panic_is_a_status", panic_is_a_status),
        trial("the_example_prints_the_command_s_rewards", example).with_ignored_flag(command.is_none()),
        trial("options_are_those_of_the_command", options).with_ignored_flag(command.is_none()),
        trial("the_static_library_links_by_pkg_config", static_library).with_ignored_flag(!pkg_config),
        trial("threads_share_an_engine", || program("threads", &["-pthread"], "every result is right")),
        trial("every_mistake_is_an_error", || program("misuse", &[], "every mistake is an error")),
        trial("sanitized: the_example", || {
            let source = root().join("crates/capi/examples/score.c");
            assert!(run_c(&source, &SANITIZED, Link::Shared).contains("error: the object has a `prompt`"));
        })
        .with_ignored_flag(!sanitizer),
        trial("sanitized: threads_share_an_engine", || {
            program("threads", &[&SANITIZED[..], &["-pthread"]].concat(), "every result is right")
        })
        .with_ignored_flag(!sanitizer),
        trial("sanitized: every_mistake_is_an_error", || {
            program("misuse", &SANITIZED, "every mistake is an error")
        })
        .with_ignored_flag(!sanitizer),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns the folder where cargo puts what the tests depend on.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// Returns the `kudos` command, where there is one.
fn command() -> Option<Arc<Path>> {
    let built = libraries().parent().unwrap().join("kudos");
    let path = env::var_os("KUDOS_TEST_BIN").map_or(built, PathBuf::from);
    path.is_file().then(|| path.into())
}

fn has_pkg_config() -> bool {
    Command::new("pkg-config").arg("--version").output().is_ok_and(|run| run.status.success())
}

fn has_sanitizer() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let output = dir.path().join("empty");
    let compiled = Command::new("gcc").args(SANITIZED).arg(&source).arg("-o").arg(&output).output();
    compiled.is_ok_and(|compiled| compiled.status.success())
        && Command::new(&output).output().is_ok_and(|run| run.status.success())
}

/// Runs a command, which must succeed, and returns its standard output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout
}

/// How a program gets the library.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
}

/// Compiles a program, runs it with the demo model, and returns its standard output.
#[track_caller]
fn run_c(source: &Path, flags: &[&str], link: Link) -> String {
    let (dir, installed) = (tempfile::tempdir().unwrap(), INSTALLED.path());
    let binary = dir.path().join("program");
    let mut compiler = Command::new("gcc");
    let version = concat!("-DVERSION=\"", env!("CARGO_PKG_VERSION"), "\"");
    compiler.args(STRICT).arg(version).args(flags).arg(source).arg("-o").arg(&binary);
    let config = installed.join("lib/pkgconfig/kudos.pc");
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.args(["--cflags", "--libs"]).arg(config);
    match link {
        Link::Shared if has_pkg_config() => compiler.args(run(&mut pkg_config).split_whitespace()),
        Link::Shared => compiler
            .args(
                ["-I", "-L"]
                    .into_iter()
                    .zip(["include", "lib"])
                    .map(|(flag, folder)| format!("{flag}{}", installed.join(folder).display())),
            )
            .arg("-lkudos"),
        Link::Static => {
            let words = run(pkg_config.arg("--static"));
            let archive = installed.join("lib/libkudos.a").display().to_string();
            compiler
                .args(words.split_whitespace().map(|word| if word == "-lkudos" { &archive } else { word }))
        }
    };
    run(&mut compiler);
    let mut program = Command::new(&binary);
    program.arg(demo_model()).env("ASAN_OPTIONS", "detect_leaks=1");
    if link == Link::Shared {
        program.env("LD_LIBRARY_PATH", installed.join("lib"));
    }
    run(&mut program)
}

/// Runs one of the programs beside this file.
#[track_caller]
fn program(name: &str, flags: &[&str], expected: &str) {
    let source = root().join(format!("tests/capi/{name}.c"));
    assert_eq!(run_c(&source, flags, Link::Shared).trim(), expected);
}

fn header_is_made() {
    let package = root().join("crates/capi");
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(package.join("src/lib.rs"))
        .generate()
        .unwrap()
        .write(&mut made);
    let (path, made) = (package.join("kudos.h"), String::from_utf8(made).unwrap());
    if env::var_os("KUDOS_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "kudos.h is not the made one, which KUDOS_WRITE_HEADER=1 writes:\n{made}");
}

fn header_compiles() {
    let header = root().join("crates/capi/kudos.h");
    for (compiler, language) in [("gcc", ["-std=c11", "-xc"]), ("g++", ["-std=c++11", "-xc++"])] {
        let flags = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wstrict-prototypes", "-Werror"];
        let flags = flags.iter().filter(|flag| compiler == "gcc" || !flag.contains("prototypes"));
        run(Command::new(compiler).args(language).args(flags).arg(&header));
    }
}

/// Returns the functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = fs::read_to_string(root().join("crates/capi/kudos.h")).unwrap();
    let code = header.lines().filter(|line| !line.starts_with("//") && line.contains('('));
    let names = code.filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next());
    names.filter(|name| name.starts_with("kudos_")).map(str::to_owned).collect()
}

fn exports_are_declared() {
    let library = INSTALLED.path().join("lib/libkudos.so");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let names = symbols.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), declared());
    assert!(declared().len() > 15, "{:?}", declared());
    let dynamic = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("[libkudos.so.0]"), "{dynamic}");
}

/// Returns the version of this machine's glibc; `None` where its C library is another one.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let (major, minor) =
        str::from_utf8(&output.stdout).ok()?.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn glibc_of_the_docs() {
    let docs = fs::read_to_string(root().join("docs/c.md")).unwrap();
    let library = INSTALLED.path().join("lib/libkudos.so");
    let needed = run(Command::new(root().join("tools/newest-glibc.sh")).arg(&library));
    assert!(docs.contains(&format!("needs glibc {} or later", needed.trim())), "{needed}");
}

fn docs_have_the_example() {
    let docs = fs::read_to_string(root().join("docs/c.md")).unwrap();
    let example = fs::read_to_string(root().join("crates/capi/examples/score.c")).unwrap();
    let blocks: Vec<&str> =
        docs.split("```c\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 1);
    assert!(example.contains(blocks[0]), "{}", blocks[0]);
    for name in declared() {
        assert!(docs.contains(&format!("`{name}`")) || blocks[0].contains(&name), "docs/c.md has no {name}");
    }
}

/// Returns a string of the library's, which must be there.
fn text(pointer: *const std::ffi::c_char) -> String {
    assert!(!pointer.is_null());
    // SAFETY: it is not NULL, so it is a string that ends in NUL, which stays until a call on this
    // thread fails; it is copied before.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
}

fn panic_is_a_status() {
    let index = fs::read("/").map_or(7, |bytes| bytes.len());
    let status = kudos_capi::border::guarded(|| panic!("there is no {index}"));
    assert_eq!(status, KudosStatus::Panic);
    assert_eq!(text(kudos_error_kind()), "panic");
    assert_eq!(text(kudos_error_message()), "kudos has a bug: it panicked: there is no 7");
    let status = kudos_capi::border::guarded(|| std::panic::panic_any(7));
    assert_eq!(status, KudosStatus::Panic);
    assert!(text(kudos_error_message()).ends_with("for a reason that is no text"));
}

fn example() {
    let source = root().join("crates/capi/examples/score.c");
    let shown = run_c(&source, &[], Link::Shared);
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input.jsonl");
    let lines = concat!(
        r#"{"id": 1, "messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]}"#,
        "\n",
        r#"{"id": 2, "prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}"#,
        "\n",
    );
    fs::write(&input, lines).unwrap();
    let mut kudos = Command::new(&*command().unwrap());
    let results = run(kudos.args(["score", "--device", "cpu", "--model"]).arg(demo_model()).arg(&input));
    let [one, two] = results.lines().collect::<Vec<_>>()[..] else { panic!("{results}") };
    let shown: Vec<&str> = shown.lines().collect();
    assert_eq!([shown[0], shown[3]], [one, two]);
    let result: serde_json::Value = serde_json::from_str(two).unwrap();
    let rewards = [shown[1], shown[2]].map(|reward| reward.parse::<f32>().unwrap());
    let expected = [0, 1].map(|index| result["rewards"][index].as_f64().unwrap() as f32);
    assert_eq!(rewards.map(f32::to_bits), expected.map(f32::to_bits));
    assert_eq!(
        shown[4..],
        [
            "error: the object has a `prompt`, but neither `response` nor `responses`",
            "",
            "hint: the reward is that of a response; a whole conversation goes into `messages`",
        ]
    );
}

fn static_library() {
    let source = root().join("crates/capi/examples/score.c");
    assert!(run_c(&source, &[], Link::Static).contains("\"rewards\":["));
}

/// Returns the names in backticks that follow the refused one in the message for these options.
fn expected_names(options: &CStr) -> BTreeSet<String> {
    let mut engine = 0;
    // SAFETY: both strings end in NUL and outlive the call, and `engine` is memory for a handle.
    let status = unsafe { kudos_open(c"no/such/folder".as_ptr(), options.as_ptr(), &mut engine) };
    assert_eq!(status, KudosStatus::Options);
    let message = text(kudos_error_message());
    message.split('`').skip(1).step_by(2).skip(1).map(str::to_owned).collect()
}

/// Compares options and their values with those in the command's help.
fn options() {
    let help = run(Command::new(&*command().unwrap()).args(["score", "--help"]));
    let mut known = expected_names(c"{\"?\": 1}");
    let (mut option, mut values) = (String::new(), BTreeSet::new());
    let mut compared = 0;
    for line in help.lines().map(str::trim).chain(["--help"]) {
        let name = line.split("--").nth(1).filter(|_| line.starts_with('-') && !line.starts_with("- "));
        if let Some(name) = name {
            if !values.is_empty() && !OF_THE_COMMAND.contains(&option.as_str()) {
                let options = std::ffi::CString::new(format!("{{\"{option}\": \"?\"}}")).unwrap();
                assert_eq!(expected_names(&options), values, "{option}");
                compared += 1;
            }
            values.clear();
            option = name.split([' ', '.']).next().unwrap().replace('-', "_");
            let is_engine_s = known.remove(&option);
            assert!(is_engine_s || OF_THE_COMMAND.contains(&option.as_str()), "C has no option `{option}`");
        } else if let Some(value) = line.strip_prefix("- ") {
            values.insert(value.split(':').next().unwrap().to_owned());
        }
    }
    assert!(known.is_empty(), "the command has no options {known:?}");
    assert_eq!(compared, 9, "options of named values");
}
