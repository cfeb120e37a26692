//! `bench rows`: files to token ids, as the command reads them beside the device's work: a thread
//! that reads rows, and threads that parse, render and tokenize them.

use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::args::RowsArgs;
use crate::report::{self, elements, number, origin, plain, rate, table};
use crate::{machine, metadata};
use kudos::{Error, ErrorKind, Prompt};
use kudos_cli::output::Output;
use kudos_cli::{Row, model_dir, rows, say};

/// Rows that wait for a thread.
const WAITING_MAX: usize = 1024;

/// Readings of memory over a run.
const READINGS: usize = 20;

/// One run over all rows.
#[derive(Debug, Default, Serialize)]
struct Sample {
    seconds: f64,
    cpu_seconds: Option<f64>,
    rows: usize,
    /// Rows that cannot be scored.
    failed: usize,
    conversations: usize,
    tokens: usize,
    /// Memory of this process besides mapped files, at equal parts of the rows.
    anonymous_bytes: Vec<u64>,
}

/// Counts of a thread.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    failed: usize,
    conversations: usize,
    tokens: usize,
}

pub(super) fn run(args: &RowsArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let prompt = Prompt::open(&model_dir::find(&args.model)?, Default::default())?;
    // The first run counts the rows.
    let mut total = 0;
    let mut tests = Vec::new();
    for threads in [0].into_iter().chain(args.threads.iter().map(|threads| threads.get())) {
        say(&format!("measuring {threads} threads"));
        let sample = measure(args, &prompt, threads, total)?;
        total = sample.rows;
        tests.push(json!({"threads": threads, "sample": sample}));
    }
    if total == 0 {
        let error = Error::new(ErrorKind::Options, "the input has no rows");
        return Err(error.with_hint("rows are those of `kudos score`").into());
    }
    let mut report = metadata::of_process(commit);
    report["reading"] = json!(tests);
    output.line(&report::text(&report, args.output, markdown))
}

/// Reads all rows once, with so many threads that tokenize them; with none they are read alone.
fn measure(args: &RowsArgs, prompt: &Prompt, threads: usize, total: usize) -> anyhow::Result<Sample> {
    let (began, cpu_before) = (Instant::now(), machine::cpu_seconds());
    let (sender, waiting) = sync_channel::<Row>(WAITING_MAX);
    let waiting = Mutex::new(waiting);
    let tokenize = || {
        let mut counts = Counts::default();
        loop {
            let row = waiting.lock().expect("threads do not panic").recv();
            let Ok(row) = row else { return counts };
            let Ok(conversations) = row.conversations() else {
                counts.failed += 1;
                continue;
            };
            for conversation in conversations {
                match prompt.tokens(&conversation, usize::MAX) {
                    Ok(tokens) => counts.tokens += tokens.ids.len(),
                    Err(_) => counts.failed += 1,
                }
                counts.conversations += 1;
            }
        }
    };
    let mut sample = Sample::default();
    let counts = thread::scope(|scope| -> anyhow::Result<Vec<Counts>> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(tokenize)).collect();
        // Moved here, so that it ends with the rows.
        let sender = sender;
        for row in rows(&args.input)? {
            let row = row?;
            if threads > 0 && sender.send(row).is_err() {
                break;
            }
            sample.rows += 1;
            if total > 0 && sample.rows % total.div_ceil(READINGS) == 0 {
                sample.anonymous_bytes.extend(machine::anonymous_memory_bytes());
            }
        }
        drop(sender);
        Ok(workers.into_iter().map(|worker| worker.join().expect("threads do not panic")).collect())
    })?;
    for Counts { failed, conversations, tokens } in counts {
        sample.failed += failed;
        sample.conversations += conversations;
        sample.tokens += tokens;
    }
    sample.seconds = began.elapsed().as_secs_f64();
    sample.cpu_seconds = machine::cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    Ok(sample)
}

/// The report as Markdown.
fn markdown(report: &Value) -> String {
    let per_second = |sample: &Value, key: &str| {
        let seconds = sample["seconds"].as_f64().unwrap_or(f64::NAN);
        number(&json!(sample[key].as_f64().unwrap_or(0.0) / seconds), rate)
    };
    let rows = elements(&report["reading"]).map(|test| {
        let sample = &test["sample"];
        let memory = elements(&sample["anonymous_bytes"]).filter_map(Value::as_u64);
        let most = memory.max().map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
        [
            plain(&test["threads"]),
            plain(&sample["rows"]),
            per_second(sample, "rows"),
            per_second(sample, "tokens"),
            most,
        ]
    });
    let table = table(
        "| threads that tokenize | rows | rows/s | tokens/s | MB at most |\n|---:|---:|---:|---:|---:|",
        rows,
    );
    format!("{table}\n\n{}", origin(report))
}
