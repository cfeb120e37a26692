//! The forms that trainers of language models send: OpenRLHF's and slime's.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use kudos::RenderedBos;
use kudos::internals::results::number;
use serde_json::{Map, Value, json};

use super::dialect::{Activation, Answer, Fields, Plan, Work, exchange, respond};
use super::forms::{OpenRlhfAnswer, OpenRlhfRequest, RootAnswer, RootRequest};
use super::schema::{Failed, RewardKey, TimeLimit};
use super::tei;
use crate::app::App;
use crate::failure::Failure;

/// Scores texts that OpenRLHF rendered
///
/// `query` is the text, or a list of texts. `prompts` and `labels`, which OpenRLHF sends besides, are
/// not read. `rewards` and `scores` are the raw rewards.
#[utoipa::path(post, path = "/get_reward", tag = "trainers", params(TimeLimit),
    request_body(content = OpenRlhfRequest, example = json!({"query": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = OpenRlhfAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn get_reward(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let plan = |_: &App, mut fields: Fields| {
        let (_, texts) = fields.texts("query")?;
        let work = texts.into_iter().map(|text| Work::Text(text, RenderedBos::Once)).collect();
        let answer = |answer: &Answer<'_>| {
            let rewards: Vec<Value> = answer.scores.iter().map(|score| number(score.reward)).collect();
            // Some versions of OpenRLHF take each value in `extra_logs` for a tensor, and fail.
            json!({"rewards": rewards, "scores": rewards, "extra_logs": {}})
        };
        Ok(Plan { work, answer: Box::new(answer) })
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}

/// Scores what slime's `--rm-url` sends, or what Hugging Face's clients send
///
/// `prompt`, a text or messages, and `response`: the answer is the bare reward, or with
/// `?reward_key=NAME` an object with the reward under that name. A text is scored with the response
/// behind it as it is; messages go through the chat template, and an end of turn that the response
/// ends with is left out. `inputs` is TEI's `/predict`, `query` with `texts` its `/rerank`.
#[utoipa::path(post, path = "/", tag = "trainers", params(TimeLimit, RewardKey),
    request_body(content = RootRequest, example = json!({"prompt": "What is 1+1?", "response": "1+1=2"})),
    responses(
        (status = 200, body = RootAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn root(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let plan = move |app: &App, fields: Fields| {
        let key = reward_key(query.as_deref().unwrap_or_default())?;
        if fields.has("inputs") {
            return tei::predict_plan(app, fields);
        }
        if fields.has("texts") {
            return tei::rerank_plan(fields);
        }
        slime(app, fields, key)
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}

fn slime(app: &App, mut fields: Fields, key: Option<String>) -> Result<Plan, Failure> {
    let prompt = fields.required("prompt")?;
    let Some(mut response) = fields.text("response")? else {
        return Err(Failure::invalid("`response` is missing"));
    };
    let work = match prompt {
        Value::String(prompt) => Work::Text(prompt + &response, RenderedBos::Once),
        messages => {
            let end = app.engine.prompt()?.end_of_turn();
            if let Some(rest) = end.and_then(|end| response.strip_suffix(end)) {
                response.truncate(rest.len());
            }
            exchange(messages, response)
        }
    };
    let answer = |answer: &Answer<'_>| {
        let reward = number(Activation::None.value(&answer.scores[0]));
        match key {
            Some(key) => Value::Object(Map::from_iter([(key, reward)])),
            None => reward,
        }
    };
    Ok(Plan { work: vec![work], answer: Box::new(answer) })
}

/// Returns the name of `?reward_key=NAME`.
fn reward_key(query: &str) -> Result<Option<String>, Failure> {
    let Some(key) = query.split('&').find_map(|part| part.strip_prefix("reward_key=")) else {
        return Ok(None);
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if key.is_empty() || key.len() > 64 || !key.bytes().all(is_name) {
        let message = "`reward_key` is no name of up to 64 letters, digits, `_`, `-` and `.`";
        return Err(Failure::invalid(message));
    }
    Ok(Some(key.to_owned()))
}
