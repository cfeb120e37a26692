//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

use crate::peers::{Compared, Peer};
use crate::requests::Lengths;
use kudos::{CpuMath, CudaTier, Error, ErrorKind, Replicas, Result};
use kudos_cli::args::{DeviceArg, ResidencyArg, seconds};
use kudos_cli::shapes::ShapeArg;

/// Measure how many tokens a second the engine scores on this machine.
///
/// Each length in `--tokens` is one test: all its sequences, of random ids, are scored in one call,
/// first to warm up, then at least `--repeats` times, and last with a profile. Nominal tokens are
/// those of all sequences; unique tokens are those that are computed, as a prefix that sequences
/// share is computed once.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct CommandLine {
    /// Measure something other than the engine as a whole
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) engine: Args,
}

/// The measurements other than of the engine as a whole.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Measure each kernel of a GPU against the device's own rates
    Kernels(KernelsArgs),
    /// Measure latency and throughput under requests that arrive one by one, as in a service
    ServeLike(ServeArgs),
    /// Measure rendering and tokenization, which run beside the device's work
    Tokenize(TokenizeArgs),
    /// Measure how fast rows are read from files, and the memory that this takes
    Rows(RowsArgs),
    /// Measure how fast weights are read from their files, and copied to a GPU
    Load(LoadArgs),
}

/// The model and the device.
#[derive(Clone, Debug, clap::Args)]
#[command(group = ArgGroup::new("weights").args(["model", "shape"]).required(true))]
pub(super) struct ModelArgs {
    /// The model's folder, or an `org/name` that is in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<String>,

    /// Random bf16 weights of a well-known model's shape instead. A GPU makes them itself; on the
    /// host, for the CPU and for streaming, layers repeat after 2 GiB. The vocabulary is cut to
    /// 4,096 ids: no matmul runs over it
    #[arg(long, value_enum)]
    pub(super) shape: Option<ShapeArg>,

    /// The number of the shape's layers [default: all]
    #[arg(long, value_name = "N", conflicts_with = "model")]
    pub(super) layers: Option<NonZeroUsize>,

    /// Where to run the model
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceArg,

    /// Ranks that share every layer (tensor parallel) [default: as few GPUs as the model fits on; 1
    /// on the CPU]
    #[arg(long, value_name = "N")]
    pub(super) ranks: Option<usize>,

    /// Copies of the model, each on GPUs (or CPU threads) of its own: a number, or `auto` [default:
    /// 1]
    #[arg(long, value_name = "N|auto", default_value = "1", hide_default_value = true)]
    pub(super) replicas: Replicas,

    /// Whether layers stay on the device or are streamed through it in every pass
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) residency: ResidencyArg,

    /// Arithmetic of the CPU's matmuls
    #[arg(long, value_enum, default_value = "f32")]
    pub(super) cpu_math: CpuMath,

    /// CPU threads over all ranks [default: all cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Unique tokens of a pass [default: 4096, up to 16384 where layers are streamed through a GPU]
    #[arg(long, value_name = "N")]
    pub(super) batch_tokens: Option<NonZeroUsize>,
}

/// Arguments of `bench` without a command, which measures the engine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Tokens of each sequence: one test per number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    pub(super) tokens: Vec<NonZeroUsize>,

    /// Sequences of a test [default: as many as fill one pass]
    #[arg(long, value_name = "N")]
    pub(super) seqs: Option<NonZeroUsize>,

    /// Tokens at the start of each sequence that all responses to the same prompt share
    #[arg(long, value_name = "P", requires = "responses")]
    pub(super) shared_prefix: Option<NonZeroUsize>,

    /// Consecutive sequences that share a prefix: the responses to one prompt
    #[arg(long, value_name = "N", requires = "shared_prefix")]
    pub(super) responses: Option<NonZeroUsize>,

    /// The longest warm-up of each test: runs that are not measured, until four in a row agree
    /// within 3 %, as must a GPU's clocks after them
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) warm_up: Duration,

    /// The fewest measured runs of each test
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroUsize,

    /// The shortest time for which each test is repeated: clocks fall under lasting load
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) seconds: Option<Duration>,

    /// Peak of the device, all ranks together, in TFLOP/s: TFLOP/s and their share of it (MFU) are
    /// then printed [default: the data sheet's figure for known GPUs; measured on a CPU]
    #[arg(long, value_name = "X", value_parser = tflops)]
    pub(super) peak_tflops: Option<f64>,

    /// Format of the report: JSON, or Markdown tables, which leave out single samples
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,

    /// Also measure other engines on the same ids. NAME=PYTHON is a baseline by its name, run by a
    /// python that has it, beside the engine on a CPU: in as many rounds as `--repeats`, each
    /// baseline at the fastest of the settings that are tried first. PYTHON alone is Hugging Face
    /// transformers on any device, after the engine is closed: at its fastest batch size, and one
    /// conversation at a time as model cards show it
    #[arg(long, value_name = "[NAME=]PYTHON,..", value_delimiter = ',')]
    pub(super) compare: Vec<Compared>,

    /// Leave these baselines of `--compare` out, which is printed
    #[arg(long, value_enum, value_name = "NAME,..", value_delimiter = ',', requires = "compare")]
    pub(super) without: Vec<Peer>,

    /// Run baselines by name with their default settings: no others are tried
    #[arg(long, requires = "compare")]
    pub(super) compare_defaults: bool,

    /// The longest wait for other processes before runs that they disturbed are
    /// measured again
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, requires = "compare")]
    pub(super) compare_wait: Duration,

    /// Arithmetic of baselines. For those by name auto is that of the engine, float32 beside f32 and
    /// bfloat16 beside bf16; for transformers alone it is float32 on the CPU and bfloat16 on GPUs
    /// (float16 where they have none)
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

/// Arguments of `bench kernels`.
#[derive(Debug, clap::Args)]
pub(super) struct KernelsArgs {
    /// The model whose kernels' sizes are measured
    #[arg(long, value_enum, default_value = "llama-3.1-8b")]
    pub(super) shape: ShapeArg,

    /// Tokens of a pass: all kernels are measured at each number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "256,1024,4096")]
    pub(super) tokens: Vec<NonZeroUsize>,

    /// Tier of the kernels [default: the GPU's own]
    #[arg(long, value_enum, value_name = "TIER")]
    pub(super) cuda_tier: Option<CudaTier>,

    /// Measure attention alone, by each kernel with tensor cores, beside the copy and the large matmul
    #[arg(long)]
    pub(super) attention: bool,

    /// Samples of each kernel, of as many launches as take 20 ms
    #[arg(short, long, value_name = "N", default_value = "10")]
    pub(super) repeats: NonZeroUsize,

    /// Launch every kernel once and measure nothing, also on devices without a clock rate
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Format of the report
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// Arguments of `bench serve-like`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("loads").args(["rate", "load", "concurrency"]).required(true).multiple(true))]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Requests a second, which arrive at random times (Poisson) whether earlier ones are completed
    /// or not: one test per number. A latency counts from the time at which the request was due
    #[arg(long, value_name = "R,..", value_delimiter = ',', value_parser = positive)]
    pub(super) rate: Vec<f64>,

    /// Like `--rate`, as shares of the requests a second that the engine completes from a full
    /// queue
    #[arg(long, value_name = "X,..", value_delimiter = ',', value_parser = positive)]
    pub(super) load: Vec<f64>,

    /// Clients, each of which submits its next request when the last one is completed: one test per
    /// number
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(super) concurrency: Vec<NonZeroUsize>,

    /// Tokens of a request: a number, FIRST..LAST (uniform, both included), or
    /// lognormal:MEDIAN,SIGMA,MAX
    #[arg(long, value_name = "LENGTHS", default_value = "64..512")]
    pub(super) tokens: Lengths,

    /// Consecutive requests that are responses to one prompt
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) responses: NonZeroUsize,

    /// Share of the shortest of them that is the prompt, from 0 to 1
    #[arg(long, value_name = "X", default_value = "0", value_parser = share)]
    pub(super) shared: f64,

    /// Time for which requests arrive; after that, those in the queue are completed
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(super) seconds: Duration,

    /// Threads that submit requests in open loops
    #[arg(long, value_name = "N", default_value = "4", conflicts_with = "url")]
    pub(super) submitters: NonZeroUsize,

    /// Measure a server of this address, such as `http://127.0.0.1:8000`, which serves the model;
    /// only the model's vocabulary is read here
    #[arg(long, value_name = "URL", requires = "model")]
    pub(super) url: Option<String>,

    /// Connections to the server in open loops: the most requests that are under way
    #[arg(long, value_name = "N", default_value = "256", requires = "url")]
    pub(super) connections: NonZeroUsize,

    /// Format of the report: JSON, or Markdown tables, which leave out single requests
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// Arguments of `bench tokenize`.
#[derive(Debug, clap::Args)]
pub(super) struct TokenizeArgs {
    /// The model's folder, or an `org/name` in the local Hugging Face cache: only its tokenizer and
    /// template are read
    #[arg(long, value_name = "DIR")]
    pub(super) model: String,

    /// Lines as `kudos score` reads them; each conversation is rendered and tokenized by itself
    #[arg(value_name = "INPUT.jsonl")]
    pub(super) input: PathBuf,

    /// Threads: one test per number
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1")]
    pub(super) threads: Vec<NonZeroUsize>,

    /// Measured runs of each test
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroUsize,

    /// Time of a run
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(super) seconds: Duration,

    /// Format of the report
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// Arguments of `bench rows`.
#[derive(Debug, clap::Args)]
pub(super) struct RowsArgs {
    /// The model's folder, or an `org/name` in the local Hugging Face cache: only its tokenizer and
    /// template are read
    #[arg(long, value_name = "DIR")]
    pub(super) model: String,

    /// Files as `kudos score` reads them
    #[arg(value_name = "INPUT", required = true)]
    pub(super) input: Vec<PathBuf>,

    /// Threads that parse, render and tokenize rows, beside the one that reads them: one test per
    /// number, after one without
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1")]
    pub(super) threads: Vec<NonZeroUsize>,

    /// Format of the report
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// Arguments of `bench load`.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// The model's folder, or an `org/name` in the local Hugging Face cache: its layers are read.
    /// For cold runs the system is asked to drop the pages of the folder's files
    #[arg(long, value_name = "DIR")]
    pub(super) model: String,

    /// Ranks among which the layers are divided: the part of the first one is read
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) ranks: NonZeroUsize,

    /// Measured runs of each test
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroUsize,

    /// Format of the report
    #[arg(short, long, value_enum, default_value = "md")]
    pub(super) output: Format,
}

/// Arithmetic of baselines, by torch's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

/// Format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Md,
    Json,
}

impl ModelArgs {
    /// The name by which the model was asked for.
    pub(super) fn name(&self) -> &str {
        self.shape.map(|shape| shape.shape().name).or(self.model.as_deref()).unwrap_or_default()
    }
}

impl Args {
    /// Refuses a shared prefix that is as long as a sequence.
    pub(super) fn check(&self) -> Result<()> {
        let (Some(prefix), Some(shortest)) = (self.shared_prefix, self.tokens.iter().min()) else {
            return Ok(());
        };
        if prefix < *shortest {
            return Ok(());
        }
        let message =
            format!("a shared prefix of {prefix} tokens leaves no token of a sequence of {shortest} tokens");
        Err(Error::new(ErrorKind::Options, message)
            .with_hint("`--tokens` counts the prefix as well: ask for a shorter prefix"))
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
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
    value.ok_or_else(|| "expected a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0 to 1, such as 0.5".to_owned())
}
