//! Outputs that appear under their name when they are whole.
//!
//! While results are computed they are lines of a journal beside the output, which `--resume`
//! continues. Then the journal becomes the output, or compressed lines or a table are made of it.

mod content;
mod manifest;
pub(crate) mod names;
#[cfg(feature = "tables")]
mod table;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::args::ScoreArgs;
use crate::files::InputFile;
use crate::input::{Files, Input};
use crate::output::{Output, check_no_input};
use crate::report;
use content::Content;
use kudos::Engine;
use manifest::Manifest;
pub(crate) use manifest::{Earlier, Lines};
use names::Names;

/// An output that appears under its name when it is whole.
pub(super) struct Whole {
    content: Content,
    names: Names,
    manifest: Manifest,
    input: Files,
}

impl Whole {
    /// Returns the output of a run, if it is such an output: of `--whole`, or of another content
    /// than lines. None of `inputs` may be one of its files.
    pub(super) fn new(
        args: &ScoreArgs,
        dir: &Path,
        input: Option<&Input>,
        inputs: &[InputFile],
    ) -> anyhow::Result<Option<Self>> {
        let Some(path) = args.output.as_deref() else { return Ok(None) };
        // Before tables are compared, of which the output may be one.
        check_no_input(path, inputs)?;
        let content = Content::new(args, path, input)?;
        let Some(input) = input.filter(|_| args.whole || !content.is_lines()) else { return Ok(None) };
        let (names, input) = (Names::new(path, content.is_lines()), input.sources());
        Ok(Some(Self { content, names, manifest: Manifest::new(args, dir, &input)?, input }))
    }

    /// The output's path.
    pub(super) fn path(&self) -> &Path {
        &self.names.output
    }

    /// Returns what an earlier run has left of the output.
    pub(super) fn earlier(&self) -> anyhow::Result<Earlier> {
        let earlier = self.manifest.earlier(&self.names)?;
        if let Earlier::Whole { .. } = earlier {
            remove_journal(&self.content, &self.names);
        }
        Ok(earlier)
    }

    /// Opens the journal. None of the `inputs` may be the output or the journal.
    pub(super) fn open(&self, inputs: &[InputFile]) -> anyhow::Result<Output> {
        Output::open_journal(&self.names, inputs)
    }

    /// Writes the manifest of a run that begins.
    pub(super) fn begin(&self) -> anyhow::Result<()> {
        self.manifest.write(&self.names)
    }

    /// Makes the output of the journal, which has all results of a run that took so long. An error
    /// says where the results are.
    pub(super) fn end(self, engine: &Engine, lines: Lines, time: Duration) -> anyhow::Result<()> {
        let journal = self.names.journal.display().to_string();
        self.made(engine, lines, time).map_err(|error| {
            let report = report(&error);
            anyhow::anyhow!("{report}\n\nhint: all results are lines in `{journal}`")
        })
    }

    fn made(self, engine: &Engine, lines: Lines, time: Duration) -> anyhow::Result<()> {
        let Self { content, names, manifest, input } = self;
        let Names { output, journal, staged, .. } = &names;
        content.make(engine, journal, staged)?;
        // A table has been read again, and the manifest describes what was scored.
        manifest.check_unchanged(&input)?;
        manifest.with_run(&names, lines, &engine.stats(), time)?.write(&names)?;
        // The output last: where it is, all is.
        fs::rename(staged, output)
            .with_context(|| format!("cannot rename `{}` to `{}`", staged.display(), output.display()))?;
        remove_journal(&content, &names);
        Ok(())
    }
}

/// Removes a journal that the output was made of.
fn remove_journal(content: &Content, names: &Names) {
    if !content.is_lines() {
        // One that stays takes space, and nothing else.
        let _ = fs::remove_file(&names.journal);
    }
}
