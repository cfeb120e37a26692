//! The file of a page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::args::EvalArgs;
use crate::files::{Identity, InputFile};
use crate::output::Output;
use crate::whole::names::Names;
use kudos::{Error, ErrorKind, Result};

/// A file that is written under another name and renamed once it is whole. Without a page, it
/// leaves nothing behind.
pub(crate) struct PageFile {
    output: Output,
    path: PathBuf,
    /// Its name until it is whole.
    staged: PathBuf,
}

impl PageFile {
    /// Opens the file of `--report`, if that was given. One that cannot be written, and one that is
    /// read or has the results, is an error. The file of results, if any, must be open.
    pub(crate) fn open(args: &EvalArgs, inputs: &[InputFile]) -> anyhow::Result<Option<Self>> {
        let Some(path) = args.report.as_deref() else { return Ok(None) };
        check(path, args.output.as_deref())?;
        let names = Names::new(path, true);
        let output = Output::open_journal(&names, inputs)?;
        Ok(Some(Self { output, path: names.output, staged: names.staged }))
    }

    /// Writes the page.
    pub(crate) fn write(mut self, page: &str) -> anyhow::Result<()> {
        self.output.begin()?;
        self.output.line(page)?;
        self.output.end()?;
        let (path, staged) = (&self.path, &self.staged);
        fs::rename(staged, path)
            .with_context(|| format!("cannot rename `{}` to `{}`", staged.display(), path.display()))
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        // After a rename the file has its other name, and this finds nothing to remove.
        let _ = fs::remove_file(&self.staged);
    }
}

/// Returns an error if a page at `path` would replace the results.
fn check(path: &Path, output: Option<&Path>) -> Result<()> {
    let identity = |path: &Path| fs::metadata(path).ok().as_ref().and_then(Identity::of);
    let is_same = |output: &Path| {
        output == path || identity(output).is_some_and(|output| identity(path) == Some(output))
    };
    match output.filter(|output| is_same(output)) {
        None => Ok(()),
        Some(output) => {
            let message = format!("`--report` and `--output` are one file, `{}`", output.display());
            let error = Error::new(ErrorKind::Options, message);
            Err(error.with_hint("name a file for the page and another one for the results"))
        }
    }
}
