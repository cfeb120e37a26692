//! This server's own interface: objects as in the command's files, one, several, or a stream.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kudos::internals::request;
use kudos::internals::results::{Key, Renderer, error_fields, result_line};
use kudos::{Engine, Result};
use serde_json::{Map, Value};

use super::lines;
use super::schema::{Failed, One, RenderedResults, Results, TimeLimit};
use crate::app::{App, Place};
use crate::body::{self, Form, typed_response};
use crate::failure::Failure;
use crate::scoring::{self, Prepared, Scored};

/// An example of lines.
const LINES: &str =
    "{\"id\": 1, \"prompt\": \"What is 1+1?\", \"response\": \"1+1=2\"}\n{\"input_ids\": [1008, 306]}\n";

/// Scores conversations
///
/// Takes an object, a list of them, or lines, as `kudos score` does, and answers in the same form. An
/// object of a list, or a line, that cannot be scored has an `error` in its place.
#[utoipa::path(post, path = "/v1/rewards", tag = "rewards",
    params(TimeLimit),
    request_body(content(
        (One = "application/json", example = json!({"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]})),
        (String = "application/x-ndjson", example = json!(LINES)),
    )),
    responses(
        (status = 200, content((Results = "application/json"), (String = "application/x-ndjson"))),
        (status = 400, body = Failed), (status = 401, body = Failed), (status = 403, body = Failed),
        (status = 408, body = Failed), (status = 413, body = Failed), (status = 415, body = Failed),
        (status = 422, body = Failed), (status = 429, body = Failed), (status = 500, body = Failed),
        (status = 503, body = Failed), (status = 504, body = Failed),
    ))]
pub(super) async fn rewards(
    State(app): State<App>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match body::form(&headers) {
        Err(failure) => failure.into_response(),
        Ok(Form::Lines) => lines::stream(app, place, body),
        Ok(Form::Json) => {
            let result = app.within_time(&headers, score(&app, &headers, body)).await;
            result.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

async fn score(app: &App, headers: &HeaderMap, body: Body) -> Result<Response, Failure> {
    let read = app.bodies.json(headers, body).await?;
    let texts = app.workers.run(move || -> Result<_, Failure> {
        let (is_list, objects) = scoring::objects(&read.bytes)?;
        let texts: Vec<Vec<u8>> = objects.into_iter().map(<[u8]>::to_vec).collect();
        Ok((is_list, texts, read))
    });
    let (is_list, texts, read) = texts.await?;
    let engine = Arc::clone(&app.engine);
    let items = app.workers.map(texts, move |text| Prepared::of_object(&engine, &text)).await;
    let scored = app.score(items).await?;
    drop(read);
    if !is_list
        && let [Scored { scores, form: request::Form::One, .. }] = &scored[..]
        && let [Err(error)] = &scores[..]
    {
        return Err(error.clone().into());
    }
    let results = scored.into_iter().map(|item| result_line(item.key.as_ref(), item.fields()));
    Ok(answer(is_list, results))
}

/// Renders conversations into the text and the token ids that are scored
#[utoipa::path(post, path = "/v1/render", tag = "rewards",
    request_body(content = One, example = json!({"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = RenderedResults),
        (status = 400, body = Failed), (status = 401, body = Failed), (status = 403, body = Failed),
        (status = 408, body = Failed), (status = 413, body = Failed), (status = 415, body = Failed),
        (status = 422, body = Failed), (status = 429, body = Failed), (status = 500, body = Failed),
        (status = 503, body = Failed),
    ))]
pub(super) async fn render(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let read = match app.bodies.json(&headers, body).await {
        Ok(read) => read,
        Err(failure) => return failure.into_response(),
    };
    let engine = Arc::clone(&app.engine);
    let rendered = app.workers.run(move || -> Result<Response, Failure> {
        let (is_list, objects) = scoring::objects(&read.bytes)?;
        let parsed = objects.into_iter().map(request::parse);
        let results = parsed.map(|parsed| {
            let fields = parsed.request.and_then(|request| rendered(&engine, request));
            (parsed.id.map(Key::Id), fields)
        });
        if is_list {
            let line = |(key, fields): (Option<Key>, Result<Map<String, Value>>)| {
                result_line(key.as_ref(), fields.unwrap_or_else(|error| error_fields(&error)))
            };
            return Ok(answer(true, results.map(line)));
        }
        let lines = results.map(|(key, fields)| Ok(result_line(key.as_ref(), fields?)));
        Ok(answer(false, lines.collect::<Result<Vec<String>>>()?))
    });
    rendered.await.unwrap_or_else(IntoResponse::into_response)
}

fn rendered(engine: &Engine, request: request::Request) -> Result<Map<String, Value>> {
    let max_tokens = engine.plan().max_tokens;
    Renderer { prompt: engine.prompt()?, max_tokens, head: engine.config().head }.fields(request)
}

/// Joins results, which are JSON, to a body.
fn answer(is_list: bool, results: impl IntoIterator<Item = String>) -> Response {
    let mut text = String::new();
    for (index, result) in results.into_iter().enumerate() {
        text += if index == 0 { "" } else { "," };
        text += &result;
    }
    let text = if is_list { format!("[{text}]") } else { text };
    typed_response(StatusCode::OK, "application/json", text)
}
