//! Rows of data sets: one of each schema as it is published, and what is refused.

use super::*;

const U: &str = r#"{"content": "q", "role": "user"}"#;
const A: &str = r#"{"content": "good", "role": "assistant"}"#;
const B: &str = r#"{"content": "bad", "role": "assistant"}"#;

fn filled(text: &str) -> String {
    text.replace("$U", U).replace("$A", A).replace("$B", B)
}

fn form(text: &str) -> Form {
    parse(filled(text).as_bytes()).request.unwrap().form()
}

#[test]
fn a_pair_has_its_prompt_in_one_of_three_ways() {
    let both = &["user:q assistant:good", "user:q assistant:bad"][..];
    for text in [
        // Skywork-Reward-Preference: whole conversations.
        r#"{"chosen": [$U, $A], "rejected": [$U, $B], "source": "x"}"#,
        // UltraFeedback binarized: whole conversations, their prompt, and `chosen` again.
        r#"{"prompt": "q", "prompt_id": "5", "chosen": [$U, $A], "rejected": [$U, $B], "messages": [$U, $A],
            "score_chosen": 8.0, "score_rejected": 6.5}"#,
        // TRL: a prompt, and what follows it.
        r#"{"prompt": [$U], "chosen": [$A], "rejected": [$B]}"#,
        r#"{"prompt": "q", "chosen": "good", "rejected": "bad"}"#,
        // LLaMA-Factory: ShareGPT's turns.
        r#"{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"}}"#,
        r#"{"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}"#,
    ] {
        assert_asks(&filled(text), both);
        assert_eq!(form(text), Form::Pair, "{text}");
    }
    assert_asks(
        &filled(r#"{"system": "s", "prompt": "q", "chosen": "good", "rejected": [$B]}"#),
        &["system:s user:q assistant:good", "system:s user:q assistant:bad"],
    );
    assert_asks(
        &filled(
            r#"{"prompt": "q", "chosen": [{"role": "system", "content": "s"}, $U, $A], "rejected": [$U, $B]}"#,
        ),
        &["system:s user:q assistant:good", "user:q assistant:bad"],
    );
}

#[test]
fn what_a_pair_would_not_read_is_refused() {
    let neither = "leave out `messages`, or the pair; for a file, `--rows` names what is meant";
    let cases = [
        (
            r#"{"prompt": "other", "chosen": [$U, $A], "rejected": [$U, $B]}"#,
            "`chosen` does not begin with `prompt`, which would not be read",
            "leave out `prompt`, or make it the first turns of `chosen`",
        ),
        (
            r#"{"messages": [$U], "chosen": [$U, $A], "rejected": [$U, $B]}"#,
            "`messages` is neither `chosen` nor `rejected`, and would not be read",
            neither,
        ),
        (
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}"#,
            "`chosen` is a response, but the row has no `prompt` before it",
            "give the `prompt`, or conversations that begin with a user turn; a string with all turns in it has to be taken \
             apart",
        ),
        (
            r#"{"system": "s", "chosen": [$U, $A], "rejected": [$U, $B]}"#,
            "`system` is given, but no `prompt` that it would precede",
            "make it the first turn of `chosen` and `rejected`",
        ),
    ];
    for (text, message, hint) in cases {
        assert_refused(&filled(text), message, Some(hint));
    }
    for (text, message) in [
        (
            r#"{"prompt": "q", "conversations": [], "chosen": "a", "rejected": "b"}"#,
            "`prompt` and `conversations` are given at once, expected one of them",
        ),
        (
            r#"{"prompt": "q", "chosen": [], "rejected": "b"}"#,
            "`chosen` is an empty list, expected a string or a list of messages",
        ),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": ["b"]}"#,
            "`rejected[0]`: a message is a string, expected an object",
        ),
    ] {
        assert_refused(text, message, None);
    }
}

#[test]
fn rows_of_other_data_sets_are_read_as_published() {
    for (text, expected) in [
        (
            r#"{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q", "weight": null},
                {"value": "a", "from": "gpt"}]}"#,
            &["system:s user:q assistant:a"][..],
        ),
        (r#"{"conversations": [$U, $A], "system": "s"}"#, &["system:s user:q assistant:good"]),
        (r#"{"prompt": "q", "completion": "a", "label": true}"#, &["user:q assistant:a"]),
        (r#"{"prompt": [$U], "completion": [$A]}"#, &["user:q assistant:good"]),
        (r#"{"prompt": "q", "completions": ["a", [$B]]}"#, &["user:q assistant:a", "user:q assistant:bad"]),
        (
            r#"{"domain": "code", "language": "en", "context": [$U], "response1": "a", "response2": "b",
                "overall_preference": -3}"#,
            &["user:q assistant:a", "user:q assistant:b"],
        ),
        (r#"{"instruction": "q", "input": "", "output": "a"}"#, &["user:q assistant:a"]),
        (
            r#"{"instruction": "q", "input": "i", "output": ["a", "b"], "history": [["h", "g"]], "system": "s"}"#,
            &[
                r"system:s user:h assistant:g user:q\ni assistant:a",
                r"system:s user:h assistant:g user:q\ni assistant:b",
            ],
        ),
        (
            r#"{"custom_id": "7", "method": "POST", "url": "/v1/x", "body": {"model": "m", "messages": [$U, $A]}}"#,
            &["user:q assistant:good"],
        ),
        // A table has no column for values of any form.
        (r#"{"custom_id": "7", "body": "{\"input_ids\": [1]}"}"#, &["[1]"]),
    ] {
        assert_asks(&filled(text), expected);
    }
    let parsed = parse(br#"{"custom_id": "7", "id": 8, "body": {"input_ids": [1]}}"#);
    assert_eq!(parsed.id.as_deref().map(RawValue::get), Some("\"7\""));
    assert_refused(
        r#"{"prompt": "q", "completions": ["step 1", "step 2"], "labels": [true, false]}"#,
        "`completions` with a list of `labels` are the steps of one response, not responses",
        Some("join the steps into one `completion`"),
    );
    assert_refused(
        r#"{"conversations": [{"from": "bard", "value": "a"}]}"#,
        "`conversations[0]`: a turn is `from` \"bard\"",
        Some(
            "turns are from system, human (or user), gpt (or assistant), function_call and observation (or tool)",
        ),
    );
}

#[test]
fn function_calls_of_sharegpt_become_tool_calls() {
    let text = r#"{"conversations": [{"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}], "tools": "[{\"name\": \"f\"}]"}"#;
    let Ok(Request::One(Input::Conversation(conversation))) = parse(text.as_bytes()).request else {
        panic!()
    };
    let call = serde_json::json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    assert_eq!(conversation.messages()[1].fields()["tool_calls"], call);
    assert_eq!(conversation.messages()[2].role(), "tool");
    assert_eq!(conversation.tools(), Some(&[serde_json::json!({"name": "f"})][..]));
}

#[test]
fn messages_may_repeat_their_beginning_as_a_prompt() {
    assert_asks(&filled(r#"{"prompt": "q", "messages": [$U, $A]}"#), &["user:q assistant:good"]);
    assert_refused(
        &filled(r#"{"prompt": "other", "messages": [$U, $A]}"#),
        "`messages` does not begin with `prompt`, which would not be read",
        Some("leave out `prompt`, or make it the first turns of `messages`"),
    );
}

#[test]
fn keys_of_two_kinds_are_refused_with_both_names() {
    let hint = "leave out the keys of the others; for a file, `--rows` names the kind that is meant";
    for (text, kinds) in [
        (
            r#"{"messages": [$U, $A], "prompt": "q", "response": "b"}"#,
            "`messages` (`messages`), `responses` (`prompt` with responses)",
        ),
        (
            r#"{"conversations": [$U, $A], "messages": [$U, $A]}"#,
            "`messages` (`messages`), `conversations` (`conversations`)",
        ),
        (
            r#"{"prompt": "q", "response": "a", "chosen": "a", "rejected": "b"}"#,
            "`responses` (`prompt` with responses), `pairs` (`chosen` and `rejected`)",
        ),
    ] {
        let message = format!("the keys are those of several kinds of rows: {kinds}");
        assert_refused(&filled(text), &message, Some(hint));
    }
}

#[test]
fn the_first_row_of_a_file_decides_for_the_others() {
    let pair = filled(r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#);
    let own = filled(r#"{"messages": [$U, $A]}"#);
    let refusal =
        |reading: &Reading, text: &str| reading.parse(text.as_bytes()).request.unwrap_err().to_string();
    let pairs = Reading::default().with_first(b"no JSON").unwrap().with_first(pair.as_bytes()).unwrap();
    assert_eq!(pairs.rows(), Some(Rows::Pairs));
    assert_eq!(pairs.parse(pair.as_bytes()).request.unwrap().form(), Form::Pair);
    assert_eq!(
        refusal(&pairs, &own),
        "the row has `messages`, but the file's first one has `chosen` and `rejected`"
    );
    assert_eq!(
        refusal(&pairs, r#"{"prompt": "q", "chosen": "a", "rejected": null}"#),
        "the row has no kind that is known, but the file's first one has `chosen` and `rejected`"
    );
    // Kudos's own objects stand side by side.
    let owns = Reading::default().with_first(own.as_bytes()).unwrap();
    assert_eq!((owns.rows(), owns.is_decided()), (None, true));
    owns.parse(br#"{"input_ids": [1]}"#).request.unwrap();
    assert_eq!(
        refusal(&owns, &pair),
        "the row is of the kind `pairs` (`chosen` and `rejected`), but the file's first one is not"
    );
}

#[test]
fn a_kind_that_is_named_ignores_the_keys_of_others() {
    let both =
        filled(r#"{"messages": [$U, $A], "prompt": "x", "response": "b", "chosen": "c", "rejected": "d"}"#);
    let read = |rows| {
        let reading = Reading::new(Columns::default(), Some(rows));
        let inputs = reading.parse(both.as_bytes()).request.unwrap().into_inputs();
        inputs.map(|input| format!("{input:?}")).collect::<String>()
    };
    assert!(read(Rows::Responses).contains("\"x\"") && !read(Rows::Responses).contains("good"));
    assert!(Rows::of(|_| Some(Shape::Text)).is_err());
}

#[test]
fn columns_are_read_as_the_keys_that_options_name() {
    let columns =
        Columns::new([("prompt", "question"), ("response", "answer"), ("id", "prompt_id")]).unwrap();
    let reading = Reading::new(columns, None);
    let parsed = reading.parse(
        br#"{"prompt_id": 5, "id": 6, "question": "q", "answer": "a", "prompt": "no", "response": 1}"#,
    );
    assert_eq!(parsed.id.as_deref().map(RawValue::get), Some("5"));
    let Ok(Request::One(Input::Conversation(conversation))) = parsed.request else { panic!() };
    assert_eq!(conversation, Conversation::exchange("q", "a"));
    let error = Columns::new([("question", "prompt")]).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Options, "`question` is not a key that is read"));
    assert!(Columns::new([("prompt", "a"), ("prompt", "b")]).is_err());
    assert!(Columns::new([("prompt", "a"), ("response", "a")]).is_err());
}

#[test]
fn what_would_not_be_read_beside_a_kind_is_refused() {
    let hint = "leave it out; for a file, `--rows` names the kind that is meant";
    for (text, key, row) in [
        (r#"{"conversations": [$U], "response": "a"}"#, "response", "`conversations`"),
        (r#"{"conversations": [$U, $A], "prompt": "x"}"#, "prompt", "`conversations`"),
        (
            r#"{"instruction": "q", "output": "a", "completion": "b"}"#,
            "completion",
            "`instruction` with `output`",
        ),
        (r#"{"custom_id": 1, "body": {"input_ids": [1]}, "tools": []}"#, "tools", "`custom_id` and `body`"),
        (r#"{"input_ids": [1], "completion": "b"}"#, "completion", "the row"),
    ] {
        assert_refused(
            &filled(text),
            &format!("`{key}` is given beside {row}, and would not be read"),
            Some(hint),
        );
    }
    for key in ["input", "history"] {
        let text = format!(r#"{{"prompt": "q", "{key}": "x", "chosen": "a", "rejected": "b"}}"#);
        let message = format!("`{key}` is given, but no `instruction` that it belongs to");
        assert_refused(&text, &message, Some("leave it out, or make it a part of the `prompt`"));
    }
    assert_refused(
        &filled(
            r#"{"conversations": [$U, $A], "template_vars": {"x": 1}, "chat_template_kwargs": {"y": 2}}"#,
        ),
        "`template_vars` and `chat_template_kwargs` are given at once, expected one of them",
        None,
    );
}

#[test]
fn responses_may_repeat_their_prompt_but_need_one() {
    for text in [
        r#"{"prompt": "q", "completion": [$U, $A]}"#,
        r#"{"prompt": [$U], "completion": [$A]}"#,
        r#"{"instruction": "", "input": "q", "output": "good"}"#,
        r#"{"conversations": [$U, $A], "tools": "", "system": ""}"#,
    ] {
        assert_asks(&filled(text), &["user:q assistant:good"]);
    }
    for (text, message) in [
        (
            r#"{"prompt": [], "chosen": "a", "rejected": "b"}"#,
            "`chosen` is a response, but what is before it has no turns",
        ),
        (r#"{"prompt": [], "completion": "a"}"#, "`prompt` is an empty list, expected a string or messages"),
        (
            r#"{"context": [], "response1": "a", "response2": "b"}"#,
            "`context` is an empty list, expected messages",
        ),
        (r#"{"prompt": "q", "completion": [$U]}"#, "`completion` has no turns after those of `prompt`"),
    ] {
        assert_refused(&filled(text), message, None);
    }
    assert_refused(
        &filled(r#"{"prompt": "x", "completion": [$U, $A]}"#),
        "`completion` does not begin with `prompt`, which would not be read",
        Some("leave out `prompt`, or make it the first turns of `completion`"),
    );
    assert_refused(
        r#"{"prompt": "q", "completions": ["1", "2"], "labels": "[true, false]"}"#,
        "`completions` with a list of `labels` are the steps of one response, not responses",
        Some("join the steps into one `completion`"),
    );
}
