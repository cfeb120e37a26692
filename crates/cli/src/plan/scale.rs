//! `kudos plan --conversations`: the time that scoring them takes, by the data sheets of GPUs and
//! by rates that were measured elsewhere. Nothing is measured here.

use std::fmt;

use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::gpus::{KnownGpu, LINK_REACHED, TFLOPS_REACHED};
use crate::work::Work;
use kudos::internals::backend::Geometry;
use kudos::internals::config::ModelConfig;
use kudos::internals::engine::TOKENS_PER_SEQUENCE;
use kudos::internals::shard::Shard;
use kudos::{CudaTier, Error, ErrorKind, MemoryPlan, Result};

/// Bytes of text per token: about those of English by vocabularies of 100,000 ids.
const TEXT_BYTES_PER_TOKEN: f64 = 4.5;

/// Bytes of a conversation's part of the output.
const RESULT_BYTES: f64 = 80.0;

/// Tokens that one thread tokenizes per second: measured, benches/README.md.
const TOKENIZED_PER_SECOND: f64 = 819_000.0;

/// Conversations of one length, as many to each prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversations {
    count: f64,
    tokens: f64,
    responses: f64,
    prompt_tokens: f64,
}

/// A limit on the speed of scoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// Tensor cores, or the arithmetic of a CPU.
    Compute,
    /// Memory of a GPU, from which each pass reads the weights.
    Memory,
    /// The link over which layers are streamed.
    Link,
    /// The links between the ranks of a replica.
    AllReduce,
    /// Tokenizing.
    Host,
}

/// The seconds that scoring takes by each limit alone, and what they follow from.
#[derive(Clone, Debug)]
pub(super) struct Estimate {
    conversations: Conversations,
    /// GPUs or CPU nodes in use.
    devices: usize,
    passes: f64,
    unique_tokens: f64,
    /// FLOP of all devices.
    flop: f64,
    /// Bytes of weights that one device reads from its memory.
    weight_bytes: f64,
    /// Bytes that are copied to one device.
    link_bytes: f64,
    /// Bytes that one device receives from others.
    all_reduce_bytes: f64,
    seconds: [(Limit, f64); 5],
}

impl Conversations {
    /// Returns the conversations of the command line, if it has any.
    pub(super) fn new(args: &PlanArgs, config: &ModelConfig) -> Result<Option<Self>> {
        let (Some(count), Some(tokens)) = (args.conversations, args.tokens_mean) else { return Ok(None) };
        let (responses, prompt_tokens) = (args.responses.unwrap_or(1), args.prompt_tokens.unwrap_or(0.0));
        let refused = |message, hint| Err(Error::new(ErrorKind::Options, message).with_hint(hint));
        if prompt_tokens >= tokens {
            let message =
                format!("a prompt of {prompt_tokens} tokens leaves none of a conversation's {tokens}");
            return refused(message, "`--tokens-mean` counts the prompt and the response");
        }
        if responses > count {
            let message =
                format!("{responses} responses to a prompt are more than the {count} conversations");
            return refused(message, "`--conversations` counts every response");
        }
        let longest = args.max_tokens.unwrap_or(config.max_tokens).min(config.max_tokens);
        if tokens > longest as f64 {
            let message = format!("conversations of {tokens} tokens are beyond the limit of {longest}");
            return refused(
                message,
                "lower `--tokens-mean`, or raise `--max-tokens` up to the model's own limit",
            );
        }
        Ok(Some(Self { count: count as f64, tokens, responses: responses as f64, prompt_tokens }))
    }

    /// Returns the work, and its number of passes, of so many unique tokens and sequences at most.
    ///
    /// A prompt is computed once, and again by each pass that begins between its responses: passes
    /// begin anywhere, so each but the first computes the part `1 - 1 / responses` of a prompt
    /// again, on average.
    fn work(&self, batch_tokens: usize, sequences: usize) -> (Work, f64) {
        let Self { count, tokens, responses, prompt_tokens } = *self;
        let again = 1.0 - 1.0 / responses;
        let unique = tokens - again * prompt_tokens;
        let fitting = (batch_tokens as f64 - again * prompt_tokens) / unique;
        let passes = (count / fitting.min(sequences as f64).max(1.0)).ceil();
        let prefixes = (count / responses).ceil() + again * (passes - 1.0);
        (Work { sequences: count, tokens, prefixes, prefix_tokens: prompt_tokens }, passes)
    }

    /// Returns the estimate for GPUs of this kind; `None` where their longest conversation is
    /// shorter.
    pub(super) fn on_gpus(
        &self,
        config: &ModelConfig,
        plan: &MemoryPlan,
        known: &KnownGpu,
    ) -> Result<Option<Estimate>> {
        if self.tokens > plan.max_tokens as f64 {
            return Ok(None);
        }
        let shard = Shard::new(config, 0, plan.ranks)?;
        let (work, passes) = self.work(plan.batch_tokens, plan.sequences);
        let replicas = plan.replicas as f64;
        let unique_tokens = work.unique_tokens();
        let flop = work.flop(config, &shard) / replicas;
        let streamed_bytes = plan.streamed_bytes() as f64;
        let slot_bytes = (plan.placement.slots * plan.layer_bytes) as f64;
        let weight_bytes = passes / replicas * (plan.footprint.weights as f64 - slot_bytes + streamed_bytes);
        let link_bytes = passes / replicas * streamed_bytes;
        // Two in each layer, of which the last has only the rows in which sequences end; in f32 where
        // activations are f16.
        let element_bytes = if known.tier == CudaTier::Sm75 { 4.0 } else { 2.0 };
        let rows = (config.layers - 1) as f64 * unique_tokens + self.count;
        let row_bytes = config.hidden as f64 * element_bytes;
        let received = parts_received(&Geometry::new(config, shard, Vec::new(), 1));
        let all_reduce_bytes = 2.0 * rows / replicas * row_bytes * received;
        let devices = plan.replicas * plan.ranks;
        Ok(Some(Estimate {
            conversations: *self,
            devices,
            passes,
            unique_tokens,
            flop: flop * devices as f64,
            weight_bytes,
            link_bytes,
            all_reduce_bytes,
            seconds: [
                (Limit::Compute, flop / (known.tflops * TFLOPS_REACHED * 1e12)),
                (Limit::Memory, weight_bytes / (known.memory_gb_s * 1e9)),
                (Limit::Link, link_bytes / (known.link_gb_s * LINK_REACHED * 1e9)),
                (Limit::AllReduce, all_reduce_bytes / (known.peer_gb_s * LINK_REACHED * 1e9)),
                (Limit::Host, self.host_seconds(devices)),
            ],
        }))
    }

    /// Returns the estimate for CPU nodes that reach `gflops` each, in passes of so many unique
    /// tokens.
    pub(super) fn on_cpus(
        &self,
        config: &ModelConfig,
        batch_tokens: usize,
        (nodes, gflops): (u64, f64),
    ) -> Result<Estimate> {
        let (work, passes) = self.work(batch_tokens, batch_tokens.div_ceil(TOKENS_PER_SEQUENCE));
        let flop = work.flop(config, &Shard::new(config, 0, 1)?);
        let devices = nodes as usize;
        Ok(Estimate {
            conversations: *self,
            devices,
            passes,
            unique_tokens: work.unique_tokens(),
            flop,
            weight_bytes: 0.0,
            link_bytes: 0.0,
            all_reduce_bytes: 0.0,
            seconds: [
                (Limit::Compute, flop / (nodes as f64 * gflops * 1e9)),
                (Limit::Memory, 0.0),
                (Limit::Link, 0.0),
                (Limit::AllReduce, 0.0),
                (Limit::Host, self.host_seconds(devices)),
            ],
        })
    }

    /// Seconds of tokenizing whole conversations, by a thread for each device.
    fn host_seconds(&self, devices: usize) -> f64 {
        self.count * self.tokens / (TOKENIZED_PER_SECOND * devices as f64)
    }

    /// Bytes of text, of which a prompt is there once for all its responses.
    fn input_bytes(&self) -> f64 {
        let prompts = (self.count / self.responses).ceil() * self.prompt_tokens;
        (prompts + self.count * (self.tokens - self.prompt_tokens)) * TEXT_BYTES_PER_TOKEN
    }

    fn output_bytes(&self) -> f64 {
        self.count * RESULT_BYTES
    }

    /// Returns the lines before the table, and its heading.
    pub(super) fn heading(&self) -> [String; 5] {
        let shared = match (self.responses, self.prompt_tokens) {
            (1.0, _) => "nothing is shared".to_owned(),
            (responses, 0.0) => {
                format!("{responses} to a prompt, which shares nothing without `--prompt-tokens`")
            }
            (responses, tokens) => format!("{responses} to a prompt of {tokens}"),
        };
        [
            format!(
                "Scoring {} conversations of {} tokens, {shared}: calculated, not measured.",
                self.count, self.tokens
            ),
            format!(
                "Input {}B of text at {TEXT_BYTES_PER_TOKEN} bytes a token, output {}B at {RESULT_BYTES} a conversation. \
                 Hours by each limit alone, then in all.",
                Si(self.input_bytes()),
                Si(self.output_bytes())
            ),
            String::new(),
            "                      unique                     copied   received                      hours".to_owned(),
            "device        number  tokens    FLOP   passes   to each    by each   compute   memory     link   all-reduce     \
             host   longest      in all   device hours"
                .to_owned(),
        ]
    }
}

/// Parts of its rows that a rank receives in an ordered all-reduce of many rows: that of each other
/// rank, or those of its slice and then the sums of the other slices.
fn parts_received(geometry: &Geometry) -> f64 {
    let (ranks, others) = (geometry.shard.ranks as f64, geometry.shard.ranks as f64 - 1.0);
    if geometry.adds_by_slices() { 2.0 * others / ranks } else { others }
}

/// The lines after the table.
pub(super) fn notes() -> [String; 4] {
    [
        "Unique tokens: those that are computed, a prompt once in each pass that has responses to it. FLOP: matmuls and \
         causal attention of these, in the last layer"
            .to_owned(),
        "of the scored tokens only. All conversations have the mean's length: attention takes more where lengths differ. \
         Loading the model is not counted."
            .to_owned(),
        format!(
            "Compute: {:.0} % of the tensor cores' data sheet rate; on CPU nodes, `--cpu-gflops`. Memory: the weights once a \
             pass. Link, all-reduce: {:.0} % of the data sheet's.",
            100.0 * TFLOPS_REACHED,
            100.0 * LINK_REACHED
        ),
        format!(
            "Host: {TOKENIZED_PER_SECOND} tokens/s of tokenizing, measured on a thread of a CPU, a thread for each device. In \
             all: the longest, as the others overlap with it."
        ),
    ]
}

impl Estimate {
    /// Returns the limit that takes the longest, and its seconds.
    fn longest(&self) -> (Limit, f64) {
        self.seconds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are limits")
    }

    /// Returns the line of the table.
    pub(super) fn line(&self, device: &str) -> String {
        let (limit, seconds) = self.longest();
        let hours = |seconds: f64| seconds / 3600.0;
        let [compute, memory, link, all_reduce, host] =
            self.seconds.map(|(_, seconds)| Hours(hours(seconds)));
        format!(
            "{device:<13}{:>7}{:>8}{:>8}{:>9}{:>9}B{:>10}B{compute:>10}{memory:>9}{link:>9}{all_reduce:>13}{host:>9}   \
             {:<10}{:>8}{:>15}",
            self.devices,
            Si(self.unique_tokens),
            Si(self.flop),
            Si(self.passes),
            Si(self.link_bytes),
            Si(self.all_reduce_bytes),
            limit.name(),
            Hours(hours(seconds)),
            Hours(hours(seconds) * self.devices as f64),
        )
    }

    /// Returns the fields of the line of JSON: counts, bytes and seconds.
    pub(super) fn json(&self) -> Value {
        let conversations = &self.conversations;
        let (limit, seconds) = self.longest();
        let mut value = json!({
            "conversations": conversations.count as u64,
            "tokens": conversations.count * conversations.tokens,
            "unique_tokens": self.unique_tokens,
            "passes": self.passes as u64,
            "flop": self.flop,
            "input_bytes": conversations.input_bytes(),
            "output_bytes": conversations.output_bytes(),
            "weight_bytes_read_per_device": self.weight_bytes,
            "link_bytes_per_device": self.link_bytes,
            "all_reduce_bytes_per_device": self.all_reduce_bytes,
            "longest": limit.name(),
            "seconds": seconds,
            "devices": self.devices,
            "device_seconds": seconds * self.devices as f64,
        });
        for (limit, seconds) in self.seconds {
            value[format!("{}_seconds", limit.name().replace('-', "_"))] = seconds.into();
        }
        value
    }
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Link => "link",
            Self::AllReduce => "all-reduce",
            Self::Host => "host",
        }
    }
}

/// A number of three digits with the prefix of its power of 1000: `8.14Z`.
struct Si(f64);

impl fmt::Display for Si {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PREFIXES: [&str; 10] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y", "R"];
        let (mut value, mut prefix) = (self.0, 0);
        // From 999.5 on three digits would be four.
        while value >= 999.5 && prefix + 1 < PREFIXES.len() {
            (value, prefix) = (value / 1000.0, prefix + 1);
        }
        let digits = if prefix == 0 || value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        f.pad(&format!("{value:.digits$}{}", PREFIXES[prefix]))
    }
}

/// Hours, with fractions where they are few.
struct Hours(f64);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0.0 => f.pad("-"),
            hours if hours < 9.995 => f.pad(&format!("{hours:.2}")),
            hours if hours < 99.95 => f.pad(&format!("{hours:.1}")),
            hours => f.pad(&format!("{hours:.0}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::ShapeArg;
    use kudos::internals::batch::{Batch, Budget, Sharing};

    fn conversations(count: f64, tokens: f64, responses: f64, prompt_tokens: f64) -> Conversations {
        Conversations { count, tokens, responses, prompt_tokens }
    }

    #[test]
    fn unique_tokens_and_flop_are_those_counted_by_hand() {
        // Two prompts of 4 tokens, and 6 tokens of each of 6 conversations, in one pass.
        let (work, passes) = conversations(6.0, 10.0, 3.0, 4.0).work(100, 100);
        assert_eq!((passes, work.prefixes, work.unique_tokens()), (1.0, 2.0, 44.0));
        // Two layers of hidden 576, ffn 1536, and 9 heads of 64 over 3.
        let config = ShapeArg::SmolLm2_135m.shape().config(Some(2), Some(10)).unwrap();
        let keys_and_values = 2 * 576 * 2 * 192;
        let others = 2 * (2 * 576 * 576 + 3 * 576 * 1536);
        // 1 + 2 + 3 + 4 for each prompt, 5 + .. + 10 for each response.
        let keys = 2 * 10 + 6 * 45;
        let first = 44 * (keys_and_values + others) + 4 * 576 * keys;
        let last = 44 * keys_and_values + 6 * (others + 4 * 576 * 10);
        let estimate = conversations(6.0, 10.0, 3.0, 4.0).on_cpus(&config, 100, (2, 1.0)).unwrap();
        assert_eq!(estimate.flop, f64::from(first + last));
        assert_eq!(estimate.longest(), (Limit::Compute, estimate.flop / 2e9));
        // Nothing is shared.
        let (work, passes) = conversations(6.0, 10.0, 1.0, 0.0).work(20, 100);
        assert_eq!((passes, work.unique_tokens()), (3.0, 60.0));
        // Sequences limit a pass, and so does one that is longer than it.
        assert_eq!(conversations(6.0, 10.0, 1.0, 0.0).work(1000, 2).1, 3.0);
        let (work, passes) = conversations(6.0, 50.0, 3.0, 40.0).work(20, 100);
        assert_eq!((passes, work.unique_tokens().round()), (6.0, 273.0));
    }

    /// Measured: up to 7.6 % apart, for the estimate lets a pass end within a sequence.
    #[test]
    fn unique_tokens_are_about_those_of_real_batches() {
        for (responses, prompt_tokens) in [(1_u32, 0_usize), (8, 50), (8, 90), (3, 20), (64, 70)] {
            let (count, tokens) = (3000_u32, 100);
            let budget = Budget { tokens: 1024, sequences: 64 };
            let (mut unique, mut passes) = (0, 0);
            let mut batch = Batch::new(budget, Sharing::Prefixes);
            for index in 0..count {
                let prompt = vec![index / responses; prompt_tokens];
                let response = vec![count + index; tokens - prompt_tokens];
                let ids = [prompt, response].concat();
                if !batch.try_add(&ids) {
                    (unique, passes) = (unique + batch.tokens(), passes + 1);
                    batch = Batch::new(budget, Sharing::Prefixes);
                    assert!(batch.try_add(&ids));
                }
            }
            let found = [(unique + batch.tokens()) as f64, f64::from(passes + 1)];
            let of = conversations(f64::from(count), 100.0, f64::from(responses), prompt_tokens as f64);
            let (work, passes) = of.work(budget.tokens, budget.sequences);
            for (found, estimated) in found.into_iter().zip([work.unique_tokens(), passes]) {
                let apart = (found / estimated - 1.0).abs();
                println!("{responses} of {prompt_tokens}: {found} {estimated} {apart:.4}");
                assert!(apart < 0.1, "{responses} responses, {prompt_tokens}: {found} {estimated}");
            }
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let si = |number| Si(number).to_string();
        assert_eq!([si(0.0), si(999.0), si(999.6), si(1e3)], ["0", "999", "1.00k", "1.00k"]);
        assert_eq!([si(8.137e21), si(56_370e6), si(253.1e9)], ["8.14Z", "56.4G", "253G"]);
        let hours = [0.0, 0.123, 9.999, 123.4].map(|hours| Hours(hours).to_string());
        assert_eq!(hours, ["-", "0.12", "10.0", "123"]);
    }
}
