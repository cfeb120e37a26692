//! The rewards of rows: in the rows themselves, in a file of results, or computed by a model.

use std::path::Path;
use std::sync::{Arc, mpsc};

use anyhow::anyhow;
use serde_json::{Map, Value};

use crate::input::{Input, Line};
use crate::pipeline::{InFlight, InFlightLines};
use crate::progress::{Progress, Results};
use crate::resume;
use kudos::internals::request::Form;
use kudos::{Engine, Error, ErrorKind, Result};

/// Keys of rewards in rows.
pub(super) const KEYS: [&str; 5] = ["reward", "rewards", "reward_chosen", "reward_rejected", "error"];

/// The reward of each response of a row, or why there is none.
pub(super) type Rewards = Vec<Result<f32>>;

/// Passes on each row of an input with the rewards in it.
pub(super) fn own(
    input: Input,
    mut each: impl FnMut(Line, Result<Rewards>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for raw in input {
        let raw = raw?;
        let line = raw.parse();
        let rewards = line.request.as_ref().map_err(Error::clone).and_then(|request| {
            let row: Map<String, Value> =
                raw.text().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
            rewards(request.form(), &row)
        });
        if let Err(error) = &rewards
            && line.request.is_ok()
        {
            return Err(error
                .clone()
                .at(raw.place())
                .with_hint(
                    "`--rewards` names an output of `kudos score` for this input, and `--model` a model",
                )
                .into());
        }
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
        Error::new(ErrorKind::Options, message).with_hint(
            "give the input that the results were made from, all of it; a Parquet output is an input itself, with its rewards",
        )
    };
    for raw in input {
        let raw = raw?;
        let line = raw.parse();
        let Some(result) = results.next().transpose()? else {
            return Err(other(format!("{name} has no result for {}", raw.place())).into());
        };
        let place = result.place();
        let text = result.text().unwrap_or_default();
        resume::check(&line, text)
            .map_err(|why| other(format!("{place} of {name} is not the result of {}: {why}", raw.place())))?;
        let result: Map<String, Value> = serde_json::from_slice(text).unwrap_or_default();
        let rewards =
            line.request.as_ref().map_err(Error::clone).and_then(|request| rewards(request.form(), &result));
        each(line, rewards)?;
    }
    match results.next() {
        None => Ok(()),
        Some(_) => Err(other(format!("{name} has more results than the input has rows")).into()),
    }
}

/// Returns the rewards among the fields of a result. One without any has an error.
fn rewards(form: Form, fields: &Map<String, Value>) -> Result<Rewards> {
    let wrong = |message: String| Error::new(ErrorKind::InvalidInput, message);
    // The shortest decimal of an f32, and so that f32 again.
    let real = |value: &Value| {
        value.as_f64().map(|value| value as f32).ok_or_else(|| wrong("the response has no reward".to_owned()))
    };
    let each =
        |keys: &[&str]| -> Option<Rewards> { keys.iter().map(|key| fields.get(*key).map(real)).collect() };
    let list = || Some(fields.get("rewards")?.as_array()?.iter().map(real).collect());
    let (key, found): (_, Option<Rewards>) = match form {
        // A table whose other rows have several responses has lists in all rows.
        Form::One => ("reward", each(&["reward"]).or_else(list)),
        Form::Pair => ("reward_chosen", each(&["reward_chosen", "reward_rejected"])),
        Form::Responses(_) => ("rewards", list()),
    };
    match found {
        Some(found) if found.len() == form.sequences() => Ok(found),
        Some(found) => {
            Err(wrong(format!("`{key}` has {} rewards, expected {}", found.len(), form.sequences())))
        }
        None if fields.contains_key("error") => {
            Ok(vec![Err(wrong("the row has an error instead of rewards".to_owned())); form.sequences()])
        }
        None => Err(wrong(format!("the row has no `{key}`"))),
    }
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
