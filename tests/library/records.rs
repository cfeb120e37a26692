//! Plots and tables of measurements agree with their records.

use crate::common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

#[test]
fn plots_agree_with_the_records() {
    let script = common::root().join("benches/plots.py");
    let output = Command::new("python3").arg(script).arg("--check").output().expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `benches/tables.py` with these arguments.
fn tables(arguments: &[&str]) -> Output {
    let script = common::root().join("benches/tables.py");
    Command::new("python3").arg(script).args(arguments).output().expect("python3 is there")
}

#[test]
fn tables_of_baselines_agree_with_the_records() {
    let output = tables(&["--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn tables_of_baselines_have_sides_of_one_arithmetic() {
    let side = |name: &str, dtype: &str, seconds: [f64; 3], apart: f64| {
        let samples: Vec<Value> = seconds
            .iter()
            .enumerate()
            .map(|(round, seconds)| json!({"round": round, "seconds": seconds, "foreign_cores": 0.0}))
            .collect();
        json!({
            "side": name, "engine": format!("{name} 1.0"), "dtype": dtype, "settings": "batch=4", "samples": samples,
            "rewards_apart_mean": apart, "rewards_apart_max": 2.0 * apart, "peak_memory_bytes": 3 << 20,
            "repeated_slots": 2, "disturbed_slots": 1,
        })
    };
    let report = |device: &str, test: &str, sides: &[Value]| {
        let row =
            json!({"test": test, "sequences": 2, "tokens": 500, "rounds": {"rounds": 3, "sides": sides}});
        json!({
            "record": 2, "device": device, "commit": "abc", "date": "2026-12-01",
            "reports": [{"unix_seconds": 7, "rows": [row]}, {"conversations": 1, "unix_seconds": 8}],
        })
    };
    let sides = [
        side("kudos", "bfloat16", [0.5, 1.0, 0.25], 0.0625),
        side("vllm", "bfloat16", [0.25, 0.25, 9.0], 0.125),
        side("openvino", "float32", [0.001; 3], 0.0),
    ];
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("benches/record/some-cpu")).unwrap();
    let page = "# Title\n\n<!-- baselines -->\nold\n<!-- end of baselines -->\nlast\n";
    let pages = ["README.md", "benches/README.md"].map(|name| root.join(name));
    pages.iter().for_each(|path| fs::write(path, page).unwrap());
    let write = |name: &str, record: &Value| {
        fs::write(root.join("benches/record/some-cpu").join(name), record.to_string()).unwrap();
    };
    write("2026-12-01-abc.json", &report("Some CPU", "2 x 500", &sides));
    // An older record has another test, and this one, which the newer one measured again.
    let mut older = report("Some CPU", "2 x 500", &[sides[0].clone(), sides[0].clone()]);
    older["date"] = json!("2026-11-30");
    older["commit"] = json!("def");
    let other = report("Some CPU", "3 x 500", &sides)["reports"].as_array().unwrap().clone();
    older["reports"].as_array_mut().unwrap().extend(other);
    write("2026-11-30-def.json", &older);

    let root = root.to_str().unwrap();
    let checked = tables(&["--check", root]);
    assert!(!checked.status.success(), "{checked:?}");
    assert!(String::from_utf8_lossy(&checked.stderr).contains("README.md, "), "{checked:?}");
    assert!(tables(&[root]).status.success());
    let [front, whole] = pages.map(|path| fs::read_to_string(path).unwrap());
    let line = "| 2 x 500, bf16 | 2,000 | 4,000 |\n";
    assert!(front.contains("| tokens/s | kudos | vllm |\n") && front.contains(line), "{front}");
    assert!(
        front.contains("at abc and def:") && front.contains("| 3 x 500, bf16 | 2,000 | 4,000 |\n"),
        "{front}"
    );
    assert!(front.starts_with("# Title\n") && front.ends_with("last\n") && !front.contains("old"), "{front}");
    let fastest =
        "| 2 x 500, bf16 | vllm | 4,000 | 0.50 x (0.25 to 36.00) | 1.2e-01 (2.5e-01) | 3 MiB | batch=4 |\n";
    let engine = "|  | kudos | 2,000 |  | 6.2e-02 (1.2e-01) | 3 MiB | batch=4 |\n";
    assert!(whole.contains(&format!("{fastest}{engine}")), "{whole}");
    assert!(whole.contains("repeated 8 times, and 4 stayed") && !whole.contains("openvino"), "{whole}");
    assert!(tables(&["--check", root]).status.success());
}

/// The section of `benches/README.md` whose table must agree with the record that it names.
const SECTION: &str = "\n## SmolLM2-135M against Hugging Face transformers\n";

/// One side of a workload in a record, over all rounds.
#[derive(Default)]
struct Side {
    /// Tokens a second of every run.
    rates: Vec<f64>,
    /// The least of all runs.
    cpu_seconds: f64,
    /// The most of all rounds.
    peak_memory_bytes: f64,
    /// Mean distance from the engine's own in float32.
    rewards_apart: Option<f64>,
}

impl Side {
    fn add(&mut self, measured: &Value, tokens: f64) {
        let of = |name: &'static str| {
            let samples = measured["samples"].as_array().unwrap();
            samples.iter().map(move |sample| sample[name].as_f64().unwrap())
        };
        let before = if self.rates.is_empty() { f64::INFINITY } else { self.cpu_seconds };
        self.cpu_seconds = of("cpu_seconds").fold(before, f64::min);
        self.rates.extend(of("seconds").map(|seconds| tokens / seconds));
        self.rates.sort_by(f64::total_cmp);
        let peak = measured["peak_memory_bytes"].as_f64().unwrap();
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak);
    }

    /// The median, and the most.
    fn rates(&self) -> [f64; 2] {
        let (count, rates) = (self.rates.len(), &self.rates);
        [(rates[(count - 1) / 2] + rates[count / 2]) / 2.0, rates[count - 1]]
    }
}

/// All sides of all workloads of a record, by their names in the table. Where one arithmetic was
/// measured beside transformers, only those runs count.
fn sides(record: &Value) -> BTreeMap<(&'static str, String), Side> {
    let reports = || record["reports"].as_array().unwrap().iter();
    let rows = |report: &'_ Value| report["rows"].as_array().cloned().unwrap_or_default();
    let f32_rewards = |workload: &Value| {
        let is_same = |row: &Value| {
            ["sequences", "tokens", "shared_prefix"].iter().all(|name| row[name] == workload[name])
        };
        let f32 = reports().filter(|report| report["cpu_math"] == "f32").flat_map(rows).find(is_same);
        f32.unwrap()["rewards"].as_array().unwrap().clone()
    };
    let mut sides = BTreeMap::<_, Side>::new();
    let mut beside = BTreeSet::new();
    for compared in [true, false] {
        for (report, row) in
            reports().flat_map(|report| rows(report).into_iter().map(move |row| (report, row)))
        {
            let workload = match ["sequences", "tokens", "shared_prefix"].map(|name| row[name].as_u64()) {
                [Some(16), Some(512), Some(0)] => "conversations",
                [Some(8), Some(576), Some(512)] => "responses",
                _ => continue,
            };
            let baselines = row["baselines"].as_array().unwrap();
            let math = report["cpu_math"].as_str().unwrap();
            let name = if math == "f32" { "kudos".to_owned() } else { format!("kudos, `--cpu-math {math}`") };
            if baselines.is_empty() == compared || !compared && beside.contains(&(workload, name.clone())) {
                continue;
            }
            if compared {
                beside.insert((workload, name.clone()));
            }
            let tokens = row["sequences"].as_f64().unwrap() * row["tokens"].as_f64().unwrap();
            let side = sides.entry((workload, name)).or_default();
            side.add(&row, tokens);
            if math != "f32" {
                let pairs = row["rewards"].as_array().unwrap().iter().zip(f32_rewards(&row));
                let apart: Vec<f64> = pairs
                    .map(|(other, f32)| (other.as_f64().unwrap() - f32.as_f64().unwrap()).abs())
                    .collect();
                side.rewards_apart = Some(apart.iter().sum::<f64>() / apart.len() as f64);
            }
            for theirs in baselines {
                let (dtype, way) = (theirs["dtype"].as_str().unwrap(), theirs["way"].as_str().unwrap());
                let side = sides.entry((workload, format!("transformers {dtype}, {way}"))).or_default();
                side.add(theirs, tokens);
                if math == "f32" {
                    side.rewards_apart = theirs["rewards_apart_mean"].as_f64();
                }
            }
        }
    }
    sides
}

/// Checks that a cell has these numbers, without their units, each rounded to the digits in the
/// cell.
#[track_caller]
fn check_cell(cell: &str, expected: &[f64]) {
    let words = cell.split([' ', '(', ')']).map(|word| word.replace(',', ""));
    let written: Vec<String> = words.filter(|word| word.parse::<f64>().is_ok()).collect();
    assert_eq!(written.len(), expected.len(), "`{cell}` differs from {expected:?}");
    for (word, expected) in written.iter().zip(expected) {
        let (digits, exponent) = word.split_once('e').unwrap_or((word, "0"));
        let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len() as i32);
        let unit = 10_f64.powi(exponent.parse::<i32>().unwrap() - decimals);
        let written: f64 = word.parse().unwrap();
        assert!((written - expected).abs() <= 0.5001 * unit, "`{cell}` has {word}, the record {expected}");
    }
}

#[test]
fn the_table_of_measurements_agrees_with_its_record() {
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
        if batched.rates()[0] > card.rates()[0] { batched } else { card }
    };
    // The front page has the engine's rates, and those of the faster mode of transformers.
    let front = fs::read_to_string(common::root().join("README.md")).unwrap();
    for (workload, named) in [("conversations", "| 16 conversations of "), ("responses", "| 8 responses of ")]
    {
        let line = front.lines().find(|line| line.starts_with(named)).unwrap();
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let of = |side: String| sides[&(workload, side)].rates()[0];
        let faster = |dtype: &str| {
            of(format!("transformers {dtype}, batched")).max(of(format!("transformers {dtype}, card")))
        };
        check_cell(cells[1], &[of("kudos".to_owned())]);
        check_cell(cells[2], &[faster("float32")]);
        check_cell(cells[3], &[of("kudos, `--cpu-math bf16`".to_owned())]);
        check_cell(cells[4], &[faster("bfloat16")]);
    }
    let (mut workload, mut rows) = ("", 0);
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
        check_cell(rates, &measured.rates());
        let ratio = |index: usize| measured.rates()[index] / base.rates()[index];
        let both = [ratio(0), ratio(1)];
        check_cell(ratios, if ratios.contains('(') { &both } else { &both[..1] });
        check_cell(cpu_ratio, &[base.cpu_seconds / measured.cpu_seconds]);
        check_cell(memory, &[measured.peak_memory_bytes / f64::from(1 << 20)]);
        check_cell(apart, measured.rewards_apart.as_slice());
        rows += 1;
    }
    assert!(rows >= 8, "the table has {rows} rows");
}

/// The reading of rows: what the page says of its record.
#[test]
fn the_rates_of_reading_rows_are_those_of_their_record() {
    let page = fs::read_to_string(common::root().join("benches/README.md")).unwrap();
    let (_, text) = page.split_once("A million rows of a Parquet file").unwrap();
    let text = text.split_once("\n\n").unwrap().0.replace('\n', " ");
    let name = text.split('`').nth(3).unwrap();
    let folder = common::root().join("benches/record/intel-r-xeon-r-processor-family-6-model-207");
    let record: Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
    let tests = record["reports"][0]["reading"].as_array().unwrap();
    let sample = |threads: u64| {
        let test = tests.iter().find(|test| test["threads"] == threads).unwrap();
        assert_eq!([&test["sample"]["rows"], &test["sample"]["failed"]], [1_000_000, 0]);
        &test["sample"]
    };
    // Three digits.
    let rate = |sample: &Value, key: &str| {
        let rate = sample[key].as_f64().unwrap() / sample["seconds"].as_f64().unwrap();
        let unit = 10_f64.powf(rate.log10().floor() - 2.0);
        let digits = ((rate / unit).round() * unit) as u64;
        let text = digits.to_string();
        let groups: Vec<&str> =
            text.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
        groups.join(",")
    };
    for (rate, unit) in [
        (rate(sample(0), "rows"), "rows/s"),
        (rate(sample(2), "rows"), "rows/s"),
        (rate(sample(2), "tokens"), "tokens/s"),
    ] {
        assert!(text.contains(&format!("{rate} {unit}")), "{rate} {unit}: {text}");
    }
    let memory =
        sample(2)["anonymous_bytes"].as_array().unwrap().iter().map(|bytes| bytes.as_f64().unwrap() / 1e6);
    let (least, most) =
        memory.clone().fold((f64::MAX, 0.0_f64), |(least, most), mb| (least.min(mb), most.max(mb)));
    assert!(text.contains(&format!("{} to {} MB at all of {}", least.round(), most.round(), memory.len())));
}
