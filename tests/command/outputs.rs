//! Outputs other than lines: Parquet tables of the input's columns and the rewards, and compressed
//! lines.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, IntervalMonthDayNanoType};
use arrow_array::{
    Array, ArrayRef, Date64Array, Int64Array, IntervalMonthDayNanoArray, RecordBatch, StringArray,
    TimestampSecondArray,
};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{Field, Schema};
use arrow_select::concat::concat_batches;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use serde_json::Value;

use crate::common::{demo_model, kudos_path};
use crate::folder::Folder;
use crate::tables::{batch, parquet, run};

/// The rows of a Parquet file.
fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows of a prompt and one response.
fn pairs(rows: usize) -> RecordBatch {
    let text = |make: &dyn Fn(usize) -> String| {
        Arc::new(StringArray::from_iter_values((0..rows).map(make))) as ArrayRef
    };
    RecordBatch::try_from_iter([
        ("prompt", text(&|row| format!("Question {}?", row / 3))),
        ("chosen", text(&|row| format!("{row}"))),
        ("rejected", text(&|row| format!("not {row}"))),
        ("weight", Arc::new((0..rows as i64).collect::<Int64Array>()) as ArrayRef),
    ])
    .unwrap()
}

#[test]
fn a_table_has_the_columns_of_its_input_and_the_rewards() {
    let folder = Folder::new();
    let metadata = HashMap::from([("huggingface".to_owned(), "{}".to_owned())]);
    let schema = Schema::new_with_metadata(batch().schema().fields().clone(), metadata);
    let input = batch().with_schema(Arc::new(schema)).unwrap();
    parquet(&folder.path("in.parquet"), std::slice::from_ref(&input), Compression::SNAPPY);
    let mut arrow =
        FileWriter::try_new(File::create(folder.path("in.arrow")).unwrap(), &input.schema()).unwrap();
    arrow.write(&input).unwrap();
    arrow.finish().unwrap();
    let (text, output) = (folder.text("in.parquet"), folder.text("out.parquet"));
    let expected = run(&[&text]);
    for name in ["in.parquet", "in.arrow"] {
        let scored = run(&[&folder.text(name), "-o", &output]);
        // The second row has no responses.
        assert_eq!(scored.status, Some(1), "{scored:?}");
        let found = read(&folder.path("out.parquet"));
        let columns = ["id", "prompt", "responses", "rewards", "rewards_bf16", "tokens", "best", "error"];
        assert_eq!(names(&found), columns);
        assert_eq!(found.schema().metadata()["huggingface"], "{}");
        assert_eq!(found.project(&[0, 1, 2]).unwrap().columns(), input.columns());
        for (row, line) in lines(&expected.stdout).iter().enumerate() {
            let (rewards, error) = (found.column(3).as_list::<i32>(), found.column(7).as_string::<i32>());
            match line.get("rewards") {
                Some(expected) => {
                    let found: Vec<f32> = rewards.value(row).as_primitive::<Float32Type>().values().to_vec();
                    let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
                    assert_eq!(found, expected);
                    assert!(error.is_null(row) && found.len() == 2 && found[0] != found[1], "{found:?}");
                }
                None => {
                    assert!(rewards.is_null(row));
                    let error: Value = serde_json::from_str(error.value(row)).unwrap();
                    assert_eq!(error, line["error"]);
                }
            }
        }
        assert!(!folder.path("out.parquet.partial").exists() && !folder.path("out.parquet.staged").exists());
    }
    let manifest = fs::read(folder.path("out.parquet.manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!([&manifest["run"]["lines"], &manifest["run"]["failed"]], [3, 1]);
}

#[test]
fn tables_of_shards_are_those_of_the_whole() {
    let folder = Folder::new();
    parquet(&folder.path("a.parquet"), &[pairs(20)], Compression::SNAPPY);
    parquet(&folder.path("b.parquet"), &[pairs(5)], Compression::UNCOMPRESSED);
    let files = [folder.text("a.parquet"), folder.text("b.parquet")];
    let scored = |arguments: &[&str], output: &str| {
        let scored = run(&[&[&*files[0], &files[1], "-o", &folder.text(output)], arguments].concat());
        assert_eq!(scored.status, Some(0), "{scored:?}");
        read(&folder.path(output))
    };
    let whole = scored(&[], "whole.parquet");
    assert_eq!(whole.num_rows(), 25);
    assert_eq!(
        names(&whole)[4..],
        [
            "reward_chosen",
            "reward_rejected",
            "margin",
            "reward_bf16_chosen",
            "reward_bf16_rejected",
            "tokens_chosen",
            "tokens_rejected",
            "error"
        ]
    );
    // The last of them has no row, and the same columns.
    let parts: Vec<RecordBatch> =
        (0..30).map(|part| scored(&["--shard", &format!("{part}/30")], &format!("{part}.parquet"))).collect();
    assert!(parts.iter().any(|part| part.num_rows() == 0));
    assert_eq!(concat_batches(&whole.schema(), &parts).unwrap(), whole);
    let margins = whole.column(6).as_primitive::<Float32Type>();
    assert!(margins.iter().all(|margin| margin.is_some()));
}

#[test]
fn a_table_is_made_by_a_run_that_goes_on() {
    let folder = Folder::new();
    parquet(&folder.path("in.parquet"), &[pairs(12)], Compression::SNAPPY);
    let (input, output) = (folder.text("in.parquet"), folder.text("out.parquet"));
    let scored = run(&[&input, "-o", &output]);
    assert_eq!(scored.status, Some(0), "{scored:?}");
    let whole = fs::read(&output).unwrap();
    let manifest = fs::read(folder.path("out.parquet.manifest.json")).unwrap();
    let resume = || run(&[&input, "-o", &output, "--resume"]);
    let again = resume();
    assert!(again.stderr.contains("is whole: there is nothing to score"), "{again:?}");
    // A run that was ended before the file had its name.
    fs::rename(&output, folder.path("out.parquet.staged")).unwrap();
    assert!(resume().stderr.contains("is whole"));
    assert_eq!(fs::read(&output).unwrap(), whole);
    // And one that was ended within its lines, within the making of the table, or just before it.
    let journal = run(&[&input]).stdout;
    let mut begun: Value = serde_json::from_slice(&manifest).unwrap();
    begun.as_object_mut().unwrap().remove("run");
    for (kept, staged) in [(journal.len() / 2, None), (journal.len(), Some(&whole[..9])), (0, None)] {
        fs::remove_file(&output).unwrap();
        fs::write(folder.path("out.parquet.partial"), &journal[..kept]).unwrap();
        fs::write(folder.path("out.parquet.manifest.json"), begun.to_string()).unwrap();
        if let Some(bytes) = staged {
            fs::write(folder.path("out.parquet.staged"), bytes).unwrap();
        }
        let resumed = resume();
        assert_eq!(resumed.status, Some(0), "{resumed:?}");
        assert_eq!(fs::read(&output).unwrap(), whole);
        assert!(!folder.path("out.parquet.partial").exists());
    }
    // One of another run is not taken for it.
    let other = run(&[&input, "-o", &output, "--resume", "--prefix", "x_"]);
    assert!(other.status == Some(2) && other.stderr.contains("with `options`"), "{other:?}");
}

#[test]
fn columns_that_would_clash_are_refused_before_the_model() {
    let folder = Folder::new();
    let (input, output) = (folder.text("in.parquet"), folder.text("out.parquet"));
    parquet(&folder.path("in.parquet"), &[pairs(2)], Compression::SNAPPY);
    let scored = run(&[&input, "-o", &output]);
    assert_eq!(scored.status, Some(0), "{scored:?}");
    // Scored again, by another model say.
    let again = folder.text("again.parquet");
    let refused = run(&[&output, "-o", &again, "--rows", "pairs"]);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains("the table has a column `reward_chosen`, as the results have"),
        "{refused:?}"
    );
    assert!(!refused.stderr.contains("running on"), "{refused:?}");
    let prefixed = run(&[&output, "-o", &again, "--rows", "pairs", "--prefix", "second_"]);
    assert_eq!(prefixed.status, Some(0), "{prefixed:?}");
    let found = read(&folder.path("again.parquet"));
    assert_eq!(found.column_by_name("second_margin"), found.column_by_name("margin"));
    let refused = run(&[&input, "-o", &folder.text("out.jsonl"), "--prefix", "x"]);
    assert!(refused.stderr.contains("`--prefix` is for the columns of a Parquet output"), "{refused:?}");
}

#[test]
fn a_table_needs_tables_of_the_same_columns() {
    let folder = Folder::new();
    let output = folder.text("out.parquet");
    let refused = |inputs: &[&str], message: &str| {
        let refused = run(&[inputs, &["-o", &output]].concat());
        assert!(refused.status == Some(2) && refused.stderr.contains(message), "{refused:?}");
        assert!(!refused.stderr.contains("running on"), "{refused:?}");
        assert!(!folder.path("out.parquet").exists());
    };
    let plain = folder.write("in.jsonl", "{\"input_ids\": [5]}\n");
    refused(&[&plain], "is not a table, and a Parquet output has the input's columns");
    refused(&["-"], "standard input is not a table");
    refused(
        &["--prompt", "a", "--response", "b"],
        "would have lines, which its ending `.parquet` is not for",
    );
    parquet(&folder.path("a.parquet"), &[pairs(2)], Compression::SNAPPY);
    parquet(&folder.path("b.parquet"), &[pairs(2).project(&[0, 1, 2]).unwrap()], Compression::SNAPPY);
    let (a, b) = (folder.text("a.parquet"), folder.text("b.parquet"));
    refused(&[&a, &b], "column 4 is missing, but `weight` of Int64 in");
    // A column that may be null in one of them may be in the output.
    let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
    let schema = Schema::new(pairs(1).schema().fields().iter().map(nullable).collect::<Vec<_>>());
    let mut columns = pairs(2).columns().to_vec();
    columns[3] = Arc::new(Int64Array::from(vec![None, Some(4)]));
    let other = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    parquet(&folder.path("b.parquet"), &[other], Compression::SNAPPY);
    let scored = run(&[&a, &b, "-o", &output]);
    assert_eq!(scored.status, Some(0), "{scored:?}");
    assert_eq!(read(&folder.path("out.parquet")).column(3).null_count(), 1);
}

#[test]
fn an_input_that_changes_meanwhile_is_an_error() {
    let folder = Folder::new();
    let (input, output) = (folder.text("in.parquet"), folder.text("out.parquet"));
    // A second of work at least.
    parquet(&folder.path("in.parquet"), &[pairs(4000)], Compression::SNAPPY);
    parquet(&folder.path("other.parquet"), &[pairs(4000)], Compression::SNAPPY);
    let mut command = Command::new(kudos_path());
    command.args([
        "score",
        "--device",
        "cpu",
        "--model",
        demo_model().to_str().unwrap(),
        &input,
        "-o",
        &output,
    ]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let journal = folder.path("out.parquet.partial");
    while !fs::read(&journal).is_ok_and(|lines| lines.ends_with(b"\n")) {
        assert_eq!(child.try_wait().unwrap(), None);
        thread::sleep(Duration::from_millis(1));
    }
    fs::rename(folder.path("other.parquet"), folder.path("in.parquet")).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{stderr}");
    for part in ["has changed since the run began", &*input, "all results are lines in"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!folder.path("out.parquet").exists());
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), 4000);
}

#[test]
fn an_output_that_would_replace_its_input_is_refused() {
    let folder = Folder::new();
    for ending in ["", ".partial", ".staged", ".manifest.json", ".manifest.json.partial"] {
        let (input, output) = (folder.text(&format!("x.parquet{ending}")), folder.text("x.parquet"));
        parquet(Path::new(&input), &[pairs(2)], Compression::SNAPPY);
        let bytes = fs::read(&input).unwrap();
        let refused = run(&[&input, "-o", &output]);
        assert_eq!(refused.status, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("input"), "{refused:?}");
        assert_eq!(fs::read(&input).unwrap(), bytes, "{ending}");
        fs::remove_file(&input).unwrap();
    }
}

#[test]
fn columns_that_parquet_does_not_have_are_refused() {
    let folder = Folder::new();
    let interval = IntervalMonthDayNanoType::make_value(1, 2, 3);
    let columns: [(ArrayRef, &str); 3] = [
        (
            Arc::new(TimestampSecondArray::from(vec![5])),
            "column `when` is of Timestamp(s), which Parquet does not have",
        ),
        (Arc::new(Date64Array::from(vec![5])), "column `when` is of Date64, which Parquet does not have"),
        (
            Arc::new(IntervalMonthDayNanoArray::from(vec![interval])),
            "the columns cannot be written to Parquet",
        ),
    ];
    for (column, message) in columns {
        let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        let rows = [("prompt", text("a")), ("response", text("b")), ("when", column)];
        let rows = RecordBatch::try_from_iter(rows).unwrap();
        let mut file =
            FileWriter::try_new(File::create(folder.path("in.arrow")).unwrap(), &rows.schema()).unwrap();
        file.write(&rows).unwrap();
        file.finish().unwrap();
        let input = folder.text("in.arrow");
        let refused = run(&[&input, "-o", &folder.text("out.parquet")]);
        assert!(refused.status == Some(2) && refused.stderr.contains(message), "{refused:?}");
        assert!(!refused.stderr.contains("running on"), "{refused:?}");
        assert_eq!(run(&[&input]).status, Some(0));
    }
}

#[test]
fn compressed_lines_are_those_of_plain_ones() {
    let folder = Folder::new();
    let input =
        folder.write("in.jsonl", "{\"input_ids\": [5, 6]}\n{}\n{\"id\": \"b\", \"input_ids\": [7]}\n");
    let plain = run(&[&input]).stdout;
    let text = |name: &str| {
        let (bytes, mut text) = (fs::read(folder.path(name)).unwrap(), String::new());
        match name.ends_with(".gz") {
            true => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap(),
            false => zstd::Decoder::new(&bytes[..]).unwrap().read_to_string(&mut text).unwrap(),
        };
        text
    };
    for name in ["out.jsonl.gz", "out.jsonl.zst"] {
        let output = folder.text(name);
        let scored = run(&[&input, "-o", &output]);
        assert_eq!(scored.status, Some(1), "{scored:?}");
        let bytes = fs::read(&output).unwrap();
        assert_eq!(text(name), plain);
        // Again, and continued: the same bytes.
        let again = run(&[&input, "-o", &output, "--resume"]);
        assert!(again.status == Some(1) && again.stderr.contains("is whole"), "{again:?}");
        assert_eq!(run(&[&input, "-o", &output]).status, Some(1));
        assert_eq!(fs::read(&output).unwrap(), bytes);
    }
}
