//! `--shard` and `--whole`: parts of an input, each an output that is there when it is whole.

use crate::common;

use std::fs;
use std::path::PathBuf;

use common::{Run, demo_model, kudos};
use serde_json::{Value, json};

fn run(arguments: &[&str]) -> Run {
    let model = demo_model();
    kudos(&[&["score", "--device", "cpu", "--model", model.to_str().unwrap()], arguments].concat(), "")
}

/// Lines whose prompts have several neighbours, with an empty line, a broken one, and one with an
/// `id`.
fn lines(count: usize) -> String {
    let line = |index: usize| match index {
        5 => String::new(),
        9 => "{".to_owned(),
        11 => json!({"id": "x", "input_ids": [5, 6]}).to_string(),
        _ => json!({"prompt": format!("Question {}?", index / 4), "response": "7 ".repeat(index % 7)})
            .to_string(),
    };
    (0..count).map(|index| line(index) + "\n").collect()
}

fn prompts_of(part: &str, lines: &[String]) -> Vec<usize> {
    let indices =
        part.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["index"].as_u64());
    indices
        .filter(|index| lines[*index as usize].contains("prompt"))
        .map(|index| index as usize / 4)
        .collect()
}

#[test]
fn shards_one_after_another_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = lines(40);
    let all: Vec<String> = text.lines().map(str::to_owned).collect();
    fs::write(path("a"), &text).unwrap();
    // Without a line end after the last line.
    fs::write(path("b"), text.trim_end()).unwrap();
    for files in [vec![path("a")], vec![path("a"), path("b")]] {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let whole = run(&files).stdout;
        assert_eq!(whole.lines().count(), 39 * files.len());
        for count in [1, 2, 3, 7] {
            let part =
                |index: usize| run(&[&files[..], &["--shard", &format!("{index}/{count}")]].concat()).stdout;
            let parts: Vec<String> = (0..count).map(part).collect();
            assert_eq!(parts.concat(), whole, "{count} shards");
            if files.len() == 1 {
                assert!(parts.iter().all(|part| !part.is_empty()), "{parts:?}");
                for pair in parts.windows(2) {
                    let [before, after] = [0, 1].map(|side| prompts_of(&pair[side], &all));
                    assert!(before.last() < after.first() || after.is_empty(), "a prompt is cut: {pair:?}");
                }
            }
        }
    }
    // More shards than lines.
    fs::write(path("few"), "{\"input_ids\": [5]}\n{\"input_ids\": [6]}\n").unwrap();
    let part = |index: usize| run(&[&path("few"), "--shard", &format!("{index}/9")]);
    let parts: Vec<Run> = (0..9).map(part).collect();
    assert!(parts.iter().all(|part| part.status == Some(0)), "{parts:?}");
    let joined: String = parts.into_iter().map(|part| part.stdout).collect();
    assert_eq!(joined, run(&[&path("few")]).stdout);
    let piped = run(&["-", "--shard", "0/2"]);
    assert!(piped.stderr.contains("standard input and pipes have no shards"), "{piped:?}");
}

#[cfg(feature = "tables")]
#[test]
fn shards_of_tables_and_compressed_files_are_the_whole() {
    use std::fs::File;
    use std::sync::Arc;

    use arrow_array::{ArrayRef, RecordBatch, StringArray};

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let column = |make: &dyn Fn(usize) -> String| {
        Arc::new(StringArray::from_iter_values((0..30).map(make))) as ArrayRef
    };
    let columns = [
        ("prompt", column(&|row| format!("Question {}?", row / 4))),
        ("response", column(&|row| row.to_string())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties =
        parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(7));
    let file = File::create(path("a.parquet")).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let mut stream =
        arrow_ipc::writer::StreamWriter::try_new(File::create(path("b.arrow")).unwrap(), &batch.schema())
            .unwrap();
    stream.write(&batch).unwrap();
    stream.finish().unwrap();
    fs::write(path("c.zst"), zstd::encode_all(lines(20).as_bytes(), 3).unwrap()).unwrap();
    for files in [&["a.parquet"][..], &["a.parquet", "b.arrow", "c.zst"]] {
        let files: Vec<String> = files.iter().map(|name| path(name)).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let whole = run(&files).stdout;
        for count in [2, 5] {
            let part =
                |index: usize| run(&[&files[..], &["--shard", &format!("{index}/{count}")]].concat()).stdout;
            let parts: Vec<String> = (0..count).map(part).collect();
            assert_eq!(parts.concat(), whole, "{count} shards of {files:?}");
            assert!(files.len() > 1 || parts.iter().all(|part| !part.is_empty()), "{parts:?}");
        }
    }
}

#[test]
fn an_output_is_there_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    fs::write(path("in"), lines(9)).unwrap();
    let (input, output) = (text(path("in")), text(path("out")));
    let arguments = [&input, "-o", &output, "--whole", "--shard", "0/2"];
    let first = run(&arguments);
    assert_eq!(first.status, Some(0), "{first:?}");
    let whole = fs::read_to_string(&output).unwrap();
    assert_eq!(whole, run(&[&input, "--shard", "0/2"]).stdout);
    assert!(!path("out.partial").exists());
    let manifest: Value = serde_json::from_slice(&fs::read(path("out.manifest.json")).unwrap()).unwrap();
    assert_eq!([&manifest["shard"], &manifest["run"]["failed"]], [&json!("0/2"), &json!(0)]);
    assert_eq!(manifest["run"]["lines"], whole.lines().count());
    assert!(manifest["model"]["digest"].as_str().unwrap().starts_with("sha256:"), "{manifest}");
    // Again: nothing is done, and the model is not opened.
    let again = run(&[&arguments[..], &["--resume"]].concat());
    assert_eq!(again.status, Some(0), "{again:?}");
    assert!(again.stderr.contains("is whole: there is nothing to score"), "{again:?}");
    assert!(!again.stderr.contains("running on"), "{again:?}");
    let other = run(&[&input, "-o", &output, "--whole", "--resume", "--shard", "1/2"]);
    assert_eq!(other.status, Some(2), "{other:?}");
    assert!(other.stderr.contains("is of another run, with `shard` \"0/2\", not \"1/2\""), "{other:?}");
    // So does one that ended before its file had its name.
    fs::rename(&output, path("out.partial")).unwrap();
    let again = run(&[&arguments[..], &["--resume"]].concat());
    assert!(again.stderr.contains("is whole") && fs::read_to_string(&output).unwrap() == whole, "{again:?}");
    // A run that was ended early goes on.
    fs::rename(&output, path("out.partial")).unwrap();
    fs::write(path("out.partial"), &whole.as_bytes()[..whole.len() / 2]).unwrap();
    let mut begun = manifest;
    begun.as_object_mut().unwrap().remove("run");
    fs::write(path("out.manifest.json"), begun.to_string()).unwrap();
    let resumed = run(&[&arguments[..], &["--resume"]].concat());
    assert_eq!(resumed.status, Some(0), "{resumed:?}");
    assert_eq!(fs::read_to_string(&output).unwrap(), whole);
}

#[test]
fn a_part_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (a, b, output) = (text("a"), text("b"), text("out"));
    fs::write(&a, lines(9)).unwrap();
    fs::write(&b, lines(30)).unwrap();
    // The part has no line of `a`.
    let arguments = [&*b, &a, "-o", &output, "--whole", "--shard", "0/2"];
    assert_eq!(run(&arguments).status, Some(1));
    let whole = fs::read(&output).unwrap();
    let resume = |extra: &[&str]| run(&[&arguments[..], &["--resume"], extra].concat());
    // Its status is that of the run.
    assert_eq!(resume(&[]).status, Some(1));
    #[track_caller]
    fn assert_refused(run: &Run, message: &str) {
        assert!(run.status == Some(2) && run.stderr.contains(message), "{run:?}");
    }
    assert_refused(&resume(&["--truncate", "left"]), "is of another run, with `options`");
    // Also of a part that is not whole.
    fs::rename(&output, text("out.partial")).unwrap();
    fs::write(text("out.partial"), &whole[..whole.len() / 2]).unwrap();
    assert_refused(&resume(&["--truncate", "left"]), "is of another run, with `options`");
    fs::write(&output, "{}\n").unwrap();
    assert_refused(&resume(&[]), "has been changed since its run");
    // A file of the whole input, though not of this part, moves the cut.
    fs::write(&output, &whole).unwrap();
    fs::write(&a, lines(12)).unwrap();
    assert_refused(&resume(&[]), "is of another run, with `input`");
    fs::remove_file(text("out.manifest.json")).unwrap();
    assert_refused(&resume(&[]), "is there, but no manifest");
    assert_refused(&run(&["-", "-o", &output, "--whole"]), "standard input and pipes have none");
    assert_refused(&run(&[&a, "-o", "-", "--whole"]), "standard output is never whole");
    let folder = folder.path().to_str().unwrap();
    assert_refused(&run(&[&a, "-o", folder, "--whole"]), "is no regular file");
    assert_refused(&run(&[&a, "-o", "/dev/null", "--whole"]), "is no regular file");
}

#[test]
fn a_window_shares_prompts_and_changes_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // Forty prompts in turn, each with four responses.
    let prompt = |index: usize| format!("Question {} of {}", index % 40, "many words ".repeat(20));
    let row =
        |index: usize| json!({"prompt": prompt(index), "response": index.to_string()}).to_string() + "\n";
    let mut text: String = (0..160).map(row).collect();
    text.insert_str(text.find('\n').unwrap() + 1, "\n{\n");
    fs::write(path("in"), text).unwrap();
    let scored = |arguments: &[&str]| {
        let scored =
            run(&[&[&*path("in"), "-o", &path("out"), "--whole", "--batch-tokens", "512"], arguments]
                .concat());
        assert_eq!(scored.status, Some(1), "{scored:?}");
        let manifest: Value = serde_json::from_slice(&fs::read(path("out.manifest.json")).unwrap()).unwrap();
        (fs::read_to_string(path("out")).unwrap(), manifest["run"]["unique_tokens"].as_u64().unwrap())
    };
    let (expected, alone) = scored(&[]);
    let (results, together) = scored(&["--window", "1000"]);
    assert_eq!(results, expected);
    assert!(together * 2 < alone, "{together} of {alone} tokens");
    let (results, few) = scored(&["--window", "80"]);
    assert_eq!(results, expected);
    assert!(together < few && few < alone, "{few} of {alone} tokens");
    // Continued in the middle of a window.
    let manifest = fs::read_to_string(path("out.manifest.json")).unwrap();
    let mut begun: Value = serde_json::from_str(&manifest).unwrap();
    begun.as_object_mut().unwrap().remove("run");
    fs::write(path("out.manifest.json"), begun.to_string()).unwrap();
    fs::rename(path("out"), path("out.partial")).unwrap();
    fs::write(path("out.partial"), &expected.as_bytes()[..expected.len() / 3]).unwrap();
    assert_eq!(scored(&["--window", "1000", "--resume"]).0, expected);
}
