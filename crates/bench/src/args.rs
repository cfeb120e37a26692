//! What can be typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

use crate::requests::Lengths;
use crate::shape::ShapeArg;
use kudos::{CpuMath, CudaTier, Error, ErrorKind, Result};
use kudos_cli::args::{DeviceArg, ResidencyArg, seconds};

/// How many tokens a second the engine scores on this machine.
///
/// Each length in `--tokens` is one test: all its sequences, of random ids, are scored in one call, first to warm up,
/// then at least `--repeats` times, and at last to see where the time goes. Tokens count as they are (nominal) and as they
/// are computed, where prefixes that sequences share are computed once (unique).
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct CommandLine {
    /// Something else than the engine as a whole
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) engine: Args,
}

/// What can be measured instead of the engine as a whole.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Measure each kernel of a GPU against what the device can do
    Kernels(KernelsArgs),
    /// Latency and throughput under requests that come one by one, as a service has them
    ServeLike(ServeArgs),
    /// How fast conversations become token ids, which happens beside the device's work
    Tokenize(TokenizeArgs),
}

/// What is measured, and on what.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("weights").args(["model", "shape"]).required(true))]
pub(super) struct ModelArgs {
    /// The model's folder, or an `org/name` that is in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<String>,

    /// Random bf16 weights of a well-known model's shape instead. A GPU makes them itself; on the host, for the CPU and for
    /// streaming, layers repeat after 2 GiB. The vocabulary is cut to 4,096 ids: nothing is computed over it
    #[arg(long, value_enum)]
    pub(super) shape: Option<ShapeArg>,

    /// Only so many of the shape's layers
    #[arg(long, value_name = "N", conflicts_with = "model")]
    pub(super) layers: Option<NonZeroUsize>,

    /// Where to run the model
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceArg,

    /// Ranks that share every layer (tensor parallel) [default: as few GPUs as the model fits on; 1 on the CPU]
    #[arg(long, value_name = "N")]
    pub(super) ranks: Option<usize>,

    /// Whether layers stay on the device, or are streamed through it in every pass
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) residency: ResidencyArg,

    /// Arithmetic of the CPU's matrix products
    #[arg(long, value_enum, default_value = "f32")]
    pub(super) cpu_math: CpuMath,

    /// CPU threads over all ranks [default: all cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Unique tokens that one pass takes together [default: 4096, up to 16384 where layers are streamed through a GPU]
    #[arg(long, value_name = "N")]
    pub(super) batch_tokens: Option<NonZeroUsize>,
}

/// What `bench` without a command measures: the engine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Tokens of each sequence: one test for each number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    pub(super) tokens: Vec<NonZeroUsize>,

    /// Sequences of a test [default: as many as fill one pass]
    #[arg(long, value_name = "N")]
    pub(super) seqs: Option<NonZeroUsize>,

    /// So many of each sequence's tokens, from its start, are shared by all responses to the same prompt
    #[arg(long, value_name = "P", requires = "responses")]
    pub(super) shared_prefix: Option<NonZeroUsize>,

    /// Consecutive sequences that share a prefix: the responses to one prompt
    #[arg(long, value_name = "N", requires = "shared_prefix")]
    pub(super) responses: Option<NonZeroUsize>,

    /// Warm each test up for so long at most: runs that are not measured, until four in a row agree within 3 %, as do a GPU's
    /// clocks behind them
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) warm_up: Duration,

    /// Runs of each test that are measured, at least
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroUsize,

    /// Repeat each test for at least so long: clocks fall under load that lasts
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) seconds: Option<Duration>,

    /// What the device can compute at most, all ranks together, in TFLOP/s: with it, TFLOP/s and their share of it (MFU)
    /// are printed [default: the data sheet's figure, of GPUs that are known; measured, on a CPU]
    #[arg(long, value_name = "X", value_parser = tflops)]
    pub(super) peak_tflops: Option<f64>,

    /// How results are printed: a table, CSV, or JSON, which alone has every sample's counts
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,

    /// Measure Hugging Face transformers on the same ids as well, with this python, which has torch and transformers:
    /// batched at its best, and one conversation at a time as model cards show it. The engine is closed first
    #[arg(long, value_name = "PYTHON")]
    pub(super) compare: Option<PathBuf>,

    /// Arithmetic of transformers: auto is float32 on the CPU and bfloat16 on GPUs (float16 where they have none)
    #[arg(
        long,
        value_enum,
        value_name = "DTYPE,..",
        value_delimiter = ',',
        default_value = "auto",
        requires = "compare"
    )]
    pub(super) compare_dtype: Vec<Dtype>,
}

/// What `bench kernels` measures.
#[derive(Debug, clap::Args)]
pub(super) struct KernelsArgs {
    /// The model whose kernels' sizes are measured
    #[arg(long, value_enum, default_value = "llama-3.1-8b")]
    pub(super) shape: ShapeArg,

    /// Tokens of a pass: all kernels at each of these
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "256,1024,4096")]
    pub(super) tokens: Vec<NonZeroUsize>,

    /// The kernels that run: of another tier than the GPU's own
    #[arg(long, value_enum, value_name = "TIER")]
    pub(super) cuda_tier: Option<CudaTier>,

    /// Samples of each kernel, each of as many launches as take 20 ms
    #[arg(short, long, value_name = "N", default_value = "10")]
    pub(super) repeats: NonZeroUsize,

    /// Launch every kernel once and measure nothing: also on devices that have no speed
    #[arg(long)]
    pub(super) dry_run: bool,

    /// How results are printed
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// What `bench serve-like` measures: the engine under requests that come one by one.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("loads").args(["rate", "load", "concurrency"]).required(true).multiple(true))]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Requests a second, which come at random times (Poisson) whether earlier ones are answered or not: one test for each
    /// number. A latency counts from the time at which the request was to come
    #[arg(long, value_name = "R,..", value_delimiter = ',', value_parser = positive)]
    pub(super) rate: Vec<f64>,

    /// The same, as shares of the requests a second that the engine was measured to answer when all of them wait
    #[arg(long, value_name = "X,..", value_delimiter = ',', value_parser = positive)]
    pub(super) load: Vec<f64>,

    /// Clients, each of which asks again when it has its answer: one test for each number
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(super) concurrency: Vec<NonZeroUsize>,

    /// Tokens of a request: a number, FIRST..LAST (uniform, both included), or lognormal:MEDIAN,SIGMA,MAX
    #[arg(long, value_name = "LENGTHS", default_value = "64..512")]
    pub(super) tokens: Lengths,

    /// Consecutive requests that are responses to one prompt
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) responses: NonZeroUsize,

    /// The part of the shortest of them that is the prompt, from 0 to 1
    #[arg(long, value_name = "X", default_value = "0", value_parser = part)]
    pub(super) shared: f64,

    /// How long requests come; then those that wait are answered
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(super) seconds: Duration,

    /// Threads that submit what comes by itself
    #[arg(long, value_name = "N", default_value = "4")]
    pub(super) submitters: NonZeroUsize,

    /// How results are printed: a table, CSV, or JSON, which alone has every request
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// What `bench tokenize` measures: conversations to token ids.
#[derive(Debug, clap::Args)]
pub(super) struct TokenizeArgs {
    /// The model's folder, or an `org/name` in the local Hugging Face cache: of its files only tokenizer and template count
    #[arg(long, value_name = "DIR")]
    pub(super) model: String,

    /// Lines as `kudos score` reads them; each conversation is rendered and tokenized by itself
    #[arg(value_name = "INPUT.jsonl")]
    pub(super) input: PathBuf,

    /// Threads: one test for each number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1")]
    pub(super) threads: Vec<NonZeroUsize>,

    /// Runs of each test that are measured
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroUsize,

    /// How long a run takes
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(super) seconds: Duration,

    /// How results are printed
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// The arithmetic of a baseline, by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Md,
    Csv,
    Json,
}

impl ModelArgs {
    /// The model by the name that it was asked for with.
    pub(super) fn name(&self) -> &str {
        self.shape.map(|shape| shape.shape().name).or(self.model.as_deref()).unwrap_or_default()
    }
}

impl Args {
    /// Refuses what no model could do.
    pub(super) fn check(&self) -> Result<()> {
        let (Some(prefix), Some(shortest)) = (self.shared_prefix, self.tokens.iter().min()) else {
            return Ok(());
        };
        if prefix < *shortest {
            return Ok(());
        }
        let message =
            format!("a shared prefix of {prefix} tokens leaves nothing of a sequence of {shortest} tokens");
        Err(Error::new(ErrorKind::Options, message)
            .with_hint("`--tokens` counts the prefix and what comes after it: ask for a shorter prefix"))
    }

    /// Tokens of the longest sequences.
    pub(super) fn longest(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.get()).max().unwrap_or(1)
    }
}

fn tflops(text: &str) -> Result<f64, String> {
    let tflops = text.parse::<f64>().ok().filter(|tflops| tflops.is_finite() && *tflops > 0.0);
    tflops.ok_or_else(|| "expected a number of TFLOP/s above 0, such as 989".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "expected a part from 0 to 1, such as 0.5".to_owned())
}
