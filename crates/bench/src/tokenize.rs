//! How fast conversations become token ids: rendering and tokenizing, which happen on the CPU beside the device's work, and
//! must not hold it up.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::args::{Format, TokenizeArgs};
use crate::facts;
use crate::measure::Summary;
use crate::report::{csv, rate};
use kudos::{Conversation, Error, ErrorKind, Prompt, Result};
use kudos_cli::output::Output;
use kudos_cli::{conversations_of_line, model_dir, say};

/// One run: what all threads got done together.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    seconds: f64,
    conversations: usize,
    tokens: usize,
}

/// A test.
struct Row {
    threads: usize,
    samples: Vec<Sample>,
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
        return Err(error.with_hint("lines of token ids have nothing to tokenize").into());
    }
    let prompt = Prompt::open(&model_dir::find(&args.model)?, Default::default())?;
    let mut rows = Vec::new();
    for threads in args.threads.iter().map(|threads| threads.get()) {
        say(&format!("measuring {threads} threads"));
        let run = |_| tokenize(&prompt, &conversations, threads, args.seconds);
        // The first warms up.
        let samples: Vec<Sample> = (0..=args.repeats.get()).map(run).collect::<Result<_>>()?;
        rows.push(Row { threads, samples: samples[1..].to_vec() });
    }
    let report = Report { args, conversations: &conversations, commit, rows };
    output.line(&report.text())
}

/// Threads take conversation after conversation, from the first again after the last, until the time is up.
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

impl Row {
    /// Of all threads together.
    fn tokens_per_second(&self) -> Summary {
        let rates = self.samples.iter().map(|sample| sample.tokens as f64 / sample.seconds);
        Summary::new(&rates.collect::<Vec<_>>())
    }
}

struct Report<'a> {
    args: &'a TokenizeArgs,
    conversations: &'a [Conversation],
    commit: Option<&'a str>,
    rows: Vec<Row>,
}

impl Report<'_> {
    fn text(&self) -> String {
        match self.args.output {
            Format::Md => self.table(),
            Format::Csv => csv(&self.rows.iter().map(|row| self.csv_row(row)).collect::<Vec<_>>()),
            Format::Json => self.json().to_string(),
        }
    }

    fn table(&self) -> String {
        let mut lines =
            vec!["| threads | tokens/s | median | a thread |".to_owned(), "|---:|---:|---:|---:|".to_owned()];
        for row in &self.rows {
            let Summary { mean, sd, median } = row.tokens_per_second();
            let each = rate(median / row.threads as f64);
            lines.push(format!(
                "| {} | {} ± {} | {} | {each} |",
                row.threads,
                rate(mean),
                rate(sd),
                rate(median)
            ));
        }
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let (version, count) = (env!("CARGO_PKG_VERSION"), self.conversations.len());
        lines.push(format!("\nkudos {version}{commit}, {count} conversations"));
        lines.join("\n")
    }

    fn csv_row(&self, row: &Row) -> Vec<(String, String)> {
        let Summary { mean, sd, median } = row.tokens_per_second();
        let columns = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", self.commit.unwrap_or_default().to_owned()),
            ("conversations", self.conversations.len().to_string()),
            ("threads", row.threads.to_string()),
            ("tokens_per_second_mean", mean.to_string()),
            ("tokens_per_second_sd", sd.to_string()),
            ("tokens_per_second_median", median.to_string()),
        ];
        columns.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn json(&self) -> Value {
        let mut object = facts::of_process(self.commit);
        let row = |row: &Row| {
            let samples = row.samples.iter().map(|sample| {
                json!({
                    "seconds": sample.seconds,
                    "conversations": sample.conversations,
                    "tokens": sample.tokens,
                })
            });
            json!({
                "threads": row.threads,
                "tokens_per_second": row.tokens_per_second(),
                "samples": samples.collect::<Vec<_>>(),
            })
        };
        object.insert("conversations".to_owned(), json!(self.conversations.len()));
        object.insert("tokenizing".to_owned(), self.rows.iter().map(row).collect());
        Value::Object(object)
    }
}
