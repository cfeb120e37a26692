//! `kudos eval`: each benchmark from its published form, with a model and from results; resuming;
//! comparing; broken items; published scores.
//!
//! `KUDOS_TEST_DATA` is a folder with benchmark files, which we may not redistribute.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, demo_model, kudos, root};
use serde_json::{Map, Value, json};

/// A folder with a benchmark's file and results of it.
pub(crate) struct Workspace {
    dir: tempfile::TempDir,
    benchmark: &'static str,
}

impl Workspace {
    pub(crate) fn new(benchmark: &'static str, file: &str) -> Self {
        let workspace = Self { dir: tempfile::tempdir().unwrap(), benchmark };
        workspace.write("items", file);
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs `kudos eval BENCHMARK items`, with options.
    pub(crate) fn run(&self, options: &[&str]) -> Run {
        kudos(&[&["eval", self.benchmark, &self.path("items")], options].concat(), "")
    }

    /// Runs it with the demo model.
    pub(crate) fn with_model(&self, options: &[&str]) -> Run {
        let model = demo_model();
        self.run(&[&["--device", "cpu", "--model", model.to_str().unwrap()], options].concat())
    }

    /// The report of results, which must have no errors.
    #[track_caller]
    fn report(&self, results: &str, options: &[&str]) -> Value {
        let run = self.run(&[&["--json", "--scores", &self.path(results)], options].concat());
        assert_eq!(run.status, Some(0), "{run:?}");
        serde_json::from_str(&run.stdout).unwrap()
    }
}

pub(crate) fn lines(items: &[Value]) -> String {
    items.iter().map(|item| item.to_string() + "\n").collect()
}

/// The items of a small file of each benchmark, in which the right answers are those that the demo
/// model may find.
pub(crate) fn benchmarks() -> Vec<(&'static str, Vec<Value>)> {
    let sum = |n: usize, off: usize| format!("{n}+1={}", n + 1 + off);
    let styles = |n: usize, off: usize| {
        json!([sum(n, off), format!("The sum is {}.", sum(n, off)), format!("**{}**", sum(n, off))])
    };
    let rm_bench = |n: usize| {
        let domain = ["chat", "math", "code", "safety-refuse", "safety-response"][n % 5];
        json!({"id": format!("{domain}/{n}"), "domain": domain, "prompt": format!("What is {n}+1?"),
            "chosen": styles(n, 0), "rejected": styles(n, 1), "error": "a key of its own"})
    };
    let judgebench = |n: usize| {
        let source = ["mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench"][n % 4];
        let (first, second) = (sum(n, n % 2), sum(n, 1 - n % 2));
        json!({"pair_id": format!("pair {n}"), "source": source, "question": format!("What is {n}+1?"),
            "response_A": first, "response_B": second, "label": (["A>B", "B>A"][n % 2])})
    };
    let rewardbench = |n: usize| {
        let subset = ["alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go"][n % 5];
        json!({"id": n, "subset": subset, "prompt": format!("What is {n}+1?"), "chosen": sum(n, 0), "rejected": sum(n, 2)})
    };
    let rewardbench2 = |n: usize| {
        let (question, several) = (n / 2, n % 2 == 1);
        let subset = if n < 6 { "Ties" } else { ["Math", "Focus"][n % 2] };
        let id = match n {
            0..6 if several => format!("tied:{question}"),
            0..6 => format!("ref:{question}"),
            _ => n.to_string(),
        };
        let chosen = if n < 6 && several { json!([sum(n, 0), "Two."]) } else { json!([sum(n, 0)]) };
        json!({"id": id, "subset": subset, "prompt": format!("What is {n}+1?"), "chosen": chosen,
            "rejected": [sum(n, 1), sum(n, 2), sum(n, 3)], "num_correct": chosen.as_array().unwrap().len()})
    };
    let helpsteer3 = |n: usize| {
        let (domain, language) =
            [("general", "english"), ("code", "python"), ("multilingual", "korean")][n % 3];
        json!({"domain": domain, "language": language, "overall_preference": n as i64 % 7 - 3,
            "context": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": format!("What is {n}+1?")}],
            "response1": sum(n, n % 2), "response2": sum(n, 1)})
    };
    let preferences = |n: usize| {
        let turns = |off| {
            json!([{"role": "user", "content": format!("What is {n}+1?")},
            {"role": "assistant", "content": sum(n, off)}])
        };
        json!({"chosen": turns(0), "rejected": turns(n % 3), "source": (["a", "b"][n % 2])})
    };
    let of = |item: &dyn Fn(usize) -> Value| (0..10).map(item).collect();
    vec![
        ("rm-bench", of(&rm_bench)),
        ("judgebench", of(&judgebench)),
        ("rewardbench", of(&rewardbench)),
        ("rewardbench2", of(&rewardbench2)),
        ("helpsteer3", of(&helpsteer3)),
        ("preferences", of(&preferences)),
    ]
}

/// Returns the file of one of them, as a JSON array for RM-Bench, as it is published, and as JSON
/// lines otherwise.
pub(crate) fn small(benchmark: &'static str) -> Workspace {
    let (_, items) = benchmarks().into_iter().find(|(name, _)| *name == benchmark).unwrap();
    let text = if benchmark == "rm-bench" { format!("{:#}", json!(items)) } else { lines(&items) };
    Workspace::new(benchmark, &text)
}

#[test]
fn results_evaluate_to_the_report_of_the_run_that_made_them() {
    for (benchmark, items) in benchmarks() {
        let workspace = small(benchmark);
        let run = workspace.with_model(&["--json", "-o", &workspace.path("results")]);
        assert_eq!(run.status, Some(0), "{benchmark}: {run:?}");
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(report, workspace.report("results", &[]), "{benchmark}");
        assert_eq!((&report["items"], &report["evaluated"]), (&json!(10), &json!(10)));
        let results: Vec<Map<String, Value>> =
            workspace.read("results").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (item, result) in items.iter().zip(&results) {
            let kept = item.as_object().unwrap().iter().all(|(key, value)| result.get(key) == Some(value));
            assert!(kept, "{item} is not in {result:?}");
        }
        let added: Vec<&String> =
            results[0].keys().filter(|key| items[0].get(key.as_str()).is_none()).collect();
        let expected: &[&str] = match benchmark {
            "rm-bench" => &["score_chosen", "score_rejected"],
            "judgebench" => &["judge_name", "judgments"],
            "rewardbench" => &["scores_chosen", "scores_rejected"],
            "rewardbench2" => &["scores"],
            "helpsteer3" => &["reward1", "reward2"],
            _ => &["reward_chosen", "reward_rejected", "margin"],
        };
        assert_eq!(added, expected, "{benchmark}");
        // A file of results is a file of items.
        let again = kudos(
            &[
                "eval",
                benchmark,
                &workspace.path("results"),
                "--scores",
                &workspace.path("results"),
                "--json",
            ],
            "",
        );
        assert_eq!(serde_json::from_str::<Value>(&again.stdout).unwrap(), report, "{benchmark}");
    }
}

#[test]
fn scores_are_the_rewards_of_kudos_score() {
    let workspace = small("judgebench");
    let run = workspace.with_model(&["-o", &workspace.path("results")]);
    assert_eq!(run.status, Some(0), "{run:?}");
    let item: Value = serde_json::from_str(workspace.read("items").lines().next().unwrap()).unwrap();
    let line = json!({"prompt": item["question"], "responses": [item["response_A"], item["response_B"]]});
    let model = demo_model();
    let scored =
        kudos(&["score", "--device", "cpu", "--model", model.to_str().unwrap(), "-"], &line.to_string());
    let scored: Value = serde_json::from_str(&scored.stdout).unwrap();
    let result: Value = serde_json::from_str(workspace.read("results").lines().next().unwrap()).unwrap();
    assert_eq!(result["judgments"][0]["judgment"]["scores"], scored["rewards"]);
    assert_eq!(result["judgments"][0]["decision"], "A>B");
    assert_eq!(result["judgments"][0]["judgment"]["judge_model"], "model");
    let rounded = workspace.with_model(&["--bf16", "-o", &workspace.path("rounded")]);
    assert_eq!(rounded.status, Some(0), "{rounded:?}");
    let result: Value = serde_json::from_str(workspace.read("rounded").lines().next().unwrap()).unwrap();
    assert_eq!(result["judgments"][0]["judgment"]["scores"], scored["rewards_bf16"]);
}

#[test]
fn a_torn_file_resumed_is_that_of_an_uninterrupted_run() {
    for benchmark in ["rm-bench", "helpsteer3"] {
        let workspace = small(benchmark);
        let whole = workspace.with_model(&["--json", "-o", &workspace.path("whole")]);
        let expected = workspace.read("whole");
        let third = expected.match_indices('\n').nth(2).unwrap().0 + 1;
        for kept in [0, third, third + 20, expected.len() - 1, expected.len()] {
            workspace.write("torn", &expected[..kept]);
            let resumed = workspace.with_model(&["--json", "--resume", "-o", &workspace.path("torn")]);
            assert_eq!(resumed.status, Some(0), "{resumed:?}");
            assert_eq!(workspace.read("torn"), expected, "{benchmark}, resumed after {kept} bytes");
            assert_eq!(resumed.stdout, whole.stdout);
        }
    }
}

#[test]
fn resuming_with_another_file_or_model_is_refused() {
    let workspace = small("judgebench");
    workspace.with_model(&["-o", &workspace.path("results")]);
    let results = workspace.read("results");
    workspace.write("rounded", &results);
    let resumed = workspace.with_model(&["--bf16", "--resume", "-o", &workspace.path("rounded")]);
    assert_eq!(resumed.status, Some(2), "{resumed:?}");
    assert!(resumed.stderr.contains("has other scores for item 0 than this run"), "{resumed:?}");
    assert_eq!(workspace.read("rounded"), results);
    let swapped: Vec<&str> = results.lines().rev().collect();
    workspace.write("swapped", &(swapped.join("\n") + "\n"));
    let resumed = workspace.with_model(&["--resume", "-o", &workspace.path("swapped")]);
    assert_eq!(resumed.status, Some(2));
    assert!(resumed.stderr.contains("line 1 of"), "{resumed:?}");
    assert!(resumed.stderr.contains("is not the result of item 0"), "{resumed:?}");
}

#[test]
fn items_without_scores_are_counted_and_named() {
    let (_, mut items) = benchmarks().swap_remove(1);
    items[2].as_object_mut().unwrap().remove("label");
    items[5]["question"] = json!("What? ".repeat(3000));
    let workspace = Workspace::new("judgebench", &(lines(&items) + "{\"pair_id\": \n"));
    let run = workspace.with_model(&["--json", "-o", &workspace.path("results")]);
    assert_eq!(run.status, Some(1), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&report["items"], &report["evaluated"], &report["failed"]),
        (&json!(11), &json!(8), &json!(3))
    );
    assert_eq!(report["tables"]["category"]["overall"]["items"], 8);
    let errors = report["errors"].as_array().unwrap();
    let places: Vec<(&Value, &Value)> = errors.iter().map(|error| (&error["index"], &error["id"])).collect();
    assert_eq!(
        places,
        [(&json!(2), &json!("pair 2")), (&json!(5), &json!("pair 5")), (&json!(10), &Value::Null)]
    );
    assert_eq!(errors[0]["message"], "the item has no `label`, expected a string");
    assert!(errors[0]["place"].as_str().unwrap().ends_with("items`, `pair_id` \"pair 2\""), "{}", errors[0]);
    assert_eq!(errors[1]["kind"], "too_long");
    assert!(run.stderr.contains("3 of 11 items have an error instead of scores"), "{run:?}");
    // Results have a line for each of them, and evaluate to the same numbers.
    let results = workspace.read("results");
    let last: Value = serde_json::from_str(results.lines().last().unwrap()).unwrap();
    assert_eq!((&last["index"], &last["scoring_error"]["kind"]), (&json!(10), &json!("invalid_input")));
    let again = workspace.run(&["--json", "--scores", &workspace.path("results")]);
    assert_eq!(again.status, Some(1), "{again:?}");
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["tables"], &again["notes"]), (&report["tables"], &report["notes"]));
    let resumed = workspace.with_model(&["--resume", "-o", &workspace.path("results")]);
    assert_eq!(resumed.status, Some(1), "{resumed:?}");
    assert_eq!(workspace.read("results"), results);
    let cut = workspace.with_model(&["--json", "--truncate", "left"]);
    assert_eq!(serde_json::from_str::<Value>(&cut.stdout).unwrap()["evaluated"], 9);
    assert!(cut.stderr.contains("2 conversations were cut to the limit of tokens"), "{cut:?}");
}

#[test]
fn results_of_other_items_are_refused_or_counted() {
    let (_, items) = benchmarks().swap_remove(2);
    let workspace = Workspace::new("rewardbench", &lines(&items[..3]));
    let result = |item: &Value, scores: [f64; 2]| {
        let mut item = item.clone();
        (item["scores_chosen"], item["scores_rejected"]) = (json!(scores[0]), json!(scores[1]));
        item
    };
    let results: Vec<Value> = items[1..5].iter().map(|item| result(item, [1.0, 0.5])).collect();
    workspace.write("results", &lines(&results));
    let run = workspace.run(&["--json", "--scores", &workspace.path("results")]);
    assert_eq!(run.status, Some(1), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["evaluated"], 2);
    assert!(report["errors"][0]["message"].as_str().unwrap().starts_with("the item has no result in"));
    let note = report["notes"].as_array().unwrap().last().unwrap().as_str().unwrap();
    assert!(note.starts_with("2 results in") && note.ends_with("belong to no item"), "{note}");
    let mut other = result(&items[0], [1.0, 0.5]);
    other["chosen"] = json!("another text");
    workspace.write("results", &lines(&[other]));
    let run = workspace.run(&["--scores", &workspace.path("results")]);
    assert_eq!(run.status, Some(2), "{run:?}");
    assert!(run.stderr.contains("is of an item with another text"), "{run:?}");
    // Scores and ids alone are enough.
    let bare: Vec<Value> =
        (0..3).map(|id| json!({"id": id, "scores_chosen": 1.0, "scores_rejected": id})).collect();
    workspace.write("results", &lines(&bare));
    let report = workspace.report("results", &[]);
    assert_eq!(report["ties"], json!({"count": 1, "of": 3}));
}

#[test]
fn a_baseline_is_compared_item_by_item() {
    let (_, items) = benchmarks().swap_remove(1);
    let workspace = Workspace::new("judgebench", &lines(&items));
    let results = |right: &dyn Fn(usize) -> bool| -> String {
        let result = |(n, item): (usize, &Value)| {
            let first = if (item["label"] == "A>B") == right(n) { [1.0, 0.0] } else { [0.0, 1.0] };
            let games = [first, [first[1], first[0]]].map(|scores| json!({"judgment": {"scores": scores}}));
            json!({"pair_id": item["pair_id"], "judgments": games})
        };
        lines(&items.iter().enumerate().map(result).collect::<Vec<_>>())
    };
    // Ours: all but item 9; theirs: the first four, and no result of item 9.
    workspace.write("ours", &results(&|n| n != 9));
    let theirs = results(&|n| n < 4);
    workspace.write("theirs", &theirs.lines().take(9).map(|line| line.to_owned() + "\n").collect::<String>());
    let report = workspace.report("ours", &["--baseline", &workspace.path("theirs")]);
    let baseline = &report["baseline"];
    assert_eq!((&baseline["items"], &baseline["only_here"]), (&json!(9), &json!(1)));
    let counts =
        ["both_right", "only_ours", "only_theirs", "both_wrong"].map(|key| baseline[key].as_u64().unwrap());
    assert_eq!(counts, [4, 5, 0, 0]);
    assert_eq!(baseline["mcnemar"], json!({"p": 0.0625, "test": "exact binomial"}));
    assert_eq!((&baseline["ours"], &baseline["theirs"]), (&json!(1.0), &json!(4.0 / 9.0)));
    let value = baseline["difference"]["value"].as_f64().unwrap();
    assert!((value - 5.0 / 9.0).abs() < 1e-15);
    let interval = baseline["difference"]["interval"].as_array().unwrap();
    assert!(interval[0].as_f64().unwrap() < value && value < interval[1].as_f64().unwrap());
    let text =
        workspace.run(&["--scores", &workspace.path("ours"), "--baseline", &workspace.path("theirs")]).stdout;
    assert!(
        text.contains("\nright: both 4, only here 5, only there 0, neither 0; agreement 44.44%\n"),
        "{text}"
    );
    let itself = workspace.report("ours", &["--baseline", &workspace.path("ours")]);
    assert_eq!(itself["baseline"]["difference"], json!({"value": 0.0, "interval": [0.0, 0.0]}));
}

#[test]
fn an_option_of_another_benchmark_is_refused() {
    let workspace = small("rewardbench2");
    for (options, message) in [
        (&["--ties", "half"][..], "`--ties` is an option of rm-bench, rewardbench, helpsteer3, preferences"),
        (&["--single-game"], "`--single-game` is an option of judgebench"),
        (&["--by", "subset"], "`--by` is an option of preferences"),
        (&["-o", "-"], "standard output has the report"),
    ] {
        let run = workspace.with_model(options);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{options:?}");
        assert!(run.stderr.contains(message), "{run:?}");
    }
    for options in
        [&["--device", "cpu"][..], &["--max-tokens", "9"], &["--rank", "1"], &["--model", "x"], &["--bf16"]]
    {
        let run = workspace.run(&[&["--scores", "x"], options].concat());
        assert_eq!(run.status, Some(2));
        assert!(run.stderr.contains("cannot be used with"), "{options:?}: {run:?}");
    }
    let run = small("judgebench").run(&["--scores", &workspace.path("items"), "--skip-zero-spread"]);
    assert!(run.stderr.contains("`--skip-zero-spread` is an option of rewardbench2"), "{run:?}");
}

#[test]
fn a_file_without_items_and_a_cut_array_are_errors() {
    for (text, message) in [
        ("", "the file has no items"),
        ("[]", "the file has no items"),
        ("[{\"id\": 1}", "the array has no end"),
    ] {
        let workspace = Workspace::new("rm-bench", text);
        workspace.write("results", "");
        let run = workspace.run(&["--scores", &workspace.path("results")]);
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(run.stderr.contains(message), "{run:?}");
        let run = workspace.with_model(&[]);
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(run.stderr.contains(message), "{run:?}");
    }
}

/// The file of that name in the folder of data that we may not redistribute.
fn data(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("KUDOS_TEST_DATA").map(|folder| Path::new(&folder).join(name));
    if found.is_none() {
        eprintln!("not run: {name} (KUDOS_TEST_DATA is not set)");
    }
    found
}

/// Percentages of the rows of a table, with two decimals.
fn percentages(report: &Value, table: &str, rows: &[&str], column: &str) -> Vec<String> {
    let percent = |row: &&str| {
        let value = &report["tables"][table][*row][column]["value"];
        format!("{:.2}", 100.0 * value.as_f64().unwrap())
    };
    rows.iter().map(percent).collect()
}

#[test]
fn published_scores_on_judgebench_have_the_published_numbers() {
    let (Some(items), Some(scores)) =
        (data("judgebench_gpt4o.jsonl"), data("judgebench_gpt4o_skywork_scores.json"))
    else {
        return;
    };
    let workspace = Workspace::new("judgebench", &fs::read_to_string(items).unwrap());
    let scores: Vec<Value> = serde_json::from_str(&fs::read_to_string(scores).unwrap()).unwrap();
    let result = |line: &Value| {
        let games = [["score_A", "score_B"], ["score_B_2nd", "score_A_2nd"]];
        let games = games.map(|keys| json!({"judgment": {"scores": keys.map(|key| line[key].clone())}}));
        json!({"pair_id": line["pair_id"], "judgments": games})
    };
    workspace.write("results", &lines(&scores.iter().map(result).collect::<Vec<_>>()));
    let report = workspace.report("results", &[]);
    let rows = ["knowledge", "reasoning", "math", "coding", "overall"];
    assert_eq!(
        percentages(&report, "category", &rows, "accuracy"),
        ["59.09", "64.29", "76.79", "50.00", "62.29"]
    );
    let counts = rows.map(|row| report["tables"]["category"][row]["items"].as_u64().unwrap());
    assert_eq!(counts, [154, 98, 56, 42, 350]);
    assert_eq!(report["ties"], json!({"count": 1, "of": 350}));
    let note = workspace.report("results", &["--single-game"])["notes"][0].clone();
    assert_eq!(note, "single game: a tie is a decision for B>A");
}

/// Llama-3.3-Nemotron-70B-Reward-Multilingual: the fractions that its card's percentages are.
#[test]
fn right_pairs_of_judgebench_have_the_percentages_of_a_card() {
    let categories = [
        ("mmlu-pro-law", 154, 102),
        ("livebench-reasoning", 98, 70),
        ("livebench-math", 56, 46),
        ("livecodebench", 42, 25),
    ];
    let (mut items, mut results) = (Vec::new(), Vec::new());
    for (source, pairs, right) in categories {
        for pair in 0..pairs {
            let id = format!("{source}-{pair}");
            let [better, worse] = if pair % 2 == 0 { ["A", "B"] } else { ["B", "A"] };
            items.push(json!({
                "pair_id": id, "source": source, "question": "q", "response_A": "a", "response_B": "b",
                "label": format!("{better}>{worse}"),
            }));
            let scores = if (pair < right) == (better == "A") { [1.5, -2.0] } else { [-2.0, 1.5] };
            let game = |scores: [f64; 2]| json!({"judgment": {"scores": scores}});
            results.push(json!({"pair_id": id, "judgments": [game(scores), game([scores[1], scores[0]])]}));
        }
    }
    let workspace = Workspace::new("judgebench", &lines(&items));
    workspace.write("results", &lines(&results));
    let report = workspace.report("results", &[]);
    let rows = ["knowledge", "reasoning", "math", "coding", "overall"];
    // The card prints 66.2, 71.4, 82.1, 59.5 and 69.4.
    assert_eq!(
        percentages(&report, "category", &rows, "accuracy"),
        ["66.23", "71.43", "82.14", "59.52", "69.43"]
    );
}

#[test]
fn rows_of_rm_bench_are_read_as_they_were_published() {
    let Some(items) = data("rm_bench_chat_code_60.json") else { return };
    let text = fs::read_to_string(items).unwrap();
    let workspace = Workspace::new("rm-bench", &text);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let result =
        |row: &Value| json!({"id": row["id"], "score_chosen": [1, 2, 3], "score_rejected": [0, 1, 2]});
    workspace.write("results", &lines(&rows.iter().map(result).collect::<Vec<_>>()));
    let report = workspace.report("results", &[]);
    for domain in ["chat", "code"] {
        let row = &report["tables"]["domain"][domain];
        assert_eq!((&row["items"], &row["ties"]), (&json!(30), &json!(60)));
        // Right: all but (0, 1), (0, 2) and (1, 2), of which two are ties.
        assert_eq!((&row["normal"]["value"], &row["hard"]["value"]), (&json!(1.0), &json!(0.0)));
    }
    assert_eq!(report["ties"], json!({"count": 120, "of": 540}));
}

#[test]
fn the_samples_of_the_documentation_are_true() {
    let text = fs::read_to_string(root().join("docs/eval.md")).unwrap();
    let blocks: Vec<&str> =
        text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 1);
    let (cat, rest) = blocks[0].split_once("$ kudos eval ").unwrap();
    let (_, file) = cat.split_once("$ cat pairs.jsonl\n").unwrap();
    let (command, expected) = rest.split_once('\n').unwrap();
    assert_eq!(command, "preferences pairs.jsonl --model demo/model");
    let found = Workspace::new("preferences", file).with_model(&[]).stdout;
    // Margins may differ in the last digits from one kind of CPU to another.
    let agree = |found: &str, shown: &str| match (found.parse::<f64>(), shown.parse::<f64>()) {
        (Ok(found), Ok(shown)) => (found - shown).abs() <= 2e-4,
        _ => found == shown,
    };
    let words = |text: &str| -> Vec<String> {
        text.split([' ', '\n', '[', ']', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (found_words, expected_words) = (words(&found), words(expected));
    assert_eq!(found_words.len(), expected_words.len(), "{found}\n{expected}");
    let differing = found_words.iter().zip(&expected_words).find(|(found, shown)| !agree(found, shown));
    assert_eq!(differing, None, "{found}\n{expected}");
}
