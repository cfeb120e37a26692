//! [`Engine`]: an open model, as `kudos.RewardModel` uses it.

use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::{mem, thread};

use kudos::internals::request::{self, Request};
use kudos::internals::results::Renderer;
use kudos::{DeviceKind, Error, ErrorKind, Loading, Result};
use kudos_cli::progress::while_loading;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList};
use serde_json::{Value, json};

use crate::arrow::{self, RewardTable};
use crate::errors::{exception, wrong};
use crate::input::{Inputs, python, request, type_of};
use crate::scoring::{self, Call, Form};
use crate::submission::{Notifier, Submission};
use crate::{options, wait};

/// An open model. Threads share it.
#[pyclass(frozen, module = "kudos._kudos")]
#[derive(Debug)]
pub(crate) struct Engine {
    /// `None` once it is closed.
    engine: Mutex<Option<Arc<kudos::Engine>>>,
    /// The process that has the engine's threads: a forked child has none of them.
    pid: u32,
    notifier: Notifier,
    /// Warnings that were returned.
    warned: AtomicUsize,
}

impl Engine {
    /// Returns the engine, where it can be used.
    fn open(&self, py: Python<'_>) -> PyResult<Arc<kudos::Engine>> {
        let stopped = |message: &str, hint: &str| {
            exception(py, &Error::new(ErrorKind::Stopped, message).with_hint(hint), None)
        };
        if self.pid != process::id() {
            return Err(stopped(
                "this process was forked from the one that opened the model, and has none of the engine's threads",
                "open a RewardModel in each process after the fork, or start processes by `spawn`",
            ));
        }
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        engine.ok_or_else(|| {
            stopped("the model was closed", "use it before `close`, and within its `with` block")
        })
    }

    /// Takes the engine, which is closed from then on; nothing in a forked child, where the
    /// engine's locks may be held by threads that are not there.
    fn take(&self) -> Option<Arc<kudos::Engine>> {
        if self.pid != process::id() {
            return None;
        }
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        match self.take() {
            // It waits for the engine's threads.
            Some(engine) => {
                let mut engine = Some(engine);
                Python::try_attach(|py| py.detach(|| engine.take()));
            }
            None => mem::forget(mem::take(&mut *self.engine.lock().unwrap_or_else(PoisonError::into_inner))),
        }
    }
}

type Requests<'py> = Box<dyn Iterator<Item = PyResult<Result<Request>>> + 'py>;

/// Returns the requests of an argument, each by `read`.
fn requests<'py>(
    inputs: Inputs<'py>,
    read: fn(&Bound<'py, PyAny>) -> Result<Request>,
) -> (Form, Requests<'py>) {
    match inputs {
        Inputs::One(one) => (Form::One, Box::new(std::iter::once_with(move || Ok(read(&one))))),
        Inputs::Each(items) => (Form::Each, Box::new(items.map(move |item| Ok(read(&item?))))),
    }
}

/// Returns the request of a list or an array of token ids.
fn tokens(object: &Bound<'_, PyAny>) -> Result<Request> {
    let plain = plain(object);
    let ids = plain.extract::<Vec<u32>>();
    let ids =
        ids.map_err(|_| wrong(format!("token ids are of type {}, expected a list of ids", type_of(&plain))))?;
    Ok(Request::One(request::Input::Tokens(ids)))
}

/// Returns the list of an array, and other objects as they are.
fn plain<'py>(object: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
    object.call_method0("tolist").unwrap_or_else(|_| object.clone())
}

/// Returns the requests of `score` or, where `ids`, of `score_tokens`.
fn read(object: Bound<'_, PyAny>, ids: bool) -> PyResult<(Form, Requests<'_>)> {
    if !ids {
        return Ok(requests(Inputs::new(object)?, request));
    }
    let object = plain(&object);
    let first = object.cast::<PyList>().ok().and_then(|list| list.get_item(0).ok());
    let inputs = match first {
        Some(first) if plain(&first).is_instance_of::<PyInt>() => Inputs::One(object),
        _ => Inputs::Each(object.try_iter()?),
    };
    Ok(requests(inputs, tokens))
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, model: &str, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let dir = options::folder(model).map_err(|error| exception(py, &error, None))?;
        let loading = Loading::default();
        let builder = options::builder(&dir, options)?.loading(loading.clone());
        let (sender, opened) = channel();
        // On a thread of its own, whose engine is dropped where Ctrl-C ended the wait.
        thread::spawn(move || {
            let _ = sender.send(while_loading(&loading, || builder.open()));
        });
        let engine = wait::receive(py, opened)?.map_err(|error| exception(py, &error, None))?;
        Ok(Self {
            engine: Mutex::new(Some(Arc::new(engine))),
            pid: process::id(),
            notifier: Notifier::default(),
            warned: AtomicUsize::new(0),
        })
    }

    /// Returns a float, an array, or a list of those: the rewards of `inputs`.
    #[pyo3(signature = (inputs, ids=false, failures=None, progress=None))]
    fn score(
        &self,
        py: Python<'_>,
        inputs: Bound<'_, PyAny>,
        ids: bool,
        failures: Option<&Bound<'_, PyList>>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let engine = self.open(py)?;
        let (form, requests) = read(inputs, ids)?;
        scoring::score(py, &engine, &Call { form, failures, progress }, requests)?.object(py)
    }

    /// Returns the rewards of a table's rows as a table.
    #[pyo3(signature = (table, failures=None, progress=None))]
    fn score_table(
        &self,
        py: Python<'_>,
        table: &Bound<'_, PyAny>,
        failures: Option<&Bound<'_, PyList>>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<RewardTable> {
        let engine = self.open(py)?;
        let call = Call { form: Form::Each, failures, progress };
        scoring::score(py, &engine, &call, arrow::requests(table)?)?.table()
    }

    /// Returns the inputs as a `Submission` that is not prepared.
    #[pyo3(signature = (inputs, ids=false))]
    fn submission(&self, py: Python<'_>, inputs: Bound<'_, PyAny>, ids: bool) -> PyResult<Submission> {
        let engine = self.open(py)?;
        let (form, requests) = read(inputs, ids)?;
        Submission::new(engine, self.notifier.sender(), form, requests)
    }

    /// Returns the fields of a line of `kudos render`.
    fn render<'py>(&self, py: Python<'py>, input: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let engine = self.open(py)?;
        let fields = request(input).and_then(|request| {
            let max_tokens = engine.plan().max_tokens;
            Renderer { prompt: engine.prompt()?, max_tokens, head: engine.config().head }.fields(request)
        });
        python(py, &Value::Object(fields.map_err(|error| exception(py, &error, None))?))
    }

    /// Returns the memory plan.
    fn plan<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let engine = self.open(py)?;
        let plan = engine.plan();
        python(
            py,
            &json!({
                "ranks": plan.ranks,
                "replicas": plan.replicas,
                "stored_weight_bytes": plan.weight_bytes.layers + plan.weight_bytes.head,
                "weight_bytes": plan.footprint.weights,
                "workspace_bytes": plan.footprint.workspace,
                "library_bytes": plan.footprint.libraries,
                "resident_layers": plan.placement.resident,
                "streamed_layers": plan.placement.streamed,
                "batch_tokens": plan.batch_tokens,
                "max_tokens": plan.max_tokens,
                "limited_by_memory": plan.limited_by_memory,
            }),
        )
    }

    /// Returns counts of what is queued and of what was computed.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.open(py)?.stats();
        python(
            py,
            &json!({
                "queued_sequences": stats.queued_sequences,
                "queued_tokens": stats.queued_tokens,
                "passes": stats.passes,
                "sequences": stats.sequences,
                "tokens": stats.tokens,
                "unique_tokens": stats.unique_tokens,
                "shared": stats.shared(),
            }),
        )
    }

    /// Returns the kind of device, its description, and why the engine chose it, if it did.
    fn device(&self, py: Python<'_>) -> PyResult<(&'static str, String, Option<String>)> {
        let engine = self.open(py)?;
        let device = engine.device();
        let kind = if device.kind == DeviceKind::Cpu { "cpu" } else { "cuda" };
        Ok((kind, device.to_string(), device.reason.clone()))
    }

    /// Returns the number of logits of a sequence.
    fn labels(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.labels())
    }

    /// Returns the warnings that this did not return before; none of a model that was closed.
    fn new_warnings(&self, py: Python<'_>) -> Vec<String> {
        let warnings = self.open(py).map_or_else(|_| Vec::new(), |engine| engine.warnings());
        let before = self.warned.fetch_max(warnings.len(), Ordering::Relaxed);
        warnings.into_iter().skip(before).collect()
    }

    /// Scores what is queued, and frees the model.
    fn close(&self, py: Python<'_>) {
        if let Some(engine) = self.take() {
            py.detach(|| {
                engine.close();
                drop(engine);
            });
        }
    }
}
