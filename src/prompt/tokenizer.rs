//! `tokenizer.json` and the special tokens of `tokenizer_config.json`: text -> ids.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, Model, NormalizedString, Normalizer, PreTokenizer};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString};

use crate::error::{Error, ErrorKind, Result};

/// The special tokens that have a name everywhere; a model may name more of its own (`*_token`).
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer that adds nothing of its own.
#[derive(Debug)]
pub(super) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Named special tokens, which templates see as variables.
    pub(super) named: Map<String, Json>,
    /// Every token outside the model's own vocabulary, special or not.
    added: HashSet<String>,
}

/// tokenizer_config.json of `dir`, empty when there is none, with special_tokens_map.json merged in as Hugging Face does
/// for older tokenizers.
pub(super) fn read_config(dir: &Path) -> Result<Map<String, Json>> {
    let mut config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    if !config.contains_key("added_tokens_decoder") {
        config.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
    }
    Ok(config)
}

impl Tokenizer {
    /// tokenizer.json of `dir`, with the tokens that `config` adds.
    pub(super) fn open(dir: &Path, config: &Map<String, Json>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let broken = |what: String| Error::new(ErrorKind::Tokenizer, what).at(path.display());
        let bytes = fs::read(&path).map_err(|error| {
            broken(format!("the tokenizer cannot be read: {error}")).with_hint(
                "a model folder needs `tokenizer.json`, the format of Hugging Face's fast tokenizers",
            )
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| broken(format!("the tokenizer cannot be parsed: {error}")))?;
        drop(bytes);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        inner.set_encode_special_tokens(
            config.get("split_special_tokens").and_then(Json::as_bool).unwrap_or(false),
        );
        let named = named_tokens(config);
        let missing = missing_tokens(config, &named, &inner);
        inner
            .add_tokens(missing)
            .map_err(|error| broken(format!("special tokens cannot be added: {error}")))?;
        let added = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        Ok(Self { inner, named, added })
    }

    /// The id that begins a text, when the tokenizer names one.
    pub(super) fn bos(&self) -> Option<u32> {
        self.inner.token_to_id(self.named.get("bos_token")?.as_str()?)
    }

    /// The ids of `text`, in which special tokens are recognised by their spelling; nothing is added.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| failed(&*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` as plain text: no special or other added token is recognised.
    pub(super) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encode = || -> tokenizers::Result<Vec<u32>> {
            let mut normalized = NormalizedString::from(text);
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut normalized)?;
            }
            let mut pieces = PreTokenizedString::from(normalized);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let mut ids = vec![];
            for (piece, ..) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                ids.extend(self.inner.get_model().tokenize(piece)?.into_iter().map(|token| token.id));
            }
            Ok(ids)
        };
        encode().map_err(|error| failed(&*error))
    }

    /// The id of a token by its spelling.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `token` is an added token, special or not.
    pub(super) fn is_added(&self, token: &str) -> bool {
        self.added.contains(token)
    }

    /// The tokens that control a chat: those that `config` lists as `chat_control_tokens`, else the added tokens that
    /// occur in the template's own text; and the special ones in any case.
    pub(super) fn control_tokens(&self, listed: Option<&[String]>, template_literals: &str) -> Vec<String> {
        let is_control = |token: &AddedToken| {
            let content = &token.content;
            token.special
                || listed.map_or_else(
                    || template_literals.contains(content) && !content.chars().all(super::python::is_space),
                    |listed| listed.contains(content),
                )
        };
        let tokens = self.inner.get_added_tokens_decoder().into_values();
        tokens.filter(is_control).map(|token| token.content).collect()
    }
}

fn named_tokens(config: &Map<String, Json>) -> Map<String, Json> {
    let mut named = Map::new();
    let models_own = |key: &str| key.ends_with("_token") && !NAMED.contains(&key);
    for (key, value) in config {
        if NAMED.contains(&key.as_str()) || models_own(key) {
            named.extend(content_of(value).map(|content| (key.clone(), Json::from(content))));
        }
    }
    if let Some(Json::Object(extra)) = config.get("extra_special_tokens") {
        named.extend(
            extra.iter().filter_map(|(key, value)| Some((key.clone(), Json::from(content_of(value)?)))),
        );
    }
    named
}

/// A token is given as its text, or as an object that holds the text.
fn content_of(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Tokens that tokenizer_config.json knows and tokenizer.json may not: Hugging Face adds them.
fn missing_tokens(
    config: &Map<String, Json>,
    named: &Map<String, Json>,
    inner: &tokenizers::Tokenizer,
) -> Vec<AddedToken> {
    let mut tokens: Vec<(u32, AddedToken)> = vec![];
    if let Some(Json::Object(decoder)) = config.get("added_tokens_decoder") {
        let entry = |(id, token): (&String, &Json)| {
            Some((id.parse().ok()?, serde_json::from_value(token.clone()).ok()?))
        };
        tokens.extend(decoder.iter().filter_map(entry));
        tokens.sort_by_key(|(id, _)| *id);
    }
    let mut tokens: Vec<AddedToken> = tokens.into_iter().map(|(_, token)| token).collect();
    let known: HashSet<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let extra = ["extra_special_tokens", "additional_special_tokens"]
        .iter()
        .find_map(|key| config.get(*key)?.as_array());
    let spelled =
        named.values().filter_map(Json::as_str).chain(extra.into_iter().flatten().filter_map(content_of));
    for content in spelled {
        if !known.contains(content) && !tokens.iter().any(|token| token.content == content) {
            tokens.push(AddedToken::from(content, true));
        }
    }
    tokens
}

fn read_object(path: &Path) -> Result<Option<Map<String, Json>>> {
    let broken = |what: String| Error::new(ErrorKind::Tokenizer, what).at(path.display());
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(broken(format!("the file cannot be read: {error}"))),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| broken(format!("not a JSON object: {error}"))),
    }
}

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::new(ErrorKind::Tokenizer, format!("the text cannot be encoded: {error}"))
}
