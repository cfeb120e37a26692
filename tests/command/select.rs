//! `kudos select`: the best of several responses, and pairs.

use crate::common;

use std::fs;

use crate::folder::Folder;
use common::{Run, demo_model, kudos};
use serde_json::{Value, json};

fn model() -> [String; 4] {
    ["--device", "cpu", "--model", demo_model().to_str().unwrap()].map(str::to_owned)
}

fn score(arguments: &[&str], input: &str) -> Run {
    let model = model();
    let model: Vec<&str> = model.iter().map(String::as_str).collect();
    kudos(&[&["score"], &model[..], arguments].concat(), input)
}

/// `kudos select` without a model.
fn select(arguments: &[&str]) -> Run {
    kudos(&[&["select"], arguments].concat(), "")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Two prompts with several responses, and two with one response each in several rows.
fn rows() -> String {
    let rows = [
        json!({"id": "a", "prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3", "Two."]}),
        json!({"id": "b", "prompt": "Name a colour.", "responses": ["Red."]}),
        json!({"prompt": "What is 2+2?", "response": "5"}),
        json!({"prompt": "What is 2+2?", "response": "4"}),
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "responses": ["Ho", "He"],
               "template_vars": {"date_string": "1 Jan 2026"}}),
    ];
    rows.map(|row| row.to_string() + "\n").concat()
}

#[test]
fn the_rewards_of_results_and_of_a_model_select_the_same() {
    let folder = Folder::new();
    let input = folder.write("in.jsonl", rows());
    let scored = score(&[&input], "");
    assert_eq!(scored.status, Some(0), "{scored:?}");
    let results = folder.write("rewards.jsonl", &scored.stdout);
    let rewards = lines(&scored.stdout);
    for selection in ["best", "pairs"] {
        let recorded = select(&[selection, &input, "--rewards", &results]);
        assert_eq!(recorded.status, Some(0), "{recorded:?}");
        let model = model();
        let model: Vec<&str> = model.iter().map(String::as_str).collect();
        let computed = select(&[&[selection, &input], &model[..]].concat());
        assert_eq!(computed.status, Some(0), "{computed:?}");
        assert_eq!(computed.stdout, recorded.stdout);
    }
    let best = select(&["best", &input, "--rewards", &results]);
    assert!(best.stderr.contains("rows: 5, prompts: 4, selected: 4"), "{best:?}");
    let best = lines(&best.stdout);
    let first = &best[0];
    assert_eq!(
        [&first["id"], &first["best"], &first["candidates"]],
        [&json!("a"), &rewards[0]["best"], &json!(3)]
    );
    assert_eq!(first["messages"][1]["role"], "assistant");
    assert_eq!(best[1]["margin"], Value::Null);
    // Of two rows, by the first one's index.
    assert_eq!([&best[2]["index"], &best[2]["candidates"]], [2, 2]);
    assert_eq!(best[3]["template_vars"], json!({"date_string": "1 Jan 2026"}));
    // A prompt with one response makes no pair, and pairs are scored as they were.
    let pairs = select(&["pairs", &input, "--rewards", &results]);
    assert!(pairs.stderr.contains("rows: 5, prompts: 4, selected: 3"), "{pairs:?}");
    let again = score(&["-"], &pairs.stdout);
    for (pair, again) in lines(&pairs.stdout).iter().zip(lines(&again.stdout)) {
        for key in ["reward_chosen", "reward_rejected", "margin"] {
            assert_eq!(pair[key], again[key], "{pair} {again}");
        }
        assert!(pair["margin"].as_f64() > Some(0.0), "{pair}");
    }
    let all = select(&["pairs", &input, "--rewards", &results, "--pairs", "all"]);
    assert_eq!(all.stdout.lines().count(), 5);
    let far = select(&["pairs", &input, "--rewards", &results, "--pairs", "all", "--min-margin", "8"]);
    let margins = |run: &Run| {
        lines(&run.stdout).iter().map(|pair| pair["margin"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let kept: Vec<f64> = margins(&all).into_iter().filter(|margin| *margin >= 8.0).collect();
    assert!(!kept.is_empty() && kept.len() < 5, "{kept:?}");
    assert_eq!(margins(&far), kept);
}

#[cfg(feature = "tables")]
#[test]
fn a_scored_table_has_its_rewards_in_it() {
    use crate::tables::{batch, parquet};
    let folder = Folder::new();
    parquet(&folder.path("in.parquet"), &[batch()], parquet::basic::Compression::SNAPPY);
    let (input, scored) = (folder.text("in.parquet"), folder.text("scored.parquet"));
    assert_eq!(score(&[&input, "-o", &scored], "").status, Some(1));
    let results = folder.write("rewards.jsonl", &score(&[&input], "").stdout);
    let own = select(&["best", &scored]);
    // One row of three has no responses.
    assert_eq!(own.status, Some(1), "{own:?}");
    assert!(own.stderr.contains("rows with a response that has no reward and was left out: 1"), "{own:?}");
    assert_eq!(own.stdout.lines().count(), 2);
    assert_eq!(own.stdout, select(&["best", &input, "--rewards", &results]).stdout);
    let refused = select(&["best", &input, "--rewards", &scored]);
    assert!(
        refused.status == Some(2) && refused.stderr.contains("a table is given as results"),
        "{refused:?}"
    );
    let refused = select(&["best", &input]);
    assert!(refused.status == Some(2) && refused.stderr.contains("the row has no rewards"), "{refused:?}");
}

#[test]
fn responses_without_a_reward_are_counted_and_left_out() {
    let folder = Folder::new();
    let rows = [
        json!({"prompt": "a", "responses": ["x", "y", "z"], "rewards": [null, 1.5, 1.0]}),
        json!({"prompt": "b", "response": "x", "error": {"kind": "too_long", "message": "m"}}),
        json!({"prompt": "b", "response": "y", "reward": 2.0}),
        // As in a table in which other rows have several responses.
        json!({"prompt": "c", "response": "z", "rewards": [0.25]}),
        json!({"prompt": "e", "response": "x", "reward": 1e39}),
        json!({"prompt": "f", "responses": ["x", "y"], "rewards": [1.0]}),
    ];
    let input = folder.write("in.jsonl", rows.map(|row| row.to_string() + "\n").concat());
    let best = select(&["best", &input]);
    assert_eq!(best.status, Some(1), "{best:?}");
    assert!(best.stderr.contains("rows with a response that has no reward and was left out: 4"), "{best:?}");
    let found: Vec<[Value; 4]> = lines(&best.stdout)
        .iter()
        .map(|line| ["index", "best", "candidates", "reward"].map(|key| line[key].clone()))
        .collect();
    let expected = [[0.0, 1.0, 2.0, 1.5], [1.0, 1.0, 1.0, 2.0], [3.0, 0.0, 1.0, 0.25]];
    for message in [
        "m\n  at input line 2",
        "the reward 1e39 is beyond f32",
        "the number of rewards is 1, expected 2\n  at input line 6",
    ] {
        assert!(best.stderr.contains(message), "{message}: {best:?}");
    }
    assert_eq!(
        select(&[
            "best",
            &folder
                .write("twice", "{\"prompt\": \"a\", \"response\": \"b\", \"reward\": 1, \"reward\": 2}\n")
        ])
        .status,
        Some(1)
    );
    let found: Vec<[f64; 4]> =
        found.iter().map(|line| line.each_ref().map(|value| value.as_f64().unwrap())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_side_of_a_pair_may_have_no_reward() {
    let folder = Folder::new();
    // As in a table, in which the other one is null.
    let row = json!({"prompt": "d", "chosen": "x", "rejected": "y", "reward_rejected": 3.0, "error": "[]"});
    let best = select(&["best", &folder.write("in.jsonl", row.to_string())]);
    assert_eq!(best.status, Some(1), "{best:?}");
    let found = lines(&best.stdout);
    assert_eq!([&found[0]["best"], &found[0]["reward"]], [&json!(1), &json!(3.0)]);
    assert!(best.stderr.contains("the response has no reward\n  at input line 1"), "{best:?}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = Folder::new();
    let input = folder.write("in.jsonl", rows());
    let results = folder.write("rewards.jsonl", &score(&[&input], "").stdout);
    #[track_caller]
    fn assert_refused(run: &Run, message: &str) {
        assert!(run.status == Some(2) && run.stderr.contains(message), "{run:?}");
    }
    let results_of = |text: &str| select(&["best", &input, "--rewards", &folder.write("other.jsonl", text)]);
    let all = fs::read_to_string(&results).unwrap();
    let first = all.lines().next().unwrap();
    assert_refused(&results_of(first), "has no result for input line 2");
    assert_refused(&results_of(&format!("{all}{first}\n")), "has more results than the input has rows");
    assert_refused(
        &results_of(&all.replacen("\"id\":\"a\"", "\"id\":\"c\"", 1)),
        "it has `id` \"c\", expected `id` \"a\"",
    );
    let run = select(&["best", &input, "--rewards", &results, "--device", "cpu"]);
    assert_refused(&run, "cannot be used with");
    assert_refused(&select(&["best", &input, "--device", "cpu"]), "--model");
    assert_refused(
        &select(&["best", &input, "--rewards", &results, "--pairs", "all"]),
        "is an option of `select pairs`",
    );
    assert_refused(&select(&["pairs", &input, "--rewards", &results, "--min-margin=-1"]), "at least 0");
    assert_refused(
        &select(&["pairs", &input, "--rewards", &results, "-o", &input]),
        "is the input and the output at once",
    );
    assert_refused(&select(&["best", &input, "--rewards", &results, "-o", "a.gz"]), "would have lines");
    let tokens = folder.write(
        "tokens.jsonl",
        "{\"input_ids\": [5], \"reward\": 1.0}\n{\"prompt\": \"a\", \"response\": \"b\", \"reward\": 2.0}\n",
    );
    let run = select(&["best", &tokens]);
    assert_eq!((run.status, run.stdout.lines().count()), (Some(1), 1), "{run:?}");
    assert!(run.stderr.contains("token ids have no response"), "{run:?}");
}
