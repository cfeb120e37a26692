//! Forms of requests and answers, for the description in OpenAPI. Requests are read by
//! `kudos::internals::request`, and answers made by `kudos::internals::results`.
#![allow(dead_code, clippy::large_enum_variant, reason = "the types are only described")]

use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// The limit that a request sets for its own time
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct TimeLimit {
    /// Limit on the time of the request, in milliseconds
    #[param(rename = "x-timeout-ms", format = "uint64", minimum = 1, example = 60000, required = false)]
    milliseconds: u64,
}

/// The form of slime's answer
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RewardKey {
    /// The name under which slime reads the reward
    #[param(pattern = "^[A-Za-z0-9_.-]{1,64}$", required = false)]
    reward_key: String,
}

/// One conversation, or a list of them
#[derive(ToSchema)]
#[schema(as = RewardRequests)]
#[serde(untagged)]
pub(super) enum One {
    One(Conversation),
    List(Vec<Conversation>),
}

/// An item to score: `messages`, or a `prompt` with `response` or `responses`, or `chosen` and
/// `rejected`, or `input_ids`; or a row of another data set, with the keys that files may have
#[derive(ToSchema)]
pub(super) struct Conversation {
    /// Comes back with the result, as it was spelled
    #[schema(value_type = Option<Value>)]
    id: Option<Value>,
    /// The conversation, whose last turn is judged
    messages: Option<Vec<Message>>,
    /// The user's turn, or the messages before the response
    prompt: Option<Prompt>,
    /// The response to judge
    response: Option<String>,
    /// Several responses to one prompt
    #[schema(min_items = 1)]
    responses: Option<Vec<String>>,
    /// The preferred conversation, or what follows the prompt in it
    chosen: Option<Side>,
    /// The other conversation, or what follows the prompt in it
    rejected: Option<Side>,
    /// Token ids, scored as they are
    input_ids: Option<Vec<u32>>,
    /// 1 for each token id that counts, 0 for padding
    attention_mask: Option<Vec<u8>>,
    /// Tools, for the chat template
    tools: Option<Vec<Map<String, Value>>>,
    /// Documents, for the chat template
    documents: Option<Vec<Map<String, Value>>>,
    /// Variables of the chat template
    template_vars: Option<Map<String, Value>>,
}

/// A turn
#[derive(ToSchema)]
pub(super) struct Message {
    /// `system`, `user`, `assistant`, or another role that the chat template knows
    role: String,
    /// The text
    #[schema(value_type = Option<Value>)]
    content: Option<Value>,
}

/// A text, or messages
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

/// A response, or messages: of the whole conversation, or those after the prompt
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Side {
    Text(String),
    Messages(Vec<Message>),
}

/// One result, or a list of them
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Results {
    One(Rewards),
    List(Vec<Rewards>),
}

/// A result: one reward, or one per response, or those of a pair, or an error
#[derive(ToSchema)]
pub(super) struct Rewards {
    /// The request's `id`
    #[schema(value_type = Option<Value>)]
    id: Option<Value>,
    /// The line's number, from 0, where the line has no `id`
    index: Option<usize>,
    /// The reward: the raw logit in f32
    reward: Option<f32>,
    /// The reward rounded to bf16
    reward_bf16: Option<f32>,
    /// The reward by `mean` and `std` of config.json, where that says so
    reward_normalized: Option<f32>,
    /// The logits of all labels, where there are several
    logits: Option<Vec<f32>>,
    /// The rewards of `responses`; null for one that has an error
    rewards: Option<Vec<Option<f32>>>,
    /// Those rewards rounded to bf16
    rewards_bf16: Option<Vec<Option<f32>>>,
    /// Those rewards by `mean` and `std` of config.json, where that says so
    rewards_normalized: Option<Vec<Option<f32>>>,
    /// The reward of `chosen`
    reward_chosen: Option<f32>,
    /// The reward of `rejected`
    reward_rejected: Option<f32>,
    /// How much higher the first is
    margin: Option<f32>,
    /// The reward of `chosen`, rounded to bf16
    reward_bf16_chosen: Option<f32>,
    /// The reward of `rejected`, rounded to bf16
    reward_bf16_rejected: Option<f32>,
    /// The reward of `chosen` by `mean` and `std` of config.json, where that says so
    reward_normalized_chosen: Option<f32>,
    /// The reward of `rejected` by `mean` and `std` of config.json, where that says so
    reward_normalized_rejected: Option<f32>,
    /// Tokens of `chosen`
    tokens_chosen: Option<usize>,
    /// Tokens of `rejected`
    tokens_rejected: Option<usize>,
    /// Whether `chosen` was cut to the limit
    truncated_chosen: Option<bool>,
    /// Whether `rejected` was cut to the limit
    truncated_rejected: Option<bool>,
    /// Tokens of the conversation, or of each
    #[schema(value_type = Option<Value>)]
    tokens: Option<Value>,
    /// Index of the highest reward
    best: Option<usize>,
    /// Whether the conversation, or each, was cut to the limit
    #[schema(value_type = Option<Value>)]
    truncated: Option<Value>,
    /// Errors of single responses
    errors: Option<Vec<Error>>,
    /// The error of the whole item
    error: Option<Error>,
}

/// One rendered conversation, or a list of them
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum RenderedResults {
    One(Rendered),
    List(Vec<Rendered>),
}

/// The text and the token ids that are scored, or an error; each field is a list for `responses`
#[derive(ToSchema)]
pub(super) struct Rendered {
    /// The rendered text, where the request is no token ids
    #[schema(value_type = Option<Value>)]
    text: Option<Value>,
    /// The token ids
    #[schema(value_type = Option<Value>)]
    input_ids: Option<Value>,
    /// Whether it was cut to the limit
    #[schema(value_type = Option<Value>)]
    truncated: Option<Value>,
    /// The token at which the reward is read: `position`, `token`, `reason`, `text`, `span`
    #[schema(value_type = Option<Value>)]
    scored: Option<Value>,
    /// The error of the whole item
    error: Option<Error>,
}

/// An error
#[derive(ToSchema)]
pub(super) struct Failed {
    error: Error,
}

/// An error: its message, its place, and a hint
#[derive(ToSchema)]
pub(super) struct Error {
    /// The kind, to match on
    kind: String,
    /// The message
    message: String,
    /// The place
    place: Option<String>,
    /// The hint: an action
    hint: Option<String>,
    /// The index of the response that it is of, or `chosen` or `rejected`
    #[schema(value_type = Option<Value>)]
    response: Option<Value>,
    /// The kind once more, for clients of OpenAI's interface
    r#type: Option<String>,
    /// The status
    code: Option<u16>,
}

/// The models that are served: one
#[derive(ToSchema)]
pub(super) struct Models {
    object: String,
    data: Vec<Model>,
}

/// A model
#[derive(ToSchema)]
pub(super) struct Model {
    id: String,
    object: String,
    created: u64,
    owned_by: String,
    /// Limit on the tokens of a conversation
    max_model_len: usize,
}

/// Whether the server is healthy, or ready, and why not
#[derive(ToSchema)]
pub(super) struct Health {
    healthy: Option<bool>,
    ready: Option<bool>,
    reason: Option<String>,
}

/// The version
#[derive(ToSchema)]
pub(super) struct Version {
    version: String,
}
