//! vLLM's forms for pooling models, and OpenAI's embeddings, which verl takes rewards from; and on the
//! path that they share, SGLang's.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use kudos::internals::results::number;
use kudos::{RenderedBos, Score};
use serde_json::{Value, json};

use super::dialect::{
    Answer, Fields, Plan, Work, base64, checked_id, exchange, new_id, now, numbers, ranked, respond, usage,
};
use super::forms::{
    ClassifyAnswer, ClassifyRequest, Embedding, EmbeddingsRequest, Listed, PairScore, Pooled, PoolingRequest,
    RerankAnswer, RerankRequest, ScoreRequest, SglangAnswer, SglangRequest,
};
use super::schema::{Failed, TimeLimit};
use super::tei;
use crate::app::App;
use crate::failure::Failure;

/// The names that the switch of the activation has had.
const SWITCHES: [&str; 3] = ["use_activation", "activation", "softmax"];

/// Refuses what would change the values of any of these forms.
fn refuse(fields: &Fields) -> Result<(), Failure> {
    // -1 is the context length: what is longer is an error by itself.
    fields.refuse(&[
        ("truncate_prompt_tokens", json!(-1)),
        ("normalize", Value::Null),
        ("dimensions", Value::Null),
        ("lora_path", Value::Null),
        ("mm_processor_kwargs", Value::Null),
        ("instruction", Value::Null),
        ("max_tokens_per_query", json!(0)),
        ("max_tokens_per_doc", json!(0)),
    ])
}

/// Takes `input` or `messages`.
fn inputs(fields: &mut Fields) -> Result<Vec<Work>, Failure> {
    refuse(fields)?;
    let bos = match fields.flag("add_special_tokens")? {
        Some(false) if !fields.has("messages") => RenderedBos::AsIs,
        _ => RenderedBos::Once,
    };
    match (fields.has("input"), fields.has("messages")) {
        (true, true) => Err(Failure::invalid("`input` and `messages` are given at once")),
        (false, true) => Ok(vec![fields.conversation()]),
        _ => {
            let (_, work) = fields.inputs("input", bos)?;
            if work.is_empty() {
                return Err(Failure::invalid("`input` is an empty list"));
            }
            Ok(work)
        }
    }
}

/// The form of numbers in an answer.
#[derive(Clone, Copy)]
enum Encoding {
    Float,
    Base64,
}

impl Encoding {
    fn take(fields: &mut Fields) -> Result<Self, Failure> {
        fields.refuse(&[("embed_dtype", json!("float32"))])?;
        if !matches!(fields.text("endianness")?.as_deref(), None | Some("native" | "little")) {
            return Err(Failure::invalid("`endianness` is not served here, but `little`"));
        }
        match fields.text("encoding_format")?.as_deref() {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(_) => Err(Failure::invalid("`encoding_format` is neither `float` nor `base64`")),
        }
    }

    fn value(self, values: &[f32]) -> Value {
        match self {
            Self::Float => numbers(values),
            Self::Base64 => base64(values),
        }
    }
}

/// Returns an answer with a list of data.
fn listed(kind: &str, model: &str, data: Vec<Value>, scores: &[Score]) -> Value {
    json!({
        "id": new_id(kind),
        "object": "list",
        "created": now(),
        "model": model,
        "data": data,
        "usage": usage(scores),
    })
}

fn each(scores: &[Score], item: impl Fn(usize, &Score) -> Value) -> Vec<Value> {
    scores.iter().enumerate().map(|(index, score)| item(index, score)).collect()
}

/// Classifies as vLLM does, or as SGLang does
///
/// With `input` (texts or token ids) or `messages` vLLM's form; `probs` are raw logits unless
/// `use_activation` is true, and `activation` names what was done to them. With `text` or `input_ids`
/// SGLang's native form: `embedding` has the raw reward.
#[utoipa::path(post, path = "/classify", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = ClassifyRequest, example = json!({"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]})),
    responses(
        (status = 200, body = ClassifyAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn classify(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    respond(app, headers, body, classify_plan, IntoResponse::into_response).await
}

/// Classifies as SGLang does, which takes PUT for POST
#[utoipa::path(put, path = "/classify", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = ClassifyRequest, example = json!({"text": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = ClassifyAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn put_classify(state: State<App>, headers: HeaderMap, body: Body) -> Response {
    classify(state, headers, body).await
}

/// Classifies as vLLM does: `/classify` under another path
///
/// SGLang has a softmax here, which is 1 for every reward: not so this server.
#[utoipa::path(post, path = "/v1/classify", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = ClassifyRequest, example = json!({"input": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = ClassifyAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn v1_classify(state: State<App>, headers: HeaderMap, body: Body) -> Response {
    classify(state, headers, body).await
}

/// Encodes as SGLang's native form does: the raw reward as `embedding`
#[utoipa::path(post, path = "/encode", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = SglangRequest, example = json!({"input_ids": [[1008, 1014, 306, 1015], [1008]]})),
    responses(
        (status = 200, body = SglangAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn encode(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    respond(app, headers, body, |_, fields| sglang_plan(fields), IntoResponse::into_response).await
}

fn classify_plan(app: &App, mut fields: Fields) -> Result<Plan, Failure> {
    let (sglang, vllm) = (["text", "input_ids"], ["input", "messages"]);
    let given = |names: [&str; 2]| names.iter().any(|name| fields.has(name));
    match (given(sglang), given(vllm)) {
        (true, false) => return sglang_plan(fields),
        (true, true) => {
            return Err(Failure::invalid("the request has fields of vLLM's form and of SGLang's")
                .with_hint("give `input` or `messages`, or `text` or `input_ids`"));
        }
        (false, false) => {
            return Err(Failure::invalid(
                "the request has neither `input` nor `messages`, `text` or `input_ids`",
            ));
        }
        (false, true) => {}
    }
    let model = fields.model(app)?;
    let activation = fields.activation(&SWITCHES)?;
    let work = inputs(&mut fields)?;
    let answer = move |answer: &Answer<'_>| {
        let labels = answer.app.engine.labels();
        let data = each(answer.scores, |index, score| {
            let values = activation.values(score);
            let best = (0..labels).max_by(|&a, &b| score.logits[a].total_cmp(&score.logits[b])).unwrap_or(0);
            json!({"index": index, "label": format!("LABEL_{best}"), "probs": numbers(&values), "num_classes": labels})
        });
        let mut listed = listed("classify", &model, data, answer.scores);
        listed["activation"] = json!(activation.name(labels));
        listed
    };
    Ok(Plan { work, answer: Box::new(answer) })
}

/// SGLang's native form, of `text` or `input_ids`, one or several.
fn sglang_plan(mut fields: Fields) -> Result<Plan, Failure> {
    fields.refuse(&[
        ("dimensions", Value::Null),
        ("lora_path", Value::Null),
        ("image_data", Value::Null),
        ("return_pooled_hidden_states", json!(false)),
    ])?;
    let (is_list, work) = match (fields.has("text"), fields.has("input_ids")) {
        (true, false) => {
            let (is_list, texts) = fields.texts("text")?;
            (is_list, texts.into_iter().map(|text| Work::Text(text, RenderedBos::Once)).collect())
        }
        (false, true) => fields.ids("input_ids")?,
        (true, true) => return Err(Failure::invalid("`text` and `input_ids` are given at once")),
        (false, false) => return Err(Failure::invalid("the request has neither `text` nor `input_ids`")),
    };
    if work.is_empty() {
        return Err(Failure::invalid("`text` is an empty list"));
    }
    let ids = match fields.take("rid") {
        None => (0..work.len()).map(|_| new_id("classify")).collect(),
        Some(Value::String(id)) if !is_list => vec![checked_id(id)?],
        Some(Value::Array(ids)) if is_list && ids.len() == work.len() => {
            let id = |id: Value| match id {
                Value::String(id) => checked_id(id),
                _ => Err(Failure::invalid("`rid` is no list of strings")),
            };
            ids.into_iter().map(id).collect::<Result<Vec<String>, _>>()?
        }
        Some(_) => return Err(Failure::invalid("`rid` is no string, or no list of one for each input")),
    };
    let answer = move |answer: &Answer<'_>| {
        let item = |(id, score): (&String, &Score)| {
            json!({
                "embedding": numbers(&score.logits),
                "meta_info": {
                    "id": id,
                    "finish_reason": {"type": "length", "length": 0},
                    "prompt_tokens": score.tokens,
                    "e2e_latency": answer.time.as_secs_f64(),
                },
            })
        };
        let mut items: Vec<Value> = ids.iter().zip(answer.scores).map(item).collect();
        if is_list { Value::Array(items) } else { items.remove(0) }
    };
    Ok(Plan { work, answer: Box::new(answer) })
}

/// Pools as vLLM does: `data` has the logits
#[utoipa::path(post, path = "/pooling", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = PoolingRequest, example = json!({"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]})),
    responses(
        (status = 200, body = Listed<Pooled>), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn pooling(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let plan = |app: &App, mut fields: Fields| {
        if !matches!(fields.text("task")?.as_deref(), None | Some("classify")) {
            return Err(Failure::invalid("`task` is not served here, but `classify`"));
        }
        let (model, encoding) = (fields.model(app)?, Encoding::take(&mut fields)?);
        let activation = fields.activation(&SWITCHES)?;
        let work = inputs(&mut fields)?;
        let answer = move |answer: &Answer<'_>| {
            let data = each(
                answer.scores,
                |index, score| json!({"index": index, "object": "pooling", "data": encoding.value(&activation.values(score))}),
            );
            let mut listed = listed("pooling", &model, data, answer.scores);
            listed["activation"] = json!(activation.name(answer.app.engine.labels()));
            listed
        };
        Ok(Plan { work, answer: Box::new(answer) })
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}

/// Answers rewards as embeddings, as SGLang does for reward models
///
/// `embedding` has the raw reward, or the logits of all labels. `encoding_format` may be `base64`, as
/// OpenAI's Python client asks.
#[utoipa::path(post, path = "/v1/embeddings", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = EmbeddingsRequest, example = json!({"input": ["1+1=2", "1+1=3"], "encoding_format": "float"})),
    responses(
        (status = 200, body = Listed<Embedding>), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn embeddings(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let plan = |app: &App, mut fields: Fields| {
        let (model, encoding) = (fields.model(app)?, Encoding::take(&mut fields)?);
        let work = inputs(&mut fields)?;
        let answer = move |answer: &Answer<'_>| {
            let data = each(
                answer.scores,
                |index, score| json!({"object": "embedding", "index": index, "embedding": encoding.value(&score.logits)}),
            );
            listed("embd", &model, data, answer.scores)
        };
        Ok(Plan { work, answer: Box::new(answer) })
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}

/// Scores pairs as vLLM's form: a query, which is the user's turn, and documents, which are responses
///
/// Each pair goes through the chat template. `queries` and `documents` (also `text_1` and `text_2`,
/// `data_1` and `data_2`, `items`) are one and one, one and several, or as many of both.
#[utoipa::path(post, path = "/score", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = ScoreRequest, example = json!({"queries": "What is 1+1?", "documents": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = Listed<PairScore>), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn score(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    respond(app, headers, body, score_plan, IntoResponse::into_response).await
}

/// Scores pairs: `/score` under another path
#[utoipa::path(post, path = "/v1/score", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = ScoreRequest, example = json!({"queries": "What is 1+1?", "documents": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = Listed<PairScore>), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn v1_score(state: State<App>, headers: HeaderMap, body: Body) -> Response {
    score(state, headers, body).await
}

fn score_plan(app: &App, mut fields: Fields) -> Result<Plan, Failure> {
    const NAMES: [(&str, &str); 4] =
        [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")];
    refuse(&fields)?;
    let model = fields.model(app)?;
    let activation = fields.activation(&SWITCHES)?;
    let given = NAMES.iter().find(|(first, second)| fields.has(first) && fields.has(second));
    let Some(&(first, second)) = given else {
        return Err(Failure::invalid("the request has no `queries` with `documents`"));
    };
    let ((_, queries), (_, documents)) = (fields.texts(first)?, fields.texts(second)?);
    if queries.is_empty() || documents.is_empty() || ![1, documents.len()].contains(&queries.len()) {
        let message = format!("there are {} `{first}` and {} `{second}`", queries.len(), documents.len());
        return Err(Failure::invalid(message).with_hint("give one query, or as many as documents"));
    }
    let queries = queries.into_iter().cycle();
    let work = queries.zip(documents).map(|(query, document)| exchange(query, document)).collect();
    let answer = move |answer: &Answer<'_>| {
        let data = each(
            answer.scores,
            |index, score| json!({"index": index, "object": "score", "score": number(activation.value(score))}),
        );
        let mut listed = listed("score", &model, data, answer.scores);
        listed["activation"] = json!(activation.name(answer.app.engine.labels()));
        listed
    };
    Ok(Plan { work, answer: Box::new(answer) })
}

/// Ranks responses to a query, the highest reward first, as vLLM and Cohere do, or as TEI does
///
/// With `documents` vLLM's form: `results` with `relevance_score`. With `texts` TEI's: a list with
/// `score`. Each pair goes through the chat template, as the user's turn and the response.
#[utoipa::path(post, path = "/rerank", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = RerankRequest, example = json!({"query": "What is 1+1?", "texts": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = RerankAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn rerank(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let plan = |app: &App, fields: Fields| {
        if fields.has("texts") { tei::rerank_plan(fields) } else { rerank_plan(app, fields) }
    };
    respond(app, headers, body, plan, IntoResponse::into_response).await
}

/// Ranks responses: `/rerank` under another path
#[utoipa::path(post, path = "/v1/rerank", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = RerankRequest, example = json!({"query": "What is 1+1?", "documents": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = RerankAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn v1_rerank(state: State<App>, headers: HeaderMap, body: Body) -> Response {
    rerank(state, headers, body).await
}

/// Ranks responses: `/rerank` under another path
#[utoipa::path(post, path = "/v2/rerank", tag = "vLLM and SGLang", params(TimeLimit),
    request_body(content = RerankRequest, example = json!({"query": "What is 1+1?", "documents": ["1+1=2", "1+1=3"]})),
    responses(
        (status = 200, body = RerankAnswer), (status = "4XX", body = Failed), (status = "5XX", body = Failed),
    ))]
pub(super) async fn v2_rerank(state: State<App>, headers: HeaderMap, body: Body) -> Response {
    rerank(state, headers, body).await
}

fn rerank_plan(app: &App, mut fields: Fields) -> Result<Plan, Failure> {
    refuse(&fields)?;
    fields.refuse(&[("max_chunks_per_doc", Value::Null), ("rank_fields", Value::Null)])?;
    let model = fields.model(app)?;
    let activation = fields.activation(&SWITCHES)?;
    let Some(query) = fields.text("query")? else { return Err(Failure::invalid("`query` is missing")) };
    let (_, documents) = fields.texts("documents")?;
    let most = fields.count("top_n")?.filter(|&most| most > 0).unwrap_or(usize::MAX);
    let work = documents.iter().map(|document| exchange(query.clone(), document.clone())).collect();
    let answer = move |answer: &Answer<'_>| {
        let result = |index: usize| {
            json!({
                "index": index,
                "document": {"text": documents[index]},
                "relevance_score": number(activation.value(&answer.scores[index])),
            })
        };
        let results: Vec<Value> = ranked(answer.scores).into_iter().take(most).map(result).collect();
        json!({
            "id": new_id("rerank"),
            "model": model,
            "results": results,
            "activation": activation.name(answer.app.engine.labels()),
            "usage": usage(answer.scores),
        })
    };
    Ok(Plan { work, answer: Box::new(answer) })
}
