//! A run's time by class of op, against the roof of each.

use serde_json::{Value, json};

use crate::report::{elements, number, percent, plain, table as markdown_table};
use crate::roof::Rates;
use kudos::Result;
use kudos::internals::backend::profile::{Profile, Spent};

/// Profiled runs of a test; none of them is a sample.
const RUNS: usize = 3;

/// Profiles [`RUNS`] runs: the classes of the run of median time, on rank 0.
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

/// Seconds of all passes of a run, each from its beginning to its end.
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
            "flop": spent.cost.flop,
            "bytes": spent.cost.bytes,
            "roof_seconds": roof,
            "roof_share": roof.map(|roof| roof / spent.seconds),
        })
    };
    spent.iter().map(class).collect()
}

/// The classes of every test, and a line for all classes of each test together.
pub(super) fn table(rows: &Value) -> String {
    let line = |row: &Value, class: &Value| {
        let (seconds, all) = (class["seconds"].as_f64(), row["profile_seconds"].as_f64());
        let share = seconds.zip(all).map(|(seconds, all)| seconds / all);
        let flop = Some(&class["flop"]).filter(|flop| flop.as_f64() > Some(0.0));
        [
            plain(&row["test"]),
            plain(&class["class"]),
            plain(&class["ops"]),
            number(&class["seconds"], |seconds| format!("{:.3}", 1e3 * seconds)),
            number(&json!(share), percent),
            number(flop.unwrap_or(&Value::Null), |flop| format!("{:.3}", flop / 1e9)),
            number(&class["bytes"], |bytes| format!("{:.1}", bytes / 1e6)),
            number(&class["roof_seconds"], |roof| format!("{:.3}", 1e3 * roof)),
            number(&class["roof_share"], percent),
        ]
    };
    let lines = elements(rows).flat_map(|row| {
        let (seconds, roof) = (&row["profile_seconds"], &row["roof_seconds"]);
        let share = roof.as_f64().zip(seconds.as_f64()).map(|(roof, seconds)| roof / seconds);
        let ops: u64 = elements(&row["classes"]).filter_map(|class| class["ops"].as_u64()).sum();
        let all = json!({
            "class": "all", "ops": ops, "seconds": seconds, "roof_seconds": roof, "roof_share": share,
        });
        elements(&row["classes"]).chain([&all]).map(|class| line(row, class)).collect::<Vec<_>>()
    });
    markdown_table(
        "| test | class | ops | ms | of the run | GFLOP | MB | roof, ms | of the roof |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|",
        lines,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use kudos::internals::backend::profile::{Class, Cost};

    fn spent() -> Vec<Spent> {
        let spent =
            |class, ops, seconds, flop, bytes| Spent { class, ops, seconds, cost: Cost { flop, bytes } };
        vec![
            spent(Class::Tables, 1, 0.001, 0.0, None),
            spent(Class::Qkv, 9, 0.004, 2e9, Some(1_000_000)),
            spent(Class::GateMul, 8, 0.005, 0.0, Some(4_000_000)),
        ]
    }

    const GPU: Rates = Rates { matmul: 1e12, attention: 1e12, score: 1e12, bytes: Some(1e9) };

    #[test]
    fn the_table_has_each_class_and_their_sum_against_the_roof() {
        let spent = spent();
        let rows = json!([{
            "test": "2 x 5",
            "profile_seconds": seconds(&spent),
            "roof_seconds": GPU.seconds_of_all(&spent),
            "classes": json(&spent, Some(GPU)),
        }]);
        let table = table(&rows);
        let expected = [
            "| 2 x 5 | tables | 1 | 1.000 | 10.0 % | - | - | - | - |",
            "| 2 x 5 | product_qkv | 9 | 4.000 | 40.0 % | 2.000 | 1.0 | 2.000 | 50.0 % |",
            "| 2 x 5 | gate_mul | 8 | 5.000 | 50.0 % | - | 4.0 | 4.000 | 80.0 % |",
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
    fn of_several_profiled_runs_the_median_is_kept() {
        let (asked, mut seconds) = (Profile::default(), [3.0, 1.0, 2.0].into_iter());
        let run = || {
            asked.add(Class::Score, seconds.next().unwrap(), Cost::default());
            Ok(0.0)
        };
        let kept = profile(&asked, run).unwrap();
        assert_eq!((kept.len(), kept[0].seconds), (1, 2.0));
    }
}
