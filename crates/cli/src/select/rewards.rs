//! The rewards of rows: in the rows themselves, in a file of results, or computed by a model.

use std::path::Path;
use std::sync::{Arc, mpsc};

use anyhow::anyhow;
use serde_json::{Map, Value};

use crate::input::{Input, Line};
use crate::pipeline::{InFlight, InFlightLines};
use crate::progress::{Progress, Results};
use crate::resume;
use kudos::internals::conversation::kind_of;
use kudos::internals::request::{self, Form};
use kudos::{Engine, Error, ErrorKind, Result};

/// Keys of rewards in rows.
pub(super) const KEYS: [&str; 5] = ["reward", "rewards", "reward_chosen", "reward_rejected", "error"];

/// The reward of each response of a row, or the error in its place.
pub(super) type Rewards = Vec<Result<f32>>;

/// Passes on each row of an input with the rewards in it.
pub(super) fn own(
    input: Input,
    mut each: impl FnMut(Line, Result<Rewards>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for raw in input {
        let raw = raw?;
        let line = raw.parse();
        let found = match &line.request {
            Err(error) => Err(error.clone()),
            Ok(request) => {
                let row = strict(raw.text().unwrap_or_default());
                at(&raw.place(), row.and_then(|row| rewards(request.form(), &row)))
            }
        };
        let rewards = match found {
            Ok(Some(rewards)) => Ok(rewards),
            Ok(None) => {
                let message = "the row has no rewards";
                return Err(Error::new(ErrorKind::InvalidInput, message)
                    .at(raw.place())
                    .with_hint(
                        "`--rewards` names an output of `kudos score` for this input, and `--model` a model",
                    )
                    .into());
            }
            Err(error) => Err(error),
        };
        each(line, rewards)?;
    }
    Ok(())
}

/// Passes on each row of an input with its rewards in a file of results.
pub(super) fn recorded(
    input: Input,
    path: &Path,
    mut each: impl FnMut(Line, Result<Rewards>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut results = Input::open_whole(path)?;
    let name = results.name().to_owned();
    let other = |message: String| {
        Error::new(ErrorKind::Options, message)
            .with_hint("give the input that the results were made from, all of it")
    };
    for raw in input {
        let raw = raw?;
        let line = raw.parse();
        let Some(result) = results.next().transpose()? else {
            return Err(other(format!("{name} has no result for {}", raw.place())).into());
        };
        let text = result.text().unwrap_or_default();
        resume::check(&line, text).map_err(|why| {
            let (line, place) = (result.index + 1, raw.place());
            other(format!("line {line} of {name} is not the result of {place}: {why}"))
        })?;
        let rewards = match &line.request {
            Err(error) => Err(error.clone()),
            Ok(request) => {
                let found = strict(text).and_then(|result| rewards(request.form(), &result));
                // `check` has found them.
                at(&raw.place(), found).map(Option::unwrap_or_default)
            }
        };
        each(line, rewards)?;
    }
    match results.next() {
        None => Ok(()),
        Some(_) => Err(other(format!("{name} has more results than the input has rows")).into()),
    }
}

/// Adds the place of a row to the errors of its rewards.
fn at(place: &str, rewards: Result<Option<Rewards>>) -> Result<Option<Rewards>> {
    let of_response = |reward: Result<f32>| reward.map_err(|error| error.at(place));
    let rewards = rewards.map_err(|error| error.at(place))?;
    Ok(rewards.map(|rewards| rewards.into_iter().map(of_response).collect()))
}

/// Reads an object in which no key comes twice.
fn strict(text: &[u8]) -> Result<Map<String, Value>> {
    match request::strict(text)? {
        Value::Object(object) => Ok(object),
        other => Err(wrong(format!("the row is {}, expected an object", kind_of(&other)))),
    }
}

/// Returns the rewards among the fields of a result, with an error for each one that is missing;
/// `None` where no field is about rewards.
fn rewards(form: Form, fields: &Map<String, Value>) -> Result<Option<Rewards>> {
    let message = |error: &Value| Some(error.get("message")?.as_str()?.to_owned());
    // A table has the text of it.
    let parsed = fields.get("error").map(|error| match error.as_str() {
        Some(text) => serde_json::from_str(text).unwrap_or_default(),
        None => error.clone(),
    });
    let why = parsed.as_ref().and_then(message).unwrap_or_else(|| "the response has no reward".to_owned());
    // The shortest decimal of an f32, and so that f32 again.
    let real = |value: Option<&Value>| match value.and_then(Value::as_f64).map(|value| (value, value as f32))
    {
        Some((_, reward)) if reward.is_finite() => Ok(reward),
        Some((value, _)) => Err(wrong(format!("the reward {value:e} is beyond f32"))),
        None => Err(wrong(why.clone())),
    };
    let list = || {
        let list = fields.get("rewards")?.as_array()?;
        Some(list.iter().map(|value| real(Some(value))).collect::<Rewards>())
    };
    let sides = ["reward_chosen", "reward_rejected"].map(|key| fields.get(key));
    let found = match form {
        // A table whose other rows have several responses has lists in all rows.
        Form::One => fields.get("reward").map(|reward| vec![real(Some(reward))]).or_else(list),
        Form::Pair => sides.iter().any(Option::is_some).then(|| sides.map(real).to_vec()),
        Form::Responses(_) => list(),
    };
    match found {
        Some(found) if found.len() == form.sequences() => Ok(Some(found)),
        Some(found) => {
            let (count, expected) = (found.len(), form.sequences());
            Err(wrong(format!("the number of rewards is {count}, expected {expected}")))
        }
        None => Ok(parsed.map(|_| vec![real(None); form.sequences()])),
    }
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Passes on each row of an input with the rewards that an engine computes.
pub(super) fn computed(
    engine: &Arc<Engine>,
    input: Input,
    mut each: impl FnMut(Line, Result<Rewards>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(Results::Elsewhere, input.size(), 0, engine.stats());
    // A line is sent before the pipeline reads it, so it is there when it has its results.
    let (sender, sent) = mpsc::channel();
    let lines = input.inspect(move |raw| {
        if let Ok(raw) = raw {
            // The receiver is gone when the command ends early.
            let _ = sender.send(raw.parse());
        }
    });
    let in_flight = InFlightLines::start(engine, lines);
    while let Some(InFlight { submitted, end, .. }) = in_flight.next()? {
        let line =
            sent.recv().map_err(|_| anyhow!("kudos has a bug: a line has results, but was not read"))?;
        let scores = submitted.wait();
        if let Some(error) = engine.failure() {
            return Err(error.into());
        }
        let rewards = match &line.request {
            Ok(_) => Ok(scores.into_iter().map(|score| score.map(|score| score.reward)).collect()),
            Err(error) => Err(error.clone()),
        };
        each(line, rewards)?;
        progress.reached(end, || engine.stats());
    }
    progress.end(&engine.stats());
    Ok(())
}
