//! Entry points for untrusted lines of input: for the fuzzers in `fuzz/` and the seeded tests in
//! `tests/command/hostile.rs`. Each takes any bytes, and returns whether they were accepted.

use std::fmt;

use clap::ValueEnum;
use kudos::internals::prompt;
use kudos::internals::request::{Columns, Input, Reading, Request, Rows};
use kudos::{Conversation, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::input;

/// Renders a line of input by a template that reads all fields of a conversation.
///
/// Panics unless its result is one line with either a text or an error, under the line's own `id`.
pub fn line(bytes: &[u8]) -> bool {
    const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}{{ message.content | default('') | tojson }}\
                            {{ message.tool_calls | default([]) | tojson(indent=2) }}{% endfor %}{{ tools }}{{ documents | tojson }}";
    let config = Map::from_iter([("chat_template".to_owned(), Value::from(TEMPLATE))]);
    let bytes = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let result = rendered_line(bytes, 7, |conversation| prompt::render_alone(&config, conversation));
    assert!(!result.contains(['\n', '\r']), "the result is several lines: {result}");
    let Pairs(pairs) = serde_json::from_str(&result).expect("the result is an object");
    let has = |name: &str| pairs.iter().filter(|(key, _)| key == name).count();
    assert_eq!(has("text") + has("error"), 1, "{result}");
    let (name, found) = &pairs[0];
    let (expected_name, expected) = match own_id(bytes) {
        Some(id) => ("id", id),
        None => ("index", "7".to_owned()),
    };
    assert_eq!((name.as_str(), found.get()), (expected_name, expected.as_str()), "{result}");
    has("text") == 1
}

/// Passes [`line`] a line whose keys, and values of all types, are chosen by the bytes. Panics if
/// one is accepted in which a key would have to be ignored.
pub fn request(choices: &[u8]) -> bool {
    const KEYS: [&str; 19] = [
        "id",
        "messages",
        "prompt",
        "response",
        "responses",
        "input_ids",
        "attention_mask",
        "tools",
        "documents",
        "template_vars",
        "chat_template_kwargs",
        "system",
        "functions",
        "date_string",
        "add_generation_prompt",
        "continue_final_message",
        "position_ids",
        "inputs_embeds",
        "note",
    ];
    const VALUES: [&str; 34] = [
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "0.5",
        "1e400",
        "18446744073709551616",
        "NaN",
        r#""""#,
        r#""x""#,
        r#""-2""#,
        r#""\ud800""#,
        r#""a\u0000b""#,
        "[]",
        "[1]",
        "[1, 2]",
        "[0, 1]",
        "[0, 0]",
        "[1, 0]",
        r#"["a"]"#,
        r#"["a", "b"]"#,
        r#"["a", null]"#,
        "[{}]",
        r#"[{"role": "user", "content": "q"}]"#,
        r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#,
        r#"[{"role": "user", "content": [{"type": "text", "text": "q"}]}]"#,
        r#"[{"role": "tool", "content": {"x": [1, null]}}]"#,
        r#"[{"role": "user", "role": "x", "content": "q"}]"#,
        "{}",
        r#"{"a": {"b": [1]}}"#,
        r#"{"a": 1, "a": 2}"#,
        r#"{"messages": 1}"#,
    ];
    let pairs: Vec<(&str, &str)> = choices
        .chunks_exact(2)
        .map(|pair| (KEYS[usize::from(pair[0]) % KEYS.len()], VALUES[usize::from(pair[1]) % VALUES.len()]))
        .collect();
    let members: Vec<String> = pairs.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
    let text = format!("{{{}}}", members.join(", "));
    let accepted = line(text.as_bytes());

    let count = |key: &str| pairs.iter().filter(|(name, value)| *name == key && *value != "null").count();
    let sources = count("messages") + count("prompt") + count("input_ids");
    let responses = count("response") + count("responses");
    let others =
        ["tools", "documents", "template_vars", "chat_template_kwargs", "position_ids", "inputs_embeds"];
    let beside: usize = others.iter().map(|key| count(key)).sum();
    // `messages` may repeat their beginning as `prompt`.
    let repeats = count("messages") == 1 && count("prompt") == 1 && sources == 2 && responses == 0;
    let ignored = KEYS[..18].iter().any(|key| count(key) > 1)
        || (sources != 1 && !repeats)
        || responses > 1
        || (count("prompt") == 1 && responses == 0 && !repeats)
        || (count("input_ids") == 1 && responses + beside > 0)
        || count("attention_mask") > count("input_ids")
        || count("template_vars") + count("chat_template_kwargs") > 1
        || KEYS[11..16]
            .iter()
            .any(|key| pairs.iter().any(|(name, value)| name == key && !["null", "false"].contains(value)));
    assert!(!(accepted && ignored), "a key of {text} is ignored");
    accepted
}

/// Reads a row by its keys, as the first one of a file, and as each kind. Panics unless a row is
/// read alike alone and as the first of a file, and has as many sequences as its result has
/// rewards.
pub fn row(bytes: &[u8]) -> bool {
    let request = |reading: &Reading| reading.parse(bytes).request.ok();
    let text = |reading: &Reading| request(reading).map(|request| format!("{request:?}"));
    let alone = Reading::default();
    if let (Some(found), Ok(first)) = (text(&alone), alone.clone().with_first(bytes)) {
        assert_eq!(text(&first), Some(found), "the row is another one as a file's first");
    }
    let kinds = Rows::value_variants().iter().map(|rows| Reading::new(Columns::default(), Some(*rows)));
    let requests: Vec<Request> =
        [alone].into_iter().chain(kinds).filter_map(|reading| request(&reading)).collect();
    let is_accepted = !requests.is_empty();
    for request in requests {
        let sequences = request.form().sequences();
        assert_eq!(request.into_inputs().count(), sequences, "sequences of the result's form");
    }
    is_accepted
}

/// The JSON of a line's `id`, where it has one that is not null.
fn own_id(bytes: &[u8]) -> Option<String> {
    let text = str::from_utf8(bytes).ok()?.trim_start_matches('\u{feff}');
    let Pairs(pairs) = serde_json::from_str(text).ok()?;
    let mut ids = pairs.iter().filter(|(key, value)| key == "id" && value.get() != "null");
    let id = ids.next().filter(|_| ids.next().is_none())?.1.get();
    Some(id.replace('\r', ""))
}

/// The members of an object, in order, each with its value's JSON.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = object.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// The result of line `index`, as `kudos render` writes it but without token ids, with `render` in
/// place of the model's prompt.
fn rendered_line(text: &[u8], index: usize, render: impl Fn(&Conversation) -> Result<String>) -> String {
    let line = input::parse(text, index);
    let text = line.request.and_then(|request| {
        let text = |input| match input {
            Input::Conversation(conversation) => render(&conversation),
            Input::Tokens(ids) => Ok(format!("{ids:?}")),
        };
        request.into_inputs().map(text).collect::<Result<String>>()
    });
    let fields = match text {
        Ok(text) => Map::from_iter([("text".to_owned(), Value::from(text))]),
        Err(error) => kudos::internals::results::error_fields(&error),
    };
    kudos::internals::results::result_line(Some(&line.key), fields)
}
