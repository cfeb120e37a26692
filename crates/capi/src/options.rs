//! Options of an engine as a JSON object: those of `kudos score`, with underscores in their names.

use std::path::Path;
use std::time::Duration;

use kudos::internals::units::GIB;
use kudos::{
    AllReduce, Batching, CpuMath, CpuOptions, CudaOptions, CudaTier, Device, DoubleBos, EngineBuilder, Error,
    ErrorKind, GemmTuning, Overlap, PromptOptions, Replicas, Residency, Result, Truncate,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The options. Those that are absent or null have the defaults of the command.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    device: Option<DeviceName>,
    max_tokens: Option<usize>,
    truncate: Option<TruncateName>,
    double_bos: Option<DoubleBosName>,
    template_var: Option<Map<String, Value>>,
    sanitize_control_tokens: Option<bool>,
    batch_tokens: Option<usize>,
    residency: Option<ResidencyName>,
    ranks: Option<usize>,
    replicas: Option<ReplicasName>,
    threads: Option<usize>,
    cpu_math: Option<CpuMathName>,
    devices: Option<Vec<usize>>,
    all_reduce: Option<AllReduceName>,
    overlap: Option<OverlapName>,
    gemm_tuning: Option<GemmTuningName>,
    cuda_tier: Option<CudaTierName>,
    cuda_attention: Option<String>,
    gpu_reserve_gib: Option<f64>,
    peer_timeout: Option<f64>,
}

/// Declares the names of an enum's variants in JSON, those of the command.
macro_rules! names {
    ($($name:ident: $target:ty { $($variant:ident => $value:expr,)+ })+) => {
        $(
            #[derive(Clone, Copy, Debug, Deserialize)]
            #[serde(rename_all = "kebab-case")]
            enum $name {
                $($variant,)+
            }

            impl From<$name> for $target {
                fn from(name: $name) -> Self {
                    match name {
                        $($name::$variant => $value,)+
                    }
                }
            }
        )+
    };
}

names! {
    TruncateName: Truncate {
        Refuse => Truncate::Refuse,
        Left => Truncate::Left,
    }
    DoubleBosName: DoubleBos {
        Refuse => DoubleBos::Refuse,
        Allow => DoubleBos::Allow,
        Add => DoubleBos::Add,
    }
    ResidencyName: Residency {
        Auto => Residency::Auto,
        Resident => Residency::Resident,
        Streamed => Residency::Streamed { resident_layers: None },
    }
    CpuMathName: CpuMath {
        F32 => CpuMath::F32,
        F32Vector => CpuMath::F32Vector,
        Bf16 => CpuMath::Bf16,
    }
    AllReduceName: AllReduce {
        Ordered => AllReduce::Ordered,
        Nccl => AllReduce::Nccl,
    }
    OverlapName: Overlap {
        Auto => Overlap::Auto,
        Always => Overlap::Always,
        Never => Overlap::Never,
    }
    GemmTuningName: GemmTuning {
        Auto => GemmTuning::Auto,
        Off => GemmTuning::Off,
    }
    CudaTierName: CudaTier {
        Sm75 => CudaTier::Sm75,
        Sm80 => CudaTier::Sm80,
    }
}

/// A number of replicas, or `auto`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum ReplicasName {
    Count(usize),
    Name(String),
}

impl ReplicasName {
    fn replicas(&self) -> Result<Replicas> {
        match self {
            Self::Count(count) => Ok(Replicas::Count(*count)),
            Self::Name(name) => name
                .parse()
                .map_err(|error: Error| wrong(format!("`replicas` is \"{name}\", {}", error.message()))),
        }
    }
}

/// The device to run on.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DeviceName {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// Returns the builder of an engine for the model in folder `dir`, with the options of a JSON text.
pub(crate) fn builder(dir: &Path, text: Option<&str>) -> Result<EngineBuilder> {
    let options = match text {
        None => Options::default(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            let message = format!("the options cannot be read: {error}");
            wrong(message).with_hint(
                "they are a JSON object with the options of `kudos score`, such as {\"device\": \"cpu\", \"max_tokens\": 8192}",
            )
        })?,
    };
    options.builder(dir)
}

impl Options {
    fn builder(&self, dir: &Path) -> Result<EngineBuilder> {
        let batching = Batching { batch_tokens: self.batch_tokens, ..Batching::default() };
        let prompt = PromptOptions {
            template_vars: self.template_var.clone().unwrap_or_default(),
            truncate: self.truncate.map(Into::into).unwrap_or_default(),
            double_bos: self.double_bos.map(Into::into).unwrap_or_default(),
            sanitize_control_tokens: self.sanitize_control_tokens.unwrap_or_default(),
            ..PromptOptions::default()
        };
        Ok(EngineBuilder::new(dir)
            .device(self.device()?)
            .max_tokens(self.max_tokens)
            .residency(self.residency.map(Into::into).unwrap_or_default())
            .batching(batching)
            .prompt(prompt))
    }

    fn device(&self) -> Result<Device> {
        let of_cpu = [("threads", self.threads.is_some()), ("cpu_math", self.cpu_math.is_some())];
        let of_gpus = [
            ("devices", self.devices.is_some()),
            ("all_reduce", self.all_reduce.is_some()),
            ("overlap", self.overlap.is_some()),
            ("gemm_tuning", self.gemm_tuning.is_some()),
            ("cuda_tier", self.cuda_tier.is_some()),
            ("cuda_attention", self.cuda_attention.is_some()),
            ("gpu_reserve_gib", self.gpu_reserve_gib.is_some()),
            ("peer_timeout", self.peer_timeout.is_some()),
        ];
        let math = self.cpu_math.map(Into::into).unwrap_or_default();
        let replicas = self.replicas.as_ref().map_or(Ok(Replicas::default()), ReplicasName::replicas)?;
        let cpu = CpuOptions { threads: self.threads, replicas, ranks: self.ranks, math };
        let cuda = CudaOptions { replicas, ..self.cuda()? };
        match self.device.unwrap_or_default() {
            DeviceName::Auto => Ok(Device::Auto { cpu, cuda }),
            DeviceName::Cpu => refuse(&of_gpus, "GPUs", "cpu").map(|()| cpu.into()),
            DeviceName::Cuda => refuse(&of_cpu, "the CPU", "cuda").map(|()| cuda.into()),
        }
    }

    fn cuda(&self) -> Result<CudaOptions> {
        let defaults = CudaOptions::default();
        Ok(CudaOptions {
            ranks: self.ranks,
            devices: self.devices.clone().unwrap_or_default(),
            all_reduce: self.all_reduce.map(Into::into).unwrap_or_default(),
            overlap: self.overlap.map(Into::into).unwrap_or_default(),
            gemm_tuning: self.gemm_tuning.map(Into::into).unwrap_or_default(),
            tier: self.cuda_tier.map(Into::into),
            attention: self.cuda_attention.clone(),
            reserved_bytes: self.gpu_reserve_gib.map(bytes_of).transpose()?,
            peer_timeout: self.peer_timeout.map_or(Ok(defaults.peer_timeout), timeout)?,
            ..defaults
        })
    }
}

/// Fails if one of `options` of the `other` device was given.
fn refuse(options: &[(&str, bool)], other: &str, chosen: &str) -> Result<()> {
    let Some((option, _)) = options.iter().find(|(_, given)| *given) else { return Ok(()) };
    let message = format!("`{option}` is an option of {other}, and `device` is \"{chosen}\"");
    Err(wrong(message).with_hint("leave out one of the two"))
}

/// Returns the bytes of so many GiB.
fn bytes_of(gib: f64) -> Result<usize> {
    if gib < 0.0 {
        return Err(wrong(format!("`gpu_reserve_gib` is {gib}, expected a number of GiB, such as 23.5")));
    }
    Ok((gib * GIB as f64) as usize)
}

fn timeout(seconds: f64) -> Result<Duration> {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
    time.ok_or_else(|| wrong(format!("`peer_timeout` is {seconds}, expected seconds, greater than 0")))
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Options, message)
}
