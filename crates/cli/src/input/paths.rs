//! The files that arguments name: themselves, those of a folder, or those of a pattern.

use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use super::row::cannot_open;
use kudos::{Error, ErrorKind, Result};

/// Returns the files of arguments, in the order of these, and those of one argument by name.
/// Standard input, `-`, stands alone.
pub(super) fn expand(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for argument in arguments {
        if argument == Path::new("-") && arguments.len() > 1 {
            return Err(Error::new(ErrorKind::Options, "`-` is given beside files")
                .with_hint("standard input is read alone: `cat FILES | kudos .. -` reads several"));
        }
        files.extend(files_of(argument)?);
    }
    Ok(files)
}

fn files_of(argument: &Path) -> Result<Vec<PathBuf>> {
    if argument.is_dir() {
        return of_folder(argument);
    }
    let pattern = argument.to_str().filter(|text| text.contains(['*', '?', '[']));
    match pattern {
        Some(pattern) if fs::symlink_metadata(argument).is_err() => of_pattern(pattern),
        _ => Ok(vec![argument.to_owned()]),
    }
}

/// Returns the files in a folder, without those whose names begin with `.` or `_`, as programs that
/// write folders of tables mark what is no table.
fn of_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| cannot_open(folder, error))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot_open(folder, error))?;
        let is_marked = entry.file_name().to_string_lossy().starts_with(['.', '_']);
        if !is_marked && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::new(ErrorKind::Io, "the folder has no files").at(folder.display()).with_hint(
            "folders within it are not entered: a pattern such as `FOLDER/**/*.parquet` names their files",
        ));
    }
    Ok(files)
}

fn of_pattern(pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |message: String| Error::new(ErrorKind::Options, message).at(pattern);
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let paths =
        glob::glob_with(pattern, options).map_err(|error| wrong(format!("the pattern is wrong: {error}")))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_owned();
            cannot_open(&path, error.into())
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(cannot_open(Path::new(pattern), IoErrorKind::NotFound.into()));
    }
    Ok(files)
}
