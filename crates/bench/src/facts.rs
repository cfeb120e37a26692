//! What every report as JSON says of itself, the machine and the model.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::args::ModelArgs;
use crate::machine;
use kudos::Engine;

/// Counts changes of the JSON's form that a reader would notice.
const SCHEMA: u32 = 1;

/// Of a report on an engine.
pub(super) fn of(args: &ModelArgs, engine: &Engine, commit: Option<&str>) -> Map<String, Value> {
    let (config, plan) = (engine.config(), engine.plan());
    let mut facts = of_process(commit);
    for (name, value) in [
        ("device", json!(engine.device().to_string())),
        ("cpu_math", json!(args.cpu_math.to_possible_value().map(|value| value.get_name().to_owned()))),
        (
            "model",
            json!({
                "name": args.name(),
                "random_weights": args.shape.is_some(),
                "layers": config.layers,
                "hidden": config.hidden,
                "q_heads": config.q_heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
            }),
        ),
        (
            "plan",
            json!({
                "ranks": plan.ranks,
                "batch_tokens": plan.batch_tokens,
                "allocated_weight_bytes": plan.footprint.weights,
                "workspace_bytes": plan.footprint.workspace,
                "layers_resident": plan.placement.resident,
                "layers_streamed": plan.placement.streamed,
            }),
        ),
    ] {
        facts.insert(name.to_owned(), value);
    }
    facts
}

/// Of any report.
pub(super) fn of_process(commit: Option<&str>) -> Map<String, Value> {
    let facts = [
        ("schema", json!(SCHEMA)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("commit", json!(commit)),
        ("arguments", json!(env::args().skip(1).collect::<Vec<_>>())),
        ("unix_seconds", json!(unix_seconds())),
        ("cpu", json!(machine::cpu_name())),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The time now, in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
