//! The manifest beside an output that is whole: what was scored with which model and options, and
//! how fast. A run whose output is there compares it with its own, and has nothing to do.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::args::ScoreArgs;
use crate::input::Input;
use kudos::{Error, ErrorKind, Stats};

/// Bytes of a file of the model that are part of its digest: all of small files, and of weights the
/// headers.
const DIGEST_BYTES_MAX: u64 = 1 << 20;

/// The fields that say what a run scores, as they are compared.
const COMPARED: [&str; 4] = ["model", "input", "shard", "options"];

/// A description of a run.
pub(super) struct Manifest(Map<String, Value>);

impl Manifest {
    /// Returns the description of a run with the model in `dir` over an input.
    pub(super) fn new(args: &ScoreArgs, dir: &Path, input: &Input) -> anyhow::Result<Self> {
        let (prompt, engine) = (&args.model.prompt, &args.engine);
        let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let options = json!({
            "max_tokens": prompt.max_tokens,
            "truncate": name(&prompt.truncate),
            "double_bos": name(&prompt.double_bos),
            "template_vars": prompt.template_var.iter().cloned().collect::<Map<String, Value>>(),
            "sanitize_control_tokens": prompt.sanitize_control_tokens,
            "rows": args.rows.rows.map(kudos::internals::request::Rows::name),
            "columns": args.rows.columns.iter().map(|(key, column)| format!("{key}={column}")).collect::<Vec<_>>(),
            "device": name(&engine.device),
            "cpu_math": engine.cpu_math.map(|math| name(&math)),
        });
        let digest = digest(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let shard = args.shard.map(|shard| shard.to_string());
        let mut fields = Map::new();
        fields.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        fields.insert("model".to_owned(), json!({"name": args.model.model, "digest": digest}));
        fields.insert("input".to_owned(), Value::Array(input.described()));
        fields.insert("shard".to_owned(), json!(shard));
        fields.insert("options".to_owned(), options);
        Ok(Self(fields))
    }

    /// Returns the path of the manifest of an output.
    fn path(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        name.push(".manifest.json");
        name.into()
    }

    /// Returns an error unless the manifest beside an output that is there describes the same run.
    pub(super) fn check(&self, output: &Path) -> anyhow::Result<()> {
        let path = Self::path(output);
        let other_run = |message: String| {
            Error::new(ErrorKind::Options, message)
                .with_hint("give the model, the files and the options of that run, or write to another file")
        };
        let read = fs::read(&path);
        let read = read.map_err(|error| {
            other_run(format!("`{}` is there, but no manifest: {error}", output.display())).at(path.display())
        })?;
        let found: Map<String, Value> = serde_json::from_slice(&read)
            .map_err(|error| other_run(format!("the manifest is not JSON: {error}")).at(path.display()))?;
        for key in COMPARED {
            let (found, expected) = (found.get(key).unwrap_or(&Value::Null), &self.0[key]);
            if found != expected {
                let message =
                    format!("`{}` is of another run, with `{key}` {found}, not {expected}", output.display());
                return Err(other_run(message).at(path.display()).into());
            }
        }
        Ok(())
    }

    /// Writes the manifest of a run that took so long, beside its output.
    pub(super) fn write(
        mut self,
        output: &Path,
        lines: Lines,
        stats: &Stats,
        time: Duration,
    ) -> io::Result<()> {
        let seconds = time.as_secs_f64();
        let rate = if seconds > 0.0 { stats.tokens as f64 / seconds } else { 0.0 };
        let run = json!({
            "lines": lines.total,
            "failed": lines.failed,
            "earlier_lines": lines.earlier,
            "sequences": stats.sequences,
            "tokens": stats.tokens,
            "unique_tokens": stats.unique_tokens,
            "seconds": (seconds * 1e3).round() / 1e3,
            "tokens_per_second": rate.round(),
        });
        self.0.insert("run".to_owned(), run);
        let path = Self::path(output);
        let partial = path.with_extension("json.partial");
        let mut file = File::create(&partial)?;
        file.write_all(serde_json::to_string_pretty(&self.0).expect("keys are strings").as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        fs::rename(partial, path)
    }
}

/// Counts of an output's lines.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    pub(super) total: usize,
    /// Lines that have an error.
    pub(super) failed: usize,
    /// Lines of an earlier run, which this one kept.
    pub(super) earlier: usize,
}

/// Returns a digest of the names, the sizes and the first MiB of the files of a model.
fn digest(dir: &Path) -> io::Result<String> {
    let mut names: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    names.retain(|path| path.is_file());
    names.sort();
    let mut digest = Sha256::new();
    for path in names {
        let file = File::open(&path)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update(file.metadata()?.len().to_le_bytes());
        io::copy(&mut file.take(DIGEST_BYTES_MAX), &mut Hashed(&mut digest))?;
    }
    Ok(format!("sha256:{}", digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// A digest as a writer.
struct Hashed<'a>(&'a mut Sha256);

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
