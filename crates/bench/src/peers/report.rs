//! Rounds as JSON and as a table.

use serde_json::{Value, json};

use super::rounds::{Rounds, Side};
use crate::report::{elements, number, plain, rate, spread, table as table_of};
use crate::summary::Summary;
use crate::workload::Workload;
use kudos::internals::units::gib;

impl Rounds {
    pub(crate) fn json(&self, workload: &Workload) -> Value {
        let tokens = (workload.tokens * workload.sequences) as f64;
        let engine = self.sides[0].rate(tokens).median;
        let sides: Vec<Value> = self.sides.iter().map(|side| side.json(tokens, engine)).collect();
        json!({"rounds": self.rounds, "sides": sides})
    }
}

impl Side {
    /// Nominal tokens a second in all rounds.
    fn rate(&self, tokens: f64) -> Summary {
        Summary::new(&self.samples.iter().map(|sample| tokens / sample.seconds).collect::<Vec<_>>())
    }

    fn json(&self, tokens: f64, engine: f64) -> Value {
        let rate = self.rate(tokens);
        let (mean, max) = self.apart;
        json!({
            "side": self.name,
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "settings": self.settings,
            "nominal_tokens_per_second": rate,
            "ratio": engine / rate.median,
            "rewards_apart_mean": mean,
            "rewards_apart_max": max,
            "peak_memory_bytes": self.peak_memory_bytes,
            "repeated_slots": self.repeated_slots,
            "disturbed_slots": self.disturbed_slots,
            "tried": self.tried,
            "samples": self.samples,
        })
    }
}

/// All sides of all tests; `None` where there are no rounds.
pub(crate) fn table(rows: &Value) -> Option<String> {
    let sides =
        || elements(rows).flat_map(|row| elements(&row["rounds"]["sides"]).map(move |side| (row, side)));
    sides().next()?;
    let lines = sides().map(|(row, side)| {
        let (rates, max) = (&side["nominal_tokens_per_second"], &side["rewards_apart_max"]);
        [
            plain(&row["test"]),
            format!("{}, {}", plain(&side["side"]), plain(&side["dtype"])),
            plain(&side["settings"]),
            spread(rates),
            number(&rates["median"], rate),
            number(&side["ratio"], |ratio| format!("{ratio:.2} x")),
            number(&side["rewards_apart_mean"], |mean| {
                format!("{mean:.1e} ({})", number(max, |max| format!("{max:.1e}")))
            }),
            number(&side["peak_memory_bytes"], |bytes| format!("{:.2} GiB", gib(bytes as usize))),
            format!("{} ({})", plain(&side["repeated_slots"]), plain(&side["disturbed_slots"])),
        ]
    });
    let table = table_of(
        "| test | in rounds | settings | nominal tokens/s | median | kudos is | rewards apart, mean (max) | peak memory | slots repeated (still disturbed) |\n\
         |---|---|---|---:|---:|---:|---:|---:|---:|",
        lines,
    );
    let mut engines: Vec<String> = Vec::new();
    for (_, side) in sides() {
        let engine = format!("{} on {}", plain(&side["engine"]), plain(&side["device"]));
        if !engines.contains(&engine) {
            engines.push(engine);
        }
    }
    Some(format!("{table}\n\n{}", engines.join("\n")))
}
