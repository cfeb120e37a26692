//! A run's time by class of op, against the roof of each.

use serde_json::{Value, json};

use crate::measure::Row;
use crate::roof::Rates;
use kudos::Result;
use kudos::internals::backend::profile::{Class, Profile, Spent};

/// Runs of a test that are profiled, all apart from those that are measured.
const RUNS: usize = 3;

/// Profiles some runs: the classes of the one of median time, on rank 0.
pub(super) fn profile(profile: &Profile, mut run: impl FnMut() -> Result<f64>) -> Result<Vec<Spent>> {
    let mut once = |_| {
        profile.start();
        run()?;
        Ok(profile.stop())
    };
    let mut runs = (0..RUNS).map(&mut once).collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    Ok(runs.swap_remove(RUNS / 2))
}

/// From the beginning of each pass to its end.
pub(super) fn seconds(spent: &[Spent]) -> f64 {
    spent.iter().map(|spent| spent.seconds).sum()
}

pub(super) fn json(spent: &[Spent], rates: Option<Rates>) -> Value {
    let class = |spent: &Spent| {
        let roof = rates.and_then(|rates| rates.seconds(spent));
        json!({
            "class": spent.class.name(),
            "ops": spent.ops,
            "seconds": spent.seconds,
            "flop": spent.work.flop,
            "bytes": spent.work.bytes,
            "roof_seconds": roof,
            "roof_share": roof.map(|roof| roof / spent.seconds),
        })
    };
    spent.iter().map(class).collect()
}

/// Seconds of every class there can be, for all rows have the same columns.
pub(super) fn csv(spent: &[Spent]) -> impl Iterator<Item = (String, String)> {
    let of = |class| spent.iter().find(|spent| spent.class == class).map(|spent| spent.seconds.to_string());
    Class::ALL.map(|class| (format!("{}_seconds", class.name()), of(class).unwrap_or_default())).into_iter()
}

/// The classes of every test, and all of them together.
pub(super) fn table(rows: &[Row], rates: Option<Rates>) -> String {
    let mut lines = vec![
        "| test | class | ops | ms | of the run | GFLOP | MB | roof, ms | of the roof |".to_owned(),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|".to_owned(),
    ];
    for row in rows {
        let all = seconds(&row.spent);
        let mut line =
            |name: &str, ops: usize, seconds: f64, cells: [Option<String>; 2], roof: Option<f64>| {
                let [gflop, mb] = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
                let roof_ms = roof.map_or("-".to_owned(), |roof| format!("{:.3}", 1e3 * roof));
                let share = roof.map_or("-".to_owned(), |roof| format!("{:.1} %", 100.0 * roof / seconds));
                lines.push(format!(
                    "| {} | {name} | {ops} | {:.3} | {:.1} % | {gflop} | {mb} | {roof_ms} | {share} |",
                    row.workload,
                    1e3 * seconds,
                    100.0 * seconds / all,
                ));
            };
        for spent in &row.spent {
            let Spent { class, ops, seconds, work } = *spent;
            let gflop = (work.flop > 0.0).then(|| format!("{:.3}", work.flop / 1e9));
            let mb = work.bytes.map(|bytes| format!("{:.1}", bytes as f64 / 1e6));
            let roof = rates.and_then(|rates| rates.seconds(spent));
            line(class.name(), ops, seconds, [gflop, mb], roof);
        }
        let ops = row.spent.iter().map(|spent| spent.ops).sum();
        let roof = rates.map(|rates| rates.seconds_of_all(&row.spent));
        line("all", ops, all, [None, None], roof);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warm_up::WarmUp;
    use crate::workload::Workload;
    use kudos::internals::backend::profile::Work;

    fn spent() -> Vec<Spent> {
        let spent =
            |class, ops, seconds, flop, bytes| Spent { class, ops, seconds, work: Work { flop, bytes } };
        vec![
            spent(Class::Tables, 1, 0.001, 0.0, None),
            spent(Class::Qkv, 9, 0.004, 2e9, Some(1_000_000)),
            spent(Class::SiluMul, 8, 0.005, 0.0, Some(4_000_000)),
        ]
    }

    const GPU: Rates = Rates { products: 1e12, attention: 1e12, score: 1e12, bytes: Some(1e9) };

    #[test]
    fn the_table_has_each_class_and_all_together_against_the_roof() {
        let row = Row {
            workload: Workload { tokens: 5, sequences: 2, shared_prefix: 0, responses: 1 },
            warm_up: WarmUp { runs: 1, seconds: 1.0, settled: true },
            samples: Vec::new(),
            readings: Vec::new(),
            spent: spent(),
            rewards: Vec::new(),
            peak_memory_bytes: None,
        };
        let table = table(&[row], Some(GPU));
        let expected = [
            "| 2 x 5 | tables | 1 | 1.000 | 10.0 % | - | - | - | - |",
            "| 2 x 5 | product_qkv | 9 | 4.000 | 40.0 % | 2.000 | 1.0 | 2.000 | 50.0 % |",
            "| 2 x 5 | silu_mul | 8 | 5.000 | 50.0 % | - | 4.0 | 4.000 | 80.0 % |",
            "| 2 x 5 | all | 18 | 10.000 | 100.0 % | - | - | 6.000 | 60.0 % |",
        ];
        assert_eq!(table.lines().skip(2).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn without_rates_there_is_time_and_no_roof() {
        let classes = json(&spent(), None);
        assert_eq!((&classes[1]["seconds"], &classes[1]["bytes"]), (&json!(0.004), &json!(1_000_000)));
        assert_eq!((&classes[1]["roof_seconds"], &classes[1]["roof_share"]), (&Value::Null, &Value::Null));
        assert_eq!(json(&spent(), Some(GPU))[2]["roof_share"], json!(0.004 / 0.005));
    }

    #[test]
    fn of_several_profiled_runs_the_median_is_told() {
        let (asked, mut seconds) = (Profile::default(), [3.0, 1.0, 2.0].into_iter());
        let run = || {
            asked.add(Class::Score, seconds.next().unwrap(), Work::default());
            Ok(0.0)
        };
        let told = profile(&asked, run).unwrap();
        assert_eq!((told.len(), told[0].seconds), (1, 2.0));
    }
}
