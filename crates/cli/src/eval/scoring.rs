//! Scoring the items of a file with a model, in order and in bounded memory, through the pipeline
//! of `kudos score`.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, mpsc};

use anyhow::anyhow;
use serde_json::{Map, Value};

use crate::args::EvalArgs;
use crate::engine::{self, Warnings};
use crate::eval::entry::Entry;
use crate::eval::metrics::Benchmark;
use crate::eval::page::PageFile;
use crate::eval::results::{Kept, resume};
use crate::files::InputFile;
use crate::input::RawLine;
use crate::output::Output;
use crate::pipeline::{self, InFlightLines};
use crate::progress::{Progress, Results};
use crate::{model_dir, process, say};
use kudos::internals::results::number;
use kudos::{Engine, Error, ErrorKind, Result, Score};

/// The outcome of a process.
pub(crate) enum Scoring {
    /// All items have been passed on. The page, if one is to be written, has its file.
    Done(Option<PageFile>),
    /// This process computed for rank 0, which is another one.
    Followed,
}

/// The file of items, and the files that the output must not overwrite.
pub(crate) struct Source<I> {
    pub(crate) entries: I,
    pub(crate) size: Option<u64>,
    pub(crate) files: Vec<InputFile>,
}

/// Scores every item and passes it to `each` with its scores or its error, in the file's order;
/// those that an earlier run has scored first.
pub(crate) fn score<B: Benchmark>(
    args: &EvalArgs,
    model: &str,
    benchmark: &B,
    source: Source<impl Iterator<Item = anyhow::Result<Entry<B::Labels>>> + Send + 'static>,
    mut each: impl FnMut(&Entry<B::Labels>, Result<Vec<f64>>),
) -> anyhow::Result<Scoring> {
    let dir = model_dir::find(model)?;
    let process = process::rank(&args.engine.process)?;
    if let Some(process) = process.clone().filter(|process| process.rank > 0) {
        process::follow(args.engine.builder(&args.prompt, &dir, Some(process.clone()))?, &process)?;
        return Ok(Scoring::Followed);
    }
    let Source { mut entries, size, mut files } = source;
    files.extend(model_dir::files(&dir));
    files.extend(args.engine.process.rendezvous_secret_file.as_deref().and_then(InputFile::at));
    let mut output = match &args.output {
        Some(path) => Some(Output::open(Some(path.as_path()), &files)?),
        None => None,
    };
    let page = PageFile::open(args, &files)?;
    let (mut probes, mut position) = (Vec::new(), 0);
    if let Some(output) = output.as_mut().filter(|_| args.resume) {
        resume(benchmark, &mut entries, output, |kept| {
            position = kept.entry.end;
            each(&kept.entry, kept.scores.clone());
            // The first and the last line with scores are scored again.
            if kept.scores.is_ok() {
                probes.truncate(1);
                probes.push(kept);
            }
        })?;
    }
    let engine = engine::open(&args.engine, &args.prompt, &dir, process)?;
    let mut warnings = Warnings::new(&engine);
    warnings.print(say);
    let run = Run { benchmark, engine: &engine, bf16: args.bf16, cut: Cell::new(0) };
    if let Some(output) = &mut output {
        run.confirm(probes, output.name())?;
        run.cut.set(0);
        output.begin()?;
    }
    let result = run.stream(entries, size, position, |entry, scores, line| {
        each(entry, scores);
        output.as_mut().map_or(Ok(()), |output| output.line(&line))
    });
    let result = result.and_then(|()| output.as_mut().map_or(Ok(()), Output::end));
    warnings.print(say);
    if run.cut.get() > 0 {
        say(&format!("{} conversations were cut to the limit of tokens", run.cut.get()));
    }
    // Ends ranks in other processes. The thread that reads may hold the engine for ever.
    engine.abort();
    match (result, &output) {
        (Ok(()), _) => Ok(Scoring::Done(page)),
        (Err(error), Some(output)) => Err(output.with_resume_hint(error)),
        (Err(error), None) => Err(error),
    }
}

/// The model's name in results: a short one for a folder.
pub(crate) fn model_name(model: &str) -> String {
    let name = Path::new(model).file_name().filter(|_| Path::new(model).exists());
    name.map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Scores of an item, or its error, and its line of results.
struct Finished {
    scores: Result<Vec<f64>>,
    line: String,
}

struct Run<'a, B> {
    benchmark: &'a B,
    engine: &'a Arc<Engine>,
    bf16: bool,
    /// Number of conversations that were cut.
    cut: Cell<usize>,
}

impl<B: Benchmark> Run<'_, B> {
    /// Scores lines of an earlier run again, and compares.
    fn confirm(&self, probes: Vec<Kept<B::Labels>>, name: &str) -> anyhow::Result<()> {
        for Kept { entry, line, .. } in probes {
            let requests = entry.content.as_ref().map_or(&[][..], |content| &content.requests);
            let mut scores = Vec::new();
            for request in requests {
                let raw = RawLine::new(entry.index, entry.end, request.clone().into_bytes());
                scores.extend(pipeline::submit(self.engine, raw.parse())?.1.wait());
            }
            let computed = self.result(&entry, scores)?.line;
            if computed != line {
                let message = format!("{name} has other scores for item {} than this run", entry.index);
                return Err(Error::new(ErrorKind::Options, message)
                    .with_hint(
                        "use the model, the options, the kind of device and (where the template writes it) the date of \
                         the earlier run, or leave out `--resume` to start over",
                    )
                    .into());
            }
        }
        Ok(())
    }

    /// Scores the items, which begin at `position` of a file of `size` bytes.
    fn stream(
        &self,
        entries: impl Iterator<Item = anyhow::Result<Entry<B::Labels>>> + Send + 'static,
        size: Option<u64>,
        position: u64,
        mut each: impl FnMut(&Entry<B::Labels>, Result<Vec<f64>>, String) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut progress = Progress::new(Results::Elsewhere, size, position, self.engine.stats());
        // An entry is sent before its lines are read, so it is there when they have their results.
        let (sender, sent) = mpsc::channel();
        let lines = entries.flat_map(move |entry| -> Vec<anyhow::Result<RawLine>> {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return vec![Err(error)],
            };
            let requests = entry.content.as_ref().map_or(&[][..], |content| &content.requests);
            let line =
                |request: &String| Ok(RawLine::new(entry.index, entry.end, request.clone().into_bytes()));
            let lines = requests.iter().map(line).collect();
            // The receiver is gone when the command ends early.
            let _ = sender.send(entry);
            lines
        });
        let in_flight = InFlightLines::start(self.engine, lines);
        for entry in sent {
            let requests = entry.content.as_ref().map_or(0, |content| content.requests.len());
            let mut scores = Vec::new();
            for _ in 0..requests {
                let Some(line) = in_flight.next()? else {
                    return Err(anyhow!("kudos has a bug: the pipeline ended before its input"));
                };
                scores.extend(line.submitted.wait());
            }
            let Finished { scores, line } = self.result(&entry, scores)?;
            each(&entry, scores, line)?;
            progress.reached(entry.end, || self.engine.stats());
        }
        match in_flight.next()? {
            None => progress.end(&self.engine.stats()),
            Some(_) => return Err(anyhow!("kudos has a bug: the pipeline has more lines than its input")),
        }
        Ok(())
    }

    /// Returns an item's scores and its line of results. An error is one of the engine, which is
    /// none of the item.
    fn result(&self, entry: &Entry<B::Labels>, scores: Vec<Result<Score>>) -> Result<Finished> {
        let scores: Result<Vec<Score>> = scores.into_iter().collect();
        let content = match (&entry.content, scores) {
            (Ok(content), Ok(scores)) => Ok((content, scores)),
            (Ok(_), Err(error)) => match self.engine.failure() {
                Some(failure) => return Err(failure),
                None => Err(entry.failed(error)),
            },
            (Err(error), _) => Err(error.clone()),
        };
        let (content, scores) = match content {
            Ok(content) => content,
            Err(error) => return Ok(Finished { line: entry.line(Err(&error)), scores: Err(error) }),
        };
        self.cut.update(|cut| cut + scores.iter().filter(|score| score.truncated).count());
        let reward = |score: &Score| if self.bf16 { score.reward_bf16 } else { score.reward };
        // As the results spell them: the numbers are those of an evaluation of the results.
        let rewards: Vec<f64> =
            scores.iter().map(|score| number(reward(score)).as_f64().unwrap_or(f64::NAN)).collect();
        let fields = self.benchmark.export(&content.labels, &rewards);
        let line = entry.line(Ok(&fields));
        let fields: Map<String, Value> =
            fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(Finished { scores: self.benchmark.scores(&content.labels, &fields), line })
    }
}
