//! Conversation -> token ids: the model's own chat template, its tokenizer, and the limit on
//! tokens.
//!
//! Text and ids equal those of `apply_chat_template(..., add_generation_prompt=False)` of
//! transformers 5.24. A construct that cannot be rendered as Jinja2 renders it is refused, never
//! approximated. Needs no weights; the engine and `kudos render` use it.
//!
//! - `template` finds templates and renders them, `jinja` is the environment they see, `scan`
//!   prepares their source
//! - `parts` is `content` that is a list of text parts, `markup` the value that the filter `safe`
//!   makes
//! - `limits` bounds single values, `fuel` charges for reading nested ones, for which minijinja
//!   does not
//! - `python` and `methods` print and cut text as Python does, `clock` shows the date
//! - `token_files` reads the files beside `tokenizer.json`, by `json_file` and as tokens of
//!   `token`; `tokenizer` encodes; `tokenizer_class` warns where transformers 5 would build another
//!   one
//! - `sanitize` keeps control tokens out of what users wrote

mod clock;
mod fuel;
mod jinja;
mod json_file;
mod limits;
mod markup;
mod methods;
mod parts;
mod python;
mod sanitize;
mod scan;
mod template;
mod token;
mod token_files;
mod tokenizer;
mod tokenizer_class;

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};

pub use clock::Clock;

use crate::conversation::{Conversation, Message, check_template_vars};
use crate::error::{Error, ErrorKind, Result};
use template::{Template, Templates};
use token_files::TokenFiles;
use tokenizer::Tokenizer;

/// Keys under which a message may carry its reasoning; current templates read the first.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Options for turning conversations into tokens.
#[derive(Clone, Debug, Default)]
pub struct PromptOptions {
    /// Variables for the chat template, e.g. `date_string`; those of a conversation win over them.
    pub template_vars: Map<String, Value>,
    /// Policy for conversations over the limit.
    pub truncate: Truncate,
    /// Policy for conversations that begin with the beginning-of-text token twice.
    pub double_bos: DoubleBos,
    /// True if control tokens (`<|eot_id|>`) spelled in messages, tools, documents and variables
    /// are encoded as plain text. By default they are the tokens they spell, as in Hugging Face.
    pub sanitize_control_tokens: bool,
    /// The time that a template sees when it asks for the date.
    pub clock: Clock,
}

/// Policy for conversations with more tokens than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Truncate {
    /// It is an error
    ///
    /// Its kind is [`ErrorKind::TooLong`].
    #[default]
    Refuse,
    /// BOS and the last tokens stay
    ///
    /// The beginning-of-text token and the last `limit - 1` ids; the last `limit`, if there is no
    /// such token.
    Left,
}

/// Policy for conversations that begin with the beginning-of-text token (BOS) twice, as text does
/// whose BOS the chat template wrote and the tokenizer wrote again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum DoubleBos {
    /// It is an error
    ///
    /// Its kind is [`ErrorKind::InvalidInput`].
    #[default]
    Refuse,
    /// It is scored as it is
    Allow,
    /// It is scored as it is, and rendered text gets the special tokens that the tokenizer adds
    ///
    /// The post-processor of tokenizer.json adds them, so that rendered text may begin with BOS twice:
    /// the ids of `tokenizer(apply_chat_template(.., tokenize=False))`. Given ids are scored as they
    /// are.
    Add,
}

/// The beginning-of-text token (BOS) of text that was rendered elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenderedBos {
    /// Where the model's own conversations begin with BOS, it is put before text that does not
    #[default]
    Once,
    /// The text is encoded as it is
    AsIs,
}

/// Token ids to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// Token ids, in order: at least one.
    pub ids: Vec<u32>,
    /// True if ids were left out to meet the limit.
    pub truncated: bool,
}

/// A model's chat template and tokenizer. `Send + Sync`: threads share one.
#[derive(Debug)]
pub struct Prompt {
    templates: Templates,
    tokenizer: Tokenizer,
    /// `chat_control_tokens` of tokenizer_config.json.
    listed_control_tokens: Option<Vec<String>>,
    options: PromptOptions,
    warnings: Vec<String>,
    /// Whether the ids of conversations begin with BOS; found when it is first needed.
    begins_with_bos: OnceLock<bool>,
    /// The token with which conversations end, where that is a special one.
    end_of_turn: OnceLock<Option<String>>,
}

impl Prompt {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat templates of a model folder.
    ///
    /// [`ErrorKind::Tokenizer`] or [`ErrorKind::Template`] names the file that is missing or cannot
    /// be used; options that exclude each other are [`ErrorKind::Options`].
    pub fn open(dir: &Path, options: PromptOptions) -> Result<Self> {
        check_template_vars(&options.template_vars)?;
        if options.double_bos == DoubleBos::Add && options.sanitize_control_tokens {
            let message = "the tokenizer's special tokens cannot be added where control tokens are sanitized";
            return Err(Error::new(ErrorKind::Options, message).with_hint(
                "leave out `--double-bos add` or `--sanitize-control-tokens`: sanitized text is encoded in pieces",
            ));
        }
        let now = options
            .clock
            .read()
            .ok_or_else(|| Error::new(ErrorKind::Options, format!("{:?} is not a date", options.clock)))?;
        let files = TokenFiles::read(dir)?;
        let templates = Templates::open(dir, &files.config, now)?;
        let tokenizer = Tokenizer::open(dir, &files)?;
        let listed_control_tokens = files.control_tokens(dir)?;
        let mut warnings: Vec<String> = tokenizer.warning(dir, &files.config).into_iter().collect();
        let dated = templates.usable().any(|template| template.names_clock);
        if dated && options.clock == Clock::System && !options.template_vars.contains_key("date_string") {
            warnings.push(format!(
                "the chat template may write today's date ({}) into every prompt, and rewards depend on it; \
                 the template variable `date_string` fixes it where the template reads that",
                now.date()
            ));
        }
        Ok(Self {
            templates,
            tokenizer,
            listed_control_tokens,
            options,
            warnings,
            begins_with_bos: OnceLock::new(),
            end_of_turn: OnceLock::new(),
        })
    }

    /// Warnings for the user, e.g. that rewards depend on today's date.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Renders a conversation with the model's template. [`ErrorKind::Template`] when the template
    /// refuses it.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let text = self.render_marked(conversation)?;
        Ok(if self.options.sanitize_control_tokens { sanitize::unmarked(&text) } else { text })
    }

    /// Returns the ids of a text: nothing is added, and a special token's spelling is that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    /// Returns the ids of a conversation, at most `max_tokens` of them.
    ///
    /// Errors are those of [`render`](Self::render) and [`limit`](Self::limit).
    pub fn tokens(&self, conversation: &Conversation, max_tokens: usize) -> Result<PromptTokens> {
        let text = self.render_marked(conversation)?;
        let ids = if self.options.sanitize_control_tokens {
            sanitize::encode_marked(&self.tokenizer, &text)?
        } else if self.options.double_bos == DoubleBos::Add {
            self.tokenizer.encode_with_special(&text)?
        } else {
            self.tokenizer.encode(&text)?
        };
        self.limit(ids, max_tokens)
    }

    /// Returns the ids of text that a client rendered, at most `max_tokens` of them. Special tokens
    /// are recognised by their spelling.
    ///
    /// Errors are those of [`limit`](Self::limit); and [`ErrorKind::InvalidInput`] where control
    /// tokens are sanitized: in rendered text they look like those that users wrote.
    pub fn rendered_tokens(&self, text: &str, bos: RenderedBos, max_tokens: usize) -> Result<PromptTokens> {
        if self.options.sanitize_control_tokens {
            let message = "rendered text was given, and control tokens are sanitized, which it cannot be";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_hint("give the conversation as `messages`, or as a prompt and its response"));
        }
        let mut ids = self.tokenizer.encode(text)?;
        if bos == RenderedBos::Once
            && let Some(bos) = self.tokenizer.bos()
            && ids.first() != Some(&bos)
            && self.begins_with_bos()
        {
            ids.insert(0, bos);
        }
        self.limit(ids, max_tokens)
    }

    /// Whether the ids of conversations begin with BOS: those of a short one, by the template, or
    /// where it refuses that, of none, by the tokenizer.
    fn begins_with_bos(&self) -> bool {
        *self.begins_with_bos.get_or_init(|| {
            let ids = match self.tokens(&Conversation::exchange("a", "b"), usize::MAX) {
                Ok(tokens) => tokens.ids,
                Err(_) => self.tokenizer.encode_with_special("").unwrap_or_default(),
            };
            ids.first().is_some_and(|&id| Some(id) == self.tokenizer.bos())
        })
    }

    /// Returns the token with which the template ends an assistant's turn, by its spelling; `None`
    /// where that is not a token of its own, outside the model's plain vocabulary.
    pub fn end_of_turn(&self) -> Option<&str> {
        let find = || {
            let tokens = self.tokens(&Conversation::exchange("a", "b"), usize::MAX).ok()?;
            let text = self.tokenizer.token(*tokens.ids.last()?)?;
            self.tokenizer.is_added(&text).then_some(text)
        };
        self.end_of_turn.get_or_init(find).as_deref()
    }

    /// Returns the spelling of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.token(id)
    }

    /// Returns the text of token ids, special tokens as they are spelled.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids)
    }

    /// Whether a token is one that is recognised by its spelling, outside the plain vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.token(id).is_some_and(|text| self.tokenizer.is_added(&text))
    }

    /// Returns the range of `text` that each of its `ids` came from, in Unicode code points; `None`
    /// where `ids` are not those of the text alone.
    pub fn spans(&self, text: &str, ids: &[u32]) -> Option<Vec<(usize, usize)>> {
        self.tokenizer.spans(text, ids)
    }

    /// Checks and shortens ids as `limited` does, with this prompt's policy and beginning-of-text
    /// token.
    pub fn limit(&self, ids: Vec<u32>, max_tokens: usize) -> Result<PromptTokens> {
        limited(ids, max_tokens, self.options.truncate, self.options.double_bos, self.tokenizer.bos())
    }

    /// Renders a conversation, whose control tokens stay wrapped where they are to be sanitized.
    fn render_marked(&self, conversation: &Conversation) -> Result<String> {
        let template = self.templates.choose(conversation.tools().is_some())?;
        let is_list = |message: &Message| message.fields().get("content").is_some_and(Value::is_array);
        self.templates.render(template, self.vars(template, conversation)).map_err(|error| {
            match error.hint() {
                None if conversation.messages().iter().any(is_list) => error.with_hint(
                    "if this template takes text only, join the text parts of `content` into one string",
                ),
                _ => error,
            }
        })
    }

    /// Variables of the template: special tokens, the caller's variables, and the conversation.
    fn vars(&self, template: &Template, conversation: &Conversation) -> Map<String, Value> {
        let mut given = self.options.template_vars.clone();
        given.extend(vars_of(conversation));
        if self.options.sanitize_control_tokens {
            let listed = self.listed_control_tokens.as_deref();
            sanitize::mark_vars(&mut given, &self.tokenizer.control_tokens(listed, &template.literals));
        }
        let mut vars = self.tokenizer.named.clone();
        vars.extend(given);
        vars.insert("add_generation_prompt".to_owned(), Value::Bool(false));
        vars
    }
}

/// Renders a conversation with the templates of a `tokenizer_config.json` and no tokenizer, for
/// fuzzing.
pub fn render_alone(config: &Map<String, Value>, conversation: &Conversation) -> Result<String> {
    // A missing folder has no template files.
    let nowhere = Path::new("/nowhere/without/templates");
    let templates = Templates::open(nowhere, config, jiff::civil::date(2026, 7, 26).at(12, 0, 0, 0))?;
    let template = templates.choose(conversation.tools().is_some())?;
    templates.render(template, vars_of(conversation))
}

/// Variables that a conversation gives its template.
fn vars_of(conversation: &Conversation) -> Map<String, Value> {
    let messages = conversation.messages().iter().map(|message| message.fields().clone());
    let list = |items: Option<&[Value]>| items.map_or(Value::Null, |items| Value::from(items.to_vec()));
    let mut vars = conversation.template_vars().clone();
    vars.insert("messages".to_owned(), messages.map(with_reasoning).collect());
    vars.insert("tools".to_owned(), list(conversation.tools()));
    vars.insert("documents".to_owned(), list(conversation.documents()));
    vars
}

/// Checks ids, and shortens them to `max_tokens` by the policy. `bos` is the beginning-of-text
/// token.
///
/// No ids, or `bos` twice at the start where that is refused, are [`ErrorKind::InvalidInput`]; too
/// many are [`ErrorKind::TooLong`].
pub fn limited(
    mut ids: Vec<u32>,
    max_tokens: usize,
    truncate: Truncate,
    double_bos: DoubleBos,
    bos: Option<u32>,
) -> Result<PromptTokens> {
    let starts_with_bos = ids.first().is_some_and(|&id| Some(id) == bos);
    if ids.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the conversation has no tokens, expected at least one",
        ));
    }
    if double_bos == DoubleBos::Refuse && starts_with_bos && ids.get(1) == ids.first() {
        let message = format!("the conversation begins with the beginning-of-text token ({}) twice", ids[0]);
        return Err(Error::new(ErrorKind::InvalidInput, message).with_hint(
            "one is enough: leave it out of the messages if the chat template writes it; \
                 `--double-bos allow` scores it all the same",
        ));
    }
    let tokens = ids.len();
    if tokens <= max_tokens {
        return Ok(PromptTokens { ids, truncated: false });
    }
    if truncate == Truncate::Refuse || max_tokens == 0 {
        let message = format!("the conversation has {tokens} tokens, the limit is {max_tokens}");
        return Err(Error::new(ErrorKind::TooLong { tokens, limit: max_tokens }, message)
            .with_hint("shorten it, or let its beginning be cut off with `--truncate left`"));
    }
    let kept_first = usize::from(starts_with_bos);
    ids.drain(kept_first..tokens - (max_tokens - kept_first));
    Ok(PromptTokens { ids, truncated: true })
}

/// Copies a message's reasoning to every key that templates read, as transformers 5 does.
fn with_reasoning(fields: Map<String, Value>) -> Value {
    let reasoning = REASONING_KEYS.iter().find_map(|key| fields.get(*key)).cloned();
    let Some(reasoning) = reasoning else { return Value::Object(fields) };
    let mut message = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    message.extend(fields);
    message.insert("reasoning_content".to_owned(), reasoning);
    Value::Object(message)
}
