//! Prompts compared with those of Hugging Face's transformers (`tests/fixtures/prompt/make.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kudos::internals::conversation::Conversation;
use kudos::internals::error::{ErrorKind, Result};
use kudos::internals::prompt::{Clock, DoubleBos, Prompt, PromptOptions, Truncate};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

// `differences.json` lists, exactly, the expressions that one side alone refuses;
// KUDOS_SHOW_DIFFERENCES=1 prints them.

/// The time that make.py gave to transformers.
const NOW: Clock = Clock::Fixed { year: 2024, month: 7, day: 6, hour: 9, minute: 5 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prompt")
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    read_json(name)["cases"].as_array().unwrap().clone()
}

/// A model folder of its own with these files and the fixtures' tokenizer.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::copy(fixtures().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// One of the fixtures' model folders, with its tokenizer.
fn model(name: &str) -> TempDir {
    let from = fixtures().join("models").join(name);
    let mut files = vec![];
    for path in ["tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"] {
        if let Ok(text) = fs::read_to_string(from.join(path)) {
            files.push((path, text));
        }
    }
    let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    folder(&files)
}

fn open(dir: &TempDir, options: PromptOptions) -> Result<Prompt> {
    Prompt::open(dir.path(), PromptOptions { clock: NOW, ..options })
}

/// A prompt with `template` and nothing else of its own.
fn with_template(template: &str, options: PromptOptions) -> Result<Prompt> {
    let config = r#"{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}"#;
    open(&folder(&[("tokenizer_config.json", config), ("chat_template.jinja", template)]), options)
}

fn conversation(case: &Value) -> Result<Conversation> {
    let vars = case["template_vars"].as_object().cloned().unwrap_or_default();
    Conversation::from_json(case["messages"].clone())?
        .with_tools(case["tools"].clone())?
        .with_documents(case["documents"].clone())?
        .with_template_vars(vars)
}

fn ids(row: &Value) -> Vec<u32> {
    row["ids"].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn conversations() -> BTreeMap<String, Conversation> {
    let named = |case: &Value| (case["name"].as_str().unwrap().to_owned(), conversation(case).unwrap());
    cases("conversations.json").iter().map(named).collect()
}

#[test]
fn text_and_ids_equal_those_of_transformers() {
    let conversations = conversations();
    let mut prompts = BTreeMap::new();
    let (mut equal, mut refused, mut wrong) = (0, 0, vec![]);
    for row in cases("goldens.json") {
        let (model_name, name) = (row["model"].as_str().unwrap(), row["name"].as_str().unwrap());
        let prompt = prompts
            .entry(model_name.to_owned())
            .or_insert_with(|| open(&model(model_name), PromptOptions::default()).unwrap());
        let conversation = &conversations[name];
        let rendered = prompt.render(conversation);
        match (row["text"].as_str(), rendered) {
            (None, Err(error)) if error.kind() == ErrorKind::Template => refused += 1,
            (Some(text), Ok(rendered)) if rendered == text => {
                assert_eq!(prompt.encode(text).unwrap(), ids(&row), "{model_name} {name}");
                assert_eq!(
                    prompt.tokens(conversation, 1 << 20).unwrap().ids,
                    ids(&row),
                    "{model_name} {name}"
                );
                equal += 1;
            }
            (expected, got) => {
                wrong.push(format!("{model_name} {name}\n  expected {expected:?}\n  got {got:?}"))
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        wrong.len() + equal + refused,
        wrong.join("\n")
    );
    assert!(equal > 300 && refused > 0, "{equal} equal, {refused} refused");
}

#[test]
fn a_template_without_a_system_role_says_what_to_do() {
    let prompt = open(&model("turns"), PromptOptions::default()).unwrap();
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]);
    let error = prompt.render(&Conversation::from_json(messages).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert!(error.message().contains("There is no system role here"), "{error}");
    assert!(error.hint().unwrap().contains("before the first user message's"), "{error}");
}

#[test]
fn sanitized_ids_equal_those_of_transformers() {
    let conversations = conversations();
    let mut changed = 0;
    for row in cases("sanitized.json") {
        let (model_name, name) = (row["model"].as_str().unwrap(), row["name"].as_str().unwrap());
        let options = PromptOptions { sanitize_control_tokens: true, ..Default::default() };
        let sanitizing = open(&model(model_name), options).unwrap();
        let plain = open(&model(model_name), PromptOptions::default()).unwrap();
        let conversation = &conversations[name];
        let got = sanitizing.tokens(conversation, 1 << 20).unwrap().ids;
        assert_eq!(got, ids(&row), "{model_name} {name}");
        if !name.contains("thinking") {
            // (A template that cuts text at a control token cuts it elsewhere when that token is
            // only text.)
            let texts = [&sanitizing, &plain].map(|prompt| prompt.render(conversation).unwrap());
            assert_eq!(texts[0], texts[1], "{model_name} {name}");
        }
        changed += usize::from(got != plain.tokens(conversation, 1 << 20).unwrap().ids);
    }
    assert!(changed > 10, "sanitizing changed {changed} conversations");
}

#[test]
fn templates_walk_text_parts_as_in_transformers() {
    let file = read_json("parts.json");
    let (mut equal, mut refused, mut wrong) = (0, 0, vec![]);
    for row in cases("parts.json") {
        let (template, name) = (row["template"].as_str().unwrap(), row["conversation"].as_str().unwrap());
        let source = file["templates"][template].as_str().unwrap();
        let conversation = Conversation::from_json(file["conversations"][name].clone()).unwrap();
        let prompt = with_template(source, PromptOptions::default()).unwrap();
        let got = prompt.render(&conversation);
        if row["ids"].is_null() {
            match got {
                Err(error) if row["printed"].is_null() => {
                    assert_eq!(error.kind(), ErrorKind::Template);
                    assert!(error.hint().is_some_and(|hint| hint.contains("join the ")), "{error}");
                }
                Err(error) if error.message().contains("that is a list of text parts") => {
                    let hint = "this template takes text only: join the parts into one string";
                    assert_eq!(error.hint(), Some(hint), "{template}: {error}");
                    assert!(error.place().unwrap().ends_with("chat_template.jinja, line 1"), "{error}");
                }
                got => wrong.push(format!("{template}, {name}: expected a refusal, got {got:?}")),
            }
            refused += 1;
            continue;
        }
        match got {
            Ok(text) if Some(text.as_str()) == row["text"].as_str() => {
                let options = PromptOptions { sanitize_control_tokens: true, ..Default::default() };
                let sanitizing = with_template(source, options).unwrap();
                for (prompt, key) in [(prompt, "ids"), (sanitizing, "sanitized")] {
                    let got = prompt.tokens(&conversation, 1 << 20).unwrap().ids;
                    assert_eq!(json!(got), row[key], "{template}, {name}, {key}");
                }
                equal += 1;
            }
            got => wrong.push(format!("{template}, {name}: expected {:?}, got {got:?}", row["text"])),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal > 100 && refused > 80, "{equal} equal, {refused} refused");
}

#[test]
fn expressions_render_as_jinja2_renders_them_or_are_refused() {
    let known = read_json("differences.json");
    let list = |key: &str| -> Vec<String> {
        known[key].as_array().unwrap().iter().map(|template| template.as_str().unwrap().to_owned()).collect()
    };
    let vars = read_json("expressions.json")["vars"].as_object().unwrap().clone();
    let (mut wrong, mut stricter, mut laxer) = (vec![], vec![], vec![]);
    for row in cases("expressions.json") {
        let template = row["template"].as_str().unwrap();
        let options = PromptOptions { template_vars: vars.clone(), ..Default::default() };
        let got = with_template(template, options)
            .and_then(|prompt| prompt.render(&Conversation::exchange("q", "a")));
        match (row["text"].as_str(), got) {
            (Some(text), Ok(got)) if got == text => {}
            (Some(text), Ok(got)) => wrong.push(format!("{template:?}: expected {text:?}, got {got:?}")),
            (Some(_), Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Template, "{template}: {error}");
                assert!(error.place().unwrap().contains("chat_template.jinja, line "), "{template}: {error}");
                stricter.push(template.to_owned());
            }
            (None, Ok(_)) => laxer.push(template.to_owned()),
            (None, Err(_)) => {}
        }
    }
    if std::env::var_os("KUDOS_SHOW_DIFFERENCES").is_some() {
        println!("{}", json!({"wrong": wrong, "stricter": stricter, "laxer": laxer}));
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(stricter, list("refused_here_only"));
    assert_eq!(laxer, list("refused_by_jinja2_only"));
}

#[test]
fn tokens_beside_tokenizer_json_get_their_right_ids() {
    let names = ["bos_token", "pad_token", "image_token", "x", "y_token"];
    let show = names.map(|name| format!("{name}:{{{{ {name} is defined }}}}:{{{{ {name} }}}};")).concat();
    let texts: Vec<String> = serde_json::from_value(read_json("tokens.json")["texts"].clone()).unwrap();
    let tokenizer = read_json("tokenizer.json");
    let (mut equal, mut refused) = (0, 0);
    for row in cases("tokens.json") {
        let name = row["name"].as_str().unwrap();
        let mut tokenizer = tokenizer.clone();
        for (key, value) in row["changes"].as_object().unwrap() {
            match value {
                Value::Array(more) => tokenizer[key].as_array_mut().unwrap().extend(more.clone()),
                value => tokenizer[key] = value.clone(),
            }
        }
        let dir = folder(&[("chat_template.jinja", &show), ("tokenizer.json", &tokenizer.to_string())]);
        for (file, value) in row["files"].as_object().unwrap() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fs::write(dir.path().join(file), text).unwrap();
        }
        let opened = open(&dir, PromptOptions::default());
        if let Some(why) = row["why"].as_str().or(row["refused"].as_str().map(|_| "")) {
            let error = opened.err().unwrap_or_else(|| panic!("{name} is read"));
            assert_eq!(error.kind(), ErrorKind::Tokenizer, "{name}");
            assert!(error.message().contains(why), "{name}: {error}");
            let place = error.place().unwrap();
            let file = row["files"].as_object().unwrap().keys().any(|file| place.contains(file.as_str()));
            assert!(file || place.contains("tokenizer.json"), "{name}: {error}");
            assert!(error.hint().is_some() || row["why"].is_null(), "{name}: {error}");
            refused += 1;
            continue;
        }
        let prompt = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        let got: Vec<_> = texts.iter().map(|text| prompt.encode(text).unwrap()).collect();
        assert_eq!(json!(got), row["ids"], "{name}");
        let vars = &row["vars"];
        let expected = names.map(|name| match vars[name].as_str() {
            Some(text) => format!("{name}:True:{text};"),
            None => format!("{name}:False:;"),
        });
        assert_eq!(prompt.render(&Conversation::exchange("q", "a")).unwrap(), expected.concat(), "{name}");
        equal += 1;
    }
    assert!(equal > 40 && refused > 30, "{equal} equal, {refused} refused");
}

#[test]
fn a_token_file_that_cannot_be_used_is_named_with_its_entry() {
    let refusal = |file: &str, text: &str| {
        let dir = folder(&[("chat_template.jinja", "x"), (file, text)]);
        let error = open(&dir, PromptOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tokenizer);
        error.report().replace(&format!("{}/", dir.path().display()), "")
    };
    let disagree = "hint: the files disagree: save the tokenizer again with `save_pretrained`, or correct or delete the entry";
    let token = "hint: write it as a string, or as an object with `content`, which needs `\"__type\": \"AddedToken\"` where it is a special token";
    let fields =
        "hint: the fields are `content`, `single_word`, `lstrip`, `rstrip`, `normalized` and `special`";
    let cases = [
        (
            "added_tokens.json",
            r#"{"<|new|>": 950}"#.to_owned(),
            format!("the token \"<|new|>\" has id 910 in the tokenizer, the file says 950\n  at added_tokens.json (entry \"<|new|>\")\n\n{disagree}"),
        ),
        (
            "added_tokens.json",
            r#"{"<|new|>": -1}"#.to_owned(),
            "the id -1 is not the id of a token\n  at added_tokens.json (entry \"<|new|>\")\n\nhint: an id is a whole number from 0".to_owned(),
        ),
        (
            "added_tokens.json",
            r#"{"<|new|>": 904}"#.to_owned(),
            format!("the token \"<|new|>\" is not read: another file or entry takes its place\n  at added_tokens.json (entry \"<|new|>\")\n\n{disagree}"),
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#.to_owned(),
            "the key \"x\" is not the id of a token\n  at tokenizer_config.json (added_tokens_decoder, entry \"x\")\n\nhint: an id is a whole number from 0".to_owned(),
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"910": "a"}}"#.to_owned(),
            format!("a token is a string, expected a token\n  at tokenizer_config.json (added_tokens_decoder, entry \"910\")\n\n{token}"),
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"910": {"special": true}}}"#.to_owned(),
            "a token has no `content`\n  at tokenizer_config.json (added_tokens_decoder, entry \"910\")\n\nhint: `content` is the text of the token: a string that is not empty".to_owned(),
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"910": {"content": "a", "bold": true}}}"#.to_owned(),
            format!("a token has no field `bold`\n  at tokenizer_config.json (added_tokens_decoder, entry \"910\")\n\n{fields}"),
        ),
        (
            "tokenizer_config.json",
            r#"{"extra_special_tokens": ["a", 3]}"#.to_owned(),
            format!("a token is a number, expected a token\n  at tokenizer_config.json (extra_special_tokens), entry 1\n\n{token}"),
        ),
        (
            "tokenizer_config.json",
            r#"{"split_special_tokens": 1}"#.to_owned(),
            "`split_special_tokens` is a number, expected a boolean\n  at tokenizer_config.json".to_owned(),
        ),
        (
            "tokenizer_config.json",
            r#"{"chat_control_tokens": ["a", null]}"#.to_owned(),
            "`chat_control_tokens` has null, expected a list of strings\n  at tokenizer_config.json".to_owned(),
        ),
        (
            "tokenizer_config.json",
            r#"{"fast_tokenizer_files": ["tokenizer.4.json"]}"#.to_owned(),
            "`fast_tokenizer_files` names other files than tokenizer.json\n  at tokenizer_config.json\n\nhint: keep the intended file in the folder as tokenizer.json, and delete the entry".to_owned(),
        ),
    ];
    for (file, text, expected) in cases {
        assert_eq!(refusal(file, &text), expected, "{text}");
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
        let marked = refusal(file, "\u{feff}{}");
        assert_eq!(
            marked,
            format!(
                "the file begins with a byte order mark, which JSON does not allow\n  at {file}\n\nhint: save it as UTF-8 without a byte \
                 order mark, or run `sed -i '1s/^\\xEF\\xBB\\xBF//'` on it"
            )
        );
        let pointer = refusal(file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
        assert_eq!(
            pointer,
            format!(
                "this is a pointer of git-lfs, not the file itself\n  at {file}\n\nhint: run `git lfs pull` in its folder"
            )
        );
    }
}

fn exchange_tokens(template: &str, options: PromptOptions, max_tokens: usize) -> Result<(Vec<u32>, bool)> {
    let prompt = with_template(template, options)?;
    let tokens = prompt.tokens(&Conversation::exchange("one two three", "four five six"), max_tokens)?;
    Ok((tokens.ids, tokens.truncated))
}

const SIMPLE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";

#[test]
fn too_many_tokens_are_refused_with_both_numbers() {
    let (ids, truncated) = exchange_tokens(SIMPLE, PromptOptions::default(), 1000).unwrap();
    assert!(!truncated);
    let exact = exchange_tokens(SIMPLE, PromptOptions::default(), ids.len()).unwrap();
    assert_eq!(exact, (ids.clone(), false));
    let (tokens, limit) = (ids.len(), ids.len() - 1);
    let error = exchange_tokens(SIMPLE, PromptOptions::default(), limit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong { tokens, limit });
    assert_eq!(error.message(), format!("the conversation has {tokens} tokens, the limit is {limit}"));
}

#[test]
fn truncating_left_keeps_the_first_token_only_if_it_is_bos() {
    let left = || PromptOptions { truncate: Truncate::Left, ..Default::default() };
    let (ids, _) = exchange_tokens(SIMPLE, left(), 1000).unwrap();
    let expected = [&ids[..1], &ids[ids.len() - 4..]].concat();
    assert_eq!(exchange_tokens(SIMPLE, left(), 5).unwrap(), (expected, true));
    let without_bos = SIMPLE.replace("{{ bos_token }}", "");
    assert_eq!(exchange_tokens(&without_bos, left(), 5).unwrap(), (ids[ids.len() - 5..].to_vec(), true));
    assert!(exchange_tokens(SIMPLE, left(), 0).is_err());
}

#[test]
fn a_doubled_beginning_of_text_is_refused_also_in_given_ids() {
    let error = exchange_tokens(&SIMPLE.replace("{{", "{{ bos_token ~ "), PromptOptions::default(), 1000)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().ends_with("twice"), "{error}");
    let prompt = with_template(SIMPLE, PromptOptions::default()).unwrap();
    let bos = prompt.encode("<|begin_of_text|>").unwrap()[0];
    assert!(prompt.limit(vec![bos, bos, 1], 10).is_err());
    assert_eq!(prompt.limit(vec![bos, 1, bos, bos], 10).unwrap().ids, [bos, 1, bos, bos]);
    assert!(prompt.limit(vec![], 10).is_err());
}

#[test]
fn a_doubled_beginning_of_text_is_scored_where_allowed() {
    let doubled = SIMPLE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}");
    let error = exchange_tokens(&doubled, PromptOptions::default(), 1000).unwrap_err();
    let hint = "one is enough: leave it out of the messages if the chat template writes it; \
                `--double-bos allow` scores it all the same";
    assert_eq!(error.hint(), Some(hint));
    let with = |double_bos| PromptOptions { double_bos, ..Default::default() };
    let (once, _) = exchange_tokens(SIMPLE, with(DoubleBos::Refuse), 1000).unwrap();
    let twice = [&once[..1], &once[..]].concat();
    assert_eq!(exchange_tokens(&doubled, with(DoubleBos::Allow), 1000).unwrap(), (twice.clone(), false));
    assert_eq!(exchange_tokens(SIMPLE, with(DoubleBos::Allow), 1000).unwrap(), (once.clone(), false));
    assert_eq!(exchange_tokens(SIMPLE, with(DoubleBos::Add), 1000).unwrap(), (twice.clone(), false));
    let left = PromptOptions { truncate: Truncate::Left, ..with(DoubleBos::Add) };
    let expected = [&once[..1], &once[once.len() - 3..]].concat();
    assert_eq!(exchange_tokens(SIMPLE, left, 4).unwrap(), (expected, true));
    for double_bos in [DoubleBos::Allow, DoubleBos::Add] {
        let prompt = with_template(SIMPLE, with(double_bos)).unwrap();
        assert_eq!(prompt.limit(twice.clone(), 1000).unwrap().ids, twice);
        assert_eq!(prompt.limit(once.clone(), 1000).unwrap().ids, once);
        assert_eq!(prompt.encode("a").unwrap().len(), 1, "encode adds nothing");
    }
}

#[test]
fn added_special_tokens_equal_those_of_transformers() {
    let conversations = conversations();
    let mut doubled = 0;
    for row in cases("added.json") {
        let (model_name, name) = (row["model"].as_str().unwrap(), row["name"].as_str().unwrap());
        let options = PromptOptions { double_bos: DoubleBos::Add, ..Default::default() };
        let prompt = open(&model(model_name), options).unwrap();
        let got = prompt.tokens(&conversations[name], 1 << 20).unwrap().ids;
        assert_eq!(got, ids(&row), "{model_name} {name}");
        doubled += usize::from(got[0] == got[1]);
    }
    assert!(doubled > 10, "{doubled} conversations begin with BOS twice");
}

#[test]
fn adding_special_tokens_and_sanitizing_exclude_each_other() {
    let options =
        PromptOptions { double_bos: DoubleBos::Add, sanitize_control_tokens: true, ..Default::default() };
    let error = with_template(SIMPLE, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Options);
    assert_eq!(
        error.report(),
        "the tokenizer's special tokens cannot be added where control tokens are sanitized\n\nhint: leave out \
         `--double-bos add` or `--sanitize-control-tokens`: sanitized text is encoded in pieces"
    );
}

#[test]
fn a_template_that_reads_the_clock_warns_without_a_date() {
    let dir = model("dated");
    let open = |vars: Value, clock| {
        let template_vars = vars.as_object().unwrap().clone();
        Prompt::open(dir.path(), PromptOptions { template_vars, clock, ..Default::default() }).unwrap()
    };
    let warned = open(json!({}), Clock::System);
    assert_eq!(warned.warnings().len(), 1);
    assert!(warned.warnings()[0].contains("`date_string`"), "{:?}", warned.warnings());
    let given = open(json!({"date_string": "26 Jul 2024"}), Clock::System);
    assert!(given.warnings().is_empty());
    assert!(given.render(&Conversation::exchange("q", "a")).unwrap().contains("Date: 26 Jul 2024\n"));
    assert!(open(json!({}), NOW).warnings().is_empty());
    assert!(Prompt::open(model("header").path(), PromptOptions::default()).unwrap().warnings().is_empty());
}

#[test]
fn classes_that_transformers_builds_anew_are_warned_of() {
    let file = read_json("classes.json");
    let own = read_json("tokenizer.json");
    let (mut warned, mut wrong) = (0, vec![]);
    for row in cases("classes.json") {
        let Some(differs) = row["differs"].as_bool() else { continue };
        let mut tokenizer = own.clone();
        for (key, value) in file["shapes"][row["shape"].as_str().unwrap()].as_object().unwrap() {
            match value {
                Value::Object(fields) if key == "model" => {
                    tokenizer[key].as_object_mut().unwrap().extend(fields.clone())
                }
                value => tokenizer[key] = value.clone(),
            }
        }
        let model = json!({"model_type": row["model_type"]}).to_string();
        let dir = folder(&[
            ("chat_template.jinja", "x"),
            ("tokenizer.json", &tokenizer.to_string()),
            ("tokenizer_config.json", &row["config"].to_string()),
            ("config.json", &model),
        ]);
        let prompt = open(&dir, PromptOptions::default()).unwrap();
        if prompt.warnings().len() != usize::from(differs) {
            wrong.push(format!("{row}: {:?}", prompt.warnings()));
        }
        let class = row["config"]["tokenizer_class"].as_str().unwrap();
        for warning in prompt.warnings() {
            // A model type may come with a class of its own.
            let class = if row["model_type"] == "qwen2" { "Qwen2Tokenizer" } else { class };
            assert!(warning.contains(&format!("builds a `{class}` with ")), "{row}: {warning}");
            assert!(
                warning.ends_with("; tokenizer.json is used as it stands, as transformers 4 does"),
                "{warning}"
            );
        }
        warned += prompt.warnings().len();
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(warned > 80, "{warned} warnings");
}

#[test]
fn a_conversations_variables_win_over_the_options() {
    let vars = |value: &str| Map::from_iter([("who".to_owned(), json!(value))]);
    let options = PromptOptions { template_vars: vars("options"), ..Default::default() };
    let prompt = with_template("{{ who }}", options).unwrap();
    let exchange = || Conversation::exchange("q", "a");
    assert_eq!(prompt.render(&exchange()).unwrap(), "options");
    assert_eq!(prompt.render(&exchange().with_template_vars(vars("own")).unwrap()).unwrap(), "own");
    let reserved = PromptOptions {
        template_vars: Map::from_iter([("tools".to_owned(), json!(1))]),
        ..Default::default()
    };
    assert!(with_template("", reserved).is_err());
}

#[test]
fn missing_and_broken_files_are_named() {
    let refusal = |files: &[(&str, &str)], without: Option<&str>| {
        let dir = folder(files);
        if let Some(name) = without {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let error = open(&dir, PromptOptions::default()).unwrap_err();
        let place = error.place().unwrap_or_default().replace(&format!("{}", dir.path().display()), "DIR");
        (error.kind(), error.message().to_owned(), place)
    };
    let template = ("chat_template.jinja", "x");
    let (kind, message, place) = refusal(&[], None);
    assert_eq!(
        (kind, message.as_str(), place.as_str()),
        (ErrorKind::Template, "the model has no chat template", "DIR")
    );
    let (kind, message, place) = refusal(&[template], Some("tokenizer.json"));
    assert_eq!((kind, place.as_str()), (ErrorKind::Tokenizer, "DIR/tokenizer.json"));
    assert_eq!(message, "the model has no tokenizer");
    let (kind, message, place) = refusal(&[template, ("tokenizer.json", "{}")], None);
    assert_eq!((kind, place.as_str()), (ErrorKind::Tokenizer, "DIR/tokenizer.json"));
    assert!(message.starts_with("the tokenizer cannot be parsed: "), "{message}");
    let (kind, message, place) = refusal(&[template, ("tokenizer_config.json", "[")], None);
    assert_eq!((kind, place.as_str()), (ErrorKind::Tokenizer, "DIR/tokenizer_config.json"));
    assert!(message.starts_with("not a JSON object: "), "{message}");
    let (kind, message, place) = refusal(&[("tokenizer_config.json", r#"{"chat_template": 3}"#)], None);
    assert_eq!((kind, place.as_str()), (ErrorKind::Template, "DIR/tokenizer_config.json (chat_template)"));
    assert!(message.starts_with("`chat_template` is neither"), "{message}");
    let (kind, message, place) = refusal(&[("additional_chat_templates/rag.jinja", "x")], None);
    assert_eq!((kind, place.as_str()), (ErrorKind::Template, "DIR"));
    assert_eq!(message, "no chat template is named `default` (there are `rag`)");
    let (kind, _, place) = refusal(&[("chat_template.jinja", "a\n{% if x %}")], None);
    assert_eq!((kind, place.as_str()), (ErrorKind::Template, "DIR/chat_template.jinja, line 2"));
}

#[test]
fn a_byte_order_mark_in_a_template_stays_text_as_in_jinja2() {
    let cases = [
        ("\u{feff}{{ 1 }}\n{% if true %}a{% endif %}", "\u{feff}1\na"),
        ("\u{feff}  {% if true %}a{% endif %}", "\u{feff}  a"),
        ("\u{feff}{%- if true %}a{% endif %}", "\u{feff}a"),
        ("\u{feff}\n{%- if true %}a{% endif %}{{ '\u{feff}' }}", "\u{feff}a\u{feff}"),
    ];
    let in_config = |template: &str| {
        let config = json!({"chat_template": template}).to_string();
        open(&folder(&[("tokenizer_config.json", &config)]), PromptOptions::default())
    };
    for (template, expected) in cases {
        for prompt in [with_template(template, PromptOptions::default()), in_config(template)] {
            let text = prompt.unwrap().render(&Conversation::exchange("q", "a")).unwrap();
            assert_eq!(text, expected, "{template:?}");
        }
    }
}

#[test]
fn a_template_that_git_lfs_has_not_fetched_is_refused() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for file in ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"] {
        let dir = folder(&[("chat_template.jinja", "x"), (file, pointer)]);
        let error = open(&dir, PromptOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Template);
        assert_eq!(
            error.report().replace(&format!("{}/", dir.path().display()), ""),
            format!(
                "this is a pointer of git-lfs, not the file itself\n  at {file}\n\nhint: run `git lfs pull` in its folder"
            )
        );
    }
}

#[test]
fn a_refusal_names_construct_and_line() {
    let refusal = |template: &str| {
        let prompt = with_template(template, PromptOptions::default());
        let error = prompt.and_then(|prompt| prompt.render(&Conversation::exchange("q", "a"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Template);
        let place = error.place().unwrap().to_owned();
        (error.message().to_owned(), place[place.rfind("chat_template.jinja").unwrap()..].to_owned())
    };
    let cases = [
        ("\n{{ raise_exception('Roles must alternate') }}", "Roles must alternate", 2),
        ("\n\n{{ messages | nosuch }}", "nosuch", 3),
        ("{{ 'é'.nosuch() }}", "nosuch", 1),
        ("{% do messages %}", "{% do %}", 1),
        ("\n{{ strftime_now('%c') }}", "`%c`", 2),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long", 1),
        (
            "{% set ns = namespace(x='a' * 1000) %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "too long",
            1,
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion", 1),
        ("\n{% for x in none %}{% endfor %}", "none is not iterable", 2),
        ("\n{{ none | list }}", "none is not iterable, in `list`", 2),
        ("{{ (bos_token | safe) + 'a' }}", "joined with `~`", 1),
        ("\n{{ [bos_token | safe] }}", "joined with `~`", 2),
        ("{{ (bos_token | safe).replace('a', 'b') }}", "joined with `~`", 1),
        ("{{ missing | int }}", "undefined value, in `int`", 1),
    ];
    for (template, named, line) in cases {
        let (message, place) = refusal(template);
        assert!(message.contains(named), "{template}: {message}");
        assert_eq!(place, format!("chat_template.jinja, line {line}"), "{template}: {message}");
    }
}

#[test]
fn an_unusable_tool_template_leaves_plain_conversations_alone() {
    let dir = folder(&[
        ("chat_template.jinja", "plain"),
        ("additional_chat_templates/tool_use.jinja", "{% do x %}"),
    ]);
    let prompt = open(&dir, PromptOptions::default()).unwrap();
    let exchange = Conversation::exchange("q", "a");
    assert_eq!(prompt.render(&exchange).unwrap(), "plain");
    let error = prompt.render(&exchange.with_tools(json!([])).unwrap()).unwrap_err();
    assert!(error.place().unwrap().ends_with("tool_use.jinja, line 1"), "{error}");
}

#[test]
fn threads_share_a_prompt() {
    let prompt = open(&model("dated"), PromptOptions::default()).unwrap();
    let conversations = conversations();
    let alone: Vec<_> = conversations.values().map(|c| prompt.tokens(c, 1 << 20).ok()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let together: Vec<_> =
                    conversations.values().map(|c| prompt.tokens(c, 1 << 20).ok()).collect();
                assert_eq!(alone, together);
            });
        }
    });
}
