//! Runs before those that are measured, until times and clocks have settled.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::report::{number, plain};
use kudos::Result;

/// The last runs agree when the longest takes at most `BOUND` times the shortest; likewise their
/// clocks.
const LAST: usize = 4;
const BOUND: f64 = 1.03;

/// Clocks rise under load and fall again as it lasts: no warm-up settles before this time.
const LEAST: Duration = Duration::from_millis(300);

/// The runs of a warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct WarmUp {
    pub(super) runs: usize,
    pub(super) seconds: f64,
    /// Whether it ended because the last runs agreed, not because its time was up.
    pub(super) settled: bool,
}

/// `12 runs in 0.5 s, until they settled`
pub(super) fn text(warm_up: &Value) -> String {
    let ended = if warm_up["settled"] == true { "until they settled" } else { "which did not settle" };
    let seconds = number(&warm_up["seconds"], |seconds| format!("{seconds:.1} s"));
    format!("{} runs in {seconds}, {ended}", plain(&warm_up["runs"]))
}

/// Runs until times and clocks have settled or `most` has passed, at least once. `run` returns the
/// run's seconds, and the clock after it in MHz where that is known.
pub(super) fn warm_up(most: Duration, mut run: impl FnMut() -> Result<(f64, Option<f64>)>) -> Result<WarmUp> {
    let (mut times, mut clocks) = (Vec::new(), Vec::new());
    loop {
        let (time, clock) = run()?;
        times.push(time);
        clocks.extend(clock);
        let seconds: f64 = times.iter().sum();
        let settled =
            seconds >= LEAST.as_secs_f64() && agree(&times) && (clocks.is_empty() || agree(&clocks));
        if settled || seconds >= most.as_secs_f64() {
            return Ok(WarmUp { runs: times.len(), seconds, settled });
        }
    }
}

/// Whether the last [`LAST`] values are within [`BOUND`] of each other.
fn agree(values: &[f64]) -> bool {
    let last = &values[values.len().saturating_sub(LAST)..];
    let (min, max) = last.iter().fold((f64::INFINITY, 0.0_f64), |(min, max), &n| (min.min(n), max.max(n)));
    last.len() == LAST && max <= BOUND * min
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The warm-up of runs that take these times, at these clocks.
    fn of(most: f64, times: &[f64], clocks: &[f64]) -> WarmUp {
        let mut next = 0;
        let run = || {
            next += 1;
            Ok((times[next - 1], clocks.get(next - 1).copied()))
        };
        warm_up(Duration::from_secs_f64(most), run).unwrap()
    }

    #[test]
    fn runs_go_on_until_four_in_a_row_agree() {
        let warmed = of(9.0, &[0.5, 0.2, 0.1, 0.101, 0.1, 0.102, 0.1], &[]);
        assert_eq!((warmed.runs, warmed.settled), (6, true));
        assert!((warmed.seconds - 1.103).abs() < 1e-9, "{warmed:?}");
    }

    #[test]
    fn clocks_have_to_agree_as_well() {
        let warmed = of(9.0, &[0.1; 9], &[1980.0, 1900.0, 1840.0, 1800.0, 1790.0, 1800.0, 1795.0]);
        assert_eq!((warmed.runs, warmed.settled), (6, true), "1790 to 1840 is less than 3 %");
    }

    #[test]
    fn short_runs_take_the_least_time() {
        assert_eq!(of(9.0, &[0.03125; 20], &[]).runs, 10);
    }

    #[test]
    fn runs_that_do_not_settle_end_with_the_time() {
        let warmed = of(1.0, &[0.25, 0.5, 0.25, 0.5, 0.25], &[]);
        assert_eq!((warmed.runs, warmed.settled), (3, false));
        assert_eq!(of(1.0, &[7.0], &[]), WarmUp { runs: 1, seconds: 7.0, settled: false });
    }
}
