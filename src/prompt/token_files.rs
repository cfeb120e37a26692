//! The files beside `tokenizer.json`, and the tokens that they add to it as transformers 5.24 does.
//!
//! `tokenizer_config.json` names special tokens and may list added tokens with their ids
//! (`added_tokens_decoder`). Where it has no such list, `special_tokens_map.json` is merged into it
//! and `added_tokens.json` is the list. Tokens of the list that `tokenizer.json` lacks are added by
//! rising id, then named and extra special tokens; each takes the id that the model's vocabulary
//! has for it, else the next free one. transformers accepts an id that differs from the stated one,
//! an entry that another overrules, and a file that another replaces; here such input is an error.
//!
//! The order of these steps decides on ids, so one file holds them all.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::json_file::{broken, read_object};
use super::token::{Token, not_a_token, token_of};
use crate::conversation::kind_of;
use crate::error::{Error, Result};

/// The special tokens that have a name everywhere; a model may name more of its own (`*_token`).
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";

/// A token that a file states, and that the finished tokenizer must have.
#[derive(Debug)]
struct Stated {
    content: String,
    /// Its id, if the file states one.
    id: Option<u64>,
    place: String,
}

/// `tokenizer_config.json` and the token files that belong to it.
#[derive(Debug)]
pub(super) struct TokenFiles {
    /// The fields of tokenizer_config.json, with those of special_tokens_map.json merged in where
    /// that is read; empty when neither file exists.
    pub(super) config: Map<String, Json>,
    /// Named special tokens, in the order in which they are added; an empty one is no token.
    named: Vec<(String, Token)>,
    extra: Vec<Token>,
    /// The list of added tokens by their ids.
    listed: BTreeMap<u32, Token>,
    /// True if tokenizer_config.json has the list.
    has_decoder: bool,
    stated: Vec<Stated>,
}

impl TokenFiles {
    /// Reads the files of the model folder `dir`; an error of kind `Tokenizer` names the unusable
    /// file and entry.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = |name: &str| dir.join(name);
        let config_path = path(CONFIG);
        let mut config = read_object(&config_path)?.unwrap_or_default();
        check_one_tokenizer(&config, &config_path)?;
        let given = |value: Option<&Json>| value.is_some_and(|value| !is_empty(value));
        if given(config.get(ADDITIONAL)) && !given(config.get(EXTRA)) {
            rename_additional(&mut config);
        }
        // A token that tokenizer_config.json gives under a name of the model's own wins over
        // special_tokens_map.json.
        let mut own: Map<String, Json> = config
            .iter()
            .filter(|(key, value)| is_own_name(key) && value.is_string())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut files = Self {
            config: Map::new(),
            named: vec![],
            extra: vec![],
            listed: BTreeMap::new(),
            has_decoder: config.contains_key(DECODER),
            stated: vec![],
        };
        let map = read_object(&path(SPECIAL_TOKENS_MAP))?.unwrap_or_default();
        files.state_map(&map, &path(SPECIAL_TOKENS_MAP))?;
        own.extend(take_object(&mut config));
        let mut objects = vec![];
        let mut in_map: HashSet<String> = HashSet::new();
        if !files.has_decoder {
            in_map.extend(map.keys().map(|key| if key == ADDITIONAL { EXTRA } else { key }.to_owned()));
            objects = merge_special_tokens_map(&mut config, map, &path(SPECIAL_TOKENS_MAP))?;
            own.extend(take_object(&mut config));
        }
        let special: HashSet<String> = special_strings(&config).chain(objects).collect();
        if !config.contains_key(EXTRA) {
            rename_additional(&mut config);
        }
        let file_of = |key: &str| path(if in_map.contains(key) { SPECIAL_TOKENS_MAP } else { CONFIG });
        files.read_special(&config, &own, &|key| format!("{} ({key})", file_of(key).display()))?;
        files.read_lists(&config, &config_path, &path(ADDED_TOKENS), &special)?;
        files.config = config;
        Ok(files)
    }

    /// Records the tokens of special_tokens_map.json.
    fn state_map(&mut self, map: &Map<String, Json>, path: &Path) -> Result<()> {
        for (key, value) in map {
            let place = format!("{} ({key})", path.display());
            let values = match value {
                Json::Array(items) => items.iter().collect(),
                Json::Object(fields) if key == EXTRA => fields.values().collect(),
                Json::Null => vec![],
                value => vec![value],
            };
            for value in values {
                let content = match value {
                    Json::String(content) => content.clone(),
                    Json::Object(fields) => Token::from_fields(fields, &place)?.content,
                    value => return Err(not_a_token(value, &place)),
                };
                self.state(&content, None, place.clone());
            }
        }
        Ok(())
    }

    /// Reads named and extra special tokens. `own` are those under the model's own names that were
    /// collected first.
    fn read_special(
        &mut self,
        config: &Map<String, Json>,
        own: &Map<String, Json>,
        place: &dyn Fn(&str) -> String,
    ) -> Result<()> {
        for key in NAMED {
            if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                self.named.push((key.to_owned(), token_of(value, &place(key))?));
            }
        }
        let mut named: Map<String, Json> = Map::new();
        for (key, value) in config.iter().filter(|(key, _)| is_own_name(key)) {
            match value {
                Json::String(_) => drop(named.insert(key.clone(), value.clone())),
                Json::Object(_) => drop(named.insert(key.clone(), value.clone())),
                // An option, such as `add_bos_token`.
                Json::Null | Json::Bool(_) | Json::Number(_) => {}
                Json::Array(_) => return Err(not_a_token(value, &place(key))),
            }
        }
        named.extend(own.clone());
        for (key, value) in &named {
            let token = token_of(value, &place(key))?;
            self.named.retain(|(other, _)| other != key);
            self.named.push((key.clone(), token));
        }
        match config.get(EXTRA) {
            None | Some(Json::Null) => {}
            Some(Json::Array(tokens)) => {
                for (index, token) in tokens.iter().enumerate() {
                    self.extra.push(token_of(token, &format!("{}, entry {index}", place(EXTRA)))?);
                }
            }
            Some(other) => {
                let message = format!(
                    "`{EXTRA}` is {}, expected a list of tokens or an object of them",
                    kind_of(other)
                );
                return Err(broken(message, &place(EXTRA)));
            }
        }
        match config.get(ADDITIONAL) {
            None | Some(Json::Null) => {}
            Some(Json::Array(tokens)) => {
                for token in tokens {
                    let token = token_of(token, &place(ADDITIONAL))?;
                    self.state(&token.content, None, place(ADDITIONAL));
                }
            }
            Some(other) => {
                let message = format!("`{ADDITIONAL}` is {}, expected a list of tokens", kind_of(other));
                return Err(broken(message, &place(ADDITIONAL)));
            }
        }
        Ok(())
    }

    /// Reads the list: `added_tokens_decoder`, else `added_tokens.json`. The latter is always read,
    /// to check that it agrees. `special` are its special tokens.
    fn read_lists(
        &mut self,
        config: &Map<String, Json>,
        config_path: &Path,
        added_path: &Path,
        special: &HashSet<String>,
    ) -> Result<()> {
        if let Some(decoder) = config.get(DECODER) {
            let place = format!("{} ({DECODER})", config_path.display());
            let decoder = decoder.as_object().ok_or_else(|| {
                broken(format!("`{DECODER}` is {}, expected an object", kind_of(decoder)), &place)
            })?;
            for (id, entry) in decoder {
                let place = format!("{} ({DECODER}, entry {id:?})", config_path.display());
                let number = id.parse::<u32>().ok().filter(|number| number.to_string() == *id);
                let number = number.ok_or_else(|| not_an_id(&format!("the key {id:?}"), &place))?;
                let Json::Object(fields) = entry else { return Err(not_a_token(entry, &place)) };
                let token = Token::from_fields(fields, &place)?;
                self.state(&token.content, Some(number.into()), place);
                self.listed.insert(number, token);
            }
        }
        let added = read_object(added_path)?.unwrap_or_default();
        let mut stated = vec![];
        for (content, id) in &added {
            let place = format!("{} (entry {content:?})", added_path.display());
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| not_an_id(&format!("the id {id}"), &place))?;
            if content.is_empty() {
                return Err(broken("a token has no `content`".to_owned(), &place)
                    .with_hint("`content` is the text of the token: a string that is not empty"));
            }
            stated.push((content, number, place));
            if !self.has_decoder {
                let is_special = special.contains(content);
                let token =
                    Token { special: is_special, normalized: Some(!is_special), ..Token::special(content) };
                self.listed.insert(number, token);
            }
        }
        for (content, number, place) in stated {
            self.state(content, Some(number.into()), place);
        }
        Ok(())
    }

    fn state(&mut self, content: &str, id: Option<u64>, place: String) {
        self.stated.push(Stated { content: content.to_owned(), id, place });
    }

    /// Adds the tokens to `tokenizer`, and checks that each token of every file has the id that the
    /// file states. `bytes` are those of tokenizer.json, at `path`.
    pub(super) fn add_to(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        bytes: &[u8],
        path: &Path,
    ) -> Result<()> {
        let own = tokenizer.get_added_tokens_decoder();
        let mut known: HashSet<String> = own.values().map(|token| token.content.clone()).collect();
        let mut listed = self.listed.clone();
        if !self.has_decoder {
            listed.extend(own.into_iter().map(|(id, token)| (id, Token::from_added(token))));
        }
        let mut tokens: Vec<Token> = listed.into_values().collect();
        known.extend(tokens.iter().map(|token| token.content.clone()));
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !known.contains(&token.content) && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        let named: HashSet<&str> = self.named.iter().map(|(_, token)| token.content.as_str()).collect();
        for token in &mut tokens {
            token.special |= named.contains(token.content.as_str());
        }
        tokenizer.add_tokens(tokens.into_iter().map(Token::added)).map_err(|error| {
            broken(format!("tokens cannot be added: {error}"), &path.display().to_string())
        })?;
        let file: TokenizerFile = serde_json::from_slice(bytes).map_err(|error| {
            broken(format!("the tokenizer cannot be parsed: {error}"), &path.display().to_string())
        })?;
        let in_file = file.added_tokens.into_iter().map(|token| Stated {
            place: format!("{} (added_tokens, id {})", path.display(), token.id),
            content: token.content,
            id: Some(token.id),
        });
        let added: HashSet<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        for stated in in_file.collect::<Vec<_>>().iter().chain(&self.stated) {
            stated.check(&added, tokenizer)?;
        }
        Ok(())
    }

    /// Named special tokens, which templates see as variables.
    pub(super) fn variables(&self) -> Map<String, Json> {
        self.named.iter().map(|(name, token)| (name.clone(), Json::from(token.content.clone()))).collect()
    }

    /// Returns `split_special_tokens`: true if special tokens in a text stay plain text.
    pub(super) fn splits_special(&self, dir: &Path) -> Result<bool> {
        match self.config.get("split_special_tokens") {
            None => Ok(false),
            Some(Json::Bool(splits)) => Ok(*splits),
            Some(other) => {
                let message = format!("`split_special_tokens` is {}, expected a boolean", kind_of(other));
                Err(broken(message, &dir.join(CONFIG).display().to_string()))
            }
        }
    }

    /// Returns `chat_control_tokens`: the control tokens beside the special ones.
    pub(super) fn control_tokens(&self, dir: &Path) -> Result<Option<Vec<String>>> {
        let place = dir.join(CONFIG).display().to_string();
        let refused = |what: &Json| {
            broken(format!("`chat_control_tokens` has {}, expected a list of strings", kind_of(what)), &place)
        };
        match self.config.get("chat_control_tokens") {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Array(tokens)) => {
                let text = |token: &Json| token.as_str().map(str::to_owned).ok_or_else(|| refused(token));
                tokens.iter().map(text).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(refused(other)),
        }
    }
}

impl Stated {
    fn check(&self, added: &HashSet<String>, tokenizer: &tokenizers::Tokenizer) -> Result<()> {
        let Self { content, id, place } = self;
        if content.is_empty() && id.is_none() {
            return Ok(());
        }
        let got = tokenizer.token_to_id(content).filter(|_| added.contains(content));
        let message = match (got, id) {
            (Some(got), Some(id)) if u64::from(got) != *id => {
                format!("the token {content:?} has id {got} in the tokenizer, the file says {id}")
            }
            (Some(_), _) => return Ok(()),
            (None, _) => format!("the token {content:?} is not read: another file or entry takes its place"),
        };
        Err(broken(message, place).with_hint(
            "the files disagree: save the tokenizer again with `save_pretrained`, or correct or delete the entry",
        ))
    }
}

/// The added tokens of tokenizer.json, with their ids.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<TokenOfFile>,
}

#[derive(Deserialize)]
struct TokenOfFile {
    id: u64,
    content: String,
}

/// Refuses a choice among files for versions of transformers, which may choose another one than
/// tokenizer.json.
fn check_one_tokenizer(config: &Map<String, Json>, path: &Path) -> Result<()> {
    match config.get("fast_tokenizer_files") {
        Some(files) if *files != serde_json::json!(["tokenizer.json"]) => {
            let message = "`fast_tokenizer_files` names other files than tokenizer.json".to_owned();
            Err(broken(message, &path.display().to_string())
                .with_hint("keep the intended file in the folder as tokenizer.json, and delete the entry"))
        }
        _ => Ok(()),
    }
}

/// Returns true if `key` names a special token of the model's own.
fn is_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMED.contains(&key)
}

/// Returns true for a value that Python takes for false.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        Json::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Renames `additional_special_tokens` to `extra_special_tokens`.
fn rename_additional(config: &mut Map<String, Json>) {
    if let Some(tokens) = config.remove(ADDITIONAL) {
        config.insert(EXTRA.to_owned(), tokens);
    }
}

/// Removes and returns the tokens of `extra_special_tokens`, if that is an object with their names.
fn take_object(config: &mut Map<String, Json>) -> Map<String, Json> {
    match config.get_mut(EXTRA) {
        Some(Json::Object(fields)) => {
            let fields = std::mem::take(fields);
            config.remove(EXTRA);
            fields
        }
        _ => Map::new(),
    }
}

/// Returns the named and extra special tokens that are strings: objects of tokenizer_config.json do
/// not apply to added_tokens.json.
fn special_strings(config: &Map<String, Json>) -> impl Iterator<Item = String> {
    let named = NAMED.iter().filter_map(|key| config.get(*key));
    let extra = config.get(EXTRA).and_then(Json::as_array).into_iter().flatten();
    named.chain(extra).filter_map(Json::as_str).map(str::to_owned)
}

/// Merges special_tokens_map.json into tokenizer_config.json: it replaces entries, and lists of
/// extra tokens are joined. Returns the named and extra tokens that it gives as objects.
fn merge_special_tokens_map(
    config: &mut Map<String, Json>,
    map: Map<String, Json>,
    path: &Path,
) -> Result<Vec<String>> {
    let mut objects = vec![];
    let mut object = |fields: Map<String, Json>, key: &str| {
        if key == EXTRA || NAMED.contains(&key) {
            objects.extend(fields.get("content").and_then(Json::as_str).map(str::to_owned));
        }
        marked(fields)
    };
    for (key, value) in map {
        let value = match value {
            Json::Object(fields) if key != EXTRA => object(fields, &key),
            Json::Array(items) if key == EXTRA => {
                let mut joined = match config.remove(EXTRA) {
                    Some(Json::Array(items)) => items,
                    None | Some(Json::Null) => vec![],
                    Some(other) => return Err(not_a_token(&other, &format!("{} ({EXTRA})", path.display()))),
                };
                for item in items {
                    let item = match item {
                        Json::Object(fields) => object(fields, &key),
                        item => item,
                    };
                    if !joined.contains(&item) {
                        joined.push(item);
                    }
                }
                Json::Array(joined)
            }
            value => value,
        };
        config.insert(key, value);
    }
    Ok(objects)
}

/// Returns a token of special_tokens_map.json, marked as a special token, which that file omits.
fn marked(mut fields: Map<String, Json>) -> Json {
    fields.insert("__type".to_owned(), "AddedToken".into());
    fields.insert("special".to_owned(), true.into());
    Json::Object(fields)
}

fn not_an_id(what: &str, place: &str) -> Error {
    broken(format!("{what} is not the id of a token"), place).with_hint("an id is a whole number from 0")
}
