//! What GPUs say of themselves between runs: clocks, power, temperature. Nothing where NVML is not there, and of CPUs.

use serde::Serialize;
use serde_json::{Value, json};

use crate::measure::Summary;
#[cfg(feature = "cuda")]
use kudos::internals::backend::cuda::{nvml, probe};
use kudos::{DeviceKind, Engine};

/// The sensors of all ranks' GPUs.
#[derive(Debug)]
pub(super) struct Sensors {
    #[cfg(feature = "cuda")]
    gpus: Vec<nvml::Sensors>,
}

/// What one GPU said at one time, as far as it did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) sm_mhz: Option<f64>,
    pub(super) memory_mhz: Option<f64>,
    pub(super) watts: Option<f64>,
    pub(super) celsius: Option<f64>,
}

/// What several readings of one number come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Range {
    min: f64,
    median: f64,
    max: f64,
}

impl Sensors {
    /// Those of the GPUs that an engine runs on, which are the first ones.
    #[cfg(feature = "cuda")]
    pub(super) fn of(engine: &Engine) -> Self {
        let ranks = if engine.device().kind == DeviceKind::Cpu { 0 } else { engine.plan().ranks };
        let found = if ranks > 0 { probe::devices().unwrap_or_default() } else { Vec::new() };
        Self { gpus: found.iter().take(ranks).filter_map(nvml::Sensors::of).collect() }
    }

    /// None.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn of(_: &Engine) -> Self {
        Self {}
    }

    /// A reading of each GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn read(&self) -> Vec<Reading> {
        let of = |gpu: &nvml::Sensors| Reading {
            sm_mhz: gpu.clock_mhz(nvml::GpuClock::Multiprocessors).map(f64::from),
            memory_mhz: gpu.clock_mhz(nvml::GpuClock::Memory).map(f64::from),
            watts: gpu.watts(),
            celsius: gpu.celsius().map(f64::from),
        };
        self.gpus.iter().map(of).collect()
    }

    /// None.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn read(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// The clock of the slowest GPU's multiprocessors.
    pub(super) fn sm_mhz(&self) -> Option<f64> {
        self.read().iter().filter_map(|reading| reading.sm_mhz).min_by(f64::total_cmp)
    }
}

impl Range {
    fn of(readings: &[Reading], what: impl Fn(&Reading) -> Option<f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = readings.iter().filter_map(what).collect();
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        Some(Self { min, median: Summary::new(&numbers).median, max })
    }
}

/// Medians, with the least and the most, of what was known; nothing where nothing was.
pub(super) fn text(readings: &[Reading]) -> String {
    let of = |what: &str, unit: &str, range: Option<Range>| {
        let text = |Range { min, median, max }| format!("; {what} {median:.0} {unit} ({min:.0} to {max:.0})");
        range.map(text).unwrap_or_default()
    };
    [
        of("multiprocessors", "MHz", Range::of(readings, |reading| reading.sm_mhz)),
        of("memory", "MHz", Range::of(readings, |reading| reading.memory_mhz)),
        of("power", "W", Range::of(readings, |reading| reading.watts)),
        of("temperature", "°C", Range::of(readings, |reading| reading.celsius)),
    ]
    .concat()
}

/// All readings of a test; null where there is none.
pub(super) fn json(readings: &[Reading]) -> Value {
    if readings.is_empty() {
        return Value::Null;
    }
    json!({
        "readings": readings.len(),
        "sm_mhz": Range::of(readings, |reading| reading.sm_mhz),
        "memory_mhz": Range::of(readings, |reading| reading.memory_mhz),
        "watts": Range::of(readings, |reading| reading.watts),
        "celsius": Range::of(readings, |reading| reading.celsius),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_come_to_their_least_middle_and_most_and_what_nobody_said_to_null() {
        let reading = |sm, watts| Reading { sm_mhz: Some(sm), watts: Some(watts), ..Reading::default() };
        let readings = [reading(1980.0, 300.5), reading(1755.0, 700.0), reading(1800.0, 650.25)];
        let expected = json!({
            "readings": 3,
            "sm_mhz": {"min": 1755.0, "median": 1800.0, "max": 1980.0},
            "memory_mhz": null,
            "watts": {"min": 300.5, "median": 650.25, "max": 700.0},
            "celsius": null,
        });
        assert_eq!(json(&readings), expected);
        assert_eq!(text(&readings), "; multiprocessors 1800 MHz (1755 to 1980); power 650 W (300 to 700)");
        assert_eq!((json(&[]), text(&[])), (Value::Null, String::new()));
    }
}
