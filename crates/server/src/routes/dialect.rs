//! Common parts of the forms of other servers: fields that are read or refused by name, texts and
//! token ids as input, activations of the logits, and answers of one item or several.
//!
//! A field that would change the values and is not served is an error; others that are not read have
//! no meaning here. An item that cannot be scored fails its request: these forms have no place for
//! an error among values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kudos::internals::request::strict;
use kudos::internals::results::number;
use kudos::{Engine, RenderedBos, Score};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::json_response;
use crate::failure::Failure;
use crate::scoring::Prepared;

/// Limit on the bytes of a model's name, which comes back with the answer.
const MODEL_BYTES_MAX: usize = 256;

/// Limit on the rest of an id that comes back.
const ID_BYTES_MAX: usize = 256;

/// The fields of a request.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

/// A request that was read: its work, and the form of its answer.
pub(super) struct Plan {
    pub(super) work: Vec<Work>,
    /// Makes the answer of the scores, one per item of `work`.
    pub(super) answer: Box<dyn FnOnce(&Answer<'_>) -> Value + Send>,
}

/// One item to score.
#[derive(Debug)]
pub(super) enum Work {
    /// An object as in the command's files, with one reward.
    Object(Value),
    /// Text that the client rendered.
    Text(String, RenderedBos),
    Ids(Vec<u32>),
}

/// The parts that an answer is made of.
pub(super) struct Answer<'a> {
    pub(super) app: &'a App,
    pub(super) scores: &'a [Score],
    pub(super) time: Duration,
}

/// A function of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// Nothing: rewards are raw logits.
    None,
    /// A sigmoid of a reward, a softmax over several labels.
    Probability,
}

impl Fields {
    /// Reads the JSON text of an object.
    pub(super) fn read(text: &[u8]) -> Result<Self, Failure> {
        match strict(text)? {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(Failure::invalid("the body is no JSON object")),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field; null is absence.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<Value, Failure> {
        self.take(name).ok_or_else(|| Failure::invalid(format!("`{name}` is missing")))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Failure::invalid(format!("`{name}` is no string"))),
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(Failure::invalid(format!("`{name}` is neither true nor false"))),
        }
    }

    pub(super) fn count(&mut self, name: &str) -> Result<Option<usize>, Failure> {
        let wrong = || Failure::invalid(format!("`{name}` is no number from 0 on"));
        let count =
            |value: Value| value.as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(wrong);
        self.take(name).map(count).transpose()
    }

    /// Takes a string, or a list of strings, and whether it is a list.
    pub(super) fn texts(&mut self, name: &str) -> Result<(bool, Vec<String>), Failure> {
        texts(self.required(name)?, name)
    }

    /// Refuses fields that would change the values, each with the value that changes nothing.
    pub(super) fn refuse(&self, fields: &[(&str, Value)]) -> Result<(), Failure> {
        for (name, harmless) in fields {
            let Some(value) = self.0.get(*name).filter(|value| !value.is_null() && *value != harmless) else {
                continue;
            };
            let shown =
                if value.is_string() || value.is_object() { String::new() } else { format!(" ({value})") };
            return Err(Failure::invalid(format!("`{name}` is not served here{shown}"))
                .with_hint("leave it out: the values would not be those that it asks for"));
        }
        Ok(())
    }

    /// Takes the model's name, which no file is opened for.
    pub(super) fn model(&mut self, app: &App) -> Result<String, Failure> {
        let given = self.text("model")?.filter(|name| !name.is_empty());
        let served = &app.options.served_model_names;
        match given {
            None => Ok(app.options.name().to_owned()),
            Some(name) if name.len() > MODEL_BYTES_MAX => {
                let message = format!("`model` has {} bytes, the limit is {MODEL_BYTES_MAX}", name.len());
                Err(Failure::invalid(message))
            }
            Some(name) if served.is_empty() || served.contains(&name) => Ok(name),
            Some(name) => {
                let message = format!("the model {name:?} is not served here");
                Err(Failure::new(StatusCode::NOT_FOUND, "model", message)
                    .with_hint("GET /v1/models lists the names"))
            }
        }
    }

    /// Takes what is done to logits. `names` are the switches, of which the first given one counts.
    pub(super) fn activation(&mut self, names: &[&str]) -> Result<Activation, Failure> {
        for name in names {
            if let Some(is_on) = self.flag(name)? {
                return Ok(if is_on { Activation::Probability } else { Activation::None });
            }
        }
        Ok(Activation::None)
    }

    /// Takes `name` as texts or token ids, one of either or several, and whether there are several.
    pub(super) fn inputs(&mut self, name: &str, bos: RenderedBos) -> Result<(bool, Vec<Work>), Failure> {
        let has_ids = |list: &Vec<Value>| list.iter().any(|item| item.is_number() || item.is_array());
        if self.0.get(name).and_then(Value::as_array).is_some_and(has_ids) {
            return self.ids(name);
        }
        let (is_list, texts) = self.texts(name)?;
        Ok((is_list, texts.into_iter().map(|text| Work::Text(text, bos)).collect()))
    }

    /// Takes token ids, or a list of those, and whether it is such a list.
    pub(super) fn ids(&mut self, name: &str) -> Result<(bool, Vec<Work>), Failure> {
        match self.required(name)? {
            Value::Array(list) if list.iter().any(Value::is_array) => {
                let list = list.into_iter().enumerate();
                let ids = list.map(|(index, ids)| ids_of(ids, &format!("{name}[{index}]")).map(Work::Ids));
                Ok((true, ids.collect::<Result<_, _>>()?))
            }
            value => Ok((false, vec![Work::Ids(ids_of(value, name)?)])),
        }
    }

    /// Takes a conversation of `messages` with what belongs to it.
    pub(super) fn conversation(&mut self) -> Work {
        const OF_CONVERSATIONS: [&str; 8] = [
            "messages",
            "tools",
            "documents",
            "chat_template",
            "chat_template_kwargs",
            "add_generation_prompt",
            "continue_final_message",
            "date_string",
        ];
        let taken = OF_CONVERSATIONS.iter().filter_map(|name| Some(((*name).to_owned(), self.take(name)?)));
        let mut object: Map<String, Value> = taken.collect();
        if let Some(Value::Array(messages)) = object.get_mut("messages") {
            messages.iter_mut().for_each(join_text);
        }
        Work::Object(Value::Object(object))
    }
}

/// Makes a message's content of one text part that text, which templates for text alone take too.
fn join_text(message: &mut Value) {
    let Some(content) = message.get_mut("content") else { return };
    let Some([part]) = content.as_array().map(Vec::as_slice) else { return };
    let is_text = part["type"] == "text" && part.as_object().is_some_and(|part| part.len() == 2);
    if let Some(text) = part["text"].as_str().filter(|_| is_text) {
        *content = Value::from(text);
    }
}

/// Returns the strings of a value: one, or a list, and whether it is a list.
fn texts(value: Value, name: &str) -> Result<(bool, Vec<String>), Failure> {
    match value {
        Value::String(text) => Ok((false, vec![text])),
        Value::Array(list) => {
            let text = |(index, value)| match value {
                Value::String(text) => Ok(text),
                _ => Err(Failure::invalid(format!("`{name}[{index}]` is no string"))),
            };
            Ok((true, list.into_iter().enumerate().map(text).collect::<Result<_, _>>()?))
        }
        _ => Err(Failure::invalid(format!("`{name}` is neither a string nor a list of strings"))),
    }
}

/// Returns the token ids of a list.
pub(super) fn ids_of(value: Value, name: &str) -> Result<Vec<u32>, Failure> {
    let wrong = |what: String| Failure::invalid(format!("{what} is no token id"));
    let Value::Array(list) = value else {
        return Err(Failure::invalid(format!("`{name}` is no list of token ids")));
    };
    let id = |(index, value): (usize, Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(format!("`{name}[{index}]`")))
    };
    list.into_iter().enumerate().map(id).collect()
}

/// Returns an object as in the command's files: a prompt, which is the user's turn, and its response.
pub(super) fn exchange(prompt: impl Into<Value>, response: String) -> Work {
    Work::Object(json!({"prompt": prompt.into(), "response": response}))
}

/// Reads a request by `plan`, scores it, and answers; `failed` gives errors their form.
pub(super) async fn respond(
    app: App,
    headers: HeaderMap,
    body: Body,
    plan: impl FnOnce(&App, Fields) -> Result<Plan, Failure> + Send + 'static,
    failed: impl FnOnce(Failure) -> Response,
) -> Response {
    let start = std::time::Instant::now();
    let answer = async {
        let read = app.bodies.json(&headers, body).await?;
        let planning = app.clone();
        let Plan { work, answer } = app
            .workers
            .run(move || Fields::read(&read.bytes).and_then(|fields| plan(&planning, fields)))
            .await?;
        let engine = Arc::clone(&app.engine);
        let items = app.workers.map(work, move |work| prepare(&engine, work)).await;
        let mut scores = Vec::with_capacity(items.len());
        for (index, item) in app.score(items).await?.into_iter().enumerate() {
            for score in item.scores {
                scores.push(score.map_err(|error| error.prefixed(format!("input {index}")))?);
            }
        }
        let answer = answer(&Answer { app: &app, scores: &scores, time: start.elapsed() });
        Ok(json_response(StatusCode::OK, &answer))
    };
    app.within_time(&headers, answer).await.unwrap_or_else(failed)
}

fn prepare(engine: &Engine, work: Work) -> Prepared {
    match work {
        Work::Object(object) => Prepared::of_object(engine, object.to_string().as_bytes()),
        Work::Ids(ids) => Prepared::one(engine.prepare(ids)),
        Work::Text(text, bos) => {
            Prepared::one(engine.prompt().and_then(|prompt| {
                engine.prepare(prompt.rendered_tokens(&text, bos, engine.plan().max_tokens))
            }))
        }
    }
}

impl Activation {
    /// Returns the values of a score, one per label.
    pub(super) fn values(self, score: &Score) -> Vec<f32> {
        let logits = &score.logits;
        if self == Self::None {
            return logits.clone();
        }
        // A sigmoid is a softmax beside a logit of 0.
        let most = logits.iter().copied().fold(if logits.len() == 1 { 0.0 } else { f32::MIN }, f32::max);
        let powers = logits.iter().map(|logit| f64::from(logit - most).exp());
        let others = if logits.len() == 1 { f64::from(-most).exp() } else { 0.0 };
        let sum = powers.clone().sum::<f64>() + others;
        powers.map(|power| (power / sum) as f32).collect()
    }

    /// Returns the value of a score's reward.
    pub(super) fn value(self, score: &Score) -> f32 {
        self.values(score)[0]
    }

    /// Returns its name in an answer.
    pub(super) fn name(self, labels: usize) -> &'static str {
        match self {
            Self::None => "none",
            Self::Probability if labels == 1 => "sigmoid",
            Self::Probability => "softmax",
        }
    }
}

/// Returns values as a list of numbers.
pub(super) fn numbers(values: &[f32]) -> Value {
    values.iter().map(|&value| number(value)).collect()
}

/// Returns values as base64 of their bytes, little-endian.
pub(super) fn base64(values: &[f32]) -> Value {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Value::String(BASE64_STANDARD.encode(bytes))
}

/// Returns the indices of scores, the highest reward first; equal ones in order.
pub(super) fn ranked(scores: &[Score]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].reward.total_cmp(&scores[a].reward));
    ranked
}

/// Returns the counts of tokens in the form of OpenAI's interface.
pub(super) fn usage(scores: &[Score]) -> Value {
    let tokens: usize = scores.iter().map(|score| score.tokens).sum();
    json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": null})
}

/// Returns an id that no other answer of this process has.
pub(super) fn new_id(kind: &str) -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{kind}-{since:016x}{:08x}", MADE.fetch_add(1, Ordering::Relaxed))
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Checks an id that comes back.
pub(super) fn checked_id(id: String) -> Result<String, Failure> {
    if id.len() > ID_BYTES_MAX {
        return Err(Failure::invalid(format!("an id has {} bytes, the limit is {ID_BYTES_MAX}", id.len())));
    }
    Ok(id)
}
