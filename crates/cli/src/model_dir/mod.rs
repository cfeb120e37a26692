//! `--model`: a folder, or a name in the local Hugging Face cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::InputFile;
use kudos::{Error, ErrorKind, Result};

/// Returns the folder of `model`, a path or a name in the local cache. Nothing is downloaded.
pub fn find(model: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(model);
    if dir.is_dir() {
        return Ok(dir);
    }
    let missing = || Error::new(ErrorKind::Io, format!("there is no model folder `{model}`"));
    let is_name = model.split('/').count() == 2 && !model.starts_with(['.', '/']) && !model.ends_with('/');
    let Some(cache) = cache_dir(&environment).filter(|_| is_name) else {
        return Err(missing().with_hint("point `--model` at a folder that holds config.json and the weights"));
    };
    let repo = Path::new(&cache).join(format!("models--{}", model.replace('/', "--")));
    snapshot(&repo).ok_or_else(|| {
        missing()
            .at(format!("{} (the local cache has no snapshot of it either)", repo.display()))
            .with_hint(format!("download it first (`hf download {model}`), or point `--model` at its folder"))
    })
}

/// The folder where huggingface_hub keeps models, for a lookup of environment variables; `None`
/// when there is no home.
///
/// Follows the constants `HF_HOME`, `HUGGINGFACE_HUB_CACHE` and `HF_HUB_CACHE` of huggingface_hub
/// step by step: a path from `HF_HOME` is expanded twice, and a variable that is set to the empty
/// string counts, so that the cache is then in the current folder: that is where `hf download` puts
/// it in the same environment.
fn cache_dir(variable: &Variables) -> Option<String> {
    let expanded = |path| Some(expand_variables(variable, &expand_home(variable, path)?));
    let hf_home = || {
        let caches = || Some(join(&expand_home(variable, "~".to_owned())?, ".cache"));
        let default = || Some(join(&variable("XDG_CACHE_HOME").or_else(caches)?, "huggingface"));
        expanded(variable("HF_HOME").or_else(default)?)
    };
    let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    expanded(cache.or_else(|| Some(join(&hf_home()?, "hub")))?)
}

/// A lookup of environment variables. `HOME` is the user's home folder also where that variable is
/// not set.
type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The lookup in this process's environment.
fn environment(name: &str) -> Option<String> {
    let home = || env::home_dir().filter(|_| name == "HOME").map(PathBuf::into_os_string);
    env::var_os(name).or_else(home).map(|value| value.to_string_lossy().into_owned())
}

/// Python's `os.path.join` of a folder and a plain name.
fn join(folder: &str, name: &str) -> String {
    let slash = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
    format!("{folder}{slash}{name}")
}

/// Python's `os.path.expanduser`, but for `~name`, the home of another user, which stays as it is.
fn expand_home(variable: &Variables, path: String) -> Option<String> {
    match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let expanded = format!("{}{rest}", variable("HOME")?.trim_end_matches('/'));
            Some(if expanded.is_empty() { "/".to_owned() } else { expanded })
        }
        _ => Some(path),
    }
}

/// Python's `os.path.expandvars`: `$NAME` and `${NAME}`; a variable that is not set stays as it is
/// written.
fn expand_variables(variable: &Variables, path: &str) -> String {
    let (start, mut rest) = path.split_at(path.find('$').unwrap_or(path.len()));
    let mut expanded = start.to_owned();
    while let Some(tail) = rest.strip_prefix('$') {
        let word = tail.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(tail.len());
        let braced = tail.strip_prefix('{').and_then(|inner| Some(inner.split_once('}')?.0));
        let (name, length) = braced.map_or((&tail[..word], word), |name| (name, name.len() + 2));
        let (written, after) = rest.split_at(1 + length);
        let value = Some(name).filter(|name| !name.is_empty()).and_then(variable);
        expanded += value.as_deref().unwrap_or(written);
        let next = after.find('$').unwrap_or(after.len());
        expanded += &after[..next];
        rest = &after[next..];
    }
    expanded
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

/// The files of a model folder that kudos reads.
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
        let endings = [".safetensors", ".bin", ".index.json", ".jinja"];
        NAMES.contains(&name) || endings.iter().any(|ending| name.ends_with(ending))
    };
    let folders = [dir.to_owned(), dir.join("additional_chat_templates")];
    let paths = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let read = paths.map(|entry| entry.path()).filter(|path| is_read(path));
    read.filter_map(|path| InputFile::at(&path)).collect()
}

#[cfg(test)]
mod tests;
