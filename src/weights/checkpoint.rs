//! [`Checkpoint`]: the tensors of a model folder, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MappedFile;
use super::header::{self, Stored};
use super::index::{INDEX_BYTES_MAX, INDEX_FILE, Index};
use crate::error::{Error, ErrorKind, Result};
use crate::files::read_text;

/// The file of a model in one piece.
const SINGLE_FILE: &str = "model.safetensors";

/// How many names an error spells out before it only counts.
const NAMES_MAX: usize = 40;

/// The weight files of a model folder, mapped, with every header checked. Nothing but headers has been read.
///
/// Files must not be changed while this or any tensor of it lives: see [`MappedFile`].
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    tensors: BTreeMap<String, (Arc<MappedFile>, Stored)>,
    warnings: Vec<String>,
}

impl Checkpoint {
    /// Maps the weights of a model folder: `model.safetensors`, or the files that `model.safetensors.index.json`
    /// names. When both are there the first counts, as for transformers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when files are missing or cannot be read, [`ErrorKind::Weights`] when a header or the index
    /// is damaged, or they contradict each other.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint = Self { dir: dir.to_owned(), tensors: BTreeMap::new(), warnings: Vec::new() };
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.exists() {
            if index.exists() {
                checkpoint.warnings.push(format!(
                    "{} holds both {SINGLE_FILE} and {INDEX_FILE}; the weights are read from the first",
                    dir.display()
                ));
            }
            checkpoint.add_file(&single)?;
        } else if index.exists() {
            checkpoint.add_indexed(&index)?;
        } else {
            return Err(no_weights(dir));
        }
        Ok(checkpoint)
    }

    /// What should be told to the user, once.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's file, type, shape and place.
    pub(super) fn find(&self, name: &str) -> Option<(&Arc<MappedFile>, &Stored)> {
        self.tensors.get(name).map(|(file, stored)| (file, stored))
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = Arc::new(MappedFile::open(path)?);
        for stored in header::parse(file.bytes(), path)? {
            if let Some((other, _)) = self.tensors.get(&stored.name) {
                let message = format!("tensor `{}` is in two files", stored.name);
                return Err(Error::new(ErrorKind::Weights, message)
                    .at(format_args!("{} and {}", other.path().display(), path.display()))
                    .with_hint(
                        "the files are of different downloads; download the model again into an empty folder",
                    ));
            }
            self.tensors.insert(stored.name.clone(), (file.clone(), stored));
        }
        Ok(())
    }

    /// Every file that the index names. A tensor that is in a file but not in the index counts all the same, as it
    /// does for transformers.
    fn add_indexed(&mut self, index_file: &Path) -> Result<()> {
        let Index(index) =
            Index::parse(&read_text(index_file, INDEX_BYTES_MAX, ErrorKind::Weights)?, index_file)?;
        let shards: BTreeSet<&str> = index.values().map(String::as_str).collect();
        let missing: Vec<&str> =
            shards.iter().copied().filter(|shard| !self.dir.join(shard).exists()).collect();
        if !missing.is_empty() {
            let message = format!(
                "{} of {} weight files are missing: {}",
                missing.len(),
                shards.len(),
                listed(&missing)
            );
            return Err(Error::new(ErrorKind::Io, message)
                .at(index_file.display())
                .with_hint("the download is incomplete; fetch these files into the same folder"));
        }
        for shard in shards {
            self.add_file(&self.dir.join(shard))?;
        }
        for (tensor, shard) in &index {
            let path = self.dir.join(shard);
            let problem = match self.tensors.get(tensor) {
                Some((file, _)) if file.path() == path => continue,
                Some((file, _)) => format!("is in {}", file.path().display()),
                None => "is in none of the files".to_owned(),
            };
            let message = format!("tensor `{tensor}` {problem}, but the index says {shard}");
            return Err(Error::new(ErrorKind::Weights, message)
                .at(index_file.display())
                .with_hint("the index is of another download than the files; download the model again"));
        }
        Ok(())
    }
}

/// There is nothing to open: says what there is instead.
fn no_weights(dir: &Path) -> Error {
    let error = Error::new(ErrorKind::Io, format!("there is neither {SINGLE_FILE} nor {INDEX_FILE}"))
        .at(dir.display());
    let Ok(entries) = std::fs::read_dir(dir) else {
        return error
            .with_hint("point `--model` at a folder with config.json, tokenizer.json and safetensors files");
    };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let some =
        |endings: &[&str]| names.iter().any(|name| endings.iter().any(|ending| name.ends_with(ending)));
    if some(&[".safetensors"]) {
        error.with_hint(format!(
            "the safetensors files here need {INDEX_FILE} beside them, or the name {SINGLE_FILE}"
        ))
    } else if some(&[".bin", ".pth", ".pt"]) {
        error.with_hint(
            "the folder holds PyTorch pickles, which are not read; convert them: \
             `AutoModel...from_pretrained(dir).save_pretrained(new_dir)` of transformers writes safetensors",
        )
    } else if some(&[".gguf"]) {
        error.with_hint("the folder holds a GGUF file, which is not read; use the model's safetensors files")
    } else {
        error.with_hint("the download is incomplete; fetch the safetensors files into this folder")
    }
}

/// Names with commas between them, cut when there are too many.
fn listed(names: &[&str]) -> String {
    match names.get(..NAMES_MAX) {
        Some(first) if names.len() > NAMES_MAX => {
            format!("{} and {} more", first.join(", "), names.len() - NAMES_MAX)
        }
        _ => names.join(", "),
    }
}
