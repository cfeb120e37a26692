//! The `bench` command: its two formats of output, and its errors.
//!
//! No test bounds a speed: a machine that runs tests is rarely idle. Tests that need the software
//! GPU are ignored unless asked for, as `make test` does.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Run, demo_model, root};
use kudos::internals::backend::cpu::Isa;
use serde_json::Value;

/// Runs `bench`.
fn bench(arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A warm-up of one run.
const BRIEF: [&str; 2] = ["--warm-up", "0.000001"];

/// The output of a run on the demo model, which must succeed.
#[track_caller]
fn measured(arguments: &[&str]) -> String {
    let model = demo_model();
    let run =
        bench(&[&["--model", model.to_str().unwrap(), "--device", "cpu"], &BRIEF[..], arguments].concat());
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stderr.contains("running on CPU"), "{run:?}");
    run.stdout
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    let text = measured(&[arguments, &["-o", "json"]].concat());
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Every field with its type, and the fields of objects and of arrays' elements.
fn fields(prefix: &str, value: &Value, found: &mut BTreeSet<(String, &'static str)>) {
    let Value::Object(object) = value else { return };
    for (name, value) in object {
        let path = format!("{prefix}{name}");
        let below = format!("{path}.");
        found.insert((path, type_of(value)));
        fields(&below, value, found);
        value.as_array().into_iter().flatten().for_each(|value| fields(&below, value, found));
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(values) if values.is_empty() => "array of objects",
        Value::Array(values) if values.iter().all(Value::is_string) => "array of strings",
        Value::Array(values) if values.iter().all(Value::is_number) => "array of numbers",
        Value::Array(_) => "array of objects",
        Value::Object(_) => "object",
    }
}

/// Checks that a report has only fields of these sections of its page, and all of them if `whole`.
#[track_caller]
fn check_fields(report: &Value, sections: &[&str], whole: bool) {
    let page = fs::read_to_string(root().join("benches/schema.md")).unwrap();
    let wanted = |section: &&str| sections.iter().any(|name| section.starts_with(&format!("{name}\n")));
    let lines = page.split("\n## ").filter(wanted).flat_map(str::lines);
    let documented: Vec<(&str, &str)> = lines
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let (path, rest) = line.split_once("` | ").unwrap();
            (path, rest.split_once(" |").unwrap().0)
        })
        .collect();
    assert_eq!(report["schema"], 1);
    let mut found = BTreeSet::new();
    fields("", report, &mut found);
    for (path, found) in &found {
        let page = documented.iter().find(|(documented, _)| documented == path);
        let (_, types) = page.unwrap_or_else(|| panic!("`{path}` is not in benches/schema.md"));
        assert!(types.split(" or ").any(|one| one == *found), "`{path}` is {found}, documented: {types}");
    }
    for (path, _) in documented.iter().filter(|_| whole) {
        assert!(found.iter().any(|(found, _)| found == path), "`{path}` is not in the output");
    }
}

const MODEL: &str = "Reports on a model";

#[test]
fn json_has_the_fields_and_types_of_its_page() {
    for peak in [&[][..], &["--peak-tflops", "1"]] {
        let report = json(&[&["--tokens", "5,9", "--seqs", "3", "-r", "2"], peak].concat());
        check_fields(&report, &["Every report", MODEL, "`bench`"], false);
    }
}

/// A program with the output of `benches/baseline/hf.py`, in which `card` takes twice the time; it
/// fails without ids.
#[cfg(unix)]
fn stand_in(dir: &std::path::Path, random_weights: bool) -> String {
    use std::os::unix::fs::PermissionsExt;
    let runs = |seconds: f64| serde_json::json!({"batch": 2, "seconds": [seconds, seconds], "cpu_seconds": [1.0, 1.0], "rewards": [0.0, 0.5, 0.0]});
    let row = serde_json::json!({"batched": runs(1.0), "card": runs(2.0)});
    let result = serde_json::json!({
        "engine": "transformers 5", "device": "CPU", "dtype": "float32", "random_weights": random_weights,
        "peak_memory_bytes": 7, "rows": [row, row],
    });
    let path = dir.join("python");
    fs::write(&path, format!("#!/bin/sh\ngrep -q '^\\[\\[\\[' || exit 3\necho starting\necho '{result}'\n"))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[cfg(unix)]
#[test]
fn baselines_are_reported_beside_the_engine_with_the_ratio() {
    let dir = tempfile::tempdir().unwrap();
    let python = stand_in(dir.path(), false);
    let test = ["--tokens", "5,9", "--seqs", "3", "-r", "2", "--compare", &python];
    let report = json(&test);
    check_fields(&report, &["Every report", MODEL, "`bench`"], true);
    for (row, tokens) in report["rows"].as_array().unwrap().iter().zip([15.0, 27.0]) {
        let [batched, card] = &row["baselines"].as_array().unwrap()[..] else { panic!("{row}") };
        assert_eq!((&batched["way"], &card["way"]), (&"batched".into(), &"card".into()));
        assert_eq!(card["nominal_tokens_per_second"]["median"], tokens / 2.0);
        let ours = row["nominal_tokens_per_second"]["median"].as_f64().unwrap();
        let ratio = card["ratio"].as_f64().unwrap();
        assert!((ratio / (ours / (tokens / 2.0)) - 1.0).abs() < 1e-9, "{row}");
        let apart = |index: usize, theirs: f64| (row["rewards"][index].as_f64().unwrap() - theirs).abs();
        let apart = [apart(0, 0.0), apart(1, 0.5), apart(2, 0.0)];
        let max = batched["rewards_apart_max"].as_f64().unwrap();
        assert!((max - apart.into_iter().fold(0.0, f64::max)).abs() < 1e-5, "{row}");
    }
    let table = measured(&test);
    assert!(table.contains("| 3 x 9 | card, float32 | 2 | 13.50 ± 0.00 | 13.50 |"), "{table}");

    let python = stand_in(dir.path(), true);
    let report = json(&["--tokens", "5,9", "--seqs", "3", "-r", "1", "--compare", &python]);
    assert_eq!(report["rows"][0]["baselines"][0]["rewards_apart_mean"], Value::Null, "the weights differ");
}

#[test]
fn a_baseline_that_does_not_start_is_an_error_with_a_hint() {
    let model = demo_model();
    let run = bench(&[
        "--model",
        model.to_str().unwrap(),
        "--device",
        "cpu",
        "--tokens",
        "4",
        "--seqs",
        "1",
        "-r",
        "1",
        "--compare",
        "/nowhere/python",
    ]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("at /nowhere/python") && run.stderr.contains("hint: "), "{run:?}");
}

#[cfg(unix)]
#[test]
fn a_failed_baseline_leaves_the_engines_results_in_the_report() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let python = dir.path().join("python");
    fs::write(&python, "#!/bin/sh\n[ \"$1\" = --version ]\n").unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let (model, python) = (demo_model(), python.to_str().unwrap().to_owned());
    let test =
        ["--device", "cpu", "--tokens", "4", "--seqs", "1", "-r", "1", "-o", "json", "--compare", &python];
    let run = bench(&[&["--model", model.to_str().unwrap()], &test[..]].concat());
    assert_eq!(run.status, Some(2), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["rows"][0]["samples"].as_array().unwrap().len(), 1);
    assert!(run.stderr.contains("the baseline exited with") && run.stderr.contains("hint: "), "{run:?}");
}

/// A stand-in for a python with a baseline: it answers the lines that `benches/baseline/worker.py`
/// does, with the rewards in `rewards`, and dies in its second run where `dies`. Its runs are faster
/// with batches of 2. `bench` asks it for `SCRIPT REQUEST prepare` and `SCRIPT REQUEST run SETTINGS`.
#[cfg(unix)]
fn worker(dir: &Path, name: &str, rewards: &[f64], dies: bool) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    let limit = if dies { 1 } else { usize::MAX };
    let script = format!(
        r#"#!/bin/sh
[ "$1" = --version ] && exit
case $3 in
prepare)
    echo 'a line of a library'
    echo '{{"settings": {{"batch": 1, "threads": 2}}, "axes": [["batch", [1, 2, 3]]]}}'
    exit ;;
esac
seconds=0.5
case $4 in
*'"batch":2'*) seconds=0.25 ;;
*'"batch":3'*) echo 'MemoryError: too large' >&2; exit 1 ;;
esac
echo '{{"engine": "{name} 1.0", "device": "CPU", "dtype": "float32"}}'
lines=0
while read -r run count; do
    lines=$((lines + 1))
    [ "$lines" -gt {limit} ] && {{ echo 'RuntimeError: out of luck' >&2; exit 9; }}
    all=$seconds
    while [ "$count" -gt 1 ]; do count=$((count - 1)); all="$all, $seconds"; done
    echo "{{\"seconds\": [$all], \"rewards\": {rewards:?}}}"
done
"#
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A short test of the demo model, and its rewards.
#[cfg(unix)]
const SHORT: [&str; 8] = ["--tokens", "4", "--seqs", "2", "-r", "1", "--compare-wait", "0.001"];

#[cfg(unix)]
fn rewards_of_short() -> Vec<f64> {
    let report = json(&SHORT[..6]);
    report["rows"][0]["rewards"].as_array().unwrap().iter().map(|reward| reward.as_f64().unwrap()).collect()
}

/// Runs a short test on the demo model with these arguments, for a report in JSON.
#[cfg(unix)]
fn bench_short(arguments: &[&str]) -> Run {
    let model = demo_model();
    let model = ["--model", model.to_str().unwrap(), "--device", "cpu", "-o", "json"];
    bench(&[&model[..], &BRIEF, &SHORT, arguments].concat())
}

#[cfg(unix)]
#[test]
fn baselines_by_name_take_turns_at_their_fastest_settings() {
    let dir = tempfile::tempdir().unwrap();
    let rewards = rewards_of_short();
    let moved: Vec<f64> = rewards.iter().map(|reward| reward + 0.125).collect();
    let vllm = format!("vllm={}", worker(dir.path(), "one", &rewards, false));
    let openvino = format!("openvino={}", worker(dir.path(), "other", &moved, false));
    let both = format!("{vllm},{openvino}");
    let test = [&SHORT[..4], &["-r", "2", "--compare", &both], &SHORT[6..]].concat();
    let report = json(&test);
    check_fields(&report, &["Every report", MODEL, "`bench`", "`bench --compare NAME=PYTHON`"], false);
    let rounds = &report["rows"][0]["rounds"];
    assert_eq!(rounds["rounds"], 2);
    let [kudos, vllm, openvino] = &rounds["sides"].as_array().unwrap()[..] else { panic!("{rounds}") };
    assert_eq!([&kudos["side"], &vllm["side"], &openvino["side"]], ["kudos", "vllm", "openvino"]);
    assert_eq!((&kudos["ratio"], &kudos["rewards_apart_max"]), (&1.0.into(), &0.0.into()));
    // Two rounds, and runs of a quarter of a second fill a slot by four.
    assert_eq!(vllm["samples"].as_array().unwrap().len(), 8);
    assert_eq!((&vllm["samples"][0]["round"], &vllm["samples"][7]["round"]), (&0.into(), &1.into()));
    assert_eq!(vllm["nominal_tokens_per_second"]["median"], 32.0);
    assert_eq!(vllm["settings"], "batch=2 threads=2");
    let [first, second, third] = &vllm["tried"].as_array().unwrap()[..] else { panic!("{vllm}") };
    assert_eq!((&first["settings"], &first["seconds"]), (&"batch=1 threads=2".into(), &0.5.into()));
    assert_eq!((&second["settings"], &second["seconds"]), (&"batch=2 threads=2".into(), &0.25.into()));
    assert_eq!(
        (&third["seconds"], third["error"].as_str().unwrap().contains("MemoryError")),
        (&Value::Null, true)
    );
    let apart = openvino["rewards_apart_mean"].as_f64().unwrap();
    assert!((apart - 0.125).abs() < 1e-4, "{openvino}");
    let table = measured(&[&test[..], &["--compare-defaults"]].concat());
    assert!(
        table.contains("| 2 x 4 | vllm, float32 | batch=1 threads=2 | 16.00 ± 0.00 | 16.00 |"),
        "{table}"
    );
}

#[cfg(unix)]
#[test]
fn baselines_are_left_out_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let vllm = format!("vllm={}", worker(dir.path(), "one", &rewards_of_short(), false));
    let arguments = ["--compare", &vllm, "--compare", "openvino=/nowhere/python", "--compare-defaults"];
    let run = bench_short(&[&arguments[..], &["--without", "openvino"]].concat());
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stderr.contains("leaving out the baseline `openvino` (`--without`)"), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["rows"][0]["rounds"]["sides"].as_array().unwrap().len(), 2);

    let run = bench_short(&arguments);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(
        run.stderr.contains("at /nowhere/python") && run.stderr.contains("--without openvino"),
        "{run:?}"
    );
}

#[test]
fn a_baseline_of_an_unknown_name_is_an_error_with_the_names() {
    let run = bench(&["--model", "nowhere", "--compare", "tensorrt=/nowhere/python"]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("no baseline is named `tensorrt`"), "{run:?}");
    assert!(run.stderr.contains("transformers, vllm, openvino, onnxruntime"), "{run:?}");
}

#[cfg(unix)]
#[test]
fn a_baseline_that_dies_leaves_the_engines_results() {
    let dir = tempfile::tempdir().unwrap();
    let dying = format!("vllm={}", worker(dir.path(), "dying", &rewards_of_short(), true));
    let run = bench_short(&["--compare", &dying]);
    assert_eq!(run.status, Some(2), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["rows"][0]["samples"].as_array().unwrap().len(), 1);
    assert_eq!(report["rows"][0]["rounds"], Value::Null);
    let message =
        "the baseline `vllm` ended with exit status: 9 before it had measured: RuntimeError: out of luck";
    assert!(run.stderr.contains(message) && run.stderr.contains("hint: "), "{run:?}");
    assert!(run.stderr.contains("/dying"), "{run:?}");
}

#[cfg(unix)]
#[test]
fn a_baseline_with_other_rewards_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let mut rewards = rewards_of_short();
    rewards[1] -= 0.25;
    let wrong = format!("onnxruntime={}", worker(dir.path(), "wrong", &rewards, false));
    let run = bench_short(&["--compare", &wrong]);
    assert_eq!(run.status, Some(2), "{run:?}");
    let message = "the baseline `onnxruntime` is rejected: its reward of sequence 1 is ";
    assert!(run.stderr.contains(message) && run.stderr.contains("where 0.2 is the most"), "{run:?}");
    assert!(run.stdout.starts_with('{'), "the engine's results are reported: {run:?}");
}

#[cfg(unix)]
#[test]
fn settings_with_other_rewards_are_not_a_baselines_fastest() {
    let dir = tempfile::tempdir().unwrap();
    let (right, mut wrong) = (rewards_of_short(), rewards_of_short());
    wrong[1] -= 0.25;
    let path = worker(dir.path(), "right with batches of 2", &right, false);
    let script = fs::read_to_string(&path).unwrap();
    let answer = format!("{right:?}");
    let script = script.replace("seconds=0.5", &format!("seconds=0.5 rewards='{wrong:?}'"));
    let script = script.replace("seconds=0.25 ;;", &format!("seconds=0.25 rewards='{right:?}' ;;"));
    fs::write(&path, script.replace(&format!("\\\"rewards\\\": {answer}"), "\\\"rewards\\\": $rewards"))
        .unwrap();
    let run = bench_short(&["--compare", &format!("vllm={path}")]);
    assert_eq!(run.status, Some(0), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let side = &report["rows"][0]["rounds"]["sides"][1];
    assert_eq!(side["settings"], "batch=2 threads=2");
    let rejected = &side["tried"][0];
    assert_eq!(rejected["settings"], "batch=1 threads=2");
    assert_eq!(rejected["seconds"], Value::Null);
    assert!(rejected["error"].as_str().unwrap().contains("is rejected"), "{side}");
}

#[cfg(unix)]
#[test]
fn baselines_by_name_need_files_and_known_arithmetic() {
    let arguments = ["--shape", "llama-3.1-8b", "--layers", "1", "--device", "cpu", "--tokens", "4"];
    let run = bench(&[&arguments[..], &["--compare", "vllm=true"]].concat());
    assert!(run.status == Some(2) && run.stderr.contains("needs a model's files"), "{run:?}");
    let run = bench_short(&["--compare", "vllm=true", "--compare-dtype", "float16"]);
    assert!(run.status == Some(2) && run.stderr.contains("have no float16 on CPUs"), "{run:?}");
}

#[test]
fn tokenize_names_a_line_that_is_no_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines.jsonl");
    fs::write(&file, "{\"prompt\": \"a\", \"response\": \"b\"}\n\n{bad\n").unwrap();
    let model = demo_model();
    let run = bench(&["tokenize", "--model", model.to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(run.status, Some(2), "{run:?}");
    assert!(run.stderr.contains("at input line 3"), "{run:?}");
}

/// The output of a command of `bench`, which must succeed.
#[track_caller]
fn command(arguments: &[&str]) -> String {
    let run = bench(arguments);
    assert_eq!(run.status, Some(0), "{run:?}");
    run.stdout
}

#[test]
fn serve_like_answers_all_requests_and_keeps_their_latencies() {
    let model = demo_model();
    let arguments = [
        "serve-like",
        "--model",
        model.to_str().unwrap(),
        "--device",
        "cpu",
        "--tokens",
        "4..12",
        "--rate",
        "100",
        "--load",
        "0.2",
        "--concurrency",
        "3",
        "--seconds",
        "0.3",
        "--responses",
        "2",
        "--shared",
        "0.5",
    ];
    let report: Value = serde_json::from_str(&command(&[&arguments[..], &["-o", "json"]].concat())).unwrap();
    check_fields(&report, &["Every report", MODEL, "`bench serve-like`"], true);
    let loads = report["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 3);
    for load in loads {
        let samples = load["samples"].as_array().unwrap();
        assert!(!samples.is_empty() && samples.len() as u64 == load["answered"].as_u64().unwrap());
        let of = |name: &str| -> Vec<f64> { samples.iter().map(|one| one[name].as_f64().unwrap()).collect() };
        assert!(of("tokens").iter().all(|tokens| (4.0..=12.0).contains(tokens)));
        assert!(of("due_seconds").iter().all(|due| *due < 0.4), "{load}");
        let latencies = of("latency_seconds");
        assert!(latencies.iter().all(|latency| *latency > 0.0), "{load}");
        let max = latencies.iter().copied().fold(0.0, f64::max);
        assert_eq!(load["latency_seconds"]["max"], max);
        let tokens: f64 = of("tokens").iter().sum();
        let rate = load["nominal_tokens_per_second"].as_f64().unwrap() * load["seconds"].as_f64().unwrap();
        assert!((rate - tokens).abs() < 1e-6 * tokens, "all tokens were computed: {rate} {tokens}");
    }
    assert!(in_flight_max(&loads[2]) <= 3, "three clients have three requests at most");
    let table = command(&arguments);
    assert!(table.contains("| 3 clients |") && table.contains("4..12 tokens, 0.5 of"), "{table}");

    let run = bench(&["serve-like", "--model", model.to_str().unwrap()]);
    assert!(run.status == Some(2) && run.stderr.contains("--rate"), "{run:?}");
}

/// A `kudos serve` of the demo model, which ends with the test.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn serve_like_measures_a_server_by_its_own_counts() {
    use std::io::{BufRead, BufReader};
    let (kudos, model) = (Path::new(env!("CARGO_BIN_EXE_bench")).with_file_name("kudos"), demo_model());
    let mut kudos_serve = std::process::Command::new(&kudos);
    kudos_serve
        .args(["serve", "--device", "cpu", "--port", "0", "--model"])
        .arg(&model)
        .stderr(std::process::Stdio::piped());
    let process = kudos_serve
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: build kudos-cli too", kudos.display()));
    let mut server = Server(process);
    let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let url = log.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).expect("it listens");
    // Nothing else that it writes is read, and it does not wait for that.
    std::thread::spawn(move || log.for_each(drop));
    let arguments = ["serve-like", "--model", model.to_str().unwrap(), "--url", &url, "--tokens", "4..12"];
    let loads = ["--rate", "100", "--concurrency", "3", "--seconds", "0.3", "-o", "json"];
    let report: Value = serde_json::from_str(&command(&[&arguments[..], &loads].concat())).unwrap();
    assert_eq!(report["model"]["name"], "model");
    assert!(report["capacity"].as_f64().unwrap() > 0.0);
    for load in report["loads"].as_array().unwrap() {
        let samples = load["samples"].as_array().unwrap();
        assert!(!samples.is_empty() && load["refused"] == 0 && load["failed"] == 0, "{load}");
        let tokens: f64 = samples.iter().map(|one| one["tokens"].as_f64().unwrap()).sum();
        // The server's canary may be scored meanwhile.
        let counted = load["nominal_tokens_per_second"].as_f64().unwrap() * load["seconds"].as_f64().unwrap();
        assert!(counted >= tokens - 1e-6 && counted < tokens + 100.0, "{counted} {tokens}");
    }
}

fn in_flight_max(load: &Value) -> u64 {
    load["in_flight"]["max"].as_u64().unwrap()
}

#[test]
fn tokenizing_is_measured_per_number_of_threads() {
    let (model, input) = (demo_model(), root().join("demo/pairs.jsonl"));
    let arguments = [
        "tokenize",
        "--model",
        model.to_str().unwrap(),
        input.to_str().unwrap(),
        "--threads",
        "1,2",
        "-r",
        "2",
        "--seconds",
        "0.05",
    ];
    let report: Value = serde_json::from_str(&command(&[&arguments[..], &["-o", "json"]].concat())).unwrap();
    check_fields(&report, &["Every report", "`bench tokenize`"], true);
    assert_eq!(report["tokenizing"][1]["threads"], 2);
    assert_eq!(report["tokenizing"][0]["samples"].as_array().unwrap().len(), 2);
    assert!(command(&arguments).starts_with("| threads |"));

    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.jsonl");
    fs::write(&ids, "{\"input_ids\": [1, 2]}\n").unwrap();
    let run = bench(&["tokenize", "--model", model.to_str().unwrap(), ids.to_str().unwrap()]);
    assert!(run.status == Some(2) && run.stderr.contains("no conversations"), "{run:?}");
}

#[test]
fn samples_are_one_per_repeat_and_count_scored_tokens() {
    let report =
        json(&["--tokens", "40", "--seqs", "6", "--shared-prefix", "32", "--responses", "3", "-r", "4"]);
    let row = &report["rows"][0];
    let samples = row["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    for sample in samples {
        assert_eq!((&sample["nominal_tokens"], &sample["passes"]), (&(6 * 40).into(), &1.into()), "{sample}");
        // Two prompts, and six responses of eight tokens.
        assert_eq!(sample["unique_tokens"], 2 * 32 + 6 * 8, "{sample}");
        assert!(sample["seconds"].as_f64().unwrap() > 0.0, "{sample}");
    }
    let rate = |name: &str| row[name]["median"].as_f64().unwrap();
    let gain = rate("nominal_tokens_per_second") / rate("unique_tokens_per_second");
    assert!((gain - 240.0 / 112.0).abs() < 1e-9, "{gain}");
    // Portable code has no peak.
    if Isa::detect().name() != "portable" {
        assert_eq!(report["peak_source"], "measured");
        let mfu = row["mfu"].as_f64().unwrap();
        assert!(mfu > 0.0 && mfu < 1.0, "{mfu}");
    }
}

/// The classes of a row, by name.
fn classes(row: &Value) -> BTreeMap<&str, &Value> {
    row["classes"].as_array().unwrap().iter().map(|class| (class["class"].as_str().unwrap(), class)).collect()
}

#[test]
fn classes_have_every_op_of_a_run_and_all_of_its_flop() {
    let test = ["--tokens", "40", "--seqs", "6", "--shared-prefix", "32", "--responses", "3", "-r", "1"];
    for (ranks, math) in [("1", "f32"), ("2", "f32"), ("2", "f32-vector")] {
        let report = json(&[&test[..], &["--ranks", ranks, "--cpu-math", math]].concat());
        let row = &report["rows"][0];
        let classes = classes(row);
        // Four layers in one pass; the last one has q apart from k and v, and gathers two
        // activations.
        let all_reduce = if ranks == "1" { &[][..] } else { &[("all_reduce", 8)] };
        let matmuls = [("product_qkv", 5), ("product_o", 4), ("product_gate_up", 4), ("product_down", 4)];
        let others = [("tables", 1), ("embeddings", 1), ("add_rms_norm", 9), ("rope", 5), ("attention", 4)];
        let last = [("gather_rows", 2), ("score", 1)];
        // Matmuls of gate and up end with the gate's function.
        let expected: BTreeMap<&str, u64> =
            matmuls.iter().chain(&others).chain(&last).chain(all_reduce).copied().collect();
        let ops = classes.iter().map(|(&name, class)| (name, class["ops"].as_u64().unwrap())).collect();
        assert_eq!(expected, ops);

        let total = |field: &str| classes.values().map(|class| class[field].as_f64().unwrap()).sum::<f64>();
        let seconds = row["profile_seconds"].as_f64().unwrap();
        assert!(seconds > 0.0 && (total("seconds") / seconds - 1.0).abs() < 1e-9, "{row}");
        // Rank 0 has its share of all but the head, which `flop` leaves out.
        let flop =
            (total("flop") - classes["score"]["flop"].as_f64().unwrap()) * ranks.parse::<f64>().unwrap();
        assert!((flop / row["flop"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["gpu"], Value::Null, "there is no GPU");
        assert_eq!(row["between_passes_seconds"], Value::Null, "a CPU begins a pass when it has ended one");
    }
}

#[test]
fn the_roof_follows_from_the_measured_rates() {
    if Isa::detect().name() == "portable" {
        // No peak is known.
        return;
    }
    let report = json(&["--tokens", "16", "--seqs", "2", "-r", "3", "--peak-tflops", "2"]);
    let row = &report["rows"][0];
    assert_eq!(report["roof_bytes_per_second"], Value::Null, "caches hold the bytes of a CPU");
    let mut all = 0.0;
    for (name, class) in classes(row) {
        let rate = match name {
            "attention" => "roof_attention_flop_per_second",
            "score" => "roof_score_flop_per_second",
            _ => "roof_flop_per_second",
        };
        let roof = class["flop"].as_f64().unwrap() / report[rate].as_f64().unwrap();
        if roof == 0.0 {
            assert_eq!(
                (&class["roof_seconds"], &class["roof_share"]),
                (&Value::Null, &Value::Null),
                "{class}"
            );
            continue;
        }
        assert!((class["roof_seconds"].as_f64().unwrap() / roof - 1.0).abs() < 1e-9, "{class}");
        let share = class["roof_share"].as_f64().unwrap() * class["seconds"].as_f64().unwrap();
        assert!((share / roof - 1.0).abs() < 1e-9, "{class}");
        all += roof;
    }
    assert!((row["roof_seconds"].as_f64().unwrap() / all - 1.0).abs() < 1e-9, "{row}");
    let median = row["roof_share"].as_f64().unwrap() / row["roof_seconds"].as_f64().unwrap();
    let mut seconds: Vec<f64> =
        row["samples"].as_array().unwrap().iter().map(|sample| sample["seconds"].as_f64().unwrap()).collect();
    seconds.sort_by(f64::total_cmp);
    assert!((median * seconds[1] - 1.0).abs() < 1e-9, "{row}");
}

#[test]
fn a_warm_up_ends_with_its_time() {
    let test = ["--tokens", "8", "--seqs", "1", "-r", "1"];
    let brief = &json(&test)["rows"][0]["warm_up"];
    assert_eq!((&brief["runs"], &brief["settled"]), (&1.into(), &false.into()), "{brief}");
    let model = demo_model();
    let run = bench(
        &[
            &["--model", model.to_str().unwrap(), "--device", "cpu", "--warm-up", "0.4", "-o", "json"],
            &test[..],
        ]
        .concat(),
    );
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let warm_up = &report["rows"][0]["warm_up"];
    // It may have settled by then, at 0.3 s at the earliest.
    assert!(
        warm_up["runs"].as_u64().unwrap() > 1 && warm_up["seconds"].as_f64().unwrap() >= 0.3,
        "{warm_up}"
    );
}

#[test]
fn seconds_extend_a_test_beyond_its_repeats() {
    let report = json(&["--tokens", "8", "--seqs", "1", "-r", "1", "--seconds", "0.2"]);
    let samples = report["rows"][0]["samples"].as_array().unwrap();
    let seconds: f64 = samples.iter().map(|sample| sample["seconds"].as_f64().unwrap()).sum();
    assert!(samples.len() > 1 && seconds > 0.1, "{samples:?}");
}

#[test]
fn mfu_is_the_reached_share_of_the_peak() {
    let report = json(&["--tokens", "16", "--seqs", "2", "-r", "3", "--peak-tflops", "2"]);
    let row = &report["rows"][0];
    assert_eq!((&report["peak_source"], &report["peak_tflops"]), (&"given".into(), &2.0.into()));
    let mut seconds: Vec<f64> =
        row["samples"].as_array().unwrap().iter().map(|sample| sample["seconds"].as_f64().unwrap()).collect();
    seconds.sort_by(f64::total_cmp);
    let tflops = row["flop"].as_f64().unwrap() / seconds[1] / 1e12;
    assert!((row["tflops"].as_f64().unwrap() / tflops - 1.0).abs() < 1e-9, "{row}");
    assert!((row["mfu"].as_f64().unwrap() / (tflops / 2.0) - 1.0).abs() < 1e-9, "{row}");
}

#[test]
fn markdown_is_a_table_with_its_origin() {
    let text = measured(&["--tokens", "5,9", "--seqs", "2", "-r", "1", "--peak-tflops", "1"]);
    let (table, below) = text.split_once("\n\n").unwrap();
    let cells: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
    assert_eq!(cells, [11; 4], "{text}");
    assert!(table.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{text}");
    assert!(table.contains("| 2 x 5 |") && table.contains("| 2 x 9 |"), "{text}");
    assert!(below.contains(concat!("kudos ", env!("CARGO_PKG_VERSION"))) && below.contains("CPU"), "{text}");
    assert!(below.contains("of 1 TFLOP/s (given)") && below.contains("FLOP: 2 * weights"), "{text}");
    assert!(below.contains("\n2 x 9: warmed up by 1 runs in "), "{text}");
    let classes: Vec<&str> = below.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(classes.iter().all(|line| line.matches('|').count() == 10), "{text}");
    for class in ["| 2 x 5 | attention |", "| 2 x 9 | product_down |", "| 2 x 9 | all |"] {
        assert!(classes.iter().any(|line| line.starts_with(class)), "{class} is not in {text}");
    }
}

#[test]
fn json_has_each_test_with_its_classes_and_samples() {
    let report = json(&["--tokens", "5,9", "--seqs", "2", "-r", "3"]);
    let rows = report["rows"].as_array().unwrap();
    let tests: Vec<_> = rows.iter().map(|row| (&row["test"], &row["tokens"])).collect();
    assert_eq!(tests, [(&"2 x 5".into(), &5.into()), (&"2 x 9".into(), &9.into())]);
    assert!(report["device"].as_str().unwrap().starts_with("CPU, "), "{report}");
    for row in rows {
        let classes = classes(row);
        assert!(classes["attention"]["seconds"].as_f64().unwrap() > 0.0, "{row}");
        assert!(!classes.contains_key("all_reduce"), "{row}");
        assert_eq!(row["samples"].as_array().unwrap().len(), 3);
        assert!(row["unique_tokens_per_second"]["mean"].as_f64().unwrap() > 0.0);
    }
}

/// A run on random weights, where no temporary folder can be written to.
fn shape(arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--shape", "smollm2-135m", "--tokens", "4", "--seqs", "2", "-r", "1", "-o", "json"])
        .args(BRIEF)
        .args(arguments)
        .env("TMPDIR", "/dev/null")
        .output()
        .unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_shape_is_measured_with_random_weights_and_no_files() {
    let run = shape(&["--layers", "2", "--device", "cpu"]);
    assert_eq!(run.status, Some(0), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let model = &report["model"];
    assert_eq!((&model["name"], &model["random_weights"]), (&"smollm2-135m".into(), &true.into()));
    assert_eq!((&model["layers"], &model["hidden"]), (&2.into(), &576.into()));
}

#[test]
fn invalid_tests_are_refused_before_anything_is_printed() {
    let model = demo_model();
    let demo = ["--model", model.to_str().unwrap(), "--device", "cpu"];
    for (arguments, words) in [
        (&["--tokens", "8", "--shared-prefix", "8", "--responses", "2"][..], "a shared prefix of 8 tokens"),
        (&["--tokens", "100000"], "longer than the model's limit of 2048"),
        (&["--tokens", "4", "--seqs", "5000"], "5000 different sequences"),
    ] {
        let run = bench(&[&demo, arguments].concat());
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.stderr.contains(words) && run.stderr.contains("hint: "), "{run:?}");
    }
    for (arguments, word) in [
        (&["--tokens", "0"][..], "--tokens"),
        (&["-r", "0"], "--repeats"),
        (&["--seconds", "0"], "--seconds"),
        (&["--warm-up", "x"], "--warm-up"),
        (&["--peak-tflops", "nan"], "--peak-tflops"),
        (&["--shared-prefix", "4"], "--responses"),
        (&["--shape", "smollm2-135m"], "--shape"),
        (&["-o", "csv"], "md, json"),
    ] {
        let run = bench(&[&demo, arguments].concat());
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.stderr.contains(word) && run.stderr.contains("--help"), "{run:?}");
    }
    let run = bench(&["--shape", "smollm2-135m", "--layers", "31"]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("has 30 layers") && run.stderr.contains("hint: "), "{run:?}");
    let run = bench(&["--shape", "llama-2-7b"]);
    assert!(run.status == Some(2) && run.stderr.contains("llama-3.3-70b"), "{run:?}");
    let run = bench(&[]);
    assert!(run.status == Some(2) && run.stderr.contains("--model"), "{run:?}");
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn the_software_gpu_has_no_speed() {
    let model = demo_model();
    let run =
        bench(&["--model", model.to_str().unwrap(), "--device", "cuda", "--tokens", "4", "--seqs", "1"]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("is simulated") && run.stderr.contains("hint: "), "{run:?}");
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn random_weights_need_no_file_on_the_gpu_either() {
    let run = shape(&["--layers", "2", "--device", "cuda"]);
    // The model is opened, and refused only then: the device is no hardware.
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("is simulated"), "{run:?}");
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn sensors_are_read_in_their_units_or_left_out() {
    use kudos::internals::backend::cuda::nvml::{GpuClock, Sensors};
    use kudos::internals::backend::cuda::probe;
    for info in probe::devices().unwrap() {
        let sensors = Sensors::of(&info).expect("the software GPU has sensors");
        assert_eq!((sensors.watts(), sensors.celsius()), (Some(1.5), Some(21)));
        assert_eq!(sensors.clock_mhz(GpuClock::Multiprocessors), None, "it has no clock");
        assert_eq!(Sensors::of(&probe::DeviceInfo { ordinal: 99, ..info }).map(drop), None);
    }
}

/// The output of a dry run of `bench kernels`.
#[cfg(feature = "cuda")]
#[track_caller]
fn launched(arguments: &[&str]) -> String {
    let dry = ["kernels", "--dry-run", "--tokens", "33"];
    let run = bench(&[&dry, arguments].concat());
    assert_eq!(run.status, Some(0), "{run:?}");
    run.stdout
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn a_dry_run_launches_every_kernel_without_speed() {
    let page = fs::read_to_string(root().join("benches/kernels.md")).unwrap();
    for (tier, attention) in [("sm80", "attention_sm80_bf16_d64"), ("sm75", "attention_sm75_f16_d64")] {
        let shape = ["--shape", "smollm2-135m", "--cuda-tier", tier];
        let text = launched(&[&shape[..], &["-o", "json"]].concat());
        let report: Value = serde_json::from_str(&text).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let launched: BTreeSet<&str> = rows.iter().map(|row| row["kernel"].as_str().unwrap()).collect();
        let plain = attention.replace(tier, "plain");
        for kernel in [
            "copy",
            "add_rms_norm",
            "add_branch_rms_norm",
            "add_parts",
            "rope",
            "rope_norm",
            "gate_mul_silu",
            "gate_mul_gelu",
            "gather_rows",
            "score",
            "seam_tiles",
            attention,
            &plain,
            "product_square",
            "product_qkv",
            "product_o",
            "product_gate_up",
            "product_down",
        ] {
            assert!(launched.contains(kernel), "{kernel} is not among {launched:?}");
        }
        assert!(rows.iter().all(|row| row["seconds_median"].is_null() && row["share"].is_null()), "{text}");
        let mut found = BTreeSet::new();
        fields("", &report, &mut found);
        // An empty array has no type of its elements.
        for (path, found) in found.iter().filter(|(path, _)| path != "rows.samples") {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{path}` | ")));
            let types = line.unwrap_or_else(|| panic!("`{path}` is not in benches/kernels.md"));
            let types = types.split(" | ").nth(1).unwrap();
            assert!(types.split(" or ").any(|one| one == *found), "`{path}` is {found}, documented: {types}");
        }
    }
    let text = launched(&["--shape", "smollm2-135m", "--attention", "-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let launched_alone: BTreeSet<&str> =
        report["rows"].as_array().unwrap().iter().map(|row| row["kernel"].as_str().unwrap()).collect();
    let expected = ["attention_sm80_bf16_d64", "attention_sm80_bf16_d64_wc", "copy", "product_square"];
    assert_eq!(launched_alone, BTreeSet::from(expected));
    let table = launched(&["--shape", "smollm2-135m"]);
    assert!(table.lines().take_while(|line| !line.is_empty()).all(|line| line.matches('|').count() == 11));
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn loading_is_measured_with_and_without_the_page_cache() {
    let model = demo_model();
    let arguments = ["load", "--model", model.to_str().unwrap(), "-r", "2"];
    let report: Value = serde_json::from_str(&command(&[&arguments[..], &["-o", "json"]].concat())).unwrap();
    check_fields(&report, &["Every report", "`bench load`"], true);
    let tests = report["loading"].as_array().unwrap();
    let names: Vec<_> = tests.iter().map(|test| (&test["cache"], &test["target"])).collect();
    // The software GPU has no link.
    let [cold, warm, pinned] = ["cold", "warm", "pinned"].map(Value::from);
    assert_eq!(names, [(&cold, &pinned), (&warm, &pinned)]);
    assert!(tests.iter().all(|test| test["samples"].as_array().unwrap().len() == 2), "{report}");
    assert!(command(&arguments).starts_with("| page cache |"));
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the software GPU: make test"]
fn kernels_have_no_speed_on_the_software_gpu() {
    let run = bench(&["kernels", "--shape", "smollm2-135m"]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains("is simulated") && run.stderr.contains("--dry-run"), "{run:?}");
}
