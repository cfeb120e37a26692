//! The manifest beside an output that appears when it is whole: its model, its input and its
//! options, which a run that continues it must have, and at the end its counts, its rate and the
//! output's digest.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::args::ScoreArgs;
use crate::input::Files;
use crate::whole::names::Names;
use kudos::{Error, ErrorKind, Result, Stats};

/// Bytes of a file of the model that is hashed whole.
const SMALL_BYTES: u64 = 64 << 20;

/// Bytes of a sample of a larger one.
const SAMPLE_BYTES: u64 = 256 << 10;

/// Number of samples of a larger one, besides its beginning and its end.
const SAMPLES: u64 = 64;

/// The fields that say what a run scores, as they are compared.
const COMPARED: [&str; 4] = ["model", "input", "shard", "options"];

/// A description of a run.
pub(crate) struct Manifest(Map<String, Value>);

impl Manifest {
    /// Returns the description of a run with the model in `dir` over an input.
    pub(crate) fn new(args: &ScoreArgs, dir: &Path, input: &Files) -> anyhow::Result<Self> {
        let described = input.described();
        if described.iter().any(|file| file["bytes"].is_null()) {
            let message = "an output that appears when it is whole has a manifest of its input, and standard input and \
                           pipes have none";
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("name files, or write lines to standard output: `kudos score .. - | gzip`")
                .into());
        }
        let (prompt, engine) = (&args.model.prompt, &args.engine);
        let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let options = json!({
            "max_tokens": prompt.max_tokens,
            "truncate": name(&prompt.truncate),
            "double_bos": name(&prompt.double_bos),
            "template_vars": prompt.template_var.iter().cloned().collect::<Map<String, Value>>(),
            "sanitize_control_tokens": prompt.sanitize_control_tokens,
            "rows": args.rows.rows.map(kudos::internals::request::Rows::name),
            "prefix": args.prefix,
            "columns": args.rows.columns.iter().map(|(key, column)| format!("{key}={column}")).collect::<Vec<_>>(),
            "device": name(&engine.device),
            "cpu_math": engine.cpu_math.map(|math| name(&math)),
        });
        let digest = digest_of_model(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let shard = args.shard.map(|shard| shard.to_string());
        let mut fields = Map::new();
        fields.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        fields.insert("model".to_owned(), json!({"name": args.model.model, "digest": digest}));
        fields.insert("input".to_owned(), Value::Array(described));
        fields.insert("shard".to_owned(), json!(shard));
        fields.insert("options".to_owned(), options);
        Ok(Self(fields))
    }

    /// Returns what an earlier run has left of an output. The manifest of another run, and results
    /// without one, are an error.
    pub(crate) fn earlier(&self, names: &Names) -> anyhow::Result<Earlier> {
        let Names { output, manifest, journal, staged } = names;
        let cannot_read = |path: &Path| format!("cannot read `{}`", path.display());
        let other_run = |message: String| {
            Error::new(ErrorKind::Options, message)
                .at(manifest.display())
                .with_hint("give the model, the files and the options of that run, or write to another file")
        };
        let has_results = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        let read = match fs::read(manifest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(found) = [output, journal].into_iter().find(|path| has_results(path)) else {
                    return Ok(Earlier::Unfinished);
                };
                return Err(other_run(format!("`{}` is there, but no manifest", found.display())).into());
            }
            read => read.with_context(|| cannot_read(manifest))?,
        };
        let found: Map<String, Value> = serde_json::from_slice(&read)
            .map_err(|error| other_run(format!("the manifest is not JSON: {error}")))?;
        for key in COMPARED {
            let (found, expected) = (found.get(key).unwrap_or(&Value::Null), &self.0[key]);
            if found != expected {
                let output = output.display();
                return Err(other_run(format!(
                    "`{output}` is of another run, with `{key}` {found}, not {expected}"
                ))
                .into());
            }
        }
        let Some(run) = found.get("run") else { return Ok(Earlier::Unfinished) };
        let has_digest = |path: &Path| -> anyhow::Result<bool> {
            match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                file => {
                    Ok(json!(digest_of(file.with_context(|| cannot_read(path))?)?) == run["output_digest"])
                }
            }
        };
        if !has_digest(output)? {
            if !has_digest(staged)? {
                if let Some(found) = [output, staged].into_iter().find(|path| has_results(path)) {
                    return Err(
                        other_run(format!("`{}` has been changed since its run", found.display())).into()
                    );
                }
                return Ok(Earlier::Unfinished);
            }
            // The run ended before it could give the file its name.
            fs::rename(staged, output).with_context(|| format!("cannot rename `{}`", staged.display()))?;
        }
        Ok(Earlier::Whole { failed: run["failed"].as_u64().unwrap_or(0) })
    }

    /// Fails if a file of the input is not the one that was described.
    pub(crate) fn check_unchanged(&self, input: &Files) -> Result<()> {
        let described = self.0["input"].as_array().into_iter().flatten();
        match described.zip(input.described()).find(|(before, now)| **before != *now) {
            None => Ok(()),
            Some((before, _)) => {
                let path = before["path"].as_str().unwrap_or_default();
                Err(Error::new(ErrorKind::Io, "the file has changed since the run began").at(path).with_hint(
                    "its results are not those of the rows that it has now: score it again, without `--resume`",
                ))
            }
        }
    }

    /// Returns the description with that of the run itself, which took so long, and whose output is
    /// staged.
    pub(crate) fn with_run(
        mut self,
        names: &Names,
        lines: Lines,
        stats: &Stats,
        time: Duration,
    ) -> anyhow::Result<Self> {
        let seconds = time.as_secs_f64();
        let rate = if seconds > 0.0 { stats.tokens as f64 / seconds } else { 0.0 };
        let cannot_read = || format!("cannot read `{}`", names.staged.display());
        let output = File::open(&names.staged).and_then(digest_of).with_context(cannot_read)?;
        let run = json!({
            "lines": lines.total,
            "failed": lines.failed,
            "earlier_lines": lines.earlier,
            "output_digest": output,
            "sequences": stats.sequences,
            "tokens": stats.tokens,
            "unique_tokens": stats.unique_tokens,
            "seconds": (seconds * 1e3).round() / 1e3,
            "tokens_per_second": rate.round(),
        });
        self.0.insert("run".to_owned(), run);
        Ok(self)
    }

    /// Writes the manifest beside its output.
    pub(crate) fn write(&self, names: &Names) -> anyhow::Result<()> {
        let partial = names.partial_manifest();
        let write = || -> io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(serde_json::to_string_pretty(&self.0).expect("keys are strings").as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_data()?;
            fs::rename(&partial, &names.manifest)
        };
        write().with_context(|| format!("cannot write `{}`", names.manifest.display()))
    }
}

/// The output that an earlier run has left.
pub(crate) enum Earlier {
    /// A complete output, in which `failed` lines have an error.
    Whole { failed: u64 },
    /// No output, or a part of one.
    Unfinished,
}

/// Counts of an output's lines.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines {
    pub(crate) total: usize,
    /// Lines that have an error.
    pub(crate) failed: usize,
    /// Lines of an earlier run, which this one kept.
    pub(crate) earlier: usize,
}

/// Returns a digest of the files of a model: their names and sizes, all of small ones, and of
/// weights the beginning, the end and samples.
fn digest_of_model(dir: &Path) -> io::Result<String> {
    let mut names: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    names.retain(|path| path.is_file());
    names.sort();
    let mut digest = Sha256::new();
    for path in names {
        let mut file = File::open(&path)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let bytes = file.metadata()?.len();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update(bytes.to_le_bytes());
        if bytes <= SMALL_BYTES {
            io::copy(&mut file, &mut Hashed(&mut digest))?;
            continue;
        }
        for sample in 0..=SAMPLES {
            file.seek(SeekFrom::Start((bytes - SAMPLE_BYTES) / SAMPLES * sample))?;
            io::copy(&mut (&file).take(SAMPLE_BYTES), &mut Hashed(&mut digest))?;
        }
        file.seek(SeekFrom::Start(bytes - SAMPLE_BYTES))?;
        io::copy(&mut file, &mut Hashed(&mut digest))?;
    }
    Ok(text_of(digest))
}

/// Returns the digest of a file.
fn digest_of(mut file: File) -> io::Result<String> {
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut Hashed(&mut digest))?;
    Ok(text_of(digest))
}

fn text_of(digest: Sha256) -> String {
    format!("sha256:{}", digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
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
