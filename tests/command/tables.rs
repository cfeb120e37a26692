//! Rows in other containers than plain lines, and rows of data sets: the results are those of the
//! lines that they would be.

use crate::common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::folder::Folder;
use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field};
use common::{Run, demo_model, kudos};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

/// Rows of a prompt and responses; the second one has no response.
const PROMPTS: [&str; 3] = ["What is 1+1?", "Name a colour.", "Zwölf?"];
const RESPONSES: [Option<&str>; 3] = [Some("1+1=2"), None, Some("12 \u{1f600}")];

pub(crate) fn run(arguments: &[&str]) -> Run {
    let model = demo_model();
    kudos(&[&["score", "--device", "cpu", "--model", model.to_str().unwrap()], arguments].concat(), "")
}

#[track_caller]
fn scored(arguments: &[&str], status: i32) -> (String, String) {
    let run = run(arguments);
    assert_eq!(run.status, Some(status), "{run:?}");
    (run.stdout, run.stderr)
}

pub(crate) fn batch() -> RecordBatch {
    let mut parts = ListBuilder::new(StringBuilder::new());
    for response in RESPONSES {
        match response {
            Some(response) => parts.append_value([Some(response), Some("no")]),
            None => parts.append_null(),
        }
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from(vec![7, 8, 9]))),
        ("prompt", Arc::new(StringArray::from(PROMPTS.to_vec()))),
        ("responses", Arc::new(parts.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// The lines of [`batch`].
fn lines() -> String {
    let line = |(index, prompt): (usize, &&str)| {
        let responses = RESPONSES[index].map(|response| vec![response, "no"]);
        json!({"id": index + 7, "prompt": prompt, "responses": responses}).to_string() + "\n"
    };
    PROMPTS.iter().enumerate().map(line).collect()
}

pub(crate) fn parquet(path: &Path, batches: &[RecordBatch], compression: Compression) {
    let properties = WriterProperties::builder().set_compression(compression);
    let properties = properties.set_max_row_group_row_count(Some(2)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batches[0].schema(), Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

/// Writes every container of the three rows, and returns their names.
fn containers(folder: &Folder) -> Vec<String> {
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    folder.write("gzip", gzip(lines().as_bytes()));
    // After a frame that is to be skipped, as parallel programs write it.
    let skipped = b"\x50\x2a\x4d\x18\x04\0\0\0kudo";
    folder.write("zstd", [&skipped[..], &zstd::encode_all(lines().as_bytes(), 3).unwrap()].concat());
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for (name, compression) in [("snappy", Compression::SNAPPY), ("parquet-zstd", zstd)] {
        parquet(&folder.path(name), &[batch()], compression);
    }
    let mut file =
        FileWriter::try_new(File::create(folder.path("arrow")).unwrap(), &batch().schema()).unwrap();
    let mut stream =
        StreamWriter::try_new(File::create(folder.path("stream")).unwrap(), &batch().schema()).unwrap();
    for one in 0..3 {
        file.write(&batch().slice(one, 1)).unwrap();
        stream.write(&batch().slice(one, 1)).unwrap();
    }
    file.finish().unwrap();
    stream.finish().unwrap();
    ["gzip", "zstd", "snappy", "parquet-zstd", "arrow", "stream"].map(str::to_owned).to_vec()
}

#[test]
fn every_container_has_the_results_of_its_lines() {
    let folder = Folder::new();
    let plain = folder.write("plain", lines());
    let (expected, _) = scored(&[&plain], 1);
    assert_eq!(expected.lines().count(), 3);
    for name in containers(&folder) {
        let (found, notes) = scored(&[&folder.text(&name)], 1);
        assert_eq!(found.replace("input row", "input line"), expected, "{name}");
        assert_eq!(
            notes.contains("has 3 rows"),
            name.contains("snappy") || name.contains("parquet"),
            "{notes}"
        );
    }
}

#[test]
fn several_files_are_one_input() {
    let folder = Folder::new();
    let a = folder.write("a.jsonl", "{\"input_ids\": [5]}\n\n{\"input_ids\": [6]}\n");
    let b = folder.write("b.jsonl", "{\"input_ids\": [7]}\n{\"input_ids\": 1}\n");
    folder.write(".hidden", "no JSON");
    folder.write(".c.jsonl", "no JSON");
    folder.write("_SUCCESS", "");
    let (expected, _) = scored(&[&a, &b], 1);
    let index = |line: &str| serde_json::from_str::<Value>(line).unwrap()["index"].clone();
    assert_eq!(expected.lines().map(index).collect::<Vec<_>>(), [0, 2, 3, 4].map(Value::from));
    let last: Value = serde_json::from_str(expected.lines().last().unwrap()).unwrap();
    assert_eq!(last["error"]["place"], json!(format!("line 2 of `{b}`")));
    assert_eq!(scored(&[&folder.text("")], 1).0, expected);
    assert_eq!(scored(&[&folder.text("[ab].jsonl")], 1).0, expected);
    assert_eq!(scored(&[&folder.text("*.jsonl")], 1).0, expected);
    for (arguments, message) in [
        (&[&*folder.text("*.parquet")][..], "cannot open the input"),
        (&["-", &a], "`-` is given beside files"),
    ] {
        let run = run(arguments);
        assert!(run.status == Some(2) && run.stderr.contains(message), "{run:?}");
    }
}

#[test]
fn pairs_have_both_rewards_and_their_margin() {
    let folder = Folder::new();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let question = turn("user", "What is 1+1?");
    let row = json!({"prompt": "What is 1+1?", "prompt_id": "p0", "chosen": [question, turn("assistant", "1+1=2")],
        "rejected": [question, turn("assistant", "1+1=3")], "messages": [question, turn("assistant", "1+1=2")],
        "score_chosen": 9.0});
    let pairs = folder.write("pairs", row.to_string());
    let both = folder.write("both", r#"{"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}"#);
    let (pair, notes) = scored(&[&pairs, "--columns", "id=prompt_id"], 0);
    assert!(notes.contains("has rows with `chosen` and `rejected`"), "{notes}");
    let pair: Value = serde_json::from_str(&pair).unwrap();
    let both: Value = serde_json::from_str(&scored(&[&both], 0).0).unwrap();
    assert_eq!(pair["id"], "p0");
    assert_eq!(
        [&pair["reward_chosen"], &pair["reward_rejected"]],
        [&both["rewards"][0], &both["rewards"][1]]
    );
    assert_eq!([&pair["tokens_chosen"], &pair["tokens_rejected"]], [&both["tokens"][0], &both["tokens"][1]]);
    let reward = |value: &Value| value.as_f64().unwrap() as f32;
    assert_eq!(reward(&pair["margin"]), reward(&both["rewards"][0]) - reward(&both["rewards"][1]));
    // The same row, read as the conversation that it repeats.
    let (one, _) = scored(&[&pairs, "--rows", "messages"], 0);
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["reward"], both["rewards"][0]);
}

#[test]
fn nested_columns_are_read_as_messages() {
    let folder = Folder::new();
    // As data sets have it: a list of structs, with a key that only some turns have.
    let turns = StructArray::from(vec![
        (
            Arc::new(Field::new("content", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["What is 1+1?", "1+1=2"])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("name", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec![None::<&str>, None])) as _,
        ),
        (
            Arc::new(Field::new("role", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["user", "assistant"])) as _,
        ),
    ]);
    let item = Arc::new(Field::new("item", turns.data_type().clone(), true));
    let offsets = arrow_buffer::OffsetBuffer::from_lengths([2]);
    let list = arrow_array::ListArray::new(item, offsets, Arc::new(turns), None);
    let batch = RecordBatch::try_from_iter([("messages", Arc::new(list) as ArrayRef)]).unwrap();
    parquet(&folder.path("nested"), &[batch], Compression::UNCOMPRESSED);
    let line = folder.write("line", r#"{"prompt": "What is 1+1?", "response": "1+1=2"}"#);
    assert_eq!(scored(&[&folder.text("nested")], 0).0, scored(&[&line], 0).0);
}

#[test]
fn a_file_that_fits_two_kinds_is_refused_at_once() {
    let folder = Folder::new();
    let row = r#"{"messages": [{"role": "user", "content": "q"}], "conversations": [{"from": "human", "value": "q"}]}"#;
    let run = run(&[&folder.write("two", row)]);
    assert_eq!(run.status, Some(2), "{run:?}");
    for part in [
        "the keys are those of several kinds of rows: `messages` (`messages`), `conversations` (`conversations`)",
        "--rows",
    ] {
        assert!(run.stderr.contains(part), "{run:?}");
    }
    assert!(!run.stderr.contains("running on"), "{run:?}");
}

#[test]
fn rows_of_another_kind_than_the_first_are_errors_of_their_own() {
    let folder = Folder::new();
    let rows = [
        r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
        r#"{"messages": [{"role": "user", "content": "q"}]}"#,
        r#"{"prompt": "q", "chosen": "a", "rejected": "c"}"#,
    ];
    let (found, _) = scored(&[&folder.write("mixed", rows.join("\n"))], 1);
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(found[0]["margin"].is_number() && found[2]["margin"].is_number(), "{found:?}");
    assert_eq!(
        found[1]["error"]["message"],
        "the row has `messages`, but the file's first one has `chosen` and `rejected`"
    );
}

#[test]
fn a_resumed_run_over_a_table_is_an_uninterrupted_one() {
    let folder = Folder::new();
    parquet(&folder.path("in.parquet"), &[batch(), batch()], Compression::SNAPPY);
    let (input, output) = (folder.text("in.parquet"), folder.text("out.jsonl"));
    scored(&[&input, "-o", &output], 1);
    let whole = fs::read_to_string(&output).unwrap();
    assert_eq!(whole.lines().count(), 6);
    for kept in [0, 1, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(&output, &whole.as_bytes()[..kept]).unwrap();
        scored(&[&input, "-o", &output, "--resume"], 1);
        assert_eq!(fs::read_to_string(&output).unwrap(), whole, "from {kept} bytes");
    }
}

#[test]
fn broken_files_are_refused_with_their_name() {
    let folder = Folder::new();
    parquet(&folder.path("whole"), &[batch()], Compression::SNAPPY);
    let whole = fs::read(folder.path("whole")).unwrap();
    let mut huge = whole.clone();
    let footer = huge.len() - 8;
    huge[footer..footer + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    containers(&folder);
    let arrow = fs::read(folder.path("arrow")).unwrap();
    let gzip = fs::read(folder.path("gzip")).unwrap();
    let no_column =
        RecordBatch::try_from_iter([("text", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).unwrap();
    parquet(&folder.path("other"), &[no_column], Compression::SNAPPY);
    let other = fs::read(folder.path("other")).unwrap();
    for (bytes, message) in [
        (&whole[..whole.len() - 20], "begins as a Parquet file, but does not end as one"),
        (&whole[..7], "the file has 7 bytes, fewer than any Parquet file"),
        (&huge[..], "the footer declares 4294967295 bytes of metadata"),
        (&arrow[..arrow.len() - 30], "begins as an Arrow file, but does not end as one"),
        (&gzip[..gzip.len() / 2], "the gzip data is cut off"),
        (&other[..], "the table has no column that is read, only `text`"),
    ] {
        let path = folder.write("broken", bytes);
        let run = run(&[&path]);
        assert_eq!(run.status, Some(2), "{message}: {run:?}");
        assert!(run.stderr.contains(message) && run.stderr.contains(&path), "{run:?}");
        assert!(!run.stderr.contains("running on"), "{run:?}");
    }
}

#[test]
fn benchmarks_are_read_from_tables_and_compressed_lines() {
    let folder = Folder::new();
    let column = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let columns = [
        ("prompt", column(["What is 1+1?", "What is 8+6?"])),
        ("chosen", column(["1+1=2", "8+6=14"])),
        ("rejected", column(["1+1=3", "8+6=13"])),
        ("source", column(["x", "y"])),
    ];
    parquet(
        &folder.path("pairs.parquet"),
        &[RecordBatch::try_from_iter(columns).unwrap()],
        Compression::SNAPPY,
    );
    let lines = [
        r#"{"prompt": "What is 1+1?", "chosen": "1+1=2", "rejected": "1+1=3", "source": "x"}"#,
        r#"{"prompt": "What is 8+6?", "chosen": "8+6=14", "rejected": "8+6=13", "source": "y"}"#,
    ];
    let plain = folder.write("pairs.jsonl", lines.join("\n"));
    folder.write("pairs.zst", zstd::encode_all(lines.join("\n").as_bytes(), 3).unwrap());
    let model = demo_model();
    let report = |path: &str| {
        let arguments =
            ["eval", "preferences", path, "--device", "cpu", "--json", "--model", model.to_str().unwrap()];
        let run = kudos(&arguments, "");
        assert_eq!(run.status, Some(0), "{run:?}");
        serde_json::from_str::<Value>(&run.stdout).unwrap()["tables"].clone()
    };
    let expected = report(&plain);
    assert!(expected["group"]["overall"].is_object(), "{expected}");
    for name in ["pairs.parquet", "pairs.zst"] {
        assert_eq!(report(&folder.text(name)), expected, "{name}");
    }
}

#[test]
fn every_file_is_checked_before_the_model_is_loaded() {
    let folder = Folder::new();
    let good = folder.write("a.jsonl", r#"{"input_ids": [5]}"#);
    let two = folder.write("b.jsonl", r#"{"messages": [], "conversations": []}"#);
    parquet(&folder.path("c"), &[batch()], Compression::SNAPPY);
    let whole = fs::read(folder.path("c")).unwrap();
    let broken = folder.write("c.parquet", &whole[..whole.len() - 9]);
    for (file, message) in [(&two, "several kinds of rows"), (&broken, "does not end as one")] {
        let run = run(&[&good, file]);
        assert!(run.status == Some(2) && run.stderr.contains(message), "{run:?}");
        assert!(!run.stderr.contains("running on"), "{run:?}");
    }
}

#[test]
fn a_table_without_rows_has_no_results() {
    let folder = Folder::new();
    parquet(&folder.path("empty.parquet"), &[batch().slice(0, 0)], Compression::SNAPPY);
    let (found, notes) = scored(&[&folder.text("empty.parquet")], 0);
    assert!(found.is_empty() && notes.contains("has 0 rows"), "{notes}");
}
