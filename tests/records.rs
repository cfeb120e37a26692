//! What is drawn and told of measurements is what their records give.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::Value;

#[test]
fn plots_are_what_the_records_give() {
    let script = common::root().join("benches/plots.py");
    let output = Command::new("python3").arg(script).arg("--check").output().expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The section of `benches/README.md` whose table is held to the record that it names.
const SECTION: &str = "\n## SmolLM2-135M against Hugging Face transformers\n";

/// What a record holds of one side of a workload.
struct Side {
    /// By the median of the runs, and by the fastest.
    rates: [f64; 2],
    /// Of the run that took least.
    cpu_seconds: f64,
    peak_memory_bytes: f64,
    rewards_apart: Option<f64>,
}

impl Side {
    fn new(measured: &Value, tokens: f64, rewards_apart: Option<f64>) -> Self {
        let sorted = |name: &str| {
            let samples = measured["samples"].as_array().unwrap();
            let mut numbers: Vec<f64> = samples.iter().map(|sample| sample[name].as_f64().unwrap()).collect();
            numbers.sort_by(f64::total_cmp);
            numbers
        };
        let (seconds, cpu_seconds) = (sorted("seconds"), sorted("cpu_seconds"));
        assert!(seconds.len() % 2 == 1, "an even number of runs has no median of its own");
        Self {
            rates: [tokens / seconds[seconds.len() / 2], tokens / seconds[0]],
            cpu_seconds: cpu_seconds[0],
            peak_memory_bytes: measured["peak_memory_bytes"].as_f64().unwrap(),
            rewards_apart,
        }
    }
}

/// All sides of all workloads of a record, by the names that the table has for them.
fn sides(record: &Value) -> BTreeMap<(&'static str, String), Side> {
    let mut sides = BTreeMap::new();
    let rows = |report: &'_ Value| report["rows"].as_array().cloned().unwrap_or_default();
    let f32_rewards = |workload: &Value| {
        let is_same = |row: &Value| {
            ["sequences", "tokens", "shared_prefix"].iter().all(|name| row[name] == workload[name])
        };
        let reports = record["reports"].as_array().unwrap().iter();
        let f32 = reports.filter(|report| report["cpu_math"] == "f32").flat_map(rows).find(is_same);
        f32.unwrap()["rewards"].as_array().unwrap().clone()
    };
    for report in record["reports"].as_array().unwrap() {
        for row in rows(report) {
            let workload = match ["sequences", "tokens", "shared_prefix"].map(|name| row[name].as_u64()) {
                [Some(16), Some(512), Some(0)] => "conversations",
                [Some(8), Some(576), Some(512)] => "responses",
                _ => continue,
            };
            let tokens = row["sequences"].as_f64().unwrap() * row["tokens"].as_f64().unwrap();
            let (name, apart) = match report["cpu_math"].as_str().unwrap() {
                "f32" => ("kudos".to_owned(), None),
                math => {
                    let pairs = row["rewards"].as_array().unwrap().iter().zip(f32_rewards(&row));
                    let apart: Vec<f64> = pairs
                        .map(|(bf16, f32)| (bf16.as_f64().unwrap() - f32.as_f64().unwrap()).abs())
                        .collect();
                    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
                    (format!("kudos, `--cpu-math {math}`"), Some(mean))
                }
            };
            // Later reports repeat a workload among others.
            sides.entry((workload, name)).or_insert_with(|| Side::new(&row, tokens, apart));
            for theirs in row["baselines"].as_array().unwrap() {
                let name = format!(
                    "transformers {}, {}",
                    theirs["dtype"].as_str().unwrap(),
                    theirs["way"].as_str().unwrap()
                );
                let apart = theirs["rewards_apart_mean"].as_f64();
                sides.insert((workload, name), Side::new(theirs, tokens, apart));
            }
        }
    }
    sides
}

/// Holds the numbers of a cell, without their units, to these: each rounded to the digits that it has there.
#[track_caller]
fn check_cell(cell: &str, expected: &[f64]) {
    let words = cell.split([' ', '(', ')']).map(|word| word.replace(',', ""));
    let written: Vec<String> = words.filter(|word| word.parse::<f64>().is_ok()).collect();
    assert_eq!(written.len(), expected.len(), "`{cell}` has other numbers than {expected:?}");
    for (word, expected) in written.iter().zip(expected) {
        let (digits, exponent) = word.split_once('e').unwrap_or((word, "0"));
        let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len() as i32);
        let unit = 10_f64.powi(exponent.parse::<i32>().unwrap() - decimals);
        let written: f64 = word.parse().unwrap();
        assert!((written - expected).abs() <= 0.5001 * unit, "`{cell}` says {word}, the record {expected}");
    }
}

#[test]
fn the_table_of_measurements_is_what_its_record_gives() {
    let page = fs::read_to_string(common::root().join("benches/README.md")).unwrap();
    let (_, section) = page.split_once(SECTION).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let name = section.split('`').find(|word| word.starts_with("record/")).unwrap();
    let record = fs::read_to_string(common::root().join("benches").join(name)).unwrap();
    let sides = sides(&serde_json::from_str(&record).unwrap());
    // Ratios are to the faster of these.
    let base = |workload: &'static str| {
        let of = |way: &str| &sides[&(workload, format!("transformers float32, {way}"))];
        let (batched, card) = (of("batched"), of("card"));
        if batched.rates[0] > card.rates[0] { batched } else { card }
    };
    // The front page has the engine's rates, and those of the faster of transformers' ways.
    let front = fs::read_to_string(common::root().join("README.md")).unwrap();
    for (workload, named) in [("conversations", "| 16 conversations of "), ("responses", "| 8 responses of ")]
    {
        let line = front.lines().find(|line| line.starts_with(named)).unwrap();
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let of = |side: String| sides[&(workload, side)].rates[0];
        let faster = |dtype: &str| {
            of(format!("transformers {dtype}, batched")).max(of(format!("transformers {dtype}, card")))
        };
        check_cell(cells[1], &[of("kudos".to_owned())]);
        check_cell(cells[2], &[faster("float32")]);
        check_cell(cells[3], &[faster("bfloat16")]);
    }
    let (mut workload, mut told) = ("", 0);
    for line in section.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [named, side, rates, ratios, cpu_ratio, memory, apart] = cells[..] else { panic!("{line}") };
        workload = match named {
            "" => workload,
            "conversations" => "conversations",
            "responses" => "responses",
            _ => panic!("{line}"),
        };
        let measured = &sides[&(workload, side.to_owned())];
        let base = base(workload);
        check_cell(rates, &measured.rates);
        let ratio = |way: usize| measured.rates[way] / base.rates[way];
        let both = [ratio(0), ratio(1)];
        check_cell(ratios, if ratios.contains('(') { &both } else { &both[..1] });
        check_cell(cpu_ratio, &[base.cpu_seconds / measured.cpu_seconds]);
        check_cell(memory, &[measured.peak_memory_bytes / f64::from(1 << 20)]);
        check_cell(apart, measured.rewards_apart.as_slice());
        told += 1;
    }
    assert!(told >= 8, "the table has {told} rows");
}
