//! `--model`: a folder, or a name in the local Hugging Face cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{Identity, InputFile};
use kudos::{Error, ErrorKind, Result};

/// The folder that `model` means. Nothing is downloaded.
pub fn find(model: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(model);
    if dir.is_dir() {
        return Ok(dir);
    }
    let missing = || Error::new(ErrorKind::Io, format!("there is no model folder `{model}`"));
    let is_name = model.split('/').count() == 2 && !model.starts_with(['.', '/']) && !model.ends_with('/');
    let Some(cache) = cache_dir().filter(|_| is_name) else {
        return Err(
            missing().with_hint("point `--model` at a folder that holds config.json and safetensors files")
        );
    };
    let repo = cache.join(format!("models--{}", model.replace('/', "--")));
    snapshot(&repo).ok_or_else(|| {
        missing()
            .at(format!("{} (the local cache has no snapshot of it either)", repo.display()))
            .with_hint(format!("download it first (`hf download {model}`), or point `--model` at its folder"))
    })
}

/// Where Hugging Face's own tools keep models.
fn cache_dir() -> Option<PathBuf> {
    let from = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("HF_HUB_CACHE")
        .or_else(|| from("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// The revision `main` of a cached repository, or its only snapshot.
fn snapshot(repo: &Path) -> Option<PathBuf> {
    let snapshots = repo.join("snapshots");
    if let Ok(revision) = fs::read_to_string(repo.join("refs/main")) {
        let dir = snapshots.join(revision.trim());
        return dir.is_dir().then_some(dir);
    }
    let mut dirs = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path());
    dirs.next().filter(|_| dirs.next().is_none())
}

/// The files of a model folder that are read.
pub(super) fn files(dir: &Path) -> Vec<InputFile> {
    const NAMES: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ];
    let is_read = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let endings = [".safetensors", ".index.json", ".jinja"];
        NAMES.contains(&name) || endings.iter().any(|ending| name.ends_with(ending))
    };
    let folders = [dir.to_owned(), dir.join("additional_chat_templates")];
    let paths = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let read = paths.map(|entry| entry.path()).filter(|path| is_read(path));
    let file = |path: PathBuf| {
        let identity = Identity::of(&fs::metadata(&path).ok()?)?;
        Some(InputFile { identity, name: format!("`{}`", path.display()) })
    };
    read.filter_map(file).collect()
}
