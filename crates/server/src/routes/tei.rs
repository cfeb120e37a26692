//! The forms of Hugging Face's text-embeddings-inference (TEI), and NVIDIA NIM's form of rewards.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kudos::internals::results::number;
use kudos::{RenderedBos, Score};
use serde_json::{Value, json};

use super::dialect::{Activation, Answer, Fields, Plan, Work, exchange, new_id, now, ranked, respond, usage};
use super::forms::{Completion, ConversationInput, PredictAnswer, PredictRequest, TeiFailed};
use super::schema::{Failed, TimeLimit};
use crate::app::App;
use crate::body::json_response;
use crate::failure::Failure;

/// Takes what is done to logits: nothing, unless `raw_scores` is false in so many words.
fn activation(fields: &mut Fields) -> Result<Activation, Failure> {
    fields.refuse(&[("truncate", json!(false)), ("prompt_name", Value::Null)])?;
    Ok(match fields.flag("raw_scores")? {
        Some(false) => Activation::Probability,
        _ => Activation::None,
    })
}

/// Returns a failure in TEI's form.
pub(super) fn failed(failure: Failure) -> Response {
    let kind = match failure.status {
        StatusCode::TOO_MANY_REQUESTS => "Overloaded",
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => "Validation",
        StatusCode::SERVICE_UNAVAILABLE => "Unhealthy",
        _ => "Backend",
    };
    let body = json!({"error": failure.message(), "error_type": kind});
    failure.with_body(&body)
}

/// Predicts as TEI does
///
/// `inputs` is a text, a list of one text, a pair (the user's turn and the response), or a list of
/// lists of these. Scores are raw rewards unless `raw_scores` is false.
#[utoipa::path(post, path = "/predict", tag = "TEI", params(TimeLimit),
    request_body(content = PredictRequest, example = json!({"inputs": [["What is 1+1?", "1+1=2"], ["1+1=3"]]})),
    responses(
        (status = 200, body = PredictAnswer), (status = "4XX", body = TeiFailed), (status = "5XX", body = TeiFailed),
    ))]
pub(super) async fn predict(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    respond(app, headers, body, predict_plan, failed).await
}

pub(super) fn predict_plan(app: &App, mut fields: Fields) -> Result<Plan, Failure> {
    // Hugging Face's client has an object for parameters, empty unless it is asked.
    fields.refuse(&[("parameters", json!({}))])?;
    let activation = activation(&mut fields)?;
    let item = |value: Value, name: &str| -> Result<Work, Failure> {
        let wrong =
            || Failure::invalid(format!("`{name}` is neither a text nor a list of one text or of two"));
        let texts = match value {
            Value::String(text) => vec![Value::String(text)],
            Value::Array(texts) => texts,
            _ => return Err(wrong()),
        };
        match <[Value; 1]>::try_from(texts) {
            Ok([Value::String(text)]) => Ok(Work::Text(text, RenderedBos::Once)),
            Ok(_) => Err(wrong()),
            Err(texts) => match <[Value; 2]>::try_from(texts) {
                Ok([Value::String(prompt), Value::String(response)]) => Ok(exchange(prompt, response)),
                _ => Err(wrong()),
            },
        }
    };
    let inputs = fields.required("inputs")?;
    let (is_batch, work) = match inputs {
        Value::Array(list) if list.iter().any(Value::is_array) => {
            let items = list.into_iter().enumerate();
            let work = items.map(|(index, value)| item(value, &format!("inputs[{index}]")));
            (true, work.collect::<Result<Vec<Work>, Failure>>()?)
        }
        value => (false, vec![item(value, "inputs")?]),
    };
    let labels = app.engine.labels();
    let answer = move |answer: &Answer<'_>| {
        let labelled = |score: &Score| -> Value {
            let values = activation.values(score);
            let mut order: Vec<usize> = (0..labels).collect();
            order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            let label =
                |label: usize| json!({"score": number(values[label]), "label": format!("LABEL_{label}")});
            order.into_iter().map(label).collect()
        };
        let mut predictions: Vec<Value> = answer.scores.iter().map(labelled).collect();
        if is_batch { Value::Array(predictions) } else { predictions.remove(0) }
    };
    Ok(Plan { work, answer: Box::new(answer) })
}

pub(super) fn rerank_plan(mut fields: Fields) -> Result<Plan, Failure> {
    let activation = activation(&mut fields)?;
    let with_text = fields.flag("return_text")?.unwrap_or(false);
    let Some(query) = fields.text("query")? else { return Err(Failure::invalid("`query` is missing")) };
    let (_, texts) = fields.texts("texts")?;
    let work = texts.iter().map(|text| exchange(query.clone(), text.clone())).collect();
    let answer = move |answer: &Answer<'_>| {
        let rank = |index: usize| {
            let mut rank = json!({"index": index, "score": number(activation.value(&answer.scores[index]))});
            if with_text {
                rank["text"] = json!(texts[index]);
            }
            rank
        };
        ranked(answer.scores).into_iter().map(rank).collect()
    };
    Ok(Plan { work, answer: Box::new(answer) })
}

/// Describes the model as TEI does
#[utoipa::path(get, path = "/info", tag = "TEI", responses(
    (status = 200, body = Object), (status = "4XX", body = Failed),
))]
pub(super) async fn info(State(app): State<App>) -> Response {
    let labels = app.engine.labels();
    let names: Vec<String> = (0..labels).map(|label| format!("LABEL_{label}")).collect();
    let by_id: Value = names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let by_name: Value = names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let kind = if labels == 1 { "reranker" } else { "classifier" };
    let plan = app.engine.plan();
    let info = json!({
        "model_id": app.options.name(),
        "model_sha": null,
        "model_dtype": app.engine.device().name,
        "served_model_name": app.options.name(),
        "model_type": {kind: {"id2label": by_id, "label2id": by_name}},
        "max_concurrent_requests": app.options.connections_max,
        "max_input_length": plan.max_tokens,
        "max_batch_tokens": plan.batch_tokens,
        "max_batch_requests": plan.sequences,
        "max_client_batch_size": app.options.body_bytes_max,
        "auto_truncate": false,
        "tokenization_workers": 1,
        "version": env!("CARGO_PKG_VERSION"),
    });
    json_response(StatusCode::OK, &info)
}

/// Answers a conversation's reward as NVIDIA NIM does
///
/// The `messages` end with the turn that is judged. `choices[0].message.content` is `reward:X`, and
/// `logprobs.content` has the reward once more, where some clients read it.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "NIM", params(TimeLimit),
    request_body(content = ConversationInput, example = json!({"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]})),
    responses(
        (status = 200, body = Completion), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn chat_completions(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let plan = |app: &App, mut fields: Fields| {
        fields.refuse(&[("stream", json!(false)), ("n", json!(1))])?;
        let model = fields.model(app)?;
        if !fields.has("messages") {
            return Err(Failure::invalid("`messages` is missing"));
        }
        let work = vec![fields.conversation()];
        let answer = move |answer: &Answer<'_>| {
            let reward = number(answer.scores[0].reward);
            json!({
                "id": new_id("chatcmpl"),
                "object": "chat.completion",
                "created": now(),
                "model": model,
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": format!("reward:{reward}")},
                    "logprobs": {
                        "content": [{"token": "reward", "logprob": reward, "bytes": null, "top_logprobs": []}],
                    },
                    "finish_reason": "stop",
                }],
                "usage": usage(answer.scores),
            })
        };
        Ok(Plan { work, answer: Box::new(answer) })
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}
