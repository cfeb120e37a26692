//! `kudos plan`: what the model would hold in memory, and whether it fits. No GPU is needed, and no weight is read.

use serde_json::{Value, json};

use crate::backend::tier::CudaTier;
use crate::cli::args::PlanArgs;
use crate::cli::output::Output;
use crate::cli::{Outcome, model_dir};
use crate::engine::{Engine, Options, Plan, PlannedGpus};

/// Well-known GPUs: memory in MiB as their driver tells it, and the kernels that they run.
const GPUS: [(&str, usize, CudaTier); 9] = [
    ("T4", 15_360, CudaTier::Sm75),
    ("RTX 2080 Ti", 11_264, CudaTier::Sm75),
    ("A100 40GB", 40_960, CudaTier::Sm80),
    ("A100 80GB", 81_920, CudaTier::Sm80),
    ("L40S", 46_068, CudaTier::Sm80),
    ("RTX 4090", 24_564, CudaTier::Sm80),
    ("H100", 81_559, CudaTier::Sm80),
    ("H200", 143_771, CudaTier::Sm80),
    ("B200", 183_359, CudaTier::Sm80),
];

/// What is taken off for the context and the libraries. What NCCL takes for several ranks is not known beforehand.
const TAKEN_MIB: usize = 800;

const MIB: usize = 1 << 20;
const GIB: f64 = (1_u64 << 30) as f64;

/// What comes of one kind of GPU.
struct Row {
    gpus: PlannedGpus,
    plan: Plan,
    fits: bool,
}

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model)?;
    let defaults = Options::default();
    let options = Options {
        ranks: args.ranks,
        batch_tokens: args.batch_tokens.unwrap_or(defaults.batch_tokens),
        max_tokens: args.max_tokens,
        ..defaults
    };
    let named = |&(name, mib, tier): &(&str, usize, CudaTier)| PlannedGpus {
        name: name.to_owned(),
        tier,
        free_bytes: (mib - TAKEN_MIB) * MIB,
        count: args.gpus.get(),
    };
    let kinds: Vec<PlannedGpus> = match args.gpu_memory_gib {
        Some(gib) => vec![PlannedGpus {
            name: format!("{gib} GiB"),
            tier: CudaTier::Sm80,
            free_bytes: (gib * GIB) as usize,
            count: args.gpus.get(),
        }],
        None => GPUS.iter().map(named).collect(),
    };
    let mut rows = Vec::new();
    for gpus in kinds {
        let plan = Engine::plan_for(&dir, &options, &gpus)?;
        let fits = plan.footprint.total() <= gpus.free_bytes;
        rows.push(Row { gpus, plan, fits });
    }
    let mut output = Output::open(None)?;
    if args.json {
        for row in &rows {
            output.line(&row.json().to_string())?;
        }
        return Ok(Outcome::Complete);
    }
    let plan = &rows[0].plan;
    output.line(&format!(
        "passes of {} unique tokens, sequences of up to {}; GiB a GPU, of {}",
        plan.batch_tokens,
        plan.max_tokens,
        if args.gpu_memory_gib.is_some() { "what is free" } else { "its memory less 0.8 for the driver" }
    ))?;
    output.line("")?;
    output.line("GPU             free   GPUs   weights   workspace     left   layers on it")?;
    for row in &rows {
        output.line(&row.line())?;
    }
    Ok(Outcome::Complete)
}

impl Row {
    fn line(&self) -> String {
        let Self { gpus, plan, fits } = self;
        let gib = |bytes: usize| bytes as f64 / GIB;
        let left = gib(gpus.free_bytes) - gib(plan.footprint.total());
        let layers = plan.placement.resident + plan.placement.streamed;
        let said = match (fits, plan.placement.streamed) {
            (false, _) => "does not fit".to_owned(),
            (true, 0) => format!("all {layers}"),
            (true, streamed) => format!("{} of {layers}, {streamed} streamed", plan.placement.resident),
        };
        format!(
            "{:<13}{:>7.2}{:>7}{:>10.2}{:>12.2}{left:>9.2}   {said}",
            gpus.name,
            gib(gpus.free_bytes),
            plan.ranks,
            gib(plan.footprint.weights),
            gib(plan.footprint.workspace)
        )
    }

    fn json(&self) -> Value {
        let Self { gpus, plan, fits } = self;
        json!({
            "gpu": gpus.name,
            "free_bytes": gpus.free_bytes,
            "ranks": plan.ranks,
            "fits": fits,
            "weight_bytes": plan.footprint.weights,
            "workspace_bytes": plan.footprint.workspace,
            "layers_resident": plan.placement.resident,
            "layers_streamed": plan.placement.streamed,
            "batch_tokens": plan.batch_tokens,
            "max_tokens": plan.max_tokens,
        })
    }
}
