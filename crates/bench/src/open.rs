//! Opens the model that is measured.

use std::time::Instant;

use crate::args::ModelArgs;
use crate::shape;
use kudos::internals::backend::profile::Profile;
use kudos::{
    Batching, CpuOptions, CudaOptions, Device, Engine, EngineBuilder, Error, ErrorKind, Loading, Result,
};
use kudos_cli::args::DeviceArg;
use kudos_cli::{model_dir, progress, running_on, say};

/// Opens the model for sequences of up to `longest` tokens, on a device whose times mean something.
pub(super) fn open(args: &ModelArgs, longest: usize, profile: Option<Profile>) -> Result<Engine> {
    let begun = Instant::now();
    let loading = Loading::default();
    let with_options = |builder| options(builder, args, longest).profile(profile).loading(loading.clone());
    let engine = match (&args.model, args.shape) {
        (Some(model), _) => {
            let dir = model_dir::find(model)?;
            let builder = with_options(Engine::builder(dir));
            progress::while_loading(&loading, || builder.open())?
        }
        (None, Some(shape)) => {
            let config = shape.shape().config(args.layers.map(|layers| layers.get()), Some(shape::VOCAB))?;
            let builder = with_options(Engine::builder_random(config, shape::SEED));
            let engine = progress::while_loading(&loading, || builder.open())?;
            shape::refuse_crowded(engine.config(), engine.plan())?;
            engine
        }
        (None, None) => unreachable!("the command line asks for a model or a shape"),
    };
    check(&engine, longest)?;
    say(&running_on(engine.device()));
    say(&format!("opened in {:.1} s", begun.elapsed().as_secs_f64()));
    engine.warnings().iter().for_each(|warning| say(&format!("warning: {warning}")));
    Ok(engine)
}

/// Sets the options that the command line gives.
fn options(builder: EngineBuilder, args: &ModelArgs, longest: usize) -> EngineBuilder {
    let &ModelArgs { threads, replicas, ranks, cpu_math: math, .. } = args;
    let cpu = CpuOptions { threads, replicas, ranks, math };
    let cuda = CudaOptions { ranks, replicas, ..CudaOptions::default() };
    let device = match args.device {
        DeviceArg::Auto => Device::Auto { cpu, cuda },
        DeviceArg::Cpu => cpu.into(),
        DeviceArg::Cuda => cuda.into(),
    };
    let batch_tokens = args.batch_tokens.map(|tokens| tokens.get());
    // Passes are sized for the longest sequence that will come, not for the longest that the model takes.
    let builder = builder.device(device).max_tokens(longest).residency(args.residency.into());
    builder.batching(Batching { batch_tokens, ..Batching::default() })
}

/// Refuses devices without a speed, and sequences that are too long for the model.
fn check(engine: &Engine, longest: usize) -> Result<()> {
    if engine.device().simulated {
        let message = format!("{} is simulated: its timings say nothing of speed", engine.device());
        return Err(Error::new(ErrorKind::Device, message)
            .with_hint("measure on hardware; `--device cpu` measures this CPU"));
    }
    if engine.plan().max_tokens < longest {
        let limit = engine.plan().max_tokens;
        let message = format!("sequences of {longest} tokens are longer than the model's limit of {limit}");
        return Err(Error::new(ErrorKind::Options, message).with_hint("ask for shorter ones (`--tokens`)"));
    }
    Ok(())
}
