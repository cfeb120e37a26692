//! The extension module of the Python package `kudos-rm`, imported as `kudos._kudos`.
//!
//! `python/kudos/__init__.py` has the classes that users see; here is what they need of the engine.
//! No thread of the engine ever takes the GIL: threads of Python wait for the engine without it
//! (`wait`), and what is awaited is woken through a thread of its own (`submission`).

mod arrow;
mod engine;
mod errors;
mod input;
mod options;
mod scoring;
mod submission;
mod wait;

use std::ffi::OsString;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Runs the `kudos` command with these arguments, and returns its exit status.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    #[cfg(target_os = "linux")]
    kudos_cli::files::note_closed_streams();
    py.detach(|| kudos_cli::run(arguments))
}

/// Makes the module, in the main interpreter only: threads that Python did not start, such as the
/// one that wakes event loops, can attach to no other. A free-threaded Python runs it with the GIL.
#[pymodule(gil_used = true)]
fn _kudos(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // SAFETY: this thread is attached, as `module` shows, and so has an interpreter.
    if unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) } != 0 {
        return Err(PyImportError::new_err(
            "kudos can be used in the main interpreter only, not in subinterpreters",
        ));
    }
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("OPTIONS", options::names().collect::<Vec<_>>())?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<submission::Submission>()?;
    module.add_class::<arrow::RewardTable>()?;
    module.add_function(wrap_pyfunction!(main, module)?)
}
