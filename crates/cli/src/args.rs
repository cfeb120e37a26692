//! The command line.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use clap::{ArgGroup, Args as _, Id, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::eval::metrics::TieCredit;
use crate::input::{Input, Shard};
#[cfg(feature = "cuda")]
use crate::shapes::ShapeArg;
use kudos::internals::request::{Columns, Reading, Rows};
use kudos::internals::units::GIB;
use kudos::{
    AllReduce, Batching, Cluster, CpuMath, CpuOptions, CudaOptions, CudaTier, Device, DoubleBos,
    EngineBuilder, Error, ErrorKind, GemmTuning, Overlap, PromptOptions, Replicas, Residency, Result,
    Truncate,
};

/// The version, and the devices that this build supports.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let cuda = match kudos::internals::MACHINE_CODE {
        Some((nvcc, targets)) => format!("kernels by nvcc {nvcc}, machine code for {targets}"),
        None => "not in this build".to_owned(),
    };
    format!("{}\nCUDA: {cuda}\nCPU: f32, and bf16 on demand", env!("CARGO_PKG_VERSION"))
});

/// Rewards from reward models of the Llama, Mistral, Qwen2, Qwen3 and Gemma 2 families.
#[derive(Debug, Parser)]
#[command(name = "kudos", version, long_version = LONG_VERSION.as_str(), propagate_version = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Score conversations: one result per line, in the input's order
    Score(Box<ScoreArgs>),
    /// Serve rewards over HTTP
    #[cfg(feature = "serve")]
    Serve(Box<ServeArgs>),
    /// Serve rewards over HTTP, in builds with the feature `serve`
    #[cfg(not(feature = "serve"))]
    Serve(MissingArgs),
    /// Evaluate a model on a published benchmark of reward models
    Eval(Box<EvalArgs>),
    /// Select the best response to each prompt, or pairs of a better and a worse one, by their
    /// rewards
    Select(Box<SelectArgs>),
    /// Show the text and the token ids that would be scored, without weights
    Render(RenderArgs),
    /// Show the memory that the model needs, and whether it fits on well-known GPUs, on those of
    /// this machine, or on one of given memory
    #[cfg(feature = "cuda")]
    Plan(PlanArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page of kudos, or of one of its commands: `kudos man score | man -l -`
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// One of the commands, such as `score`
    #[arg(value_name = "COMMAND")]
    pub(super) command: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("inline").args(["prompt"]).requires("response"))]
pub(super) struct ScoreArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Files of conversations to score, one after another, `-` for standard input: JSON lines, also
    /// compressed by gzip or zstd, and Parquet and Arrow files, by their content. A folder
    /// stands for its files, and a pattern such as 'data/*.parquet' for those that it matches
    #[arg(value_name = "INPUT", required_unless_present_any = ["prompt", "rendezvous"], conflicts_with = "prompt")]
    pub(super) input: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) rows: RowArgs,

    /// Score responses to this prompt instead of a file
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: Option<String>,

    /// A response to the prompt; may be repeated
    #[arg(long, value_name = "TEXT", requires = "prompt", allow_hyphen_values = true)]
    pub(super) response: Vec<String>,

    /// Write results to this file instead of standard output: lines; compressed ones where its name
    /// ends in .gz or .zst; a table with the input's columns and the rewards where it ends in
    /// .parquet and the input is tables. An existing file is replaced, of lines once the model is
    /// open, of others when all is scored, unless --resume is given
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Put this text before the names of the columns that a Parquet output adds
    #[arg(long, value_name = "TEXT", requires = "output", conflicts_with = "prompt")]
    pub(super) prefix: Option<String>,

    /// Continue an earlier run after the last whole line that it wrote to the output, if there is
    /// one. Give the whole input and the options of that run again; the file becomes, byte for
    /// byte, that of an uninterrupted run
    #[arg(long, requires = "output", conflicts_with = "prompt")]
    pub(super) resume: bool,

    /// Score rows with the same prompt together, also where they do not stand together: of each N
    /// rows in turn, or 256 MiB of text, which are in memory. The results are in the order of the
    /// input, and no reward changes by it
    #[arg(long, value_name = "N", conflicts_with = "prompt")]
    pub(super) window: Option<NonZeroUsize>,

    /// Score one of N contiguous parts of the files, counted from 0: `0/4` to `3/4` are the whole.
    /// They are cut by bytes, and where neighbours share a prompt at its next change; of compressed
    /// and Arrow files whole ones are taken
    #[arg(long, value_name = "I/N", conflicts_with = "prompt")]
    pub(super) shard: Option<Shard>,

    /// Write to FILE.partial, which becomes FILE when all is scored, with FILE.manifest.json beside
    /// it; outputs other than lines always are written so. With --resume a run whose FILE is there
    /// ends at once
    #[arg(long, requires = "output", conflicts_with = "prompt")]
    pub(super) whole: bool,

    /// Write JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) engine: EngineArgs,
}

#[derive(Debug, clap::Args)]
#[command(mut_group("PromptArgs", |group| group.requires("model")))]
#[command(mut_group("EngineArgs", |group| group.requires("model")))]
#[command(mut_group("ProcessArgs", |group| group.requires("model")))]
pub(super) struct SelectArgs {
    /// The selection
    #[arg(value_enum, value_name = "SELECTION")]
    pub(super) selection: Selection,

    /// Files of conversations, as `kudos score` takes them. Rows of several responses stand alone;
    /// of rows of one response neighbours with the same prompt are taken together
    #[arg(value_name = "INPUT", required_unless_present = "rendezvous")]
    pub(super) input: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) rows: RowArgs,

    /// Take the rewards from these lines of `kudos score` for the same input [default: those in the
    /// rows themselves, as a Parquet output has them]
    #[arg(long, value_name = "RESULTS", conflicts_with_all = options_of_model())]
    pub(super) rewards: Option<PathBuf>,

    /// Compute the rewards with this model: a folder, or an `org/name` that is in the local Hugging
    /// Face cache
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<String>,

    /// Write to this file instead of standard output. An existing file is replaced
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Leave out what is better by less than this. Equal rewards make no pair
    #[arg(long, value_name = "X", default_value = "0", value_parser = margin)]
    pub(super) min_margin: f32,

    /// pairs: the pairs of a prompt's responses [default: extremes]
    #[arg(long, value_enum)]
    pub(super) pairs: Option<PairRule>,

    #[command(flatten)]
    pub(super) prompt: PromptArgs,

    #[command(flatten)]
    pub(super) engine: EngineArgs,
}

/// A selection among the responses to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Selection {
    /// The response with the highest reward, with its margin to the second
    Best,
    /// Chosen and rejected responses
    Pairs,
}

/// The pairs of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum PairRule {
    /// One: the highest and the lowest reward
    #[default]
    Extremes,
    /// All in which one has the higher reward
    All,
}

fn margin(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

/// How rows become conversations.
#[derive(Debug, clap::Args)]
pub(super) struct RowArgs {
    /// Kind of the rows, where their keys or columns would allow several; keys of other kinds are
    /// ignored [default: what the first row of a file, or the columns of a table, say]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) rows: Option<Rows>,

    /// Columns with other names, such as `prompt=question,response=answer`
    #[arg(long, value_name = "KEY=COLUMN,..", value_delimiter = ',', value_parser = column)]
    pub(super) columns: Vec<(String, String)>,
}

impl RowArgs {
    /// Opens the input, or a shard of it.
    pub(super) fn open(&self, paths: &[PathBuf], shard: Option<Shard>) -> anyhow::Result<Input> {
        Input::open(paths, self.reading()?, shard)
    }

    /// Opens the input with more columns of tables, whose values the caller reads.
    pub(super) fn open_with(
        &self,
        paths: &[PathBuf],
        also: &'static [&'static str],
    ) -> anyhow::Result<Input> {
        Input::open(paths, self.reading()?.with_also(also), None)
    }

    fn reading(&self) -> Result<Reading> {
        let columns = self.columns.iter().map(|(key, column)| (key.as_str(), column.as_str()));
        let columns = Columns::new(columns).map_err(|error| error.prefixed("`--columns`"))?;
        Ok(Reading::new(columns, self.rows))
    }
}

fn column(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, column)) if !key.is_empty() && !column.is_empty() => {
            Ok((key.to_owned(), column.to_owned()))
        }
        _ => Err("expected KEY=COLUMN".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    /// The benchmark
    #[arg(value_enum, value_name = "BENCHMARK")]
    pub(super) benchmark: BenchmarkArg,

    /// The benchmark's file as it was published: JSON lines or a JSON array
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// The model's folder, or an `org/name` that is in the local Hugging Face cache
    #[arg(long, value_name = "DIR", required_unless_present = "scores")]
    pub(super) model: Option<String>,

    /// Evaluate these results, as --output writes them, instead of a model
    #[arg(long, value_name = "RESULTS", conflicts_with_all = options_of_scoring())]
    pub(super) scores: Option<PathBuf>,

    /// Write each item with its scores to this file, as the benchmark's own program does. An
    /// existing file is replaced once the model is open, unless --resume is given
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Continue an earlier run after the last whole line that it wrote to the output, if there is
    /// one. The file becomes, byte for byte, that of an uninterrupted run
    #[arg(long, requires = "output")]
    pub(super) resume: bool,

    /// Compare with the results of another model, item by item
    #[arg(long, value_name = "RESULTS")]
    pub(super) baseline: Option<PathBuf>,

    /// Write the report to this file as an HTML page too, with plots of margins, reliability and
    /// length, and with the worst misses. The page loads nothing, and holds texts of the benchmark
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,

    /// Write one JSON object instead of tables
    #[arg(long)]
    pub(super) json: bool,

    /// Compare rewards rounded to bf16, in which programs that run the model in bf16 have them:
    /// some are equal then
    #[arg(long)]
    pub(super) bf16: bool,

    /// Credit for equal scores in rm-bench, rewardbench, helpsteer3 and preferences [default: none]
    #[arg(long, value_enum)]
    pub(super) ties: Option<TieCredit>,

    /// judgebench: the first game alone counts, in which a tie is a decision for B
    #[arg(long)]
    pub(super) single_game: bool,

    /// rewardbench2: leave prompts whose right responses have one score out of the last term of
    /// Ties, as the package rewardbench 0.1.4 does
    #[arg(long)]
    pub(super) skip_zero_spread: bool,

    /// preferences: the column that groups items [default: the first of subset, source and domain
    /// that all items have]
    #[arg(long, value_name = "COLUMN")]
    pub(super) by: Option<String>,

    #[command(flatten)]
    pub(super) prompt: PromptArgs,

    #[command(flatten)]
    pub(super) engine: EngineArgs,
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BenchmarkArg {
    /// RM-Bench
    RmBench,
    /// JudgeBench
    #[value(name = "judgebench")]
    JudgeBench,
    /// RewardBench
    #[value(name = "rewardbench")]
    RewardBench,
    /// RewardBench 2
    #[value(name = "rewardbench2")]
    RewardBench2,
    /// HelpSteer3-Preference
    #[value(name = "helpsteer3")]
    HelpSteer3,
    /// Any file of chosen and rejected responses
    Preferences,
}

/// Returns the options of `kudos eval` that change nothing where no model runs.
fn options_of_scoring() -> Vec<Id> {
    options_of_model().into_iter().chain(["output", "resume", "bf16"].map(Id::from)).collect()
}

/// Returns the options of a model that runs.
fn options_of_model() -> Vec<Id> {
    let flattened = PromptArgs::augment_args(EngineArgs::augment_args(clap::Command::new("kudos")));
    let ids = flattened.get_arguments().map(|argument| argument.get_id().clone());
    ids.chain([Id::from("model")]).collect()
}

impl EvalArgs {
    /// Fails if an option of another benchmark was given: it would change nothing.
    pub(super) fn check(&self) -> Result<()> {
        use BenchmarkArg::{HelpSteer3, JudgeBench, Preferences, RewardBench, RewardBench2, RmBench};
        let options: [(&str, bool, &[BenchmarkArg]); 4] = [
            ("--ties", self.ties.is_some(), &[RmBench, RewardBench, HelpSteer3, Preferences]),
            ("--single-game", self.single_game, &[JudgeBench]),
            ("--skip-zero-spread", self.skip_zero_spread, &[RewardBench2]),
            ("--by", self.by.is_some(), &[Preferences]),
        ];
        let name = |benchmark: BenchmarkArg| {
            benchmark.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
        };
        for (option, is_given, benchmarks) in options {
            if is_given && !benchmarks.contains(&self.benchmark) {
                let of: Vec<String> = benchmarks.iter().map(|benchmark| name(*benchmark)).collect();
                let message = format!(
                    "`{option}` is an option of {}, and the benchmark is {}",
                    of.join(", "),
                    name(self.benchmark)
                );
                return Err(Error::new(ErrorKind::Options, message).with_hint("leave it out"));
            }
        }
        if self.output.as_deref() == Some(Path::new("-")) {
            return Err(Error::new(ErrorKind::Options, "standard output has the report, not the results")
                .with_hint("name a file for `--output`"));
        }
        if self.report.as_deref() == Some(Path::new("-")) {
            return Err(Error::new(
                ErrorKind::Options,
                "standard output has the printed report, not the page",
            )
            .with_hint("name a file for `--report`"));
        }
        Ok(())
    }
}

/// The device, and how the model runs on it.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Device that runs the model
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceArg,

    /// Ranks that share every layer (tensor parallel) [default: as few GPUs as the model fits on; 1
    /// on the CPU]
    #[arg(long, value_name = "N")]
    pub(super) ranks: Option<usize>,

    /// Copies of the model, each on GPUs (or CPU threads) of its own: a number, or `auto` for as
    /// many as there are GPUs for. They take batches from one queue; no reward depends on it
    /// [default: 1]
    #[arg(long, value_name = "N|auto")]
    pub(super) replicas: Option<Replicas>,

    /// Algorithm of the all-reduce over GPUs [default: ordered]
    #[arg(long, value_enum)]
    pub(super) all_reduce: Option<AllReduce>,

    /// Whether all-reduces over GPUs overlap with computation; no reward changes by it [default:
    /// auto]
    #[arg(long, value_enum)]
    pub(super) overlap: Option<Overlap>,

    /// GPUs to use, by index, such as 0,2,3 [default: all]
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(super) devices: Vec<usize>,

    #[command(flatten)]
    pub(super) process: ProcessArgs,

    /// Timeout for a rank that waits for another one, after which all ranks fail [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) peer_timeout: Option<Duration>,

    /// Memory of each GPU that is left to CUDA's libraries and other programs, in GiB [default:
    /// 0.25, and 1 more for several ranks]
    #[arg(long, value_name = "X", value_parser = gib)]
    pub(super) gpu_reserve_gib: Option<f64>,

    /// Limit on unique tokens per pass [default: 4096, up to 16384 where layers are streamed
    /// through a GPU]
    #[arg(long, value_name = "N")]
    pub(super) batch_tokens: Option<usize>,

    /// Whether layers stay on the device
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) residency: ResidencyArg,

    /// CPU threads over all ranks and replicas [default: all cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Arithmetic of the CPU's matmuls and attention [default: f32]
    #[arg(long, value_enum)]
    pub(super) cpu_math: Option<CpuMath>,

    /// Whether a GPU's matmul algorithms are timed when the model is loaded. Timings are kept in
    /// the folder KUDOS_CACHE_DIR (~/.cache/kudos if not set, nowhere if empty); no reward changes
    /// by it [default: auto]
    #[arg(long, value_enum)]
    pub(super) gemm_tuning: Option<GemmTuning>,

    /// Run the kernels for an older GPU, to check them [default: this GPU's own]
    #[arg(long, value_enum, value_name = "TIER")]
    pub(super) cuda_tier: Option<CudaTier>,

    /// Run this attention kernel, or that of a file such as sm80, to check or measure it [default: the fastest one that fits]
    #[arg(long, value_name = "NAME")]
    pub(super) cuda_attention: Option<String>,
}

/// The rank of this process, where ranks are processes, on one machine or on several.
#[derive(Debug, clap::Args)]
pub(super) struct ProcessArgs {
    /// The rank of this process, where ranks are processes, each with a GPU of its own. Rank 0
    /// reads and writes; the others take no INPUT and end with rank 0
    #[arg(long, value_name = "R", requires = "world_size")]
    pub(super) rank: Option<usize>,

    /// The number of ranks
    #[arg(long, value_name = "N", requires = "rendezvous")]
    pub(super) world_size: Option<usize>,

    /// Address at which rank 0 listens and the others connect; or `env`, which takes address and
    /// ranks from the variables of torchrun, or of Slurm with MASTER_ADDR and MASTER_PORT. Only for
    /// networks whose machines trust each other
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "ranks")]
    pub(super) rendezvous: Option<String>,

    /// File with a secret that all ranks must know [default: KUDOS_RENDEZVOUS_SECRET in the
    /// environment]
    #[arg(long, value_name = "FILE", requires = "rendezvous")]
    pub(super) rendezvous_secret_file: Option<PathBuf>,
}

/// Arguments of a command that this build does not have.
#[cfg(not(feature = "serve"))]
#[derive(Debug, clap::Args)]
pub(super) struct MissingArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<std::ffi::OsString>,
}

#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Address or name to listen at; `0.0.0.0` is every address of this machine
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(super) host: String,

    /// Port to listen at; 0 is any that is free, which is then printed
    #[arg(long, value_name = "PORT", default_value = "8000")]
    pub(super) port: u16,

    /// A name of the model; requests for models of other names are refused. May be repeated, and
    /// the first is the name in answers [default: any name is taken]
    #[arg(long, value_name = "NAME")]
    pub(super) served_model_name: Vec<String>,

    /// A name by which clients reach the server, besides addresses, `localhost` and HOST; `*` is
    /// any. May be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) allow_host: Vec<String>,

    /// The origin of web pages elsewhere that may call the server, such as `https://example.org`.
    /// May be repeated
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub(super) allow_origin: Vec<String>,

    /// File with a key that requests must have [default: KUDOS_API_KEY in the environment, or none]
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,

    /// Limit on the body of a request, or on a line of a stream, in MiB
    #[arg(long, value_name = "N", default_value = "64")]
    pub(super) body_limit_mib: NonZeroUsize,

    /// Tokens that may wait; requests beyond that are refused with status 429 [default: those of 32
    /// passes]
    #[arg(long, value_name = "N")]
    pub(super) queue_tokens: Option<NonZeroUsize>,

    /// Time for which an idle server waits for more requests when one arrives, in milliseconds:
    /// with bursts of requests that share a prompt this computes the prompt once
    #[arg(long, value_name = "MS", default_value = "0")]
    pub(super) gather_ms: u64,

    /// Limit on the time of a request, from its headers to its answer [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,

    /// Limit on the time for requests under way when a signal ends the server
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(super) drain: Duration,

    /// Limit on connections; more wait
    #[arg(long, value_name = "N", default_value = "4096")]
    pub(super) connections: NonZeroUsize,

    /// JSON lines with their rewards, as `kudos score` writes them: the server is ready while it
    /// computes these [default: a short conversation, and its first reward]
    #[arg(long, value_name = "FILE")]
    pub(super) canary: Option<PathBuf>,

    /// Largest difference from those rewards [default: 0.05, and 0 from the first reward]
    #[arg(long, value_name = "X", value_parser = tolerance)]
    pub(super) canary_tolerance: Option<f32>,

    /// Events that are written to standard error
    #[arg(long, value_enum, default_value = "info")]
    pub(super) log: LogArg,

    #[command(flatten)]
    pub(super) engine: EngineArgs,
}

/// The least of the events that are logged.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogArg {
    /// Failures that make the server unready
    Error,
    /// And what may matter
    Warn,
    /// And a line for each request
    Info,
    /// And how connections end
    Debug,
}

#[derive(Debug, clap::Args)]
pub(super) struct RenderArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,

    /// Files of conversations to render, as `kudos score` takes them
    #[arg(value_name = "INPUT", required = true)]
    pub(super) input: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) rows: RowArgs,
}

#[cfg(feature = "cuda")]
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("planned").args(["model", "shape"]).required(true))]
pub(super) struct PlanArgs {
    /// The model's folder, or an `org/name` that is in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<String>,

    /// A well-known model instead, in bf16; needs no files
    #[arg(long, value_enum)]
    pub(super) shape: Option<ShapeArg>,

    /// Limit on the tokens of a conversation [default: the model's own limit, or as many as let all
    /// layers stay on the GPU, at least 8192]
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<usize>,

    /// Limit on unique tokens per pass [default: 4096, up to 16384 where layers are streamed
    /// through a GPU]
    #[arg(long, value_name = "N")]
    pub(super) batch_tokens: Option<usize>,

    /// Ranks that share every layer (tensor parallel) [default: as few GPUs as the model fits on]
    #[arg(long, value_name = "N")]
    pub(super) ranks: Option<usize>,

    /// Memory of each GPU that is left to CUDA's libraries and other programs, in GiB [default:
    /// 0.25, and 1 more for several ranks]
    #[arg(long, value_name = "X", value_parser = gib)]
    pub(super) gpu_reserve_gib: Option<f64>,

    /// Number of GPUs of each kind
    #[arg(long, value_name = "N", default_value = "8")]
    pub(super) gpus: NonZeroUsize,

    /// Plan for a GPU with so much free memory instead of well-known ones
    #[arg(long, value_name = "X", value_parser = gib)]
    pub(super) gpu_memory_gib: Option<f64>,

    /// Show how long it takes to score so many conversations, such as 100e6, by the data sheets of
    /// the GPUs
    #[arg(long, value_name = "N", value_parser = count, requires = "tokens_mean", conflicts_with = "gpu_memory_gib")]
    pub(super) conversations: Option<u64>,

    /// Tokens of a conversation on average, its prompt and its response
    #[arg(long, value_name = "N", value_parser = tokens, requires = "conversations")]
    pub(super) tokens_mean: Option<f64>,

    /// Conversations that begin with one prompt, side by side in the input [default: 1]
    #[arg(long, value_name = "N", value_parser = count, requires = "conversations")]
    pub(super) responses: Option<u64>,

    /// Tokens of that prompt on average, which are computed once in a pass [default: 0, nothing is
    /// shared]
    #[arg(long, value_name = "N", value_parser = tokens, requires = "responses")]
    pub(super) prompt_tokens: Option<f64>,

    /// Show the time on so many CPU nodes, too, each with a part of the conversations
    #[arg(long, value_name = "N", value_parser = count, requires_all = ["conversations", "cpu_gflops"])]
    pub(super) cpu_nodes: Option<u64>,

    /// GFLOP/s that one of them reaches with the model, as `bench` measures on it
    #[arg(long, value_name = "X", value_parser = gflops, requires = "cpu_nodes")]
    pub(super) cpu_gflops: Option<f64>,

    /// Write a line of JSON for each GPU
    #[arg(long)]
    pub(super) json: bool,
}

/// The model, and how conversations become its tokens.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// The model's folder, or an `org/name` that is in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(super) model: String,

    #[command(flatten)]
    pub(super) prompt: PromptArgs,
}

/// How conversations become tokens.
#[derive(Debug, clap::Args)]
pub(super) struct PromptArgs {
    /// Limit on the tokens of a conversation [default: the model's own limit, or as many as let all
    /// layers stay on the GPU, at least 8192]
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<usize>,

    /// Policy for a conversation beyond that limit
    #[arg(long, value_enum, default_value = "refuse")]
    pub(super) truncate: Truncate,

    /// Policy for a conversation that begins with BOS twice
    #[arg(long, value_enum, default_value = "refuse")]
    pub(super) double_bos: DoubleBos,

    /// A variable for the chat template, such as `date_string=26 Jul 2024`; the value is JSON if it
    /// parses as JSON; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var, allow_hyphen_values = true)]
    pub(super) template_var: Vec<(String, Value)>,

    /// Encode text that spells a special token as plain text
    #[arg(long)]
    pub(super) sanitize_control_tokens: bool,
}

/// The device to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// GPUs that this build supports, or the CPU on a machine where CUDA cannot be used
    Auto,
    /// The CPU
    Cpu,
    /// NVIDIA GPUs
    Cuda,
}

/// [`Residency`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ResidencyArg {
    /// All layers stay if they fit; otherwise as many as fit, and the others are streamed
    Auto,
    /// All layers stay; an error where they do not fit
    Resident,
    /// Layers are streamed even where all would fit
    Streamed,
}

impl From<ResidencyArg> for Residency {
    fn from(arg: ResidencyArg) -> Self {
        match arg {
            ResidencyArg::Auto => Self::Auto,
            ResidencyArg::Resident => Self::Resident,
            ResidencyArg::Streamed => Self::Streamed { resident_layers: None },
        }
    }
}

impl PromptArgs {
    pub(super) fn options(&self) -> PromptOptions {
        PromptOptions {
            template_vars: self.template_var.iter().cloned().collect(),
            truncate: self.truncate,
            double_bos: self.double_bos,
            sanitize_control_tokens: self.sanitize_control_tokens,
            ..PromptOptions::default()
        }
    }
}

impl EngineArgs {
    /// Returns the engine's builder for the model in `dir`; `cluster` comes from [`ProcessArgs`].
    pub(super) fn builder(
        &self,
        prompt: &PromptArgs,
        dir: &Path,
        cluster: Option<Cluster>,
    ) -> Result<EngineBuilder> {
        let batching = Batching { batch_tokens: self.batch_tokens, ..Batching::default() };
        Ok(EngineBuilder::new(dir)
            .device(self.device(cluster)?)
            .max_tokens(prompt.max_tokens)
            .residency(self.residency.into())
            .batching(batching)
            .prompt(prompt.options()))
    }

    fn device(&self, cluster: Option<Cluster>) -> Result<Device> {
        let defaults = CudaOptions::default();
        let replicas = self.replicas.unwrap_or_default();
        let cpu = CpuOptions {
            threads: self.threads,
            replicas,
            ranks: self.ranks,
            math: self.cpu_math.unwrap_or_default(),
        };
        let of_cpu = [("--threads", self.threads.is_some()), ("--cpu-math", self.cpu_math.is_some())];
        let of_gpus = [
            ("--devices", !self.devices.is_empty()),
            ("--all-reduce", self.all_reduce.is_some()),
            ("--overlap", self.overlap.is_some()),
            ("--gemm-tuning", self.gemm_tuning.is_some()),
            ("--cuda-tier", self.cuda_tier.is_some()),
            ("--cuda-attention", self.cuda_attention.is_some()),
            ("--gpu-reserve-gib", self.gpu_reserve_gib.is_some()),
            ("--peer-timeout", self.peer_timeout.is_some()),
            ("--rendezvous", cluster.is_some()),
        ];
        let cuda = CudaOptions {
            ranks: self.ranks,
            replicas,
            devices: self.devices.clone(),
            all_reduce: self.all_reduce.unwrap_or_default(),
            overlap: self.overlap.unwrap_or_default(),
            gemm_tuning: self.gemm_tuning.unwrap_or_default(),
            tier: self.cuda_tier,
            attention: self.cuda_attention.clone(),
            reserved_bytes: self.gpu_reserve_gib.map(bytes_of),
            peer_timeout: self.peer_timeout.unwrap_or(defaults.peer_timeout),
            cluster,
            ..defaults
        };
        match self.device {
            DeviceArg::Auto => Ok(Device::Auto { cpu, cuda }),
            DeviceArg::Cpu => refuse(&of_gpus, "GPUs", "--device cpu").map(|()| cpu.into()),
            DeviceArg::Cuda => refuse(&of_cpu, "the CPU", "--device cuda").map(|()| cuda.into()),
        }
    }
}

/// Fails if one of `options` of the `other` device was given.
fn refuse(options: &[(&str, bool)], other: &str, chosen: &str) -> Result<()> {
    let Some((option, _)) = options.iter().find(|(_, given)| *given) else { return Ok(()) };
    let message = format!("`{option}` is an option of {other}, and `{chosen}` was given");
    Err(Error::new(ErrorKind::Options, message).with_hint("leave out one of the two"))
}

/// Returns the bytes of so many GiB.
pub(super) fn bytes_of(gib: f64) -> usize {
    (gib * GIB as f64) as usize
}

fn gib(text: &str) -> Result<f64, String> {
    let gib = text.parse::<f64>().ok().filter(|gib| gib.is_finite() && *gib >= 0.0);
    gib.ok_or_else(|| "expected a number of GiB, such as 23.5".to_owned())
}

/// Parses a whole number from 1 on, such as `250`, `1_000_000` or `100e6`.
#[cfg(feature = "cuda")]
fn count(text: &str) -> Result<u64, String> {
    let number = text.replace('_', "").parse::<f64>().ok();
    // Integers up to here are exact.
    let number = number.filter(|number| number.fract() == 0.0 && (1.0..=2_f64.powi(53)).contains(number));
    number
        .map(|number| number as u64)
        .ok_or_else(|| "expected a whole number from 1 on, such as 100e6".to_owned())
}

/// Parses a mean of tokens.
#[cfg(feature = "cuda")]
fn tokens(text: &str) -> Result<f64, String> {
    let tokens = text.replace('_', "").parse::<f64>().ok();
    let tokens = tokens.filter(|tokens| tokens.is_finite() && *tokens >= 1.0);
    tokens.ok_or_else(|| "expected a number of tokens from 1 on, such as 868.4".to_owned())
}

/// Parses a rate.
#[cfg(feature = "cuda")]
fn gflops(text: &str) -> Result<f64, String> {
    let gflops = text.parse::<f64>().ok().filter(|gflops| gflops.is_finite() && *gflops > 0.0);
    gflops.ok_or_else(|| "expected a number of GFLOP/s above 0, such as 1500".to_owned())
}

/// Parses a duration in seconds, greater than 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|seconds| !seconds.is_zero()).ok_or_else(|| "expected seconds, greater than 0".to_owned())
}

/// Parses a difference that is accepted: NaN would accept every one.
#[cfg(feature = "serve")]
fn tolerance(text: &str) -> Result<f32, String> {
    let tolerance = text.parse().ok().filter(|tolerance: &f32| tolerance.is_finite() && *tolerance >= 0.0);
    tolerance.ok_or_else(|| "expected a number from 0 on".to_owned())
}

/// Parses an origin as browsers send it: any other text would match none.
#[cfg(feature = "serve")]
fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ', '*']));
    let wrong = "expected a scheme and a host, without a path, such as `https://example.org`";
    if is_origin { Ok(text.to_ascii_lowercase()) } else { Err(wrong.to_owned()) }
}

fn template_var(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}
