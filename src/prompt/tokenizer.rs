//! `tokenizer.json`, with the tokens that the files beside it add: text -> ids.
//!
//! tokenizer.json is used unchanged, whatever class tokenizer_config.json names. transformers 5
//! builds some classes anew from its vocabulary and merges; where that may give other ids, there is
//! a warning (`tokenizer_class`).

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, Model, NormalizedString, Normalizer, PreTokenizer};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString};

use super::json_file::read_file;
use super::token_files::TokenFiles;
use super::tokenizer_class;
use crate::error::{Error, ErrorKind, Result};

/// A tokenizer that adds special tokens only on request.
#[derive(Debug)]
pub(super) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Named special tokens, which templates see as variables.
    pub(super) named: Map<String, Json>,
    /// Every token outside the model's own vocabulary, special or not.
    added: HashSet<String>,
}

impl Tokenizer {
    /// Reads tokenizer.json of `dir`, and adds the tokens of `files`.
    pub(super) fn open(dir: &Path, files: &TokenFiles) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let broken = |what: String| Error::new(ErrorKind::Tokenizer, what).at(path.display());
        let bytes = read_file(&path)?.ok_or_else(|| {
            broken("the model has no tokenizer".to_owned()).with_hint(
                "a model folder needs `tokenizer.json`, the format of Hugging Face's fast tokenizers",
            )
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| broken(format!("the tokenizer cannot be parsed: {error}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        inner.set_encode_special_tokens(files.splits_special(dir)?);
        files.add_to(&mut inner, &bytes, &path)?;
        let added = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        Ok(Self { inner, named: files.variables(), added })
    }

    /// Returns the warning about the class that `config`, tokenizer_config.json of `dir`, names.
    pub(super) fn warning(&self, dir: &Path, config: &Map<String, Json>) -> Option<String> {
        tokenizer_class::warning(dir, config, &self.inner)
    }

    /// Returns the beginning-of-text token, if the tokenizer names one.
    pub(super) fn bos(&self) -> Option<u32> {
        self.inner.token_to_id(self.named.get("bos_token")?.as_str()?)
    }

    /// Returns the ids of `text`: special tokens are recognised by their spelling, and none is
    /// added.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| failed(&*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the ids of `text` with the special tokens that the post-processor of tokenizer.json
    /// adds.
    pub(super) fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| failed(&*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the ids of `text` as plain text: no added token is recognised, special or not.
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

    /// Returns the range of `text`, in Unicode code points, that each of its `ids` came from; `None`
    /// where `ids` are not those of the text.
    pub(super) fn spans(&self, text: &str, ids: &[u32]) -> Option<Vec<(usize, usize)>> {
        let encoding = self.inner.encode_char_offsets(text, false).ok()?;
        (encoding.get_ids() == ids).then(|| encoding.get_offsets().to_vec())
    }

    /// Returns the spelling of a token in the vocabulary.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the text of ids.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("the token ids cannot be decoded: {error}"))
        })
    }

    /// Returns the id of a token by its spelling.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns true if `token` is an added token, special or not.
    pub(super) fn is_added(&self, token: &str) -> bool {
        self.added.contains(token)
    }

    /// Returns the control tokens: the special ones, and those that `chat_control_tokens` lists, or
    /// else the added tokens that occur in the template's own text.
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

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::new(ErrorKind::Tokenizer, format!("the text cannot be encoded: {error}"))
}
