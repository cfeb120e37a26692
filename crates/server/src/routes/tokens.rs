//! Tokenizing, in vLLM's form and in TEI's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kudos::internals::request::{self, Input, Request};
use kudos::{Engine, Prompt, RenderedBos};
use serde_json::{Value, json};

use super::dialect::{Fields, Work, ids_of};
use super::forms::{DetokenizeRequest, Detokenized, TokenizeAnswer, TokenizeRequest};
use super::schema::{Failed, TimeLimit};
use crate::app::App;
use crate::body::json_response;
use crate::failure::Failure;

/// Tokenizes as vLLM does, or as TEI does
///
/// `prompt`, a text, or `messages`: `tokens` are the ids that are scored, with one beginning-of-text
/// token. With `inputs` TEI's form.
#[utoipa::path(post, path = "/tokenize", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = TokenizeRequest, example = json!({"prompt": "1+1=2"})),
    responses(
        (status = 200, body = TokenizeAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn tokenize(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    answer(app, headers, body, |engine, mut fields| {
        let prompt = engine.prompt()?;
        let bos = match fields.flag("add_special_tokens")? {
            Some(false) => RenderedBos::AsIs,
            _ => RenderedBos::Once,
        };
        if fields.has("inputs") {
            let (_, texts) = fields.texts("inputs")?;
            return texts.iter().map(|text| tei_tokens(prompt, text, bos)).collect();
        }
        let ids = match fields.text("prompt")? {
            Some(text) => prompt.rendered_tokens(&text, bos, usize::MAX)?.ids,
            None if fields.has("messages") => messages(prompt, &mut fields)?,
            None => return Err(Failure::invalid("the request has neither `prompt` nor `messages`")),
        };
        let spellings = fields.flag("return_token_strs")? == Some(true);
        let spellings =
            spellings.then(|| ids.iter().map(|&id| prompt.token(id).unwrap_or_default()).collect::<Vec<_>>());
        Ok(json!({
            "count": ids.len(),
            "max_model_len": engine.plan().max_tokens,
            "tokens": ids,
            "token_strs": spellings,
        }))
    })
    .await
}

/// Returns the text of token ids, as vLLM and SGLang do
#[utoipa::path(post, path = "/detokenize", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = DetokenizeRequest, example = json!({"tokens": [1008, 306]})),
    responses(
        (status = 200, body = Detokenized), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn detokenize(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    answer(app, headers, body, |engine, mut fields| {
        let ids = ids_of(fields.required("tokens")?, "tokens")?;
        let prompt = engine.prompt()?;
        if let Some(index) = ids.iter().position(|&id| prompt.token(id).is_none()) {
            let message =
                format!("`tokens[{index}]` is {}, which is no token of the model's tokenizer", ids[index]);
            return Err(Failure::invalid(message));
        }
        let text = prompt.decode(&ids)?;
        // vLLM's clients read the one, SGLang's the other.
        Ok(json!({"prompt": text, "text": text}))
    })
    .await
}

async fn answer(
    app: App,
    headers: HeaderMap,
    body: Body,
    make: impl FnOnce(&Engine, Fields) -> Result<Value, Failure> + Send + 'static,
) -> Response {
    let work = async {
        let read = app.bodies.json(&headers, body).await?;
        let engine = Arc::clone(&app.engine);
        let value =
            app.workers.run(move || Fields::read(&read.bytes).and_then(|fields| make(&engine, fields)));
        Ok(json_response(StatusCode::OK, &value.await?))
    };
    app.within_time(&headers, work).await.unwrap_or_else(IntoResponse::into_response)
}

/// Returns the ids of a conversation.
fn messages(prompt: &Prompt, fields: &mut Fields) -> Result<Vec<u32>, Failure> {
    let Work::Object(object) = fields.conversation() else { unreachable!("a conversation is an object") };
    match request::parse(object.to_string().as_bytes()).request? {
        Request::One(Input::Conversation(conversation)) => Ok(prompt.tokens(&conversation, usize::MAX)?.ids),
        _ => Err(Failure::invalid("`messages` are no conversation")),
    }
}

/// Returns the tokens of a text in TEI's form.
fn tei_tokens(prompt: &Prompt, text: &str, bos: RenderedBos) -> Result<Value, Failure> {
    let ids = prompt.rendered_tokens(text, bos, usize::MAX)?.ids;
    let spans = prompt.spans(text, &ids);
    let token = |(index, &id): (usize, &u32)| {
        let span = spans.as_ref().map(|spans| spans[index]);
        json!({
            "id": id,
            "text": prompt.token(id),
            "special": prompt.is_special(id),
            "start": span.map(|span| span.0),
            "stop": span.map(|span| span.1),
        })
    };
    Ok(ids.iter().enumerate().map(token).collect())
}
