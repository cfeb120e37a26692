//! Launches kernels and takes their times.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::cases::{Case, Maker};
use super::report::{self, KernelResult, Measured};
use super::yardsticks::Yardsticks;
use crate::args::KernelsArgs;
use crate::report::text;
use crate::shape::VOCAB;
use crate::summary::Summary;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::probe;
use kudos::internals::backend::cuda::stopwatch::Stopwatch;
use kudos::internals::config::ModelConfig;
use kudos::{Error, ErrorKind, Result};
use kudos_cli::output::Output;
use kudos_cli::say;

/// Warm-up of a kernel: clocks rise, and fall again under load.
const WARM_UP: Duration = Duration::from_millis(300);

/// The shortest sample: far longer than the distance of two events without launches between them.
const SAMPLE_SECONDS: f64 = 0.02;

/// The most launches of a sample.
const LAUNCHES_MAX: usize = 10_000;

/// Measures every kernel; a dry run launches each once.
pub(crate) fn run(args: &KernelsArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let config = args.shape.shape().config(None, Some(VOCAB))?;
    let devices = probe::devices().map_err(|error| {
        error.with_hint(
            "`bench kernels` needs a GPU; `cargo bench --bench cpu_kernels` measures the CPU's kernels",
        )
    })?;
    let info = &devices[0];
    let dry_run = args.dry_run;
    if !info.has_clock && !dry_run {
        let message = format!("{} is simulated: its timings say nothing of speed", info.name);
        return Err(Error::new(ErrorKind::Device, message)
            .with_hint("measure on hardware; `--dry-run` launches every kernel and measures nothing")
            .into());
    }
    let tier = args.cuda_tier.map_or_else(|| info.capability.tier(), Into::into);
    if !info.capability.runs(tier) {
        let message =
            format!("a GPU of compute capability {} cannot run {} kernels", info.capability, tier.name());
        return Err(Error::new(ErrorKind::Options, message).with_hint("leave `--cuda-tier` out").into());
    }
    let ops = Rc::new(Ops::new(Context::open(info)?, tier, config.head_dim)?);
    let maker = Maker { ops, config: &config, dry_run };
    let mut kernels = Vec::new();
    let mut measure = |case: Case| -> Result<()> {
        say(&format!("{} {}, {}", if dry_run { "launching" } else { "measuring" }, case.kernel, case.sizes));
        kernels.push(measured(case, (!dry_run).then(|| args.repeats.get()))?);
        Ok(())
    };
    measure(maker.copy()?)?;
    measure(maker.square()?)?;
    for tokens in args.tokens.iter().map(|tokens| tokens.get()) {
        let cases = if args.attention {
            maker.attention_with_tensor_cores(tokens)?
        } else {
            maker.of_tokens(tokens)?
        };
        cases.into_iter().try_for_each(&mut measure)?;
    }
    let device = format!("{}, compute capability {}, {} kernels", info.name, info.capability, tier.name());
    let report = Measured { args, commit, device, kernels }.report();
    output.line(&text(&report, args.output, report::markdown))
}

/// Samples of each yardstick where nothing else is measured.
const YARDSTICK_REPEATS: usize = 10;

/// The yardsticks of the first GPU, which is that of an engine's rank 0. They depend on no size of
/// the model.
pub(crate) fn yardsticks(config: &ModelConfig) -> Result<Yardsticks> {
    let info = &probe::devices()?[0];
    let ops = Rc::new(Ops::new(Context::open(info)?, info.capability.tier(), config.head_dim)?);
    let maker = Maker { ops, config, dry_run: false };
    let copy = measured(maker.copy()?, Some(YARDSTICK_REPEATS))?.bytes_per_second();
    let matmul = measured(maker.square()?, Some(YARDSTICK_REPEATS))?.flop_per_second();
    let known = |rate: Option<f64>| rate.expect("measured cases have a rate");
    Ok(Yardsticks { flop_per_second: known(matmul), bytes_per_second: known(copy) })
}

/// Measures one case; without repeats it is launched once and has no samples.
fn measured(mut case: Case, repeats: Option<usize>) -> Result<KernelResult> {
    let Case { ops, launch, .. } = &mut case;
    let context = ops.context();
    let mut samples = Vec::new();
    let mut launches = 1;
    match repeats {
        None => {
            launch(0)?;
            context.synchronize()?;
        }
        Some(repeats) => {
            let watch = Stopwatch::new(context)?;
            let mut turn = 0;
            let mut seconds = |launches: usize| {
                watch.time(context, || {
                    (0..launches).try_for_each(|_| {
                        turn += 1;
                        launch(turn)
                    })
                })
            };
            let began = Instant::now();
            while began.elapsed() < WARM_UP {
                let once = seconds(launches)? / launches as f64;
                launches = ((SAMPLE_SECONDS / once.max(1e-9)).ceil() as usize).clamp(1, LAUNCHES_MAX);
            }
            for _ in 0..repeats {
                samples.push(seconds(launches)? / launches as f64);
            }
        }
    }
    let Case { kernel, sizes, bytes, flop, .. } = case;
    let seconds = (!samples.is_empty()).then(|| Summary::new(&samples));
    Ok(KernelResult { kernel, sizes, bytes, flop, launches, seconds, samples })
}
