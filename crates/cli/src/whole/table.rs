//! A Parquet output: the columns of the input's tables, and those of their rows' results.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::args::ScoreArgs;
use crate::input::{Input, Tables};
use kudos::internals::results::{Column, FieldOptions, columns, in_form};
use kudos::{Engine, Error, ErrorKind, Truncate};
use kudos_tables::{ResultsWriter, with_results};

/// The table of a run.
pub(super) struct Table {
    input: Tables,
    /// The beginning of the names of the results' columns.
    prefix: String,
    may_truncate: bool,
}

impl Table {
    /// Returns the table of a run over an input, whose columns are checked.
    pub(super) fn new(args: &ScoreArgs, input: &Input) -> anyhow::Result<Self> {
        let may_truncate = args.model.prompt.truncate != Truncate::Refuse;
        let table =
            Self { input: input.tables()?, prefix: args.prefix.clone().unwrap_or_default(), may_truncate };
        // The model is not open yet: with all the columns that it may have.
        let columns =
            table.columns(FieldOptions { normalized: true, several_labels: true, may_truncate: true });
        with_results(table.input.schema(), &columns, &table.prefix)?;
        Ok(table)
    }

    fn columns(&self, options: FieldOptions) -> Vec<Column> {
        columns(self.input.form(), options)
    }

    /// Writes the table of the input's rows and of the results in a journal.
    pub(super) fn write(&self, engine: &Engine, journal: &Path, file: &Path) -> anyhow::Result<()> {
        let columns = self.columns(FieldOptions {
            normalized: engine.config().normalization.is_some(),
            several_labels: engine.labels() > 1,
            may_truncate: self.may_truncate,
        });
        let schema = with_results(self.input.schema(), &columns, &self.prefix)?;
        let cannot_write = || format!("cannot write `{}`", file.display());
        let created = File::create(file).with_context(cannot_write)?;
        let mut writer = ResultsWriter::new(created, schema, columns).with_context(cannot_write)?;
        let cannot_read = || format!("cannot read `{}`", journal.display());
        let mut lines = BufReader::new(File::open(journal).with_context(cannot_read)?).lines();
        let form = self.input.form();
        let mut results = |count: usize| -> anyhow::Result<Vec<Map<String, Value>>> {
            let lines = lines.by_ref().take(count);
            let result = |line: io::Result<String>| Ok(in_form(form, serde_json::from_str(&line?)?));
            lines.map(result).collect::<anyhow::Result<_>>().with_context(cannot_read)
        };
        let changed = || {
            Error::new(ErrorKind::Io, "the input has another number of rows than results")
                .with_hint("has it changed since the run began? score it again, without `--resume`")
        };
        self.input.read(|rows| {
            let results = results(rows.num_rows())?;
            if results.len() < rows.num_rows() {
                return Err(changed().into());
            }
            writer.append(rows, &results).with_context(cannot_write)
        })?;
        if !results(1)?.is_empty() {
            return Err(changed().into());
        }
        let written = writer.finish().with_context(cannot_write)?;
        written.sync_data().with_context(cannot_write)
    }
}
