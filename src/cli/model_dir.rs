//! `--model`: a folder, or a name in the local Hugging Face cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The folder that `model` means. Nothing is downloaded.
pub(crate) fn find(model: &str) -> Result<PathBuf> {
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
