//! `kudos plan`: the memory that the model needs, whether it fits, and how long scoring takes.
//! Neither a GPU nor weights are needed.

mod scale;

use serde_json::{Value, json};

use crate::args::{PlanArgs, bytes_of};
use crate::gpus::{GPUS, KnownGpu, LINK_REACHED, TFLOPS_REACHED};
use crate::output::Output;
use crate::{Outcome, model_dir};
use kudos::internals::config::ModelConfig;
use kudos::internals::engine::BATCH_TOKENS;
use kudos::internals::units::gib;
use kudos::{Batching, CudaOptions, CudaTier, Engine, MemoryPlan, PlannedGpus, Replicas, Result};
use scale::{Conversations, Estimate};

/// Memory that the driver and a CUDA context use.
const CONTEXT_MIB: usize = 800;

const MIB: usize = 1 << 20;

/// The plan for one kind of GPU.
struct GpuPlan {
    gpus: PlannedGpus,
    plan: MemoryPlan,
    fits: bool,
    /// The GPU's data sheet, where known.
    known: Option<&'static KnownGpu>,
    /// The time that scoring takes, where conversations are given and the GPUs can score them.
    estimate: Option<Estimate>,
}

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let (builder, config) = match (&args.model, args.shape) {
        (Some(model), _) => {
            let dir = model_dir::find(model)?;
            (Engine::builder(&dir), ModelConfig::read(&dir)?)
        }
        (None, Some(shape)) => {
            let config = shape.shape().config(None, None)?;
            (Engine::builder_random(config.clone(), 0), config)
        }
        (None, None) => unreachable!("the command line asks for a model or a shape"),
    };
    let conversations = Conversations::new(args, &config)?;
    let builder = builder
        .device(CudaOptions {
            ranks: args.ranks,
            replicas: Replicas::Auto,
            reserved_bytes: args.gpu_reserve_gib.map(bytes_of),
            ..CudaOptions::default()
        })
        .max_tokens(args.max_tokens)
        .batching(Batching { batch_tokens: args.batch_tokens, ..Batching::default() });
    let mut plans = Vec::new();
    let mut add = |gpus: PlannedGpus, plan: MemoryPlan, known: Option<&'static KnownGpu>| -> Result<()> {
        let fits = plan.footprint.total() <= gpus.free_bytes;
        let estimate = match (&conversations, known) {
            (Some(conversations), Some(known)) if fits => conversations.on_gpus(&config, &plan, known)?,
            _ => None,
        };
        plans.push(GpuPlan { gpus, plan, fits, known, estimate });
        Ok(())
    };
    let count = args.gpus.get();
    if let Some(gib) = args.gpu_memory_gib {
        let (name, free_bytes) = (format!("{gib} GiB"), bytes_of(gib));
        let gpus = PlannedGpus { name, tier: CudaTier::Sm80, free_bytes, count };
        let plan = builder.plan_for(&gpus)?;
        add(gpus, plan, None)?;
    } else {
        for known in &GPUS {
            let free_bytes = (known.mib - CONTEXT_MIB) * MIB;
            let gpus = PlannedGpus { name: known.name.to_owned(), tier: known.tier, free_bytes, count };
            let plan = builder.plan_for(&gpus)?;
            add(gpus, plan, Some(known))?;
        }
        if let Some((gpus, plan)) = builder.plan_here()? {
            add(PlannedGpus { name: format!("here: {}", gpus.name), ..gpus }, plan, None)?;
        }
    }
    let on_cpus = match (&conversations, args.cpu_nodes.zip(args.cpu_gflops)) {
        (Some(conversations), Some(nodes)) => {
            let batch_tokens = args.batch_tokens.unwrap_or(BATCH_TOKENS);
            Some(conversations.on_cpus(&config, batch_tokens, nodes)?)
        }
        _ => None,
    };
    let mut output = Output::open(None, &[])?;
    if args.json {
        for plan in &plans {
            output.line(&plan.json(conversations.is_some()).to_string())?;
        }
        if let Some(estimate) = on_cpus {
            output.line(&json!({"cpu_nodes": args.cpu_nodes, "time": estimate.json()}).to_string())?;
        }
        return Ok(Outcome::Complete);
    }
    write_memory(&mut output, args, &plans)?;
    if let Some(conversations) = conversations {
        output.line("")?;
        conversations.heading().iter().try_for_each(|line| output.line(line))?;
        plans.iter().try_for_each(|plan| output.line(&plan.time_line()))?;
        on_cpus.iter().try_for_each(|estimate| output.line(&estimate.line("CPU node")))?;
        output.line("")?;
        scale::notes().iter().try_for_each(|line| output.line(line))?;
    }
    Ok(Outcome::Complete)
}

/// Writes the table of memory, and notes on it.
fn write_memory(output: &mut Output, args: &PlanArgs, plans: &[GpuPlan]) -> anyhow::Result<()> {
    let free =
        if args.gpu_memory_gib.is_some() { "what is free" } else { "its memory less 0.8 for the driver" };
    output.line(&format!(
        "GiB per GPU, of {free}; GPUs: those of one replica; replicas: on up to {} GPUs; longest: tokens of a \
         conversation; batch: tokens per pass",
        args.gpus
    ))?;
    output.line("")?;
    output.line(
        "GPU             free   GPUs   replicas   weights   workspace   libraries     left   longest   batch   layers on it",
    )?;
    for plan in plans {
        output.line(&plan.line())?;
    }
    output.line("")?;
    output.line(match plans.iter().any(|plan| plan.plan.ranks > 1) {
        true => {
            "Libraries: reserved for the code of cuBLAS and, on several GPUs, for NCCL's buffers, which depend on its \
             version and on the links between the GPUs."
        }
        false => "Libraries: reserved for the code of cuBLAS.",
    })?;
    if plans.iter().any(|plan| plan.plan.limited_by_memory) {
        output.line("")?;
        output.line(
            "* As long as all layers stay on the GPU, but at least 8192; the model takes longer ones, and `--max-tokens` sets \
             another limit.",
        )?;
    }
    if plans.iter().any(|plan| plan.hiding_tokens().is_some()) {
        output.line("")?;
        output.line(&format!(
            "Streamed layers are copied once per pass. Passes of so many tokens hide the copies, if the link reaches {:.0} % \
             of its data sheet's rate and the tensor cores {:.0} %; this is calculated, not measured.",
            100.0 * LINK_REACHED,
            100.0 * TFLOPS_REACHED
        ))?;
    }
    Ok(())
}

impl GpuPlan {
    /// The fewest tokens per pass with which the copies of streamed layers take no longer than the
    /// computation.
    fn hiding_tokens(&self) -> Option<u64> {
        let known = self.known.filter(|_| self.fits && self.plan.placement.streamed > 0)?;
        let copy_seconds = self.plan.streamed_bytes() as f64 / (known.link_gb_s * LINK_REACHED * 1e9);
        let token_seconds = self.plan.flops_per_token as f64 / (known.tflops * TFLOPS_REACHED * 1e12);
        Some((copy_seconds / token_seconds).ceil() as u64)
    }

    fn line(&self) -> String {
        let Self { gpus, plan, fits, .. } = self;
        let left = gib(gpus.free_bytes) - gib(plan.footprint.total());
        let layers = plan.placement.resident + plan.placement.streamed;
        let mut placement = match (fits, plan.placement.streamed) {
            (false, _) => "does not fit".to_owned(),
            (true, 0) => format!("all {layers}"),
            (true, streamed) => {
                let copied = gib(plan.streamed_bytes());
                format!("{} of {layers}, {streamed} streamed ({copied:.1} per pass", plan.placement.resident)
            }
        };
        if let Some(tokens) = self.hiding_tokens() {
            placement += &format!(", hidden from {tokens} tokens on");
        }
        if *fits && plan.placement.streamed > 0 {
            placement.push(')');
        }
        let longest = format!("{}{}", if plan.limited_by_memory { "*" } else { "" }, plan.max_tokens);
        format!(
            "{:<13}{:>7.2}{:>7}{:>11}{:>10.2}{:>12.2}{:>12.2}{left:>9.2}{longest:>10}{:>8}   {placement}",
            gpus.name,
            gib(gpus.free_bytes),
            plan.ranks,
            plan.replicas,
            gib(plan.footprint.weights),
            gib(plan.footprint.workspace),
            gib(plan.footprint.libraries),
            plan.batch_tokens
        )
    }

    fn time_line(&self) -> String {
        let name = &self.gpus.name;
        let reason = match (&self.estimate, self.known) {
            (Some(estimate), _) => return estimate.line(name),
            (None, None) => "its rates are not known",
            (None, Some(_)) if !self.fits => "the model does not fit",
            (None, Some(_)) => "conversations of so many tokens do not fit",
        };
        format!("{name:<13}   {reason}")
    }

    /// Returns the fields of the line of JSON, with the time where conversations are given.
    fn json(&self, has_time: bool) -> Value {
        let Self { gpus, plan, fits, .. } = self;
        let mut value = json!({
            "gpu": gpus.name,
            "free_bytes": gpus.free_bytes,
            "ranks": plan.ranks,
            "replicas": plan.replicas,
            "fits": fits,
            "weight_bytes": plan.footprint.weights,
            "workspace_bytes": plan.footprint.workspace,
            "library_bytes": plan.footprint.libraries,
            "layers_resident": plan.placement.resident,
            "layers_streamed": plan.placement.streamed,
            "streamed_bytes_per_pass": plan.streamed_bytes(),
            "tokens_that_hide_the_link": self.hiding_tokens(),
            "batch_tokens": plan.batch_tokens,
            "passes_per_million_tokens": 1_000_000_usize.div_ceil(plan.batch_tokens),
            "max_tokens": plan.max_tokens,
            "limited_by_memory": plan.limited_by_memory,
        });
        if has_time {
            value["time"] = self.estimate.as_ref().map_or(Value::Null, Estimate::json);
        }
        value
    }
}
