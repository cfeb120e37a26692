//! `kudos select`: the best response to each prompt, or pairs of a better and a worse one.
//!
//! ```text
//! rows with rewards (in them, in a file of results, or by a model) -> candidates of a prompt -> lines
//! ```

mod candidates;
mod rewards;

use std::path::Path;

use crate::args::{SelectArgs, Selection};
use crate::engine::{self, Warnings};
use crate::files::InputFile;
#[cfg(feature = "tables")]
use crate::input::Input;
use crate::input::Line;
use crate::output::Output;
use crate::{Outcome, model_dir, process, say};
use candidates::{Candidate, Candidates};
use kudos::{Error, ErrorKind, Result};
use rewards::Rewards;

/// Limit on errors of rows that are printed one by one.
const ERRORS_PRINTED_MAX: usize = 10;

pub(super) fn run(args: &SelectArgs) -> anyhow::Result<Outcome> {
    if args.selection == Selection::Best && args.pairs.is_some() {
        let error = Error::new(ErrorKind::Options, "`--pairs` is an option of `select pairs`");
        return Err(error.with_hint("leave it out").into());
    }
    let process = process::rank(&args.engine.process)?;
    let dir = args.model.as_deref().map(model_dir::find).transpose()?;
    if let (Some(process), Some(dir)) = (process.clone().filter(|process| process.rank > 0), &dir) {
        process::follow(args.engine.builder(&args.prompt, dir, Some(process.clone()))?, &process)?;
        return Ok(Outcome::Complete);
    }
    let has_own = args.rewards.is_none() && dir.is_none();
    let input = args.rows.open_with(&args.input, if has_own { &rewards::KEYS } else { &[] })?;
    let mut files: Vec<InputFile> = input.files().collect();
    files.extend(args.rewards.as_deref().and_then(InputFile::at));
    files.extend(dir.iter().flat_map(|dir| model_dir::files(dir)));
    let mut output = Output::open(args.output.as_deref(), &files)?;
    if let Some(path) = &args.rewards {
        refuse_table(path)?;
    }
    let notes = input.notes();
    let mut selected =
        Selected { args, output: &mut output, open: None, rows: 0, failed: 0, prompts: 0, lines: 0 };
    let outcome = match (&args.rewards, &dir) {
        (Some(path), _) => rewards::recorded(input, path, |line, rewards| selected.add(line, rewards)),
        (None, None) => rewards::own(input, |line, rewards| selected.add(line, rewards)),
        (None, Some(dir)) => {
            let engine = engine::open(&args.engine, &args.prompt, dir, process)?;
            let mut warnings = Warnings::new(&engine);
            warnings.print(say);
            let outcome = rewards::computed(&engine, input, |line, rewards| selected.add(line, rewards));
            warnings.print(say);
            // Ends ranks in other processes. The thread that reads may hold the engine for ever.
            engine.abort();
            outcome
        }
    };
    outcome.and_then(|()| selected.end_prompt())?;
    if selected.rows == 0 {
        selected.output.begin()?;
    }
    let Selected { rows, failed, prompts, lines, .. } = selected;
    output.end()?;
    notes.take().iter().for_each(|note| say(note));
    say(&format!("rows: {rows}, prompts: {prompts}, selected: {lines}"));
    if failed == 0 {
        return Ok(Outcome::Complete);
    }
    say(&format!("rows with a response that has no reward and was left out: {failed}"));
    Ok(Outcome::SomeFailed)
}

/// Refuses a table of results: each of its rows has its rewards beside the conversation.
fn refuse_table(path: &Path) -> anyhow::Result<()> {
    #[cfg(feature = "tables")]
    if Input::open_whole(path)?.is_table()? {
        let message = "a table is given as results, and its rewards are in its rows";
        return Err(Error::new(ErrorKind::Options, message)
            .at(path.display())
            .with_hint(format!("give it as the input: `kudos select .. {}`", path.display()))
            .into());
    }
    let _ = path;
    Ok(())
}

/// The prompt of the last row.
struct Open {
    candidates: Candidates,
    /// Responses, also those without a reward.
    count: usize,
    /// Whether its rows have one response each, so that the next one may belong to it.
    is_of_ones: bool,
}

/// The selection while rows are read.
struct Selected<'a> {
    args: &'a SelectArgs,
    output: &'a mut Output,
    open: Option<Open>,
    rows: usize,
    /// Rows with responses that have no reward.
    failed: usize,
    prompts: usize,
    lines: usize,
}

impl Selected<'_> {
    /// Adds a row with the rewards of its responses. Responses without one are left out.
    fn add(&mut self, line: Line, rewards: Result<Rewards>) -> anyhow::Result<()> {
        if self.rows == 0 {
            // Only now: an input without rewards leaves an earlier output in place.
            self.output.begin()?;
        }
        self.rows += 1;
        let read = line.request.and_then(|request| {
            let (prompt, responses) = request.into_candidates()?;
            Ok((prompt, responses.into_iter().zip(rewards?).collect::<Vec<_>>()))
        });
        let (prompt, rewarded) = match read {
            Ok(read) => read,
            Err(error) => {
                self.fail(&error);
                return Ok(());
            }
        };
        let (is_one, count) = (rewarded.len() == 1, rewarded.len());
        let continues = is_one
            && self.open.as_ref().is_some_and(|open| open.is_of_ones && open.candidates.prompt == prompt);
        let first = self.open.as_ref().filter(|_| continues).map_or(0, |open| open.count);
        let (mut responses, mut error) = (Vec::new(), None);
        for (index, (turns, reward)) in (first..).zip(rewarded) {
            match reward {
                Ok(reward) => responses.push(Candidate { index, turns, reward }),
                Err(found) => error = error.or(Some(found)),
            }
        }
        if let Some(error) = error {
            self.fail(&error);
        }
        match &mut self.open {
            // One response in each of several rows.
            Some(open) if continues => {
                open.candidates.responses.append(&mut responses);
                open.count += count;
            }
            _ => {
                self.end_prompt()?;
                let candidates = Candidates { key: line.key, prompt, responses };
                self.open = Some(Open { candidates, count, is_of_ones: is_one });
            }
        }
        Ok(())
    }

    /// Counts a row with an error, and prints the first ones.
    fn fail(&mut self, error: &Error) {
        if self.failed < ERRORS_PRINTED_MAX {
            say(&format!("error: {error:#}"));
        }
        self.failed += 1;
    }

    /// Writes the selection of the last prompt.
    fn end_prompt(&mut self) -> anyhow::Result<()> {
        let Some(Open { candidates: open, .. }) = self.open.take() else { return Ok(()) };
        let lines = match self.args.selection {
            Selection::Best => open.best(self.args.min_margin).into_iter().collect(),
            Selection::Pairs => open.pairs(self.args.pairs.unwrap_or_default(), self.args.min_margin),
        };
        self.prompts += usize::from(!open.responses.is_empty());
        self.lines += lines.len();
        lines.iter().try_for_each(|line| self.output.line(line))
    }
}
