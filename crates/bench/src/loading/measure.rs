//! Reads and copies all layers, and counts what the system did for it.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::LoadArgs;
use crate::machine::Reads;
use crate::report::{self, elements, number, origin, plain, rate, table};
use crate::summary::Summary;
use crate::{machine, metadata};
use kudos::Result;
use kudos::internals::backend::Geometry;
use kudos::internals::backend::cuda::{LoadPath, probe};
use kudos::internals::config::ModelConfig;
use kudos::internals::model::rope::frequencies;
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Checkpoint, LayerTensors, ModelTensors};
use kudos_cli::output::Output;
use kudos_cli::{model_dir, say};

/// One run over all layers.
#[derive(Debug, Serialize)]
struct Sample {
    seconds: f64,
    cpu_seconds: Option<f64>,
    #[serde(flatten)]
    reads: Option<Reads>,
}

pub(crate) fn run(args: &LoadArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let devices = probe::devices().map_err(|error| error.with_hint("`bench load` needs a GPU"))?;
    let (info, folder) = (&devices[0], model_dir::find(&args.model)?);
    let config = ModelConfig::read(&folder)?;
    let shard = Shard::new(&config, 0, args.ranks.get())?;
    let tensors = ModelTensors::open(&Checkpoint::open(&folder)?, &config, &shard)?;
    let geometry = Geometry::new(&config, shard, frequencies(&config.rope, config.head_dim), 1);
    let layers = &tensors.layers;
    let bytes: usize = layers.iter().map(LayerTensors::size_bytes).sum();
    let mut path = LoadPath::new(info, &geometry, &layers[0])?;
    let mut tests = Vec::new();
    for cache in ["cold", "warm"] {
        // A copy by a simulated device says nothing of a link.
        for target in ["pinned", "gpu"].into_iter().filter(|target| *target == "pinned" || info.has_clock) {
            say(&format!("measuring {cache} files into {target} memory"));
            let samples = (0..args.repeats.get()).map(|_| -> anyhow::Result<Sample> {
                if cache == "cold" {
                    drop_from_page_cache(&folder)?;
                }
                Ok(sample(|| if target == "gpu" { path.copy(layers) } else { path.read(layers) })?)
            });
            let samples = samples.collect::<anyhow::Result<Vec<_>>>()?;
            let rates: Vec<f64> = samples.iter().map(|sample| bytes as f64 / sample.seconds).collect();
            let rates = Summary::new(&rates);
            tests.push(
                json!({"cache": cache, "target": target, "bytes_per_second": rates, "samples": samples}),
            );
        }
    }
    let mut report = metadata::of_process(commit);
    report["device"] = json!(info.name);
    report["layer_bytes"] = json!(bytes);
    report["loading"] = json!(tests);
    output.line(&report::text(&report, args.output, markdown))
}

fn sample(run: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let (reads, cpu, began) = (Reads::of_process(), machine::cpu_seconds(), Instant::now());
    run()?;
    let seconds = began.elapsed().as_secs_f64();
    let reads = Reads::of_process().zip(reads).map(|(after, before)| after.since(before));
    let cpu_seconds = machine::cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    Ok(Sample { seconds, cpu_seconds, reads })
}

/// Has the system drop the pages of all files of a folder, where it does so when asked.
fn drop_from_page_cache(folder: &Path) -> anyhow::Result<()> {
    for entry in folder.read_dir().with_context(|| format!("cannot read `{}`", folder.display()))? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let file = File::open(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        drop(file);
    }
    Ok(())
}

/// The report as Markdown.
fn markdown(report: &Value) -> String {
    let rows = elements(&report["loading"]).map(|test| {
        let samples = &test["samples"];
        let gigabytes = |value: &Value| number(value, |value| rate(value / 1e9));
        let (mean, sd) =
            (gigabytes(&test["bytes_per_second"]["mean"]), gigabytes(&test["bytes_per_second"]["sd"]));
        let median = |field: &str| match elements(samples).all(|sample| sample[field].is_null()) {
            true => "-".to_owned(),
            false => format!("{:.0}", report::median(samples, field)),
        };
        [
            plain(&test["cache"]),
            plain(&test["target"]),
            format!("{mean} ± {sd}"),
            gigabytes(&test["bytes_per_second"]["median"]),
            median("major_faults"),
            median("read_calls"),
            median("disk_bytes"),
        ]
    });
    let heading = "| page cache | into | GB/s | median | major faults | read calls | bytes from disk |\n|---|---|---:|---:|---:|---:|---:|";
    format!("{}\n\n{}, {} bytes of layers", table(heading, rows), origin(report), report["layer_bytes"])
}
