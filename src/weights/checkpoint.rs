//! [`Checkpoint`]: the tensors of a model folder, by the table's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::{self, Stored};
use super::index::{INDEX_BYTES_MAX, INDEX_FILE, Index};
use super::map::MappedFile;
use super::names::{self, Spelling};
use super::table::BASE_PREFIX;
use crate::error::{Error, ErrorKind, Result};
use crate::files::read_text;

/// The file of a model in one piece.
const SINGLE_FILE: &str = "model.safetensors";

/// Names that an error lists, at most; it counts the others.
const NAMES_MAX: usize = 40;

/// The weight files of a model folder, mapped, with every header checked. Only headers have been
/// read.
///
/// A tensor is named as in the table, however its file spells the name; a tensor of no model
/// by its stored name. Tensors that transformers ignores, because they follow from `config.json` or
/// are empty, are not among them.
///
/// Files must not be changed while this or any tensor of it lives: see [`MappedFile`].
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    tensors: BTreeMap<String, (Arc<MappedFile>, Stored)>,
    /// The spelling of the base model's names in this checkpoint; the table's when it mixes
    /// spellings.
    spelling: Spelling,
    /// Tensors that the index lists and no file holds, by the same names.
    absent: BTreeMap<String, Absent>,
    warnings: Vec<String>,
}

/// A tensor that the index lists and no file holds.
#[derive(Debug)]
struct Absent {
    /// The name in the index.
    listed: String,
    /// The file that should hold it.
    shard: String,
}

impl Checkpoint {
    /// Maps the weights of a model folder: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names. When both are there the first counts, as for
    /// transformers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when files are missing or cannot be read, [`ErrorKind::Weights`] when a
    /// header or the index is damaged, or a tensor is there twice.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            tensors: BTreeMap::new(),
            spelling: Spelling::Table,
            absent: BTreeMap::new(),
            warnings: Vec::new(),
        };
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
        checkpoint.spelling = checkpoint.common_spelling();
        Ok(checkpoint)
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor names, sorted: the table's, or the stored ones of tensors that no model
    /// has.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's file, dtype, shape and bytes; its stored name is the file's.
    pub(super) fn find(&self, name: &str) -> Option<(&Arc<MappedFile>, &Stored)> {
        self.tensors.get(name).map(|(file, stored)| (file, stored))
    }

    /// A tensor's name as its file spells it, or as this checkpoint would if it had the tensor.
    pub(super) fn spelled(&self, name: &str) -> String {
        self.find(name).map_or_else(|| self.spelling.of(name), |(_, stored)| stored.name.clone())
    }

    /// The names of tensors that the index lists and no file holds.
    pub(super) fn absent(&self) -> impl Iterator<Item = &str> {
        self.absent.keys().map(String::as_str)
    }

    /// Returns the error for such a tensor; `None` for any other.
    pub(super) fn absent_error(&self, name: &str) -> Option<Error> {
        let Absent { listed, shard } = self.absent.get(name)?;
        let message = format!("tensor `{listed}` is in none of the files, but the index says {shard}");
        Some(Error::new(ErrorKind::Weights, message).at(self.dir.join(INDEX_FILE).display()))
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = Arc::new(MappedFile::open(path)?);
        for stored in header::parse(file.bytes(), path)? {
            if names::is_ignored(&stored) {
                continue;
            }
            let name = table_name(&stored.name);
            if let Some((other_file, other)) = self.tensors.get(&name) {
                return Err(twice(other_file, other, &file, &stored));
            }
            self.tensors.insert(name, (file.clone(), stored));
        }
        Ok(())
    }

    fn common_spelling(&self) -> Spelling {
        let base = self.tensors.iter().filter(|(name, _)| name.starts_with(BASE_PREFIX));
        let mut spellings = base.filter_map(|(_, (_, stored))| Some(names::resolve(&stored.name)?.1));
        match spellings.next() {
            Some(first) if spellings.all(|spelling| spelling == first) => first,
            _ => Spelling::Table,
        }
    }

    /// Every file that the index names. As in transformers, the index names files only: a tensor
    /// counts whichever of these files holds it. Tensors that the index lists and no file holds are
    /// left to `check`, which knows if the model needs them.
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
        for (listed, shard) in index {
            let name = table_name(&listed);
            if !self.tensors.contains_key(&name) && !names::is_ignored_if_absent(&listed) {
                self.absent.insert(name, Absent { listed, shard });
            }
        }
        Ok(())
    }
}

/// The table's name of a stored tensor, or the stored name when no model has it.
fn table_name(stored: &str) -> String {
    names::resolve(stored).map_or_else(|| stored.to_owned(), |(name, _)| name)
}

/// Returns the error for a tensor that is there twice, by one name or two. transformers takes the
/// last that it reads.
fn twice(other_file: &MappedFile, other: &Stored, file: &MappedFile, stored: &Stored) -> Error {
    let place = match other_file.path() == file.path() {
        true => file.path().display().to_string(),
        false => format!("{} and {}", other_file.path().display(), file.path().display()),
    };
    let (message, hint) = match other.name == stored.name {
        true => (
            format!("tensor `{}` is in two files", stored.name),
            "the files are of different downloads; download the model again into an empty folder",
        ),
        false => (
            format!("`{}` and `{}` are two names of one tensor of the model", other.name, stored.name),
            "remove one of them from the checkpoint",
        ),
    };
    Error::new(ErrorKind::Weights, message).at(place).with_hint(hint)
}

/// Returns the error for a folder without safetensors files, with a hint by the files that it has.
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

/// Joins names with commas, and cuts the list when it is too long.
fn listed(names: &[&str]) -> String {
    match names.get(..NAMES_MAX) {
        Some(first) if names.len() > NAMES_MAX => {
            format!("{} and {} more", first.join(", "), names.len() - NAMES_MAX)
        }
        _ => names.join(", "),
    }
}
