//! Keyword arguments -> [`EngineBuilder`]: the command's options by their names, with underscores.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use kudos::internals::units::GIB;
use kudos::{
    Batching, CpuOptions, CudaOptions, Device, EngineBuilder, Error, ErrorKind, PromptOptions, Replicas,
    Result,
};
use kudos_cli::args::{DeviceArg, ResidencyArg};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use serde_json::{Map, Value};

use crate::errors::exception;
use crate::input::{json, type_of};

/// The devices that an option is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Any,
    Cpu,
    Gpus,
}

/// Every option, and the devices that have it.
const OPTIONS: [(&str, For); 22] = [
    ("device", For::Any),
    ("ranks", For::Any),
    ("replicas", For::Any),
    ("max_tokens", For::Any),
    ("truncate", For::Any),
    ("double_bos", For::Any),
    ("template_vars", For::Any),
    ("sanitize_control_tokens", For::Any),
    ("batch_tokens", For::Any),
    ("queue_tokens", For::Any),
    ("sharing", For::Any),
    ("residency", For::Any),
    ("threads", For::Cpu),
    ("cpu_math", For::Cpu),
    ("devices", For::Gpus),
    ("all_reduce", For::Gpus),
    ("overlap", For::Gpus),
    ("gemm_tuning", For::Gpus),
    ("gpu_reserve_gib", For::Gpus),
    ("peer_timeout", For::Gpus),
    ("cuda_tier", For::Gpus),
    ("cuda_attention", For::Gpus),
];

/// Returns the names of all options.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name)
}

/// Returns the builder of an engine for the model in `dir`. `None` among the options stands for
/// the default.
pub(crate) fn builder(dir: &Path, options: &Bound<'_, PyDict>) -> PyResult<EngineBuilder> {
    for key in options.keys() {
        let key = key.to_string();
        if !names().any(|name| name == key) {
            let known: Vec<&str> = names().collect();
            let message =
                format!("`{key}` is no option of RewardModel; the options are {}", known.join(", "));
            return Err(PyTypeError::new_err(message));
        }
    }
    let options = Given(options);
    let batching = Batching::default();
    let batching = Batching {
        batch_tokens: options.get("batch_tokens")?,
        queue_tokens: options.get("queue_tokens")?.unwrap_or(batching.queue_tokens),
        sharing: options.choice("sharing")?.unwrap_or_default(),
    };
    let prompt = PromptOptions {
        template_vars: options.vars("template_vars")?,
        truncate: options.choice("truncate")?.unwrap_or_default(),
        double_bos: options.choice("double_bos")?.unwrap_or_default(),
        sanitize_control_tokens: options.get("sanitize_control_tokens")?.unwrap_or(false),
        ..PromptOptions::default()
    };
    Ok(EngineBuilder::new(dir)
        .device(options.device()?)
        .max_tokens(options.get::<usize>("max_tokens")?)
        .residency(options.choice::<ResidencyArg>("residency")?.unwrap_or(ResidencyArg::Auto).into())
        .batching(batching)
        .prompt(prompt))
}

/// The options that were given.
struct Given<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'py> Given<'_, 'py> {
    fn raw(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        debug_assert!(names().any(|known| known == name), "{name}");
        Ok(self.0.get_item(name)?.filter(|value| !value.is_none()))
    }

    fn get<T: for<'a> FromPyObject<'a, 'py>>(&self, name: &str) -> PyResult<Option<T>> {
        let Some(value) = self.raw(name)? else { return Ok(None) };
        let wrong = |error: PyErr| {
            PyTypeError::new_err(format!(
                "`{name}` is {}: {}",
                value.repr().map_or_else(|_| type_of(&value), |text| text.to_string()),
                error.value(self.0.py())
            ))
        };
        value.extract().map_err(|error: T::Error| wrong(error.into())).map(Some)
    }

    fn choice<T: ValueEnum>(&self, name: &str) -> PyResult<Option<T>> {
        let Some(value) = self.raw(name)? else { return Ok(None) };
        let values = T::value_variants().iter().filter_map(|variant| variant.to_possible_value());
        let values: Vec<String> = values.map(|value| format!("\"{}\"", value.get_name())).collect();
        let text = value.cast::<PyString>().ok().and_then(|text| text.to_str().ok());
        match text.and_then(|text| T::from_str(text, false).ok()) {
            Some(choice) => Ok(Some(choice)),
            None => {
                let message = format!("`{name}` is {}, expected one of {}", value.repr()?, values.join(", "));
                Err(exception(value.py(), &Error::new(ErrorKind::Options, message), None))
            }
        }
    }

    fn replicas(&self) -> PyResult<Replicas> {
        let Some(value) = self.raw("replicas")? else { return Ok(Replicas::default()) };
        // As the command line has them: a number, or `auto`.
        let replicas = value.str()?.to_str()?.parse();
        replicas.map_err(|error: Error| exception(value.py(), &error.prefixed("`replicas`"), None))
    }

    fn vars(&self, name: &str) -> PyResult<Map<String, Value>> {
        let Some(value) = self.raw(name)? else { return Ok(Map::new()) };
        let vars = json(&value)
            .map_err(|error| exception(value.py(), &error.prefixed(format!("`{name}`")), None))?;
        match vars {
            Value::Object(vars) => Ok(vars),
            _ => {
                Err(PyTypeError::new_err(format!("`{name}` is of type {}, expected a dict", type_of(&value))))
            }
        }
    }

    fn device(&self) -> PyResult<Device> {
        let py = self.0.py();
        let defaults = CudaOptions::default();
        let ranks = self.get("ranks")?;
        let replicas = self.replicas()?;
        let cpu = CpuOptions {
            threads: self.get("threads")?,
            ranks,
            replicas,
            math: self.choice("cpu_math")?.unwrap_or_default(),
        };
        let options_error = |message: String| exception(py, &Error::new(ErrorKind::Options, message), None);
        let amount = |name| -> PyResult<Option<f64>> {
            let Some(value) = self.get::<f64>(name)? else { return Ok(None) };
            let valid = value.is_finite() && value >= 0.0;
            valid
                .then_some(Some(value))
                .ok_or_else(|| options_error(format!("`{name}` is {value}, expected at least 0")))
        };
        let seconds = amount("peer_timeout")?.map(|seconds| {
            let timeout = Duration::try_from_secs_f64(seconds).ok().filter(|timeout| !timeout.is_zero());
            timeout.ok_or_else(|| {
                options_error(format!("`peer_timeout` is {seconds}, expected seconds above 0"))
            })
        });
        let cuda = CudaOptions {
            ranks,
            replicas,
            devices: self.get("devices")?.unwrap_or_default(),
            all_reduce: self.choice("all_reduce")?.unwrap_or_default(),
            overlap: self.choice("overlap")?.unwrap_or_default(),
            gemm_tuning: self.choice("gemm_tuning")?.unwrap_or_default(),
            tier: self.choice("cuda_tier")?,
            attention: self.get("cuda_attention")?,
            reserved_bytes: amount("gpu_reserve_gib")?.map(|gib| (gib * GIB as f64) as usize),
            peer_timeout: seconds.transpose()?.unwrap_or(defaults.peer_timeout),
            ..defaults
        };
        match self.choice("device")?.unwrap_or(DeviceArg::Auto) {
            DeviceArg::Auto => Ok(Device::Auto { cpu, cuda }),
            DeviceArg::Cpu => self.refuse(For::Gpus, "GPUs", "cpu").map(|()| cpu.into()),
            DeviceArg::Cuda => self.refuse(For::Cpu, "the CPU", "cuda").map(|()| cuda.into()),
        }
    }

    /// Fails if an option of another device was given.
    fn refuse(&self, devices: For, other: &str, chosen: &str) -> PyResult<()> {
        for (name, only) in OPTIONS {
            if only == devices && self.raw(name)?.is_some() {
                let message =
                    format!("`{name}` is an option of {other}, and `device=\"{chosen}\"` was given");
                let error = Error::new(ErrorKind::Options, message).with_hint("leave out one of the two");
                return Err(exception(self.0.py(), &error, None));
            }
        }
        Ok(())
    }
}

/// Returns the folder of `model`: a path, or a name in the local Hugging Face cache.
pub(crate) fn folder(model: &str) -> Result<std::path::PathBuf> {
    kudos_cli::model_dir::find(model)
}
