//! The engine of a command that scores.

use std::path::Path;
use std::sync::Arc;

use crate::args::{EngineArgs, PromptArgs};
use crate::{progress, running_on, say};
use kudos::{Cluster, Engine, Loading};

/// Opens the engine of the model in `dir` while its progress is shown, and names its device.
pub(crate) fn open(
    args: &EngineArgs,
    prompt: &PromptArgs,
    dir: &Path,
    process: Option<Cluster>,
) -> anyhow::Result<Arc<Engine>> {
    let loading = Loading::default();
    let builder = args.builder(prompt, dir, process)?.loading(loading.clone());
    let engine = Arc::new(progress::while_loading(&loading, || builder.open())?);
    say(&running_on(engine.device()));
    Ok(engine)
}

/// Prints each of an engine's warnings once.
pub(crate) struct Warnings<'a> {
    engine: &'a Engine,
    printed: usize,
}

impl<'a> Warnings<'a> {
    /// Returns the warnings of an engine, of which none has been printed.
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self { engine, printed: 0 }
    }

    /// Prints those that are new.
    pub(crate) fn print(&mut self, say: impl Fn(&str)) {
        for warning in self.engine.warnings().iter().skip(self.printed) {
            say(&format!("warning: {warning}"));
            self.printed += 1;
        }
    }
}
