//! The clock around launches.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Yardsticks;
use super::cases::{Case, Maker};
use super::report::{Report, Row};
use crate::args::KernelsArgs;
use crate::measure::Summary;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::probe;
use kudos::internals::backend::cuda::stopwatch::Stopwatch;
use kudos::internals::config::ModelConfig;
use kudos::{Error, ErrorKind, Result};
use kudos_cli::output::Output;
use kudos_cli::say;

/// Launches warm up for so long: clocks rise, and fall again under load.
const WARM_UP: Duration = Duration::from_millis(300);

/// A sample takes so long at least: far longer than its two events are apart by themselves.
const SAMPLE_SECONDS: f64 = 0.02;

/// Launches of a sample, at most.
const LAUNCHES_MAX: usize = 10_000;

/// Measures every kernel, or only launches each once.
pub(crate) fn run(args: &KernelsArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let config = args.shape.shape().config(None)?;
    let devices = probe::devices().map_err(|error| {
        error.with_hint("kernels are of GPUs; `cargo bench --bench cpu_kernels` measures the CPU's")
    })?;
    let info = &devices[0];
    let tried = args.dry_run;
    if !info.has_clock && !tried {
        let message = format!("{} has no clock rate: it is no hardware, and has no speed", info.name);
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
    let maker = Maker { ops, config: &config, tried };
    let mut rows = Vec::new();
    let mut measure = |case: Case| -> Result<()> {
        say(&format!("{} {}, {}", if tried { "launching" } else { "measuring" }, case.kernel, case.sizes));
        rows.push(row(case, (!tried).then(|| args.repeats.get()))?);
        Ok(())
    };
    measure(maker.copy()?)?;
    measure(maker.square()?)?;
    for tokens in &args.tokens {
        maker.of_tokens(tokens.get())?.into_iter().try_for_each(&mut measure)?;
    }
    let device = format!("{}, compute capability {}, {} kernels", info.name, info.capability, tier.name());
    output.line(&Report { args, commit, device, rows }.text())
}

/// Samples of each yardstick where those alone are measured.
const YARDSTICK_REPEATS: usize = 10;

/// The yardsticks of the first GPU, which is an engine's rank 0's. Of the model no size matters.
pub(crate) fn yardsticks(config: &ModelConfig) -> Result<Yardsticks> {
    let info = &probe::devices()?[0];
    let ops = Rc::new(Ops::new(Context::open(info)?, info.capability.tier(), config.head_dim)?);
    let maker = Maker { ops, config, tried: false };
    let measured = |case: Case| row(case, Some(YARDSTICK_REPEATS));
    let copy = measured(maker.copy()?)?.rate();
    let product = measured(maker.square()?)?.flops();
    let known = |rate: Option<f64>| rate.expect("what was repeated has a rate");
    Ok(Yardsticks { flop_per_second: known(product), bytes_per_second: known(copy) })
}

/// One case's row; without repeats it is launched once, and has no samples.
fn row(mut case: Case, repeats: Option<usize>) -> Result<Row> {
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
    Ok(Row { kernel, sizes, bytes, flop, launches, seconds, samples })
}
