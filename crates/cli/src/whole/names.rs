//! The names of an output and of the files beside it.

use std::path::{Path, PathBuf};

/// The names of an output that appears when it is whole.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) output: PathBuf,
    pub(crate) manifest: PathBuf,
    /// The results as lines, while they are computed.
    pub(crate) journal: PathBuf,
    /// The output until it gets its name.
    pub(crate) staged: PathBuf,
}

impl Names {
    /// Returns the names of an output that its journal becomes, or that is made of it.
    pub(crate) fn new(output: &Path, is_journal: bool) -> Self {
        let journal = with_ending(output, ".partial");
        let staged = if is_journal { journal.clone() } else { with_ending(output, ".staged") };
        Self { output: output.to_owned(), manifest: with_ending(output, ".manifest.json"), journal, staged }
    }

    /// Returns the path of the manifest while it is written.
    pub(crate) fn partial_manifest(&self) -> PathBuf {
        with_ending(&self.manifest, ".partial")
    }

    /// Returns all paths at which files are written or replaced.
    pub(crate) fn all(&self) -> [PathBuf; 5] {
        let Self { output, manifest, journal, staged } = self;
        [output, manifest, journal, staged, &self.partial_manifest()].map(PathBuf::clone)
    }
}

/// Returns a path with an ending after its name.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
