//! Requests: one JSON object to scores that are computed, and to the JSON object of its result.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use kudos::internals::request::{self, Form, Parsed};
use kudos::internals::results::{Renderer, fields, is_of_sequence};
use kudos::{Engine, Input, Pending, Result, Score};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A request whose scores are being computed. Dropping it cancels them.
pub(crate) struct Waiting {
    id: Option<Box<RawValue>>,
    form: Form,
    scores: Vec<Slot>,
}

/// One score.
enum Slot {
    Waiting(Pending),
    Done(Result<Score>),
}

/// The scores of a request.
pub(crate) struct Scored {
    id: Option<Box<RawValue>>,
    form: Form,
    scores: Vec<Result<Score>>,
}

/// Parses a request and submits it. Blocks while the engine's queue is full.
pub(crate) fn submit(engine: &Engine, text: &[u8]) -> Result<Waiting> {
    let Parsed { id, request } = request::parse(text);
    let request = request?;
    if !request.is_tokens() {
        engine.prompt()?;
    }
    let (form, pending) = (request.form(), engine.submit_all(request.into_inputs().map(Input::from)));
    let slot = |pending: Result<Pending>| pending.map_or_else(|error| Slot::Done(Err(error)), Slot::Waiting);
    Ok(Waiting { id, form, scores: pending.into_iter().map(slot).collect() })
}

/// Parses a request and returns the number of its rewards.
pub(crate) fn count(text: &[u8]) -> Result<usize> {
    Ok(request::parse(text).request?.form().sequences())
}

/// Renders a request without scoring it, and returns the result's JSON text.
pub(crate) fn render(engine: &Engine, text: &[u8]) -> Result<String> {
    let Parsed { id, request } = request::parse(text);
    let renderer = Renderer {
        prompt: engine.prompt()?,
        max_tokens: engine.plan().max_tokens,
        head: engine.config().head,
    };
    Ok(object(id.as_deref(), &renderer.fields(request?)?))
}

impl Waiting {
    /// Blocks until all scores are computed.
    pub(crate) fn wait(self) -> Scored {
        let Self { id, form, scores } = self;
        let score = |slot| match slot {
            Slot::Waiting(pending) => pending.wait(),
            Slot::Done(score) => score,
        };
        Scored { id, form, scores: scores.into_iter().map(score).collect() }
    }

    /// Returns whether all scores are computed. Does not block.
    pub(crate) fn poll(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        for slot in &mut self.scores {
            if let Slot::Waiting(pending) = slot {
                match Pin::new(pending).poll(&mut context) {
                    Poll::Ready(score) => *slot = Slot::Done(score),
                    Poll::Pending => return false,
                }
            }
        }
        true
    }
}

impl Scored {
    /// Returns the result's JSON text, with the fields of an output line of `kudos score`. An error
    /// is that of a single score, or one of the engine: that of one of several responses is in the
    /// result.
    pub(crate) fn text(self) -> Result<String> {
        let Self { id, form, scores } = self;
        if let Some(error) =
            scores.iter().find_map(|score| score.as_ref().err().filter(|error| !is_of_sequence(error)))
        {
            return Err(error.clone());
        }
        match (form, scores.as_slice()) {
            (Form::One, [Err(error)]) => Err(error.clone()),
            _ => Ok(object(id.as_deref(), &fields(form, &scores))),
        }
    }

    /// Returns the rewards, or the first error.
    pub(crate) fn rewards(self) -> Result<Vec<f32>> {
        self.scores.into_iter().map(|score| score.map(|score| score.reward)).collect()
    }
}

/// Returns a JSON object whose first field is the request's id, as it was spelled, where it has
/// one.
fn object(id: Option<&RawValue>, fields: &Map<String, Value>) -> String {
    struct Object<'a>(Option<&'a RawValue>, &'a Map<String, Value>);
    impl Serialize for Object<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            let Self(id, fields) = self;
            let mut object = serializer.serialize_map(None)?;
            if let Some(id) = id {
                object.serialize_entry("id", id)?;
            }
            fields.iter().try_for_each(|(name, value)| object.serialize_entry(name, value))?;
            object.end()
        }
    }
    serde_json::to_string(&Object(id, fields)).expect("keys are strings")
}
