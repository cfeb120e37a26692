//! `kudos eval --report`: the numbers, the texts and the file of a page. `tests/page` reads pages
//! in a browser.

use std::fs;

use serde_json::{Value, json};

use crate::eval::{Workspace, benchmarks, lines, small};

/// Returns the data of a page.
#[track_caller]
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// Returns a table of the page in the form of `--json`.
fn as_json(table: &Value) -> Value {
    let columns = table["columns"].as_array().unwrap();
    let rows = table["rows"].as_array().unwrap().iter().map(|row| {
        let cells = columns.iter().zip(row["cells"].as_array().unwrap());
        let mut object: Vec<(String, Value)> = vec![("items".to_owned(), row["items"].clone())];
        object.extend((!row["ties"].is_null()).then(|| ("ties".to_owned(), row["ties"].clone())));
        object
            .extend(cells.map(|(column, cell)| (column["name"].as_str().unwrap().to_owned(), cell.clone())));
        (row["name"].as_str().unwrap().to_owned(), Value::Object(object.into_iter().collect()))
    });
    Value::Object(rows.collect())
}

/// Three items of preferences with rewards, of which the second is wrong.
fn preferences() -> Workspace {
    let item = |prompt: &str, chosen: &str, rejected: &str, rewards: [f64; 2]| {
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "x",
            "reward_chosen": rewards[0], "reward_rejected": rewards[1]})
    };
    let items = [
        item("a", "long", "s", [1.0, 0.0]),
        item("b", "</script><!--<img src=x>&\u{2028}", "longest of all the responses", [-1.0, 2.5]),
        item("c", "equal", "equal", [2.0, 2.0]),
    ];
    Workspace::new("preferences", &lines(&items))
}

#[test]
fn a_page_has_the_numbers_of_the_json_report() {
    for (benchmark, items) in benchmarks() {
        let workspace = small(benchmark);
        let (results, page) = (workspace.path("results"), workspace.path("page.html"));
        let run = workspace.with_model(&["--json", "-o", &results, "--report", &page]);
        assert_eq!(run.status, Some(0), "{benchmark}: {run:?}");
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let found = data(&workspace.read("page.html"));
        for key in ["benchmark", "items", "evaluated", "failed", "ties", "intervals", "notes", "errors"] {
            assert_eq!(found[key], report[key], "{benchmark}, {key}");
        }
        for table in found["tables"].as_array().unwrap() {
            let name = table["name"].as_str().unwrap();
            assert_eq!(as_json(table), report["tables"][name], "{benchmark}, {name}");
        }
        assert_eq!(found["tables"].as_array().unwrap().len(), report["tables"].as_object().unwrap().len());
        let comparisons = match benchmark {
            "rm-bench" => 9 * items.len(),
            // Three right-wrong comparisons of an item, and six where two responses are right.
            "rewardbench2" => 3 * items.len() + 3 * 3,
            // Item 3 has the preference 0.
            "helpsteer3" => items.len() - 1,
            _ => items.len(),
        };
        assert_eq!(found["figures"]["margins"]["comparisons"], comparisons, "{benchmark}");
        assert_eq!(found["figures"]["length"]["unread"], 0, "{benchmark}");
        // The scores of the results are those of the model.
        let again = workspace.run(&["--scores", &results, "--report", &page]);
        assert_eq!(again.status, Some(0), "{again:?}");
        assert_eq!(data(&workspace.read("page.html"))["figures"], found["figures"], "{benchmark}");
    }
}

#[test]
fn figures_are_of_the_rewards_and_texts_of_the_items() {
    let workspace = preferences();
    let page = workspace.path("page.html");
    let plain = workspace.run(&["--scores", &workspace.path("items")]);
    let run = workspace.run(&["--scores", &workspace.path("items"), "--report", &page]);
    assert_eq!((run.status, &run.stdout), (Some(0), &plain.stdout), "the printed report stays");
    let text = workspace.read("page.html");
    let figures = &data(&text)["figures"];
    let margins = &figures["margins"];
    assert_eq!(margins["right"], json!({"count": 1, "mean": 1.0, "median": 1.0}));
    assert_eq!(margins["wrong"], json!({"count": 1, "mean": -3.5, "median": -3.5}));
    assert_eq!((&margins["ties"], &figures["reliability"]["ties"]), (&json!(1), &json!(1)));
    assert_eq!(figures["reliability"]["bins"][0]["accuracy"]["value"], 0.5);
    let length = &figures["length"];
    assert_eq!((&length["responses"], &length["bins"][0]["to"]), (&json!(6), &json!(28)));
    let comparisons = &length["comparisons"];
    // `long` is longer and right, the markup has 26 characters, the third pair is equally long.
    assert_eq!(comparisons["better_longer"]["value"], 1.0);
    assert_eq!(comparisons["better_shorter"]["value"], 0.0);
    assert_eq!(comparisons["equally_long"]["value"], 0.0, "a tie is wrong");
    assert_eq!(comparisons["longer_wins"]["value"], 1.0);
    assert_eq!(comparisons["longer_is_better"]["value"], 0.5);
    let misses = figures["misses"]["rows"].as_array().unwrap();
    let shown: Vec<(&Value, &Value)> = misses.iter().map(|miss| (&miss["index"], &miss["margin"])).collect();
    assert_eq!(shown, [(&json!(1), &json!(-3.5)), (&json!(2), &json!(0.0))]);
    assert_eq!(misses[0]["better"]["text"]["text"], "</script><!--<img src=x>&\u{2028}");
    assert_eq!((&misses[0]["category"], &misses[0]["prompt"][0]["text"]), (&json!("x"), &json!("b")));
    // The text ends no element, and no other byte of it is markup.
    assert_eq!(text.matches("</script>").count(), 3);
    assert!(!text.contains("<img") && !text.contains('\u{2028}'));
    let again = workspace.run(&["--scores", &workspace.path("items"), "--report", &page]);
    assert_eq!((again.status, workspace.read("page.html")), (Some(0), text), "the same bytes");
}

#[test]
fn a_page_has_items_without_scores_and_the_baseline() {
    let (_, mut items) = benchmarks().swap_remove(1);
    items[2].as_object_mut().unwrap().remove("label");
    let workspace = Workspace::new("judgebench", &lines(&items));
    let page = workspace.path("page.html");
    let run = workspace.with_model(&["-o", &workspace.path("results"), "--report", &page]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert_eq!(data(&workspace.read("page.html"))["errors"][0]["index"], 2);
    let compare =
        ["--json", "--scores", &workspace.path("results"), "--baseline", &workspace.path("results")];
    let run = workspace.run(&[&compare[..], &["--report", &page]].concat());
    assert_eq!(run.status, Some(1), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let mut baseline = data(&workspace.read("page.html"))["baseline"].clone();
    assert_eq!(baseline.as_object_mut().unwrap().remove("unit"), Some(json!("percent")));
    assert_eq!(baseline, report["baseline"]);
}

#[test]
fn a_resumed_run_has_the_page_of_an_uninterrupted_one() {
    let workspace = small("helpsteer3");
    let (results, page) = (workspace.path("results"), workspace.path("page.html"));
    assert_eq!(workspace.with_model(&["-o", &results, "--report", &page]).status, Some(0));
    let whole = workspace.read("page.html");
    let kept: String = workspace.read("results").split_inclusive('\n').take(4).collect();
    workspace.write("results", &kept);
    let resumed = workspace.with_model(&["--resume", "-o", &results, "--report", &page]);
    assert_eq!(resumed.status, Some(0), "{resumed:?}");
    assert_eq!(workspace.read("page.html"), whole);
}

#[test]
fn a_page_that_cannot_be_written_ends_the_run_at_once() {
    let workspace = small("judgebench");
    let items = workspace.read("items");
    let absent = workspace.path("absent/page.html");
    for (report, message) in [
        ("-", "standard output has the printed report, not the page"),
        (absent.as_str(), "cannot write"),
        (&workspace.path(""), "is no regular file"),
        ("/dev/null", "is no regular file"),
        (&workspace.path("items"), "is the same file as"),
        (&workspace.path("results"), "`--report` and `--output` are one file"),
        (&workspace.path("./results"), "`--report` and `--output` are one file"),
    ] {
        let run = workspace.with_model(&["-o", &workspace.path("results"), "--report", report]);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{report}");
        let is_named =
            run.stderr.contains(message) || run.stderr.contains("is the input and the output at once");
        assert!(is_named && !run.stderr.contains("running on"), "{report}: {run:?}");
    }
    assert_eq!(workspace.read("items"), items);
    let scores = workspace.run(&["--scores", &workspace.path("items"), "--report", &workspace.path("items")]);
    assert_eq!(scores.status, Some(2), "{scores:?}");
}

#[test]
fn a_run_that_fails_leaves_an_earlier_page() {
    let workspace = Workspace::new("rm-bench", "[{\"id\": 1}");
    workspace.write("results", "");
    workspace.write("page.html", "an earlier page");
    let run =
        workspace.run(&["--scores", &workspace.path("results"), "--report", &workspace.path("page.html")]);
    assert_eq!(run.status, Some(2), "{run:?}");
    assert_eq!(workspace.read("page.html"), "an earlier page");
    let left: Vec<_> =
        fs::read_dir(workspace.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}
