//! Tables of objects with the requests that they make, or the whole text of their error.

mod rows;

use serde_json::value::RawValue;

use super::json::ARRAY_HINT;
use super::keys::{BESIDE_TOKENS, CONTRADICTIONS, ELSEWHERE, KEYS};
use super::*;
use crate::conversation::{Conversation, Message};
use crate::error::{ErrorKind, Result};

/// A short form of a request: roles and contents of each conversation, or token ids.
fn asked(text: &str) -> Result<Vec<String>> {
    let turns = |conversation: &Conversation| {
        let turn = |message: &Message| format!("{}:{}", message.role(), message.fields()["content"]);
        conversation.messages().iter().map(turn).collect::<Vec<_>>().join(" ").replace('"', "")
    };
    let input = |input| match input {
        Input::Conversation(conversation) => turns(&conversation),
        Input::Tokens(ids) => format!("{ids:?}"),
    };
    Ok(parse(text.as_bytes()).request?.into_inputs().map(input).collect())
}

#[track_caller]
fn assert_asks(text: &str, expected: &[&str]) {
    assert_eq!(asked(text).unwrap_or_else(|error| panic!("{text}: {error}")), expected, "{text}");
}

#[track_caller]
fn assert_refused(text: &str, message: &str, hint: Option<&str>) {
    let error = asked(text).expect_err(text);
    assert_eq!(
        (error.kind(), error.message(), error.hint()),
        (ErrorKind::InvalidInput, message, hint),
        "{text}"
    );
}

const Q: &str = r#"{"role": "user", "content": "q"}"#;

#[test]
fn responses_follow_messages_as_they_follow_a_prompt() {
    let cases = [
        (r#"{"messages": [Q], "response": "a"}"#, &["user:q assistant:a"][..]),
        (r#"{"messages": [Q], "responses": ["a", "b"]}"#, &["user:q assistant:a", "user:q assistant:b"]),
        (r#"{"prompt": "q", "response": "a"}"#, &["user:q assistant:a"]),
        (r#"{"prompt": [Q], "responses": ["a"]}"#, &["user:q assistant:a"]),
        (r#"{"prompt": [], "response": "a"}"#, &["assistant:a"]),
        (r#"{"messages": [Q, {"role": "assistant", "content": "a"}]}"#, &["user:q assistant:a"]),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}, Q], "response": "b"}"#,
            &["assistant:a user:q assistant:b"],
        ),
    ];
    for (text, expected) in cases {
        assert_asks(&text.replace('Q', Q), expected);
    }
}

#[test]
fn null_is_absence_for_every_key() {
    let known = || KEYS.into_iter().chain(ELSEWHERE.map(|(key, _)| key)).chain(BESIDE_TOKENS);
    for (text, expected) in
        [(r#"{"prompt": "q", "response": "a""#, "user:q assistant:a"), (r#"{"input_ids": [1, 2]"#, "[1, 2]")]
    {
        let nulls = known().filter(|key| !text.contains(&format!("\"{key}\"")));
        let all: String = nulls.map(|key| format!(", \"{key}\": null")).collect();
        assert_asks(&format!("{text}{all}}}"), &[expected]);
    }
    // A null is no second value either.
    assert_asks(
        r#"{"prompt": null, "prompt": "q", "response": "a", "response": null}"#,
        &["user:q assistant:a"],
    );
}

#[test]
fn keys_that_contradict_each_other_are_both_named() {
    let value = |key: &str| match key {
        "messages" | "tools" | "documents" | "responses" | "input_ids" | "position_ids" | "inputs_embeds" => {
            "[]"
        }
        "template_vars" | "chat_template_kwargs" => "{}",
        _ => r#""x""#,
    };
    for (one, other) in CONTRADICTIONS {
        for (first, second) in [(one, other), (other, one)] {
            let text = format!("{{\"{first}\": {}, \"{second}\": {}}}", value(first), value(second));
            let hint = (one == "input_ids")
                .then_some("token ids are scored as they are; give a conversation as `messages`");
            let message = format!("`{one}` and `{other}` are given at once, expected one of them");
            assert_refused(&text, &message, hint);
        }
    }
    assert_refused(
        &r#"{"messages": [Q, {"role": "assistant", "content": "a"}], "responses": ["b"]}"#.replace('Q', Q),
        "`messages` end with an assistant turn and a response is given, expected one of them",
        Some("a response follows `messages` as the assistant turn: leave out one of the two"),
    );
    assert_refused(
        &r#"{"messages": [Q], "attention_mask": [1]}"#.replace('Q', Q),
        "`attention_mask` is given, but no `input_ids`",
        Some("a mask belongs to token ids; leave it out of a conversation"),
    );
}

#[test]
fn an_object_without_anything_to_score_says_what_is_missing() {
    assert_refused(
        r#"{"id": 1, "response": "a"}"#,
        "the object has neither `messages` nor `prompt` nor `input_ids`",
        Some("a conversation is {\"messages\": [..]} or {\"prompt\": .., \"responses\": [..]}"),
    );
    assert_refused(
        r#"{"prompt": "q", "chosen": "a", "rejected": 1}"#,
        "the object has a `prompt`, but neither `response` nor `responses`",
        Some("the reward is that of a response; a whole conversation goes into `messages`"),
    );
}

#[test]
fn keys_of_other_systems_are_refused_and_unknown_keys_ignored() {
    for (key, hint) in ELSEWHERE {
        for value in ["true", "\"x\"", "[]", "0"] {
            let message = format!("`{key}` is not read here, and the reward would not depend on it");
            let text = format!("{{\"prompt\": \"q\", \"response\": \"a\", \"{key}\": {value}}}");
            assert_refused(&text, &message, Some(hint));
            assert_refused(&format!("{{\"input_ids\": [1], \"{key}\": {value}}}"), &message, Some(hint));
        }
        // The default.
        assert_asks(&format!("{{\"input_ids\": [1], \"{key}\": false}}"), &["[1]"]);
    }
    assert_asks(
        r#"{"prompt": "q", "response": "a", "chosen": "x", "rejected": 1, "score": 1e999, "position_ids": [],
            "token_type_ids": [0], "chosen": {"a": 1, "a": 2}, "label": "\ud83d", "text": null}"#,
        &["user:q assistant:a"],
    );
}

#[test]
fn a_mask_takes_padding_away_and_nothing_else() {
    let ids = |mask: &str| format!("{{\"input_ids\": [7, 8, 9], \"attention_mask\": {mask}}}");
    for (mask, expected) in [
        ("[1, 1, 1]", "[7, 8, 9]"),
        ("[0, 1, 1]", "[8, 9]"),
        ("[1, 1, 0]", "[7, 8]"),
        ("[0, 1, 0]", "[8]"),
        ("null", "[7, 8, 9]"),
    ] {
        assert_asks(&ids(mask), &[expected]);
    }
    let count = "give one 0 or 1 per token id";
    let hole = "a mask takes away padding before or behind the tokens; leave others out of `input_ids`";
    for (mask, message, hint) in [
        ("[1, 1]", "`attention_mask` has 2 entries, but `input_ids` has 3", Some(count)),
        ("[]", "`attention_mask` has 0 entries, but `input_ids` has 3", Some(count)),
        ("[[1, 1, 1]]", "`attention_mask` has 1 entries, but `input_ids` has 3", Some(count)),
        ("[1, 2, 1]", "`attention_mask[1]` is `2`, expected 0 or 1", None),
        ("[1, 1, -1]", "`attention_mask[2]` is `-1`, expected 0 or 1", None),
        ("[1.0, 1, 1]", "`attention_mask[0]` is `1.0`, expected 0 or 1", None),
        ("[true, true, true]", "`attention_mask[0]` is `true`, expected 0 or 1", None),
        ("[1, null, 1]", "`attention_mask[1]` is `null`, expected 0 or 1", None),
        ("[1, 0, 1]", "`attention_mask[1]` is 0 between tokens that count", Some(hole)),
        ("[0, 0, 0]", "`attention_mask` leaves no token, expected at least one 1", None),
        ("1", "`attention_mask` is a number, expected a list of 0 and 1", None),
    ] {
        assert_refused(&ids(mask), message, hint);
    }
}

#[test]
fn an_id_comes_back_as_it_was_spelled() {
    for id in [
        "340282366920938463463374607431768211455",
        "-0",
        "1.0",
        "1e400",
        "\"a\\u00e9\\/\\ud800\"",
        "[18446744073709551616, {\"a\":  0.10}]",
        "{\"b\": 1, \"a\": 2, \"b\": 3}",
        "true",
        "\"\"",
    ] {
        for rest in [
            "\"input_ids\": [1]",
            "\"input_ids\": 1",
            "\"prompt\": \"\\ud800\", \"response\": \"\"",
            "\"messages\": []",
        ] {
            for text in [format!("{{\"id\": {id}, {rest}}}"), format!("{{{rest}, \"id\" :{id} }}")] {
                let found = parse(text.as_bytes()).id;
                assert_eq!(found.as_deref().map(RawValue::get), Some(id), "{text}");
            }
        }
    }
    let broken = parse(b"{\"id\": [1,\r2,\n 3], \"input_ids\": [1]}").id;
    assert_eq!(broken.as_deref().map(RawValue::get), Some("[1,2, 3]"));
    for text in [
        "{\"id\": null, \"input_ids\": [1]}",
        "{\"input_ids\": [1]}",
        "{\"id\": 1, \"id\": 1}",
        "{\"prompt\": 1, \"prompt\": 1, \"id\": 1, \"id\": 1}",
        "{\"id\": 1",
        "[1]",
    ] {
        assert!(parse(text.as_bytes()).id.is_none(), "{text}");
    }
}

#[test]
fn a_key_that_comes_twice_is_refused_where_it_is_read() {
    assert_refused(
        r#"{"prompt": "q", "prompt": "q", "response": "a"}"#,
        "the key `prompt` comes twice, expected once",
        None,
    );
    assert_refused(
        r#"{"id": 1, "id": 2, "input_ids": [1]}"#,
        "the key `id` comes twice, expected once",
        None,
    );
    assert_refused(
        r#"{"messages": [{"role": "user", "content": "a", "content": "b"}]}"#,
        "`messages`: an object has the key `content` twice",
        None,
    );
    assert_refused(
        r#"{"prompt": "q", "response": "a", "tools": [{"x": [{"y": 1, "y": 1}]}]}"#,
        "`tools`: an object has the key `y` twice",
        None,
    );
}

#[test]
fn values_of_wrong_types_are_named_with_what_was_expected() {
    for (text, message) in [
        (r#"{"prompt": 1, "response": "a"}"#, "`prompt` is a number, expected a list of messages"),
        (r#"{"messages": {}}"#, "`messages` is an object, expected a list of messages"),
        (r#"{"prompt": "q", "response": ["a"]}"#, "`response` is a list, expected a string"),
        (
            r#"{"prompt": "q", "responses": "a"}"#,
            "`responses` is a string, expected a list with at least one string",
        ),
        (
            r#"{"prompt": "q", "responses": []}"#,
            "`responses` is an empty list, expected a list with at least one string",
        ),
        (r#"{"prompt": "q", "responses": ["a", null]}"#, "`responses[1]` is null, expected a string"),
        (r#"{"input_ids": [1, 4294967296]}"#, "`input_ids[1]` is `4294967296`, expected a token id"),
        (r#"{"input_ids": [[1, 2]]}"#, "`input_ids[0]` is `[1,2]`, expected a token id"),
        (r#"{"input_ids": "1"}"#, "`input_ids` is a string, expected a list of token ids"),
        (
            r#"{"prompt": "q", "response": "a", "template_vars": 1}"#,
            "`template_vars` is a number, expected an object",
        ),
        (
            r#"{"prompt": "q", "response": "a", "chat_template_kwargs": []}"#,
            "`chat_template_kwargs` is an empty list, expected an object",
        ),
        ("7", "the text is a number, expected an object"),
        ("null", "the text is null, expected an object"),
    ] {
        assert_refused(text, message, None);
    }
    assert_refused("[1]", "the text is a list, expected an object", Some(ARRAY_HINT));
}

#[test]
fn template_variables_have_two_names() {
    for key in ["template_vars", "chat_template_kwargs"] {
        let text =
            format!("{{\"prompt\": \"q\", \"response\": \"a\", \"{key}\": {{\"enable_thinking\": false}}}}");
        let Ok(Request::One(Input::Conversation(conversation))) = parse(text.as_bytes()).request else {
            panic!("{text}")
        };
        assert_eq!(conversation.template_vars()["enable_thinking"], false, "{text}");
    }
}

#[test]
fn byte_order_marks_before_an_object_are_passed_over() {
    for start in ["\u{feff}", "\u{feff}\u{feff}", "\u{feff} "] {
        assert_asks(&format!("{start}{{\"input_ids\": [1]}}\r"), &["[1]"]);
    }
    let error = asked("{\"input_ids\": [1]}\u{feff}{\"input_ids\": [1]}").unwrap_err();
    assert_eq!(error.message(), "the text is not JSON: trailing characters, column 19");
}

#[test]
fn text_that_is_not_json_says_why_and_what_to_do() {
    let python = "Python's json module writes NaN and Infinity, which are not JSON: write null instead, or leave the key \
                  out (`json.dumps(.., allow_nan=False)` finds them)";
    let half = "the text was cut within an emoji or another character beyond 16 bits: cut it at a whole one";
    let lines = "each line holds one whole JSON object; `jq -c .` puts an object on one line";
    let any = "a conversation is one JSON object on one line, such as {\"messages\": [..]}";
    for (text, message, hint) in [
        (r#"{"score": NaN, "prompt": "q"}"#, "the text is not JSON: it has NaN, column 11", python),
        (r#"{"tools": [{"x": Infinity}]}"#, "the text is not JSON: it has Infinity, column 18", python),
        (r#"{"x": -Infinity}"#, "the text is not JSON: it has -Infinity, column 8", python),
        (
            r#"{"prompt": "a\ud83d", "response": "b"}"#,
            "`prompt`: the text has half of a character, a lone surrogate such as \\ud83d, column 21",
            half,
        ),
        (
            r#"{"prompt": "q", "response": "\udc00b"}"#,
            "`response`: the text has half of a character, a lone surrogate such as \\ud83d, column 35",
            half,
        ),
        ("[", "the text is not JSON: EOF while parsing a list, column 1", ARRAY_HINT),
        ("[{\"prompt\": \"q\"},", "the text is not JSON: EOF while parsing a value, column 17", ARRAY_HINT),
        ("{", "the text is not JSON: EOF while parsing an object, column 1", lines),
        ("\"messages\": [", "the text is not JSON: trailing characters, column 11", any),
        ("{'prompt': 1}", "the text is not JSON: key must be a string, column 2", any),
        ("", "the text is not JSON: EOF while parsing a value, column 0", any),
    ] {
        let error = asked(text).unwrap_err();
        // The column of a broken escape depends on the parser.
        let column_free = |text: &str| text.split(", column").next().unwrap_or_default().to_owned();
        let is_half = hint == half;
        let found = if is_half { column_free(error.message()) } else { error.message().to_owned() };
        let expected = if is_half { column_free(message) } else { message.to_owned() };
        assert_eq!((found, error.hint()), (expected, Some(hint)), "{text}");
    }
    let error = parse(b"{\"prompt\": \"\xff\"}").request.unwrap_err();
    assert_eq!(error.message(), "the text is not UTF-8 at byte 13");
    assert_eq!(error.hint(), Some("JSON is written in UTF-8: convert it, as with `iconv -t UTF-8`"));
}
