//! Forms of other servers' requests and answers, for the description in OpenAPI. `dialect` reads the
//! requests, and each path makes its answers.
//!
//! Only fields that are read are here; a field that is null counts as absent.
#![allow(dead_code, reason = "the types are only described")]

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::schema::{Failed, Message, Prompt};

/// A text, or a list of texts
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Texts {
    One(String),
    Several(Vec<String>),
}

/// Token ids, or a list of those
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Ids {
    One(Vec<u32>),
    Several(Vec<Vec<u32>>),
}

/// A text or token ids, or a list of either
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TextsOrIds {
    Texts(Texts),
    Ids(Ids),
}

/// Texts that the client rendered, or token ids
#[derive(ToSchema)]
pub(super) struct RenderedInput {
    /// The model's name, which is checked where the server was given names
    model: Option<String>,
    input: TextsOrIds,
    /// Whether a text gets a beginning-of-text token where it has none; true by default
    add_special_tokens: Option<bool>,
}

/// One conversation, for the chat template
#[derive(ToSchema)]
pub(super) struct ConversationInput {
    /// The model's name, which is checked where the server was given names
    model: Option<String>,
    /// The conversation, whose last turn is judged
    messages: Vec<Message>,
    /// Variables of the chat template
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Input {
    Rendered(RenderedInput),
    Conversation(ConversationInput),
}

/// vLLM's request for classes
#[derive(ToSchema)]
pub(super) struct VllmClassifyRequest {
    #[serde(flatten)]
    input: Input,
    /// Whether values are probabilities; false by default
    use_activation: Option<bool>,
}

/// SGLang's request, of texts
#[derive(ToSchema)]
pub(super) struct SglangTextRequest {
    text: Texts,
    /// An id that comes back, or one for each text
    rid: Option<Texts>,
}

/// SGLang's request, of token ids
#[derive(ToSchema)]
pub(super) struct SglangIdsRequest {
    input_ids: Ids,
    /// An id that comes back, or one for each list
    rid: Option<Texts>,
}

/// SGLang's native request
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum SglangRequest {
    Text(SglangTextRequest),
    Ids(SglangIdsRequest),
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum ClassifyRequest {
    Vllm(VllmClassifyRequest),
    Sglang(SglangRequest),
}

/// The form of values: numbers, or base64 of little-endian f32
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EncodingFormat {
    Float,
    Base64,
}

/// vLLM's request for pooled values
#[derive(ToSchema)]
pub(super) struct PoolingRequest {
    #[serde(flatten)]
    input: Input,
    encoding_format: Option<EncodingFormat>,
    /// Whether values are probabilities; false by default
    use_activation: Option<bool>,
}

/// OpenAI's request for embeddings
#[derive(ToSchema)]
pub(super) struct EmbeddingsRequest {
    #[serde(flatten)]
    input: Input,
    encoding_format: Option<EncodingFormat>,
}

/// The texts of pairs, under any of their names
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Pairs {
    Documents { queries: Texts, documents: Texts },
    Items { queries: Texts, items: Texts },
    Data { data_1: Texts, data_2: Texts },
    Texts { text_1: Texts, text_2: Texts },
}

/// vLLM's request for scores of pairs
#[derive(ToSchema)]
pub(super) struct ScoreRequest {
    #[serde(flatten)]
    pairs: Pairs,
    /// The model's name, which is checked where the server was given names
    model: Option<String>,
    /// Whether scores are probabilities; false by default
    use_activation: Option<bool>,
}

/// vLLM's, Jina's and Cohere's request for an order
#[derive(ToSchema)]
pub(super) struct VllmRerankRequest {
    /// The user's turn
    query: String,
    /// Responses
    documents: Texts,
    /// Limit on the results; 0, the default, lists all
    #[schema(format = "uint64")]
    top_n: Option<u64>,
    /// The model's name, which is checked where the server was given names
    model: Option<String>,
    /// Whether scores are probabilities; false by default
    use_activation: Option<bool>,
}

/// TEI's request for an order
#[derive(ToSchema)]
pub(super) struct TeiRerankRequest {
    /// The user's turn
    query: String,
    /// Responses
    texts: Texts,
    /// Whether scores are rewards; true by default
    raw_scores: Option<bool>,
    /// Whether texts come back; false by default
    return_text: Option<bool>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum RerankRequest {
    Vllm(VllmRerankRequest),
    Tei(TeiRerankRequest),
}

/// A text, a list of one text, a pair of texts, or a list of lists of these
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum PredictInputs {
    Text(String),
    Several(Vec<Texts>),
}

/// TEI's request for predictions
#[derive(ToSchema)]
pub(super) struct PredictRequest {
    inputs: PredictInputs,
    /// Whether scores are rewards; true by default
    raw_scores: Option<bool>,
}

/// slime's request
#[derive(ToSchema)]
pub(super) struct SlimeRequest {
    prompt: Prompt,
    response: String,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum RootRequest {
    Slime(SlimeRequest),
    Predict(PredictRequest),
    Rerank(TeiRerankRequest),
}

/// OpenRLHF's request
#[derive(ToSchema)]
pub(super) struct OpenRlhfRequest {
    query: Texts,
}

/// A request for the tokens of a text, as vLLM has it
#[derive(ToSchema)]
pub(super) struct TokenizeText {
    prompt: String,
    /// Whether the text gets a beginning-of-text token where it has none; true by default
    add_special_tokens: Option<bool>,
    /// Whether the tokens' spellings come back; false by default
    return_token_strs: Option<bool>,
}

/// A request for the tokens of a conversation, as vLLM has it
#[derive(ToSchema)]
pub(super) struct TokenizeConversation {
    messages: Vec<Message>,
    /// Whether the tokens' spellings come back; false by default
    return_token_strs: Option<bool>,
}

/// A request for the tokens of texts, as TEI has it
#[derive(ToSchema)]
pub(super) struct TokenizeTexts {
    inputs: Texts,
    /// Whether a text gets a beginning-of-text token where it has none; true by default
    add_special_tokens: Option<bool>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TokenizeRequest {
    Text(TokenizeText),
    Conversation(TokenizeConversation),
    Texts(TokenizeTexts),
}

/// A request for the text of token ids
#[derive(ToSchema)]
pub(super) struct DetokenizeRequest {
    tokens: Vec<u32>,
}

/// Counts of tokens
#[derive(ToSchema)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
}

/// The function of the logits: `none`, `sigmoid` or `softmax`
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActivationName {
    None,
    Sigmoid,
    Softmax,
}

/// A list of data, as vLLM's and OpenAI's answers are
#[derive(ToSchema)]
pub(super) struct Listed<T: ToSchema> {
    id: String,
    object: String,
    /// Seconds since 1970
    created: u64,
    model: String,
    data: Vec<T>,
    activation: Option<ActivationName>,
    usage: Usage,
}

/// The classes of an input
#[derive(ToSchema)]
pub(super) struct Classes {
    index: usize,
    /// The label of the highest logit
    label: String,
    /// One value per label
    probs: Vec<f32>,
    num_classes: usize,
}

/// Numbers, or base64 of little-endian f32
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Values {
    Numbers(Vec<f32>),
    Base64(String),
}

/// The pooled values of an input
#[derive(ToSchema)]
pub(super) struct Pooled {
    index: usize,
    object: String,
    /// One value per label
    data: Values,
}

/// The values of an input
#[derive(ToSchema)]
pub(super) struct Embedding {
    index: usize,
    object: String,
    /// The raw reward, or the logits of all labels
    embedding: Values,
}

/// The score of a pair
#[derive(ToSchema)]
pub(super) struct PairScore {
    index: usize,
    object: String,
    score: f32,
}

/// SGLang's answer for an input
#[derive(ToSchema)]
pub(super) struct SglangItem {
    /// The raw reward, or the logits of all labels
    embedding: Vec<f32>,
    meta_info: SglangMetadata,
}

/// Metadata of an input, as SGLang has it
#[derive(ToSchema)]
pub(super) struct SglangMetadata {
    id: String,
    finish_reason: Map<String, Value>,
    prompt_tokens: usize,
    /// Seconds
    e2e_latency: f64,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum SglangAnswer {
    One(SglangItem),
    Several(Vec<SglangItem>),
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum ClassifyAnswer {
    Vllm(Listed<Classes>),
    Sglang(SglangAnswer),
}

/// A document and its place in the order
#[derive(ToSchema)]
pub(super) struct RankedDocument {
    index: usize,
    document: Document,
    relevance_score: f32,
}

/// A document
#[derive(ToSchema)]
pub(super) struct Document {
    text: String,
}

/// Documents, the best first
#[derive(ToSchema)]
pub(super) struct VllmRerankAnswer {
    id: String,
    model: String,
    results: Vec<RankedDocument>,
    activation: ActivationName,
    usage: Usage,
}

/// A text's place in the order
#[derive(ToSchema)]
pub(super) struct RankedText {
    index: usize,
    score: f32,
    text: Option<String>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum RerankAnswer {
    Vllm(VllmRerankAnswer),
    Tei(Vec<RankedText>),
}

/// A label and its score
#[derive(ToSchema)]
pub(super) struct Prediction {
    score: f32,
    label: String,
}

/// The predictions of one input, or those of several
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum PredictAnswer {
    One(Vec<Prediction>),
    Several(Vec<Vec<Prediction>>),
}

/// slime's bare reward, or the reward under the name that was asked for; or TEI's answer
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum RootAnswer {
    Reward(f32),
    Named(BTreeMap<String, f32>),
    Predictions(PredictAnswer),
    Ranked(Vec<RankedText>),
}

/// OpenRLHF's answer
#[derive(ToSchema)]
pub(super) struct OpenRlhfAnswer {
    rewards: Vec<f32>,
    scores: Vec<f32>,
    extra_logs: Map<String, Value>,
}

/// NIM's answer: a completion with the reward
#[derive(ToSchema)]
pub(super) struct Completion {
    id: String,
    object: String,
    /// Seconds since 1970
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// The one choice of a completion
#[derive(ToSchema)]
pub(super) struct Choice {
    index: usize,
    message: ChoiceMessage,
    logprobs: Logprobs,
    finish_reason: String,
}

/// `reward:X`, as a turn
#[derive(ToSchema)]
pub(super) struct ChoiceMessage {
    role: String,
    content: String,
}

/// The reward once more
#[derive(ToSchema)]
pub(super) struct Logprobs {
    content: Vec<Logprob>,
}

/// A name, and the reward
#[derive(ToSchema)]
pub(super) struct Logprob {
    token: String,
    logprob: f32,
}

/// Tokens, as vLLM has them
#[derive(ToSchema)]
pub(super) struct Tokens {
    count: usize,
    /// Limit on the tokens of a conversation
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// A token, as TEI has it
#[derive(ToSchema)]
pub(super) struct TeiToken {
    id: u32,
    text: Option<String>,
    special: bool,
    /// Where it starts in the text
    start: Option<usize>,
    /// Where it ends
    stop: Option<usize>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TokenizeAnswer {
    Vllm(Tokens),
    Tei(Vec<Vec<TeiToken>>),
}

/// The text, under the names that clients read
#[derive(ToSchema)]
pub(super) struct Detokenized {
    prompt: String,
    text: String,
}

/// TEI's error; a request that is not let in has the error of this server's own interface
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TeiFailed {
    Tei { error: String, error_type: String },
    Own(Failed),
}
