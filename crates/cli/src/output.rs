//! Results: JSON lines, each written in one piece, or a table on a terminal.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::files::{Identity, InputFile, StandardStream};
use crate::report;
use crate::whole::names::Names;
use kudos::internals::results::best;
use kudos::{Error, ErrorKind, Result, Score};

/// Bytes that are written to a file and removed again before anything is computed, to find a full
/// disk early.
const PROBE_BYTES: usize = 64 << 10;

/// The output of data. Unlike `println!` it reports a closed pipe or a full disk instead of
/// panicking.
pub struct Output {
    writer: Box<dyn Write + Send>,
    /// The output's name in messages.
    name: String,
    /// The file, if it is a regular one.
    file: Option<OutputFile>,
    standard: bool,
    /// Buffer, reused for each line.
    line: String,
}

/// An output that is a regular file.
pub(super) struct OutputFile {
    pub(super) path: PathBuf,
    handle: File,
    /// Bytes of an earlier run that this one keeps.
    kept_bytes: u64,
    /// Lines in the file, once this run has begun to write.
    lines: usize,
}

impl Output {
    /// Opens the journal of an output that appears when it is whole, which replaces a regular file
    /// at most.
    pub(super) fn open_journal(names: &Names, inputs: &[InputFile]) -> anyhow::Result<Self> {
        if names.output == Path::new("-") {
            return Err(Error::new(ErrorKind::Options, "standard output is never whole")
                .with_hint("name a file for it")
                .into());
        }
        let no_file = |name: &str| {
            Error::new(ErrorKind::Options, format!("{name} is no regular file"))
                .with_hint("an output that appears when it is whole replaces a file: name another one")
        };
        // All of these are written or replaced.
        for path in names.all() {
            check_no_input(&path, inputs)?;
            if fs::metadata(&path).is_ok_and(|existing| !existing.is_file()) {
                return Err(no_file(&format!("`{}`", path.display())).into());
            }
        }
        let output = Self::open(Some(&names.journal), inputs)?;
        match output.file {
            Some(_) => Ok(output),
            None => Err(no_file(&output.name).into()),
        }
    }

    /// Opens a file, or standard output for `None` and `-`. A file that cannot be written is an
    /// error here, before anything is computed. Its content stays until `begin`.
    ///
    /// `inputs` are the files that are read: none of them, by whatever name, may be the output. A
    /// name of another content than lines is an error.
    pub fn open(path: Option<&Path>, inputs: &[InputFile]) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            StandardStream::Output.check_open()?;
            check_identity(StandardStream::Output.identity(), "standard output", inputs)?;
            let (writer, name) = (Box::new(io::stdout()), "standard output".to_owned());
            return Ok(Self { writer, name, file: None, standard: true, line: String::new() });
        };
        let name = format!("`{}`", path.display());
        if let Some(ending) = other_ending(path) {
            let message = format!("{name} would have lines, which its ending `.{ending}` is not for");
            return Err(Error::new(ErrorKind::Options, message).with_hint("name it `FILE.jsonl`").into());
        }
        let open = || -> io::Result<(File, Option<File>)> {
            let handle = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // A device or a pipe has no length that could be set.
            let file = if handle.metadata()?.is_file() { Some(handle.try_clone()?) } else { None };
            Ok((handle, file))
        };
        let (handle, file) = open().map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot write {name}"))
                .caused_by(error)
                .with_hint("name a file that you may write, in a folder that exists")
        })?;
        if let Some(mut file) = file.as_ref() {
            check_identity(file.metadata().ok().as_ref().and_then(Identity::of), &name, inputs)?;
            // File systems without locks are accepted.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                let message = format!("{name} is being written by another kudos process");
                let error = Error::new(ErrorKind::Io, message);
                return Err(error.with_hint("wait for that process, or write to another file").into());
            }
            let mut probe = || -> io::Result<()> {
                let length = file.seek(SeekFrom::End(0))?;
                let written = file.write_all(&vec![b' '; PROBE_BYTES]);
                file.set_len(length)?;
                written
            };
            probe().with_context(|| format!("cannot write {name}"))?;
        }
        let file = file.map(|handle| OutputFile { path: path.to_owned(), handle, kept_bytes: 0, lines: 0 });
        Ok(Self { writer: Box::new(handle), name, file, standard: false, line: String::new() })
    }

    /// The output's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns true for standard output.
    pub(super) fn is_standard(&self) -> bool {
        self.standard
    }

    /// The file, if this is a regular one.
    pub(super) fn file(&self) -> Option<&OutputFile> {
        self.file.as_ref()
    }

    /// Keeps the first `lines` lines, of `bytes` bytes in all.
    pub(super) fn keep(&mut self, lines: usize, bytes: u64) {
        if let Some(file) = &mut self.file {
            (file.lines, file.kept_bytes) = (lines, bytes);
        }
    }

    /// Truncates the file to what is kept. Called once the model is open: a model that cannot be
    /// opened leaves the results of an earlier run in place.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let begun = file.handle.set_len(file.kept_bytes).and_then(|()| file.handle.seek(SeekFrom::End(0)));
        begun.map(drop).with_context(|| format!("cannot write {}", self.name))
    }

    /// Writes a line in one piece and flushes it, so that a reader sees it at once and it survives
    /// the end of this process.
    pub fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.line.clear();
        self.line.push_str(line);
        self.line.push('\n');
        self.writer
            .write_all(self.line.as_bytes())
            .and_then(|()| self.writer.flush())
            .with_context(|| format!("cannot write {}", self.name))?;
        if let Some(file) = &mut self.file {
            file.lines += 1;
        }
        Ok(())
    }

    /// Syncs the file to the disk, which may still find that it is full.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.handle.sync_data().with_context(|| format!("cannot write {}", self.name))
    }

    /// Adds the hint to use `--resume` to an error, if the output file has results.
    pub(super) fn with_resume_hint(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.file {
            Some(OutputFile { lines, .. }) if *lines > 0 => {
                let name = &self.name;
                let report = report(&error);
                anyhow::anyhow!(
                    "{report}\n\nhint: {lines} results are in {name}: continue with the same command and `--resume`"
                )
            }
            _ => error,
        }
    }
}

/// Endings of names whose content is not lines.
const OTHER_ENDINGS: [&str; 4] = ["gz", "zst", "zstd", "parquet"];

/// Returns the ending of a name whose content is not lines.
pub(super) fn other_ending(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?;
    OTHER_ENDINGS.into_iter().find(|other| other.eq_ignore_ascii_case(ending))
}

/// Returns an error if the file at a path is one of the `inputs`.
pub(super) fn check_no_input(path: &Path, inputs: &[InputFile]) -> Result<()> {
    let identity = fs::metadata(path).ok().as_ref().and_then(Identity::of);
    check_identity(identity, &format!("`{}`", path.display()), inputs)
}

/// Returns an error if the output is one of the `inputs`: it would be truncated before it is read,
/// or read without end.
fn check_identity(output: Option<Identity>, name: &str, inputs: &[InputFile]) -> Result<()> {
    let Some(input) = inputs.iter().find(|input| Some(&input.identity) == output.as_ref()) else {
        return Ok(());
    };
    let message = match &input.name {
        input if input == name => format!("{name} is the input and the output at once"),
        input => format!("the output, {name}, is the same file as {input}, which is an input"),
    };
    Err(Error::new(ErrorKind::Options, message)
        .with_hint("write to another file, and move it when the run has ended"))
}

/// Returns true for the error of writing to a pipe whose reader has closed it.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == IoErrorKind::BrokenPipe)
}

/// Returns true if standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns a table of responses and their rewards, with a mark at the best one.
pub(super) fn table(responses: &[String], scores: &[Result<Score>]) -> String {
    const TEXT_CHARS_MAX: usize = 60;
    let best = best(scores);
    let mut text = String::from("      reward  tokens  response\n");
    for (index, (response, score)) in responses.iter().zip(scores).enumerate() {
        let mark = if best == Some(index) { '*' } else { ' ' };
        let mut line: String = response.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line.chars().count() > TEXT_CHARS_MAX {
            line = line.chars().take(TEXT_CHARS_MAX - 1).chain(['…']).collect();
        }
        match score {
            Ok(score) => text += &format!("{mark} {:>10.5}  {:>6}  {line}\n", score.reward, score.tokens),
            Err(error) => {
                text += &format!("{mark} {:>10}  {:>6}  {line}: {}\n", "error", "-", error.message())
            }
        }
    }
    text.pop();
    text
}
