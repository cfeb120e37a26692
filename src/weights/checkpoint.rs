//! [`Checkpoint`]: the tensors of a model folder, by the table's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::{self, Stored};
use super::index::{INDEX_BYTES_MAX, Index};
use super::map::MappedFile;
use super::names::{self, Spelling};
use super::pickle;
use super::table::BASE_PREFIX;
use crate::error::{Error, ErrorKind, Result};
use crate::files::read_text;

/// Weights as a model folder can hold them, in the order in which they count, as for transformers.
const SOURCES: [Source; 4] = [
    Source { file: "model.safetensors", is_index: false, format: Format::Safetensors },
    Source { file: "model.safetensors.index.json", is_index: true, format: Format::Safetensors },
    Source { file: "pytorch_model.bin", is_index: false, format: Format::Pickle },
    Source { file: "pytorch_model.bin.index.json", is_index: true, format: Format::Pickle },
];

/// A file by which a folder's weights are opened.
struct Source {
    file: &'static str,
    /// Names the files of the weights, and holds none itself.
    is_index: bool,
    format: Format,
}

/// The format of the weight files.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Safetensors,
    /// Files of `torch.save`.
    Pickle,
}

impl Format {
    /// The tensors of a whole file's bytes; `path` is only named in errors.
    fn parse(self, file: &[u8], path: &Path) -> Result<Vec<Stored>> {
        match self {
            Self::Safetensors => header::parse(file, path),
            Self::Pickle => pickle::parse(file, path),
        }
    }
}

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
    /// The file name of the index.
    index: &'static str,
}

impl Checkpoint {
    /// Maps the weights of a model folder: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names; where neither is there, `pytorch_model.bin` or the
    /// files that `pytorch_model.bin.index.json` names. The first that is there counts, as for
    /// transformers, and another of its format is a warning.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when files are missing or cannot be read, [`ErrorKind::Weights`] when a
    /// header or the index is damaged, or a tensor is there twice, [`ErrorKind::Unsupported`] when
    /// a pickle holds more than plain tensors.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            tensors: BTreeMap::new(),
            spelling: Spelling::Table,
            absent: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let mut found = SOURCES.iter().filter(|source| dir.join(source.file).exists());
        let Some(source) = found.next() else { return Err(no_weights(dir)) };
        // Many folders hold their weights in both formats.
        let others: Vec<&str> =
            found.filter(|other| other.format == source.format).map(|other| other.file).collect();
        if !others.is_empty() {
            checkpoint.warnings.push(format!(
                "{} holds {} and {}; the weights are read from the first",
                dir.display(),
                source.file,
                others.join(", ")
            ));
        }
        match source.is_index {
            false => checkpoint.add_file(&dir.join(source.file), source.format)?,
            true => checkpoint.add_indexed(source)?,
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
        let Absent { listed, shard, index } = self.absent.get(name)?;
        let message = format!("tensor `{listed}` is in none of the files, but the index says {shard}");
        Some(Error::new(ErrorKind::Weights, message).at(self.dir.join(index).display()))
    }

    fn add_file(&mut self, path: &Path, format: Format) -> Result<()> {
        let file = Arc::new(MappedFile::open(path)?);
        for stored in format.parse(file.bytes(), path)? {
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
    fn add_indexed(&mut self, source: &Source) -> Result<()> {
        let index_file = self.dir.join(source.file);
        let text = read_text(&index_file, INDEX_BYTES_MAX, ErrorKind::Weights)?;
        let Index(index) = Index::parse(&text, &index_file)?;
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
            self.add_file(&self.dir.join(shard), source.format)?;
        }
        for (listed, shard) in index {
            let name = table_name(&listed);
            if !self.tensors.contains_key(&name) && !names::is_ignored_if_absent(&listed) {
                self.absent.insert(name, Absent { listed, shard, index: source.file });
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

/// Returns the error for a folder without weights, with a hint by the files that it has.
fn no_weights(dir: &Path) -> Error {
    let [single, index, pickle, pickle_index] = SOURCES.map(|source| source.file);
    let message = format!("there is no {single} or {pickle}, and no index of such files");
    let error = Error::new(ErrorKind::Io, message).at(dir.display());
    let Ok(entries) = std::fs::read_dir(dir) else {
        return error
            .with_hint("point `--model` at a folder with config.json, tokenizer.json and the weights");
    };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let some = |start: &str, ends: &[&str]| {
        names.iter().any(|name| name.starts_with(start) && ends.iter().any(|end| name.ends_with(end)))
    };
    if some("", &[".safetensors"]) {
        error.with_hint(format!("the safetensors files here need {index} beside them, or the name {single}"))
    } else if some("pytorch_model", &[".bin"]) {
        error.with_hint(format!(
            "the PyTorch files here need {pickle_index} beside them, or the name {pickle}"
        ))
    } else if some("", &[".bin", ".pth", ".pt"]) {
        error.with_hint(
            "the folder holds PyTorch files in another layout than that of transformers; convert them: \
             `AutoModel...from_pretrained(dir).save_pretrained(new_dir)` of transformers writes safetensors",
        )
    } else if some("", &[".gguf"]) {
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
