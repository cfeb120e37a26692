//! The requests that clients of other servers send, byte for byte as their code makes them, and what
//! they read of the answer: `clients.json` names the client, its version, and where its code is.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::common::root;
use crate::http::{Answer, request};
use crate::process::{LINE, Server, command};

/// A request of a client.
#[derive(Deserialize)]
struct Client {
    client: String,
    method: String,
    path: String,
    headers: Map<String, Value>,
    body: Box<RawValue>,
    /// Pointers into the answer, by `, `: what the client reads of it.
    reads: String,
}

/// Clients of models that read something else than one reward for a conversation.
const OTHER_MODELS: [&str; 1] = ["reward-hub HTTPClient"];

fn clients() -> Vec<Client> {
    let text = std::fs::read_to_string(root().join("tests/server/clients.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns the values at a pointer with `*` for every item and `-1` for the last one.
fn at<'a>(value: &'a Value, pointer: &str) -> Vec<&'a Value> {
    let Some((first, rest)) =
        pointer.strip_prefix('/').map(|rest| rest.split_once('/').unwrap_or((rest, "")))
    else {
        return vec![value];
    };
    let rest = if rest.is_empty() { String::new() } else { format!("/{rest}") };
    let next: Vec<&Value> = match (first, value) {
        ("*", Value::Array(items)) => items.iter().collect(),
        ("-1", Value::Array(items)) => items.last().into_iter().collect(),
        (index, Value::Array(items)) => {
            index.parse().ok().and_then(|index: usize| items.get(index)).into_iter().collect()
        }
        (key, value) => value.get(key).into_iter().collect(),
    };
    next.into_iter().flat_map(|value| at(value, &rest)).collect()
}

/// Adds the numbers in a value that may be rewards, base64 decoded.
fn numbers(value: &Value, found: &mut Vec<f32>) {
    match value {
        Value::Number(number) => found.push(number.as_f64().unwrap() as f32),
        Value::String(text) => match text.strip_prefix("reward:") {
            Some(reward) => found.push(reward.parse().unwrap()),
            None => found.extend(decoded(text)),
        },
        Value::Array(items) => items.iter().for_each(|item| numbers(item, found)),
        Value::Object(fields) => {
            let of_rewards = ["score", "embedding", "probs", "data", "relevance_score"];
            fields
                .iter()
                .filter(|(name, _)| of_rewards.contains(&name.as_str()))
                .for_each(|(_, item)| numbers(item, found));
        }
        _ => {}
    }
}

/// Returns the floats of base64 text, little-endian; nothing where it is another text.
fn decoded(text: &str) -> Vec<f32> {
    let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    let (floats, rest) = bytes.as_chunks();
    if rest.is_empty() { floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() } else { Vec::new() }
}

/// Returns the rewards of the conversations in the clients' requests, by the command.
fn rewards() -> Vec<f32> {
    let pairs = [("What is 1+1?", "1+1=2"), ("What is 1+1?", "1+1=3"), ("What is 1+2?", "1+2=3")];
    let lines = pairs.map(|(prompt, response)| json!({"prompt": prompt, "response": response}).to_string());
    let reward =
        |line: &String| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap() as f32;
    command("score", &lines.join("\n")).iter().map(reward).collect()
}

#[test]
fn every_client_reads_the_command_s_rewards() {
    let server = Server::start(&[]);
    let known = rewards();
    let (mut served, mut read) = (0, 0);
    for Client { client, method, path, headers, body, reads } in clients() {
        if OTHER_MODELS.contains(&client.as_str()) {
            continue;
        }
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
        let body = if body.get() == "null" { "" } else { body.get() };
        let answer = request(server.address, &method, &path, &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{client}: {}", answer.text());
        let is_of_rewards = method != "GET" && !path.contains("tokenize");
        if !is_of_rewards {
            continue;
        }
        served += 1;
        assert_eq!(answer.header("content-type"), Some("application/json"), "{client}");
        let mut found = Vec::new();
        for pointer in reads
            .split(", ")
            .filter(|pointer| !["index", "token", "prompt_tokens"].iter().any(|not| pointer.ends_with(not)))
        {
            let pointer = if pointer.starts_with('/') { pointer } else { "" };
            at(&answer.json(), pointer).into_iter().for_each(|value| numbers(value, &mut found));
        }
        let is_reward = |value: &f32| known.iter().any(|reward| reward.to_bits() == value.to_bits());
        assert!(found.iter().all(is_reward), "{client}: {found:?} of {}", answer.text());
        let reads_rewards = !reads.contains("usage") && !body.contains("\"query\": [],");
        assert_eq!(
            !found.is_empty(),
            reads_rewards && !body.contains("\"query\":[]"),
            "{client}: {}",
            answer.text()
        );
        read += found.len();
    }
    assert!(served > 40 && read > 60, "{served} requests, {read} rewards");
}

/// The demo model's text of a conversation, and its token ids.
fn rendered(server: &Server) -> (String, Value) {
    let rendered = server.post("/v1/render", LINE).json();
    (rendered["text"].as_str().unwrap().to_owned(), rendered["input_ids"].clone())
}

#[test]
fn rendered_text_has_one_beginning_of_text() {
    let server = Server::start(&[]);
    let reward = rewards()[0];
    let (text, ids) = rendered(&server);
    let without = text.strip_prefix("<|begin_of_text|>").unwrap();
    let value = |answer: Answer| answer.json()["data"][0]["probs"][0].as_f64().map(|value| value as f32);
    let classify = |body: Value| value(server.post("/classify", &body.to_string()));
    for input in [json!(text), json!(without), ids] {
        assert_eq!(classify(json!({"input": input})), Some(reward));
        assert_eq!(classify(json!({"input": input, "add_special_tokens": true})), Some(reward));
    }
    assert_eq!(classify(json!({"input": text, "add_special_tokens": false})), Some(reward));
    // What the client asks for, which is another sequence.
    let as_is = classify(json!({"input": without, "add_special_tokens": false}));
    assert!(as_is.is_some() && as_is != Some(reward));
    let twice = server.post("/classify", &json!({"input": format!("<|begin_of_text|>{text}")}).to_string());
    assert_eq!(twice.failure(), (422, "invalid_input".to_owned()));
    assert!(twice.text().contains("beginning-of-text token (1008) twice"), "{}", twice.text());
    // A response that ends its turn has one end of turn in either form of slime's prompt.
    let messages = json!([{"role": "user", "content": "What is 1+1?"}]);
    let (prompt, response) = text.split_at(text.len() - "1+1=2<|eot_id|>".len());
    for prompt in [json!(prompt), messages] {
        let answer =
            server.post("/", &json!({"prompt": prompt, "response": response, "label": null}).to_string());
        assert_eq!(answer.json().as_f64().map(|value| value as f32), Some(reward));
    }
}

#[test]
fn values_are_raw_unless_a_client_asks_otherwise() {
    let server = Server::start(&[]);
    let reward = rewards()[1];
    let (text, _) = rendered(&server);
    let text = text.replace("1+1=2", "1+1=3");
    let sigmoid = 1.0 / (1.0 + (-f64::from(reward)).exp());
    for (switch, raw, activation) in [
        (json!({}), true, "none"),
        (json!({"use_activation": null}), true, "none"),
        (json!({"use_activation": false}), true, "none"),
        (json!({"use_activation": true}), false, "sigmoid"),
        (json!({"activation": true}), false, "sigmoid"),
        (json!({"softmax": false}), true, "none"),
    ] {
        let mut body = json!({"input": text});
        body.as_object_mut().unwrap().extend(switch.as_object().unwrap().clone());
        for path in ["/classify", "/v1/classify", "/pooling"] {
            let answer = server.post(path, &body.to_string()).json();
            let data = &answer["data"][0];
            let value = data.get("probs").or(data.get("data")).unwrap()[0].as_f64().unwrap();
            let expected = if raw { f64::from(reward) } else { sigmoid };
            assert!((value - expected).abs() < 1e-6, "{path} {switch}: {value}");
            assert_eq!(answer["activation"], activation, "{path} {switch}");
        }
    }
    let tei = |raw: Value| {
        let body = json!({"query": "What is 1+1?", "texts": ["1+1=3"], "raw_scores": raw}).to_string();
        server.post("/rerank", &body).json()[0]["score"].as_f64().unwrap()
    };
    assert!(
        (tei(Value::Null) - f64::from(reward)).abs() < 1e-6
            && (tei(json!(true)) - f64::from(reward)).abs() < 1e-6
    );
    assert!((tei(json!(false)) - sigmoid).abs() < 1e-6);
}

#[test]
fn a_model_is_a_name() {
    let server = Server::start(&["--served-model-name", "reward"]);
    let any = Server::start(&[]);
    let body = |model: Value| {
        json!({"model": model, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}).to_string()
    };
    for path in ["/classify", "/pooling", "/v1/chat/completions"] {
        assert_eq!(server.post(path, &body(json!("other"))).failure(), (404, "model".to_owned()), "{path}");
        for (model, echoed) in [(json!("reward"), "reward"), (Value::Null, "reward"), (json!(""), "reward")] {
            let answer = server.post(path, &body(model));
            assert_eq!((answer.status, answer.json()["model"].as_str()), (200, Some(echoed)), "{path}");
        }
        let path_of_file = "../../etc/passwd\u{1b}[31m</script>";
        assert_eq!(any.post(path, &body(json!(path_of_file))).json()["model"], path_of_file);
        assert_eq!(any.post(path, &body(json!("m".repeat(257)))).status, 422);
        assert_eq!(any.post(path, &body(json!(7))).status, 422);
    }
}

#[test]
fn what_other_servers_would_do_and_this_one_does_not_is_refused() {
    let server = Server::start(&[]);
    let (text, _) = rendered(&server);
    let classify = |field: &str, value: Value| json!({"input": text, field: value});
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for (path, body) in [
        ("/classify", classify("truncate_prompt_tokens", json!(8))),
        ("/classify", classify("normalize", json!(true))),
        ("/classify", classify("use_activation", json!("yes"))),
        ("/classify", json!({"input": []})),
        ("/classify", json!({"input": [text, [1]]})),
        ("/classify", json!({"input": {"a": 1}})),
        ("/classify", json!({"input": text, "text": text})),
        ("/classify", json!({"input": text, "messages": messages})),
        ("/classify", json!({"text": text, "input_ids": [1]})),
        ("/classify", json!({"text": [text], "rid": ["a", "b"]})),
        ("/classify", json!({"messages": messages, "add_generation_prompt": true})),
        ("/classify", json!({"messages": messages, "chat_template": "{{ 1 }}"})),
        ("/classify", json!({"messages": messages, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}})),
        ("/classify", json!({})),
        ("/classify", json!([text])),
        ("/pooling", json!({"input": text, "task": "token_classify"})),
        ("/pooling", json!({"input": text, "encoding_format": "bytes"})),
        ("/pooling", json!({"input": text, "embed_dtype": "float16"})),
        ("/pooling", json!({"input": text, "endianness": "big"})),
        ("/v1/embeddings", json!({"input": text, "dimensions": 8})),
        ("/score", json!({"queries": ["a", "b"], "documents": ["c"]})),
        ("/score", json!({"queries": "a", "documents": []})),
        ("/rerank", json!({"query": "a", "documents": [1]})),
        ("/rerank", json!({"query": "a", "texts": ["b"], "truncate": true})),
        ("/predict", json!({"inputs": ["a", "b", "c"]})),
        ("/predict", json!({"inputs": [["a", 1]]})),
        ("/get_reward", json!({"query": [1]})),
        ("/get_reward", json!({"prompts": ["a"]})),
        ("/", json!({"prompt": "a"})),
        ("/", json!({"prompt": 1, "response": "b"})),
        ("/v1/chat/completions", json!({"messages": messages, "stream": true})),
        ("/v1/chat/completions", json!({"messages": messages, "n": 2})),
        ("/v1/chat/completions", json!({"messages": []})),
    ] {
        let answer = server.post(path, &body.to_string());
        assert_eq!(answer.status, 422, "{path} {body}: {}", answer.text());
    }
    let long = "a ".repeat(3000);
    assert_eq!(
        server.post("/classify", &json!({"input": long}).to_string()).failure(),
        (422, "too_long".to_owned())
    );
    assert_eq!(server.post("/?reward_key=a%20b", LINE).status, 422);
    let tei = server.post("/predict", &json!({"inputs": 1}).to_string()).json();
    assert_eq!(tei["error_type"], "Validation");
}

#[test]
fn several_items_keep_their_order() {
    let server = Server::start(&[]);
    let rewards = rewards();
    let (text, ids) = rendered(&server);
    let texts = [text.clone(), text.replace("1+1=2", "1+1=3"), text];
    let expected: Vec<f32> = [0, 1, 0].map(|index| rewards[index]).to_vec();
    let post = |path: &str, body: Value| server.post(path, &body.to_string()).json();
    let read = |answer: &Value, pointer: &str| -> Vec<f32> {
        let mut found = Vec::new();
        at(answer, pointer).into_iter().for_each(|value| numbers(value, &mut found));
        found
    };
    assert_eq!(read(&post("/classify", json!({"input": texts})), "/data/*/probs"), expected);
    assert_eq!(
        read(&post("/pooling", json!({"input": texts, "encoding_format": "base64"})), "/data/*/data"),
        expected
    );
    assert_eq!(
        read(
            &post("/v1/embeddings", json!({"input": texts, "encoding_format": "base64"})),
            "/data/*/embedding"
        ),
        expected
    );
    assert_eq!(read(&post("/get_reward", json!({"query": texts})), "/rewards"), expected);
    assert_eq!(read(&post("/classify", json!({"text": texts})), "/*/embedding"), expected);
    let single = post("/classify", json!({"input_ids": ids, "rid": "mine"}));
    assert_eq!((read(&single, "/embedding"), &single["meta_info"]["id"]), (vec![rewards[0]], &json!("mine")));
    let ranked =
        post("/v1/rerank", json!({"query": "What is 1+1?", "documents": ["1+1=3", "1+1=2"], "top_n": 1}));
    assert_eq!((ranked["results"].as_array().unwrap().len(), &ranked["results"][0]["index"]), (1, &json!(1)));
    assert_eq!(ranked["results"][0]["document"]["text"], "1+1=2");
    let keyed = post(
        "/?reward_key=score",
        json!({"prompt": [{"role": "user", "content": "What is 1+1?"}], "response": "1+1=2"}),
    );
    assert_eq!(read(&keyed, "/score"), [rewards[0]]);
    let tokens = post("/tokenize", json!({"prompt": texts[0], "return_token_strs": true}));
    assert_eq!(
        (&tokens["tokens"], &tokens["count"], &tokens["token_strs"][0]),
        (&ids, &json!(39), &json!("<|begin_of_text|>"))
    );
    assert_eq!(post("/detokenize", json!({"tokens": ids}))["prompt"], texts[0]);
}
