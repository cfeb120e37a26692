//! The fields with which reports begin: the build, the command line, the machine and the model.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::args::ModelArgs;
use crate::machine;
use kudos::Engine;

/// Version of the JSON's form: it grows when a field changes its meaning, moves or goes.
const SCHEMA: u32 = 1;

/// The beginning of every report.
pub(super) fn of_process(commit: Option<&str>) -> Value {
    json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit,
        "arguments": env::args().skip(1).collect::<Vec<_>>(),
        "unix_seconds": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        "cpu": machine::cpu_name(),
    })
}

/// The beginning of a report on a server, as it describes itself.
pub(super) fn of_server(model: &str, device: &str, commit: Option<&str>) -> Value {
    let mut report = of_process(commit);
    report["device"] = json!(device);
    report["model"] = json!({"name": model});
    report
}

/// The beginning of a report on an engine.
pub(super) fn of_engine(args: &ModelArgs, engine: &Engine, commit: Option<&str>) -> Value {
    let (config, plan) = (engine.config(), engine.plan());
    let mut report = of_process(commit);
    report["device"] = json!(engine.device().to_string());
    report["cpu_math"] = json!(args.cpu_math.to_possible_value().map(|value| value.get_name().to_owned()));
    report["model"] = json!({
        "name": args.name(),
        "random_weights": args.shape.is_some(),
        "layers": config.layers,
        "hidden": config.hidden,
        "q_heads": config.q_heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.ffn,
    });
    report["plan"] = json!({
        "ranks": plan.ranks,
        "batch_tokens": plan.batch_tokens,
        "allocated_weight_bytes": plan.footprint.weights,
        "workspace_bytes": plan.footprint.workspace,
        "layers_resident": plan.placement.resident,
        "layers_streamed": plan.placement.streamed,
    });
    report
}
