//! Finding a model's chat templates, and rendering a conversation through the right one.

use std::error::Error as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::fuel;
use super::jinja::{Raised, environment};
use super::parts::{self, PrintsParts};
use super::sanitize::unmarked;
use super::scan::scan;
use crate::conversation::returns_data;
use crate::error::{Error, ErrorKind, Result};
use crate::files::refuse_lfs_pointer;

/// Bytes of a template, at most. The templates of the tests have up to 5,000.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// A template as its file gives it.
struct Source {
    text: String,
    /// Its file, for messages.
    place: String,
}

/// A template that minijinja has parsed.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// Its name in the environment.
    name: &'static str,
    place: String,
    /// Its plain text and string literals.
    pub(super) literals: String,
    /// True if it may ask for the date.
    pub(super) names_clock: bool,
}

/// The templates of one model: `default`, and `tool_use` for conversations with tools where there
/// is one.
#[derive(Debug)]
pub(super) struct Templates {
    env: Environment<'static>,
    default: Result<Template>,
    tool_use: Option<Result<Template>>,
}

impl Templates {
    /// Finds the templates in `dir`, in Hugging Face's order: `chat_template.jinja` with
    /// `additional_chat_templates/`, else `chat_template` of tokenizer_config.json. One that cannot
    /// be used is an error when a conversation needs it, here and at once if none can be used.
    pub(super) fn open(dir: &Path, tokenizer_config: &Map<String, Json>, now: DateTime) -> Result<Self> {
        let mut named = from_files(dir)?;
        if named.is_empty() {
            named = from_config(dir, tokenizer_config)?;
        }
        if named.is_empty() {
            return Err(Error::new(ErrorKind::Template, "the model has no chat template")
                .at(dir.display())
                .with_hint(
                    "put the template of the model's training into `chat_template.jinja` in this folder",
                ));
        }
        let mut env = environment(now).map_err(|error| Error::new(ErrorKind::Template, error.to_string()))?;
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        let mut take = |name: &'static str| {
            let source =
                named.iter().rposition(|(other, _)| other == name).map(|index| named.swap_remove(index).1);
            source.map(|source| compile(&mut env, name, source))
        };
        let tool_use = take("tool_use");
        let default = take("default").unwrap_or_else(|| {
            let names = names.join("`, `");
            Err(Error::new(
                ErrorKind::Template,
                format!("no chat template is named `default` (there are `{names}`)"),
            )
            .at(dir.display()))
        });
        match (&default, &tool_use) {
            (Err(error), None | Some(Err(_))) => Err(error.clone()),
            _ => Ok(Self { env, default, tool_use }),
        }
    }

    /// Returns the template for a conversation with or without tools.
    pub(super) fn choose(&self, has_tools: bool) -> Result<&Template> {
        let chosen = self.tool_use.as_ref().filter(|_| has_tools).unwrap_or(&self.default);
        chosen.as_ref().map_err(Error::clone)
    }

    /// Returns every template that can be used.
    pub(super) fn usable(&self) -> impl Iterator<Item = &Template> {
        [Some(&self.default), self.tool_use.as_ref()].into_iter().flatten().flatten()
    }

    /// Renders `template` with these variables.
    pub(super) fn render(&self, template: &Template, vars: Map<String, Json>) -> Result<String> {
        let context = Value::from_pairs(vars.into_iter().map(|(name, value)| match (name.as_str(), value) {
            ("messages", Json::Array(messages)) => {
                (name, messages.into_iter().map(message_value).collect::<Vec<_>>().into())
            }
            (_, value) => (name, to_value(value)),
        }));
        let compiled = self.env.get_template(template.name);
        compiled
            .and_then(|compiled| compiled.render(context))
            .map_err(|error| refused(error, &template.place))
    }
}

fn compile(env: &mut Environment<'static>, name: &'static str, source: Source) -> Result<Template> {
    let Source { text, place } = source;
    if text.len() > TEMPLATE_BYTES_MAX {
        let message =
            format!("the chat template has {} bytes, the limit is {TEMPLATE_BYTES_MAX}", text.len());
        return Err(Error::new(ErrorKind::Template, message).at(place));
    }
    let scanned = scan(&text).map_err(|refusal| {
        Error::new(ErrorKind::Template, format!("the chat template cannot be used: {}", refusal.message))
            .at(format!("{place}, line {}", refusal.line))
    })?;
    env.add_template_owned(name, scanned.text).map_err(|error| refused(error, &place))?;
    Ok(Template { name, place, literals: scanned.literals, names_clock: scanned.names_clock })
}

/// Converts minijinja's error: the message that the template raised, or the failure, its construct
/// and the line.
fn refused(error: minijinja::Error, place: &str) -> Error {
    let (mut innermost, mut located) = (&error, &error);
    let (mut raised, mut prints_parts) = (None, false);
    while let Some(source) = innermost.source() {
        raised = raised.or(source.downcast_ref::<Raised>());
        prints_parts |= source.is::<PrintsParts>();
        let Some(inner) = source.downcast_ref::<minijinja::Error>() else { break };
        innermost = inner;
        located = if inner.line().is_some() { inner } else { located };
    }
    let mut message = match (raised, innermost.kind()) {
        (Some(Raised(message)), _) => format!("the chat template refused the conversation: {message}"),
        (_, minijinja::ErrorKind::OutOfFuel) => {
            "the chat template ran for too long, or wrote too much".to_owned()
        }
        (_, kind) => {
            let detail = innermost.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("the chat template cannot be rendered: {kind}{detail}")
        }
    };
    let construct = located.range().zip(located.template_source()).and_then(|(range, text)| text.get(range));
    let ours = |construct: &str| construct.trim().is_empty() || fuel::FILTERS.contains(&construct.trim());
    if let Some(construct) = construct.filter(|construct| raised.is_none() && !ours(construct)) {
        let mut written = construct.to_owned();
        for ours in fuel::FILTERS {
            written = written.replace(&format!("|{ours} "), "");
        }
        let short: String = written.trim().chars().take(80).collect();
        message += &format!(", in `{}`", short.replace('\n', " "));
    }
    let place = match located.line() {
        Some(line) => format!("{place}, line {line}"),
        None => place.to_owned(),
    };
    let error = Error::new(ErrorKind::Template, message).at(place);
    match raised {
        Some(Raised(message)) if message.to_lowercase().contains("system role") => {
            error.with_hint("this model has no system role: put its text before the first user message's")
        }
        _ if prints_parts => error.with_hint(PrintsParts::HINT),
        _ => error,
    }
}

fn from_files(dir: &Path) -> Result<Vec<(String, Source)>> {
    let mut named = vec![];
    if let Some(source) = read(dir.join("chat_template.jinja"))? {
        named.push(("default".to_owned(), source));
    }
    let folder = dir.join("additional_chat_templates");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(named),
        Err(error) => return Err(unreadable(&folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| unreadable(&folder, error))?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        if let Some((name, source)) = name.map(str::to_owned).zip(read(path)?) {
            named.push((name, source));
        }
    }
    Ok(named)
}

fn from_config(dir: &Path, config: &Map<String, Json>) -> Result<Vec<(String, Source)>> {
    let place = format!("{} (chat_template)", dir.join("tokenizer_config.json").display());
    let source = |text: &str| Source { text: text.to_owned(), place: place.clone() };
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(vec![]),
        Some(Json::String(text)) => Ok(vec![("default".to_owned(), source(text))]),
        Some(Json::Array(list)) => {
            let entry = |entry: &Json| {
                Some((entry["name"].as_str()?.to_owned(), source(entry["template"].as_str()?)))
            };
            list.iter().map(entry).collect::<Option<_>>().ok_or_else(|| {
                Error::new(
                    ErrorKind::Template,
                    "an entry of `chat_template` has no `name` or `template` string",
                )
                .at(&place)
            })
        }
        Some(_) => Err(Error::new(
            ErrorKind::Template,
            "`chat_template` is neither a string nor a list of {\"name\", \"template\"}",
        )
        .at(&place)),
    }
}

fn read(path: PathBuf) -> Result<Option<Source>> {
    match fs::read_to_string(&path) {
        Ok(text) => {
            refuse_lfs_pointer(text.as_bytes(), ErrorKind::Template)
                .map_err(|error| error.at(path.display()))?;
            Ok(Some(Source { text, place: path.display().to_string() }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path, error)),
    }
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Template, "the chat template cannot be read").caused_by(error).at(path.display())
}

/// Converts a message, whose `content` may be a list of text parts unless a tool returned it.
fn message_value(message: Json) -> Value {
    let Json::Object(fields) = message else { return to_value(message) };
    let role = fields.get("role").and_then(Json::as_str).map(unmarked);
    let of_text = !role.is_some_and(|role| returns_data(&role));
    Value::from_pairs(fields.into_iter().map(|(key, value)| match (key.as_str(), value) {
        ("content", Json::Array(parts)) if of_text => (key, parts::list(parts.into_iter().map(to_value))),
        (_, value) => (key, to_value(value)),
    }))
}

fn to_value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(to_value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from_pairs(fields.into_iter().map(|(key, value)| (key, to_value(value))))
        }
    }
}
