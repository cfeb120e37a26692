//! Clocks, power and temperature of GPUs, read between runs. Nothing without NVML, and nothing for
//! CPUs.

use serde::Serialize;
use serde_json::{Value, json};

use crate::summary::Summary;
#[cfg(feature = "cuda")]
use kudos::DeviceKind;
use kudos::Engine;
#[cfg(feature = "cuda")]
use kudos::internals::backend::cuda::{nvml, probe};

/// The sensors of all ranks' GPUs.
#[derive(Debug)]
pub(super) struct Sensors {
    #[cfg(feature = "cuda")]
    gpus: Vec<nvml::Sensors>,
}

/// One GPU at one time; `None` for each quantity that it does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) sm_mhz: Option<f64>,
    pub(super) memory_mhz: Option<f64>,
    pub(super) watts: Option<f64>,
    pub(super) celsius: Option<f64>,
}

/// The range and the median of several readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Range {
    min: f64,
    median: f64,
    max: f64,
}

impl Sensors {
    /// The sensors of the GPUs that an engine runs on, which are the first ones.
    #[cfg(feature = "cuda")]
    pub(super) fn of(engine: &Engine) -> Self {
        let ranks = if engine.device().kind == DeviceKind::Cpu { 0 } else { engine.plan().ranks };
        let found = if ranks > 0 { probe::devices().unwrap_or_default() } else { Vec::new() };
        Self { gpus: found.iter().take(ranks).filter_map(nvml::Sensors::of).collect() }
    }

    /// Returns none: this build has no CUDA backend.
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
    fn of(readings: &[Reading], quantity: impl Fn(&Reading) -> Option<f64>) -> Option<Self> {
        let mut values: Vec<f64> = readings.iter().filter_map(quantity).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { min, median: Summary::new(&values).median, max })
    }
}

/// The median and the range of each quantity that is known: `; power 650 W (300 to 700)`. Empty for
/// null.
pub(super) fn text(gpu: &Value) -> String {
    let text = |(name, label, unit): (&str, &str, &str)| {
        let of = |part: &str| gpu[name][part].as_f64();
        let (median, min, max) = (of("median")?, of("min")?, of("max")?);
        Some(format!("; {label} {median:.0} {unit} ({min:.0} to {max:.0})"))
    };
    let quantities = [
        ("sm_mhz", "multiprocessors", "MHz"),
        ("memory_mhz", "memory", "MHz"),
        ("watts", "power", "W"),
        ("celsius", "temperature", "°C"),
    ];
    quantities.into_iter().filter_map(text).collect()
}

/// The ranges of all readings of a test; null where there is none.
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
    fn readings_have_a_range_and_unknown_quantities_are_null() {
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
        assert_eq!(text(&expected), "; multiprocessors 1800 MHz (1755 to 1980); power 650 W (300 to 700)");
        assert_eq!((json(&[]), text(&Value::Null)), (Value::Null, String::new()));
    }
}
