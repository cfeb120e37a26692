//! Conversations, before a template or tokenizer has read them.
//!
//! A message is a JSON object as chat templates know it (`role`, `content`, `tool_calls`, and
//! whatever else a template may read). This module checks shapes and changes nothing that a
//! template could see, except that it drops keys whose value is `null`, as Hugging Face does.
//! Rendering is [`prompt`](crate::prompt)'s.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Reserved names: arguments of transformers' `apply_chat_template` and of functions that it calls,
/// each with a hint.
const RESERVED_VARS: [(&[&str], &str); 8] = [
    (
        &["messages", "conversation", "conversations"],
        "a conversation has its messages in `messages`, beside its variables",
    ),
    (&["tools", "documents"], "a conversation has `tools` and `documents` beside `messages`"),
    (&["chat_template"], "put the template into `chat_template.jinja` in the model's folder"),
    (
        &["add_generation_prompt", "continue_final_message"],
        "leave it out: conversations are scored as they stand, with no turn opened or continued",
    ),
    (
        &["truncation", "max_length"],
        "leave it out: the limit is `--max-tokens`, and `--truncate` says what happens over it",
    ),
    (&["sanitize_control_tokens"], "leave it out: the option is `--sanitize-control-tokens`"),
    (
        &["tokenize", "padding", "tokenizer_kwargs"],
        "leave it out: conversations are tokenized one by one, without padding",
    ),
    (
        &["return_tensors", "return_dict", "return_assistant_tokens_mask", "self"],
        "leave it out: templates do not read it",
    ),
];

/// One turn: a JSON object whose keys keep their order, with a string `role` and no `null` values
/// at its top.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A system turn.
    pub fn system(text: impl Into<String>) -> Self {
        Self::of_text("system", text.into())
    }

    /// A user's turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self::of_text("user", text.into())
    }

    /// An assistant's turn; a reward model judges the last one.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::of_text("assistant", text.into())
    }

    fn of_text(role: &str, text: String) -> Self {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(role.to_owned()));
        fields.insert("content".to_owned(), Value::String(text));
        Self(fields)
    }

    /// Reads a message in Hugging Face's form. Keys that are `null` are dropped; every other key
    /// reaches the template as it is.
    ///
    /// `content` is any JSON in a `tool` or `ipython` turn. In every other turn it is a string or a
    /// list of text parts (`{"type": "text", "text": ..}`), which not every template takes, and may
    /// be absent only beside `tool_calls`. Anything else is [`ErrorKind::InvalidInput`].
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(mut fields) = value else {
            return Err(refused(format!("a message is {}, expected an object", kind_of(&value))));
        };
        fields.retain(|_, value| !value.is_null());
        let role = match fields.get("role") {
            Some(Value::String(role)) => role.as_str(),
            Some(other) => {
                return Err(refused(format!("a message's `role` is {}, expected a string", kind_of(other))));
            }
            None => return Err(refused("a message has no `role`".to_owned())),
        };
        if !returns_data(role) {
            check_text_content(role, &fields)?;
        }
        fields.iter().try_for_each(|(key, value)| check_numbers(value, key))?;
        Ok(Self(fields))
    }

    /// The role: `system`, `user`, `assistant`, `tool`, `ipython`, or another that the template
    /// knows.
    pub fn role(&self) -> &str {
        self.0["role"].as_str().unwrap_or_default()
    }

    /// The message's keys and values, as the template will see them.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// Returns true for roles whose `content` is the output of a tool: any JSON.
pub(crate) fn returns_data(role: &str) -> bool {
    matches!(role, "tool" | "ipython")
}

fn check_text_content(role: &str, fields: &Map<String, Value>) -> Result<()> {
    match fields.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().try_for_each(|(index, part)| check_part(role, index, part))
        }
        Some(other) => Err(refused(format!(
            "the `content` of a {role:?} turn is {}, expected a string or a list of text parts",
            kind_of(other)
        ))),
        None if fields.contains_key("tool_calls") => Ok(()),
        None => Err(refused(format!("a {role:?} turn has neither `content` nor `tool_calls`"))),
    }
}

/// Checks a part of `content`: an object whose `type` is `text` and whose `text` is a string.
fn check_part(role: &str, index: usize, part: &Value) -> Result<()> {
    let refused = |what: String| {
        refused(format!("part {index} (from 0) of the `content` of a {role:?} turn {what}"))
            .with_hint("a part is an object such as {\"type\": \"text\", \"text\": \"..\"}")
    };
    let Value::Object(fields) = part else {
        return Err(refused(format!("is {}, expected an object", kind_of(part))));
    };
    match (fields.get("type"), fields.get("text")) {
        (None, _) => Err(refused("has no `type`".to_owned())),
        (Some(Value::String(kind)), _) if kind != "text" => {
            Err(refused(format!("has the type {kind:?}, expected \"text\""))
                .with_hint("only text is scored: leave the part out, or say in text what it shows"))
        }
        (Some(Value::String(_)), Some(Value::String(_))) => Ok(()),
        (Some(Value::String(_)), None) => Err(refused("has no `text`".to_owned())),
        (Some(Value::String(_)), Some(text)) => {
            Err(refused(format!("has a `text` that is {}, expected a string", kind_of(text))))
        }
        (Some(kind), _) => Err(refused(format!("has a `type` that is {}, expected \"text\"", kind_of(kind)))),
    }
}

/// A conversation of at least one message, with tools, documents and variables for its template.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    template_vars: Map<String, Value>,
}

impl Conversation {
    /// Returns a conversation of these messages; [`ErrorKind::InvalidInput`] when there are none.
    pub fn new(messages: Vec<Message>) -> Result<Self> {
        if messages.is_empty() {
            return Err(refused("the conversation has no messages, expected at least one".to_owned()));
        }
        Ok(Self::unanswered(messages))
    }

    /// Returns messages, possibly none, to which a response will be added.
    pub(crate) fn unanswered(messages: Vec<Message>) -> Self {
        Self { messages, tools: None, documents: None, template_vars: Map::new() }
    }

    /// Returns the conversation with more turns.
    pub(crate) fn with_turns(mut self, turns: Vec<Message>) -> Self {
        self.messages.extend(turns);
        self
    }

    /// Splits off the turns from `index` on.
    pub(crate) fn split_at(mut self, index: usize) -> (Self, Vec<Message>) {
        let turns = self.messages.split_off(index);
        (self, turns)
    }

    /// Returns the conversation with one more turn, the assistant's.
    pub(crate) fn with_response(mut self, response: String) -> Self {
        self.messages.push(Message::assistant(response));
        self
    }

    /// Returns a conversation of one question and its answer.
    pub fn exchange(prompt: impl Into<String>, response: impl Into<String>) -> Self {
        Self::unanswered(vec![Message::user(prompt), Message::assistant(response)])
    }

    /// Reads a conversation from a JSON list of messages; an [`ErrorKind::InvalidInput`] names the
    /// message by its index.
    pub fn from_json(messages: Value) -> Result<Self> {
        let Value::Array(messages) = messages else {
            return Err(refused(format!(
                "`messages` is {}, expected a list of messages",
                kind_of(&messages)
            )));
        };
        let read = |(index, value)| {
            Message::from_json(value).map_err(|error: Error| error.at(format!("message {index} (from 0)")))
        };
        Self::new(messages.into_iter().enumerate().map(read).collect::<Result<_>>()?)
    }

    /// Sets the tools that the template may list: a list of JSON schemas (objects), or `null` for
    /// none.
    pub fn with_tools(mut self, tools: Value) -> Result<Self> {
        self.tools = objects("tools", tools)?;
        Ok(self)
    }

    /// Sets the documents (for retrieval-augmented templates): a list of objects, or `null` for
    /// none.
    pub fn with_documents(mut self, documents: Value) -> Result<Self> {
        self.documents = objects("documents", documents)?;
        Ok(self)
    }

    /// Sets variables for the template; they win over those of the prompt's options.
    pub fn with_template_vars(mut self, vars: Map<String, Value>) -> Result<Self> {
        check_template_vars(&vars)?;
        self.template_vars = vars;
        Ok(self)
    }

    /// The turns, in order.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The tools; templates tell `None` (no tools) from an empty list.
    pub fn tools(&self) -> Option<&[Value]> {
        self.tools.as_deref()
    }

    /// The documents.
    pub fn documents(&self) -> Option<&[Value]> {
        self.documents.as_deref()
    }

    /// The conversation's own template variables.
    pub fn template_vars(&self) -> &Map<String, Value> {
        &self.template_vars
    }
}

/// Checks variables for a template: a reserved name or a number that cannot be passed on exactly is
/// refused.
pub(crate) fn check_template_vars(vars: &Map<String, Value>) -> Result<()> {
    for (name, value) in vars {
        if let Some((_, hint)) = RESERVED_VARS.iter().find(|(names, _)| names.contains(&name.as_str())) {
            return Err(refused(format!(
                "`{name}` is an argument of `apply_chat_template`, not a variable of the template"
            ))
            .with_hint(*hint));
        }
        check_numbers(value, name)?;
    }
    Ok(())
}

fn objects(what: &str, value: Value) -> Result<Option<Vec<Value>>> {
    let items = match value {
        Value::Null => return Ok(None),
        Value::Array(items) => items,
        other => return Err(refused(format!("`{what}` is {}, expected a list of objects", kind_of(&other)))),
    };
    for (index, item) in items.iter().enumerate() {
        if !item.is_object() {
            return Err(refused(format!("`{what}[{index}]` is {}, expected an object", kind_of(item))));
        }
        check_numbers(item, what)?;
    }
    Ok(Some(items))
}

/// Refuses floats beyond 64-bit integers: the parser turns larger integers into floats, which print
/// differently, and the two cannot be told apart here.
fn check_numbers(value: &Value, key: &str) -> Result<()> {
    const BEYOND_U64: f64 = 18_446_744_073_709_551_616.0; // 2^64
    const BEYOND_I64: f64 = -9_223_372_036_854_775_808.0; // -2^63, where integers below it round to
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or(f64::NAN);
            if (BEYOND_I64 < float) && (float < BEYOND_U64) {
                return Ok(());
            }
            Err(refused(format!("`{key}` holds the number {number:?}, which is beyond 64-bit integers"))
                .with_hint("write such a number as a string"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_numbers(item, key)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| check_numbers(value, key)),
        _ => Ok(()),
    }
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Returns the kind of a value, for messages.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(list) if list.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn refusal(messages: Value) -> String {
        let error = Conversation::from_json(messages).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.report()
    }

    #[test]
    fn keys_that_are_null_are_dropped_and_others_kept_in_order() {
        let message = json!({"role": "assistant", "zeta": {"deep": null}, "content": null, "alpha": 1, "tool_calls": []});
        let message = Message::from_json(message).unwrap();
        let keys: Vec<_> = message.fields().keys().map(String::as_str).collect();
        assert_eq!(keys, ["role", "zeta", "alpha", "tool_calls"]);
        assert_eq!(
            message.fields()["zeta"],
            json!({"deep": null}),
            "only the message's own keys are dropped"
        );
    }

    #[test]
    fn constructors_make_what_json_makes() {
        let json = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(Conversation::from_json(json).unwrap(), Conversation::exchange("q", "a"));
        let system = Message::from_json(json!({"role": "system", "content": ""})).unwrap();
        assert_eq!(system, Message::system(""));
        assert_eq!(system.role(), "system");
    }

    #[test]
    fn an_empty_conversation_is_refused() {
        assert_eq!(refusal(json!([])), "the conversation has no messages, expected at least one");
        assert_eq!(Conversation::new(vec![]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(refusal(json!("hi")), "`messages` is a string, expected a list of messages");
    }

    #[test]
    fn a_bad_message_is_named_by_its_index_with_the_expectation() {
        let good = json!({"role": "user", "content": "q"});
        let cases = [
            (json!("hi"), "a message is a string, expected an object"),
            (json!({"content": "x"}), "a message has no `role`"),
            (json!({"role": null, "content": "x"}), "a message has no `role`"),
            (json!({"role": 1, "content": "x"}), "a message's `role` is a number, expected a string"),
            (
                json!({"role": "user", "content": 3}),
                "the `content` of a \"user\" turn is a number, expected a string or a list of text parts",
            ),
            (json!({"role": "user"}), "a \"user\" turn has neither `content` nor `tool_calls`"),
            (
                json!({"role": "assistant", "content": {"a": 1}, "tool_calls": []}),
                "the `content` of a \"assistant\" turn is an object, expected a string or a list of text parts",
            ),
        ];
        for (bad, expected) in cases {
            let message = refusal(json!([good, bad]));
            assert_eq!(message, format!("{expected}\n  at message 1 (from 0)"));
        }
    }

    #[test]
    fn a_part_that_is_not_text_is_named_by_index_and_type() {
        let text = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
        let form = "a part is an object such as {\"type\": \"text\", \"text\": \"..\"}";
        let only = "only text is scored: leave the part out, or say in text what it shows";
        let cases = [
            (json!("x"), "is a string, expected an object", form),
            (json!(null), "is null, expected an object", form),
            (json!({"text": "x"}), "has no `type`", form),
            (json!({"type": 1, "text": "x"}), "has a `type` that is a number, expected \"text\"", form),
            (json!({"type": "text"}), "has no `text`", form),
            (json!({"type": "text", "text": null}), "has a `text` that is null, expected a string", form),
            (json!({"type": "text", "text": ["x"]}), "has a `text` that is a list, expected a string", form),
            (json!({"type": "image"}), "has the type \"image\", expected \"text\"", only),
            (
                json!({"type": "image_url", "image_url": {}}),
                "has the type \"image_url\", expected \"text\"",
                only,
            ),
            (json!({"type": "audio", "text": "x"}), "has the type \"audio\", expected \"text\"", only),
            (json!({"type": "", "text": "x"}), "has the type \"\", expected \"text\"", only),
        ];
        for role in ["system", "user", "assistant", "critic"] {
            for (bad, what, hint) in &cases {
                let message = refusal(json!([{"role": role, "content": [text, bad]}]));
                let part = format!("part 1 (from 0) of the `content` of a {role:?} turn");
                assert_eq!(message, format!("{part} {what}\n  at message 0 (from 0)\n\nhint: {hint}"));
            }
            let parts = json!({"role": role, "content": [text, {"text": "", "type": "text"}]});
            assert_eq!(Message::from_json(parts.clone()).unwrap().fields()["content"], parts["content"]);
        }
        Message::from_json(json!({"role": "tool", "content": ["x", {"type": "image"}]})).unwrap();
    }

    #[test]
    fn tool_turns_hold_any_json_and_tool_calls_stand_for_content() {
        for content in [json!("text"), json!({"a": 1}), json!([1, null]), json!(2.5), json!(false)] {
            for role in ["tool", "ipython"] {
                Message::from_json(json!({"role": role, "content": content})).unwrap();
            }
        }
        Message::from_json(json!({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}))
            .unwrap();
    }

    #[test]
    fn tools_and_documents_are_lists_of_objects() {
        let exchange = || Conversation::exchange("q", "a");
        assert_eq!(exchange().with_tools(Value::Null).unwrap().tools(), None);
        assert_eq!(exchange().with_tools(json!([])).unwrap().tools(), Some(&[][..]));
        let error = exchange().with_tools(json!([{}, "get_weather"])).unwrap_err();
        assert_eq!(error.message(), "`tools[1]` is a string, expected an object");
        let error = exchange().with_documents(json!({"title": "t"})).unwrap_err();
        assert_eq!(error.message(), "`documents` is an object, expected a list of objects");
    }

    #[test]
    fn integers_beyond_64_bits_are_refused_never_turned_into_floats() {
        for text in ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890", "1e20"]
        {
            let tools =
                serde_json::from_str(&format!(r#"[{{"parameters": {{"maximum": {text}}}}}]"#)).unwrap();
            let error = Conversation::exchange("q", "a").with_tools(tools).unwrap_err();
            assert!(error.message().starts_with("`maximum` holds the number"), "{error}");
        }
        for text in ["18446744073709551615", "-9223372036854775808", "9007199254740993", "1e16", "-1.5e-9"] {
            let tools = serde_json::from_str(&format!(r#"[{{"maximum": {text}}}]"#)).unwrap();
            Conversation::exchange("q", "a").with_tools(tools).unwrap();
        }
    }

    #[test]
    fn a_template_variable_cannot_take_a_reserved_name() {
        let vars = |name: &str| Map::from_iter([(name.to_owned(), json!("x"))]);
        Conversation::exchange("q", "a").with_template_vars(vars("date_string")).unwrap();
        let names = "conversation conversations messages tools documents chat_template add_generation_prompt \
                     continue_final_message tokenize sanitize_control_tokens padding truncation max_length \
                     return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs self";
        for name in names.split_whitespace() {
            let error = Conversation::exchange("q", "a").with_template_vars(vars(name)).unwrap_err();
            assert_eq!(
                error.message(),
                format!("`{name}` is an argument of `apply_chat_template`, not a variable of the template")
            );
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        let hints = [
            ("tools", "a conversation has `tools` and `documents` beside `messages`"),
            (
                "max_length",
                "leave it out: the limit is `--max-tokens`, and `--truncate` says what happens over it",
            ),
            ("sanitize_control_tokens", "leave it out: the option is `--sanitize-control-tokens`"),
            ("chat_template", "put the template into `chat_template.jinja` in the model's folder"),
        ];
        for (name, hint) in hints {
            let error = Conversation::exchange("q", "a").with_template_vars(vars(name)).unwrap_err();
            assert_eq!(error.hint(), Some(hint), "{name}");
        }
    }
}
