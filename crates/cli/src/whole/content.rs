//! The content of an output, by the ending of its name: lines, compressed lines, or a Parquet
//! table.

use std::path::Path;

use crate::args::ScoreArgs;
use crate::input::Input;
use crate::output::other_ending;
use kudos::{Engine, Error, ErrorKind};
#[cfg(feature = "tables")]
use {crate::whole::table::Table, anyhow::Context, kudos_tables::Container, std::fs::File};

/// The content of an output.
pub(super) enum Content {
    Lines,
    /// Lines compressed by gzip or zstd.
    #[cfg(feature = "tables")]
    Compressed(Container),
    #[cfg(feature = "tables")]
    Table(Table),
}

impl Content {
    /// Returns the content of the output at `path` of a run over an input; of one without an input
    /// it is lines.
    pub(super) fn new(args: &ScoreArgs, path: &Path, input: Option<&Input>) -> anyhow::Result<Self> {
        let ending = other_ending(path);
        if args.prefix.is_some() && ending != Some("parquet") {
            let error = Error::new(ErrorKind::Options, "`--prefix` is for the columns of a Parquet output");
            return Err(error
                .at(path.display())
                .with_hint("leave it out, or name the output `FILE.parquet`")
                .into());
        }
        let (Some(ending), Some(input)) = (ending, input) else { return Ok(Self::Lines) };
        #[cfg(feature = "tables")]
        return Ok(match ending {
            "parquet" => Self::Table(Table::new(args, input)?),
            "gz" => Self::Compressed(Container::Gzip),
            _ => Self::Compressed(Container::Zstd),
        });
        #[cfg(not(feature = "tables"))]
        {
            let _ = input;
            let message = format!("this build writes lines, and no files with the ending `.{ending}`");
            Err(Error::new(ErrorKind::Unsupported, message)
                .at(path.display())
                .with_hint("`make build` builds kudos with the feature `tables`, which is on by default")
                .into())
        }
    }

    /// Returns whether the journal is the output.
    pub(super) fn is_lines(&self) -> bool {
        matches!(self, Self::Lines)
    }

    /// Makes a file of a journal, if that is not the output itself.
    #[cfg_attr(
        not(feature = "tables"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "lines are all")
    )]
    pub(super) fn make(&self, engine: &Engine, journal: &Path, file: &Path) -> anyhow::Result<()> {
        #[cfg(feature = "tables")]
        {
            let cannot_write = || format!("cannot write `{}`", file.display());
            match self {
                Self::Lines => {}
                Self::Compressed(container) => {
                    let (lines, compressed) =
                        (File::open(journal)?, File::create(file).with_context(cannot_write)?);
                    kudos_tables::compress(*container, lines, &compressed).with_context(cannot_write)?;
                    compressed.sync_data().with_context(cannot_write)?;
                }
                Self::Table(table) => table.write(engine, journal, file)?,
            }
        }
        let _ = (engine, journal, file);
        Ok(())
    }
}
