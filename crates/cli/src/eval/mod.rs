//! `kudos eval`: published benchmarks of reward models.
//!
//! ```text
//! items (a file's items) -> entry (an item, read by its benchmark) -> scoring, or results
//!     -> metrics (numbers as functions of labels and scores) -> report -> print, page
//! ```
//!
//! The text of an item is in memory until its line of results is written; its labels and scores
//! stay, and for a page the texts of a bounded number of items.

mod entry;
mod items;
pub(crate) mod metrics;
mod page;
mod print;
mod report;
mod results;
mod scoring;
mod stats;

use std::path::Path;

use crate::args::{BenchmarkArg, EvalArgs};
use crate::files::InputFile;
use crate::output::Output;
use crate::{Outcome, say};
use entry::{Entry, fingerprint};
use metrics::helpsteer3::HelpSteer3;
use metrics::judgebench::{Games, JudgeBench};
use metrics::preferences::Preferences;
use metrics::rewardbench::RewardBench;
use metrics::rewardbench2::{RewardBench2, ZeroSpread};
use metrics::rm_bench::RmBench;
use metrics::{Benchmark, Evaluation, Scored};
use page::{Details, PageFile, Run};
use report::{Comparison, Failure, Report, Verdicts, estimate, estimates};
use results::ResultsFile;
use scoring::{Scoring, Source, model_name, score};

use kudos::{Error, ErrorKind, Result};

/// Limit on errors of items that are printed one by one; JSON and the results have all.
const ERRORS_PRINTED_MAX: usize = 10;

pub(super) fn run(args: &EvalArgs) -> anyhow::Result<Outcome> {
    args.check()?;
    let ties = args.ties.unwrap_or_default();
    match args.benchmark {
        BenchmarkArg::RmBench => evaluate(args, &RmBench { ties }),
        BenchmarkArg::JudgeBench => {
            let games = if args.single_game { Games::Single } else { Games::Two };
            let judge_model = args.model.as_deref().map(model_name).unwrap_or_default();
            evaluate(args, &JudgeBench { games, judge_model })
        }
        BenchmarkArg::RewardBench => evaluate(args, &RewardBench { ties }),
        BenchmarkArg::RewardBench2 => {
            let zero_spread = if args.skip_zero_spread { ZeroSpread::Skipped } else { ZeroSpread::Counts };
            evaluate(args, &RewardBench2 { zero_spread })
        }
        BenchmarkArg::HelpSteer3 => evaluate(args, &HelpSteer3 { ties }),
        BenchmarkArg::Preferences => evaluate(args, &Preferences { ties, by: args.by.clone() }),
    }
}

/// The labels and scores of all items.
struct Collected<L> {
    items: usize,
    rows: Vec<Scored<L>>,
    /// One per row: how a file of results names the item, and the number of its text.
    keys: Vec<(String, u64)>,
    failures: Vec<Failure>,
    /// The lengths and texts that a page needs, of the items of `rows`.
    details: Option<Details>,
}

impl<L: Clone> Collected<L> {
    fn add<B: Benchmark<Labels = L>>(&mut self, benchmark: &B, entry: &Entry<L>, scores: Result<Vec<f64>>) {
        self.items += 1;
        let read = scores.and_then(|scores| Ok((entry.content.as_ref().map_err(Error::clone)?, scores)));
        match read {
            Ok((content, scores)) => {
                self.keys.push((entry.key(), fingerprint(content)));
                if let Some(details) = &mut self.details {
                    details.add(benchmark, entry, content, &scores);
                }
                self.rows.push(Scored { labels: content.labels.clone(), scores });
            }
            Err(error) => {
                self.failures.push(Failure { index: entry.index, id: entry.id.clone(), error });
            }
        }
    }
}

/// Evaluates a file, and prints the report.
fn evaluate<B: Benchmark>(args: &EvalArgs, benchmark: &B) -> anyhow::Result<Outcome> {
    let items = items::items(&args.file)?;
    let (name, size) = (items.name.clone(), items.size);
    let mut files: Vec<InputFile> = items.file.clone().into_iter().collect();
    files.extend(args.baseline.as_deref().and_then(InputFile::at));
    let baseline = args.baseline.as_deref().map(|path| ResultsFile::read(benchmark, path)).transpose()?;
    let entries = {
        let (benchmark, name) = (benchmark.clone(), name.clone());
        items.enumerate().map(move |(index, item)| Ok(Entry::read(&benchmark, index, item?, &name)))
    };
    let details = args.report.is_some().then(Details::default);
    let mut collected = Collected { items: 0, rows: vec![], keys: vec![], failures: vec![], details };
    let mut notes = Vec::new();
    let page = match (&args.scores, &args.model) {
        (Some(path), _) => {
            files.extend(InputFile::at(path));
            let page = PageFile::open(args, &files)?;
            notes.extend(recorded(benchmark, path, entries, &mut collected)?);
            page
        }
        (None, Some(model)) => {
            let source = Source { entries, size, files };
            let each = |entry: &Entry<B::Labels>, scores| collected.add(benchmark, entry, scores);
            match score(args, model, benchmark, source, each)? {
                Scoring::Done(page) => page,
                Scoring::Followed => return Ok(Outcome::Complete),
            }
        }
        (None, None) => unreachable!("the command line asks for a model or for scores"),
    };
    if collected.items == 0 {
        let error = Error::new(ErrorKind::InvalidInput, "the file has no items").at(name);
        return Err(error
            .with_hint("name a file of the benchmark: docs/eval.md has the format of each")
            .into());
    }
    let baseline = baseline.map(|file| compare(benchmark, &collected, file)).transpose()?;
    let figures = collected.details.take().map(|details| details.figures(benchmark, &collected.rows));
    let mut report = report(benchmark, collected, baseline);
    report.notes.extend(notes);
    let failed = report.failures.len();
    for failure in report.failures.iter().take(ERRORS_PRINTED_MAX) {
        say(&format!("error: {:#}", failure.error));
    }
    if failed > 0 {
        let (items, shown) = (report.items, failed.min(ERRORS_PRINTED_MAX));
        say(&format!(
            "{failed} of {items} items have an error instead of scores ({shown} are shown; `--json` and the results have \
             all), and no number counts them"
        ));
    }
    let text = if args.json { print::json(&report).to_string() } else { print::text(&report) };
    let printed = Output::open(None, &[]).and_then(|mut output| output.line(&text));
    // Either is written though the other one cannot be.
    if let (Some(page), Some(figures)) = (page, figures) {
        page.write(&page::html(&Run::of(args), &report, &figures)?)?;
    }
    printed?;
    Ok(if failed > 0 { Outcome::SomeFailed } else { Outcome::Complete })
}

/// Collects the items with the scores of a file of results, and returns a note on results that
/// belong to none.
fn recorded<B: Benchmark>(
    benchmark: &B,
    path: &Path,
    entries: impl Iterator<Item = anyhow::Result<Entry<B::Labels>>>,
    collected: &mut Collected<B::Labels>,
) -> anyhow::Result<Option<String>> {
    let mut file = ResultsFile::read(benchmark, path)?;
    for entry in entries {
        let entry = entry?;
        let scores = match &entry.content {
            Err(error) => {
                file.skip(&entry.key());
                Err(error.clone())
            }
            Ok(content) => {
                let missing =
                    Error::new(ErrorKind::InvalidInput, format!("the item has no result in {}", file.name));
                let item = (&content.labels, fingerprint(content));
                let taken = file.take(benchmark, &entry.key(), item)?;
                taken.unwrap_or(Err(missing)).map_err(|error| entry.failed(error))
            }
        };
        collected.add(benchmark, &entry, scores);
    }
    let (left, name) = (file.left(), file.name);
    Ok((left > 0).then(|| format!("{left} results in {name} belong to no item")))
}

/// Compares with the results of another model, over the items that both have scores for.
fn compare<B: Benchmark>(
    benchmark: &B,
    collected: &Collected<B::Labels>,
    mut file: ResultsFile,
) -> anyhow::Result<Comparison> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (row, (key, fingerprint)) in collected.rows.iter().zip(&collected.keys) {
        if let Some(Ok(scores)) = file.take(benchmark, key, (&row.labels, *fingerprint))? {
            ours.push(row.clone());
            theirs.push(Scored { labels: row.labels.clone(), scores });
        }
    }
    if ours.is_empty() {
        let message = format!("{} has no scores for any of the items", file.name);
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_hint("`--baseline` takes results of the same benchmark's file")
            .into());
    }
    let both = ours.iter().zip(&theirs);
    let pairs: Vec<Vec<(bool, bool)>> = both
        .map(|(ours, theirs)| benchmark.verdicts(ours).into_iter().zip(benchmark.verdicts(theirs)).collect())
        .collect();
    let is_clustered = pairs.iter().any(|pairs| pairs.len() > 1);
    let (here, there) = (benchmark.evaluate(&ours), benchmark.evaluate(&theirs));
    let (ours_value, theirs_value) = (here.headline.statistic, there.headline.statistic);
    let difference = ours_value.less(&theirs_value);
    let values = here.design.values(&[ours_value, theirs_value]);
    Ok(Comparison {
        file: file.name,
        items: ours.len(),
        only_here: collected.rows.len() - ours.len(),
        verdicts: Verdicts::count(pairs.into_iter().flatten()),
        is_clustered,
        number: here.headline.name,
        unit: here.headline.unit,
        ours: values[0],
        theirs: values[1],
        difference: estimates(&[difference], &here.design)[0],
    })
}

fn report<B: Benchmark>(
    benchmark: &B,
    collected: Collected<B::Labels>,
    baseline: Option<Comparison>,
) -> Report {
    let Collected { items, rows, failures, .. } = collected;
    let Evaluation { tables, design, ties, notes, .. } = benchmark.evaluate(&rows);
    Report {
        benchmark: B::NAME,
        items,
        evaluated: rows.len(),
        failures,
        ties,
        tables: estimate(tables, &design),
        resamples: design.resamples(),
        notes,
        baseline,
    }
}
