//! `bench tokenize`: conversations to token ids, by rendering and tokenizing, which run on the CPU
//! beside the device's work and must keep up with it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::TokenizeArgs;
use crate::metadata;
use crate::report::{self, elements, number, origin, plain, rate, spread, table};
use crate::summary::Summary;
use kudos::{Conversation, Error, ErrorKind, Prompt, Result};
use kudos_cli::output::Output;
use kudos_cli::{conversations_of_line, model_dir, say};

/// One run, of all threads together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sample {
    seconds: f64,
    conversations: usize,
    tokens: usize,
}

pub(super) fn run(args: &TokenizeArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let name = args.input.display();
    let text = fs::read(&args.input).with_context(|| format!("cannot read `{name}`"))?;
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let conversations = lines.map(|(index, line)| conversations_of_line(line, index));
    let conversations = conversations.collect::<Result<Vec<_>>>()?.concat();
    if conversations.is_empty() {
        let error = Error::new(ErrorKind::Options, "there are no conversations in the input").at(name);
        return Err(error.with_hint("tokenizing needs lines with conversations, not with token ids").into());
    }
    let prompt = Prompt::open(&model_dir::find(&args.model)?, Default::default())?;
    let mut tests = Vec::new();
    for threads in args.threads.iter().map(|threads| threads.get()) {
        say(&format!("measuring {threads} threads"));
        let run = |_| tokenize(&prompt, &conversations, threads, args.seconds);
        // The first warms up.
        let samples: Vec<Sample> = (0..=args.repeats.get()).map(run).collect::<Result<_>>()?;
        tests.push(json(threads, &samples[1..]));
    }
    let mut report = metadata::of_process(commit);
    report["conversations"] = json!(conversations.len());
    report["tokenizing"] = json!(tests);
    output.line(&report::text(&report, args.output, markdown))
}

/// Threads take one conversation after the other, again from the first after the last, until the
/// time is up.
fn tokenize(
    prompt: &Prompt,
    conversations: &[Conversation],
    threads: usize,
    time: Duration,
) -> Result<Sample> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let work = || -> Result<Sample> {
        let mut done = Sample::default();
        while start.elapsed() < time {
            let index = next.fetch_add(1, Ordering::Relaxed) % conversations.len();
            done.tokens += prompt.tokens(&conversations[index], usize::MAX)?.ids.len();
            done.conversations += 1;
        }
        Ok(done)
    };
    let mut all = Sample::default();
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let done = thread.join().expect("tokenizing does not panic")?;
            all.tokens += done.tokens;
            all.conversations += done.conversations;
        }
        Ok(())
    })?;
    Ok(Sample { seconds: start.elapsed().as_secs_f64(), ..all })
}

fn json(threads: usize, samples: &[Sample]) -> Value {
    let rates: Vec<f64> = samples.iter().map(|sample| sample.tokens as f64 / sample.seconds).collect();
    json!({"threads": threads, "tokens_per_second": Summary::new(&rates), "samples": samples})
}

/// The report as Markdown.
fn markdown(report: &Value) -> String {
    let rows = elements(&report["tokenizing"]).map(|row| {
        let (rates, threads) = (&row["tokens_per_second"], row["threads"].as_f64().unwrap_or(1.0));
        [
            plain(&row["threads"]),
            spread(rates),
            number(&rates["median"], rate),
            number(&rates["median"], |median| rate(median / threads)),
        ]
    });
    let table = table("| threads | tokens/s | median | a thread |\n|---:|---:|---:|---:|", rows);
    format!("{table}\n\n{}, {} conversations", origin(report), report["conversations"])
}
