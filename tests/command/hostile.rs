//! Untrusted files and lines: damaged, mutated, or hostile. None may panic, hang, or use memory
//! without bound. Seeded and short; the fuzzers in `fuzz/` have the same entry points.

use crate::common;

use std::fs;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use common::{demo_model, ids, kudos, root};
use kudos::internals::fuzzing;
use kudos_cli::fuzzing as line_fuzzing;

/// Time limit of one call, on a busy machine and in a build that checks overflows. Measured: at
/// most 4.3 s, and 8.0 s while other tests used both cores.
const CALL_MAX: Duration = Duration::from_secs(20);

/// Insertions of mutations: words of every format, and numbers at the limits of types.
const PIECES: [&str; 24] = [
    "0",
    "-1",
    "18446744073709551615",
    "99999999999999999999",
    "1e999",
    "null",
    "true",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[",
    "{",
    "]}",
    ",",
    ":",
    "[[[[[[[[",
    "{{",
    "}}",
    "{% for x in messages %}",
    "{% endfor %}",
    "|tojson",
    " ~ x",
    "(",
    "\u{1F600}",
];

/// Random numbers below a bound; equal seeds give equal numbers.
struct Random {
    numbers: std::vec::IntoIter<u32>,
    seed: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { numbers: Vec::new().into_iter(), seed }
    }

    fn below(&mut self, bound: usize) -> usize {
        let number = self.numbers.next().unwrap_or_else(|| {
            self.seed += 1;
            self.numbers = ids(self.seed, 4096, u32::MAX).into_iter();
            self.numbers.next().unwrap()
        });
        number as usize % bound.max(1)
    }
}

fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + random.below(4) {
        let (at, other) = (random.below(bytes.len() + 1), random.below(bytes.len() + 1));
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.below(256) as u8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 => drop(bytes.drain(at.min(other)..at.max(other))),
            4 => {
                let part = bytes[at.min(other)..at.max(other)].to_vec();
                bytes.splice(at..at, part);
            }
            _ => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
        }
    }
    bytes
}

/// Passes mutations of good files to `accepts`, and reports the round and text that failed.
#[track_caller]
fn survives(name: &str, goods: &[Vec<u8>], rounds: usize, accepts: fn(&[u8]) -> bool) {
    let mut accepted = 0;
    for (index, good) in goods.iter().enumerate() {
        let mut random = Random::new(0x5eed + ((index as u64) << 32));
        for round in 0..rounds / goods.len() {
            let bytes = if round == 0 { good.clone() } else { mutated(good, &mut random) };
            let began = Instant::now();
            let result = catch_unwind(|| accepts(&bytes));
            let text = String::from_utf8_lossy(&bytes);
            let result = result.unwrap_or_else(|_| panic!("{name} {index}, round {round}: {text}"));
            assert!(
                began.elapsed() < CALL_MAX,
                "{name} {index}, round {round}: {:?}: {text}",
                began.elapsed()
            );
            assert!(round > 0 || result, "{name} {index}: the original is refused: {text}");
            accepted += usize::from(result);
        }
    }
    assert!(accepted > goods.len(), "{name}: every mutation is refused, so little is tested");
}

/// The files of this name in the model folders of the repository.
fn goods(name: &str) -> Vec<Vec<u8>> {
    let folders = common::fixtures().into_iter().chain([demo_model()]);
    let found: Vec<Vec<u8>> = folders.filter_map(|folder| fs::read(folder.join(name)).ok()).collect();
    assert!(!found.is_empty(), "no {name}");
    found
}

#[test]
fn configs() {
    survives("config.json", &goods("config.json"), 6000, fuzzing::config);
}

#[test]
fn safetensors_files_and_indices() {
    let mut file = fs::read(demo_model().join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file.truncate(8 + header);
    // Too short for its tensors: refused, but only after the header is parsed.
    for round in 0..300 {
        let bytes = mutated(&file, &mut Random::new(round));
        assert!(catch_unwind(|| fuzzing::safetensors(&bytes)).is_ok(), "round {round}");
    }
    let small = br#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
    let file = [&(small.len() as u64).to_le_bytes()[..], small, &[0; 12]].concat();
    survives("safetensors", &[file], 6000, fuzzing::safetensors);
    let index =
        br#"{"metadata":{"total_size":12},"weight_map":{"a":"model-1.safetensors","b":"c.safetensors"}}"#;
    survives("index", &[index.to_vec()], 6000, fuzzing::index);
}

#[test]
fn pickles() {
    let small = root().join("tests/fixtures/pickles/small");
    let files = ["zip.bin", "legacy.bin", "rezipped.bin"].map(|name| fs::read(small.join(name)).unwrap());
    survives("pickle", &files, 60_000, fuzzing::pickle);
    for path in common::files_below(&small.join("refused")) {
        let file = fs::read(&path).unwrap();
        for round in 0..1000 {
            let bytes = mutated(&file, &mut Random::new(round));
            assert!(catch_unwind(|| fuzzing::pickle(&bytes)).is_ok(), "{}, round {round}", path.display());
        }
    }
}

#[test]
fn templates() {
    let mut templates = goods("chat_template.jinja");
    let folder = root().join("tests/fixtures");
    for path in
        common::files_below(&folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "jinja"))
    {
        templates.push(fs::read(path).unwrap());
    }
    templates.retain(|text| fuzzing::template(text));
    assert!(!templates.is_empty());
    survives("template", &templates, 4000, fuzzing::template);
    let configs = templates.iter().map(|text| {
        let text = String::from_utf8(text.clone()).unwrap();
        serde_json::json!({"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": text}]})
            .to_string()
            .into_bytes()
    });
    survives("tokenizer_config.json", &configs.collect::<Vec<_>>(), 2000, fuzzing::tokenizer_config);
}

#[test]
fn lines() {
    let goods = [
        r#"{"id": 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": [{"role": "system", "content": "s"}], "responses": ["a", "b"], "tools": [{"a": [1, 2.5e-7]}]}"#,
        r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, null]}}}]},
            {"role": "tool", "content": {"y": "z"}}], "documents": [{"title": "t"}], "template_vars": {"v": {"w": [true]}}}"#,
        r#"{"input_ids": [1, 2, 3], "id": {"any": "thing"}}"#,
        r#"{"id": 340282366920938463463374607431768211455, "input_ids": [0, 1, 2], "attention_mask": [0, 1, 1], "note": 1e999}"#,
        r#"{"messages": [{"role": "user", "content": "q"}], "response": "-2", "chat_template_kwargs": {"x": false}, "id": "\u00e9"}"#,
        r#"{"messages": [{"role": "user", "content": "q"}], "responses": ["a"], "add_generation_prompt": false, "system": null}"#,
    ];
    let goods: Vec<Vec<u8>> = goods.iter().map(|line| line.replace('\n', " ").into_bytes()).collect();
    survives("line", &goods, 20_000, line_fuzzing::line);
    let mut random = Random::new(0x5eed_0003);
    let mut accepted = 0;
    for _ in 0..40_000 {
        let choices: Vec<u8> = (0..2 * (1 + random.below(5))).map(|_| random.below(256) as u8).collect();
        accepted += usize::from(line_fuzzing::request(&choices));
    }
    assert!(accepted > 100, "{accepted} accepted");
    // Deeper than any parser recurses.
    for open in ["[", "{\"a\":", "{\"messages\":["] {
        assert!(!line_fuzzing::line(open.repeat(1_000_000).as_bytes()));
    }
}

#[test]
fn rows() {
    let goods = [
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "q"}"#,
        r#"{"id": 1, "prompt": "q", "responses": ["a", "b"]}"#,
        r#"{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0]}"#,
        r#"{"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}"#,
        r#"{"chosen": "a", "rejected": "b", "instruction": "i", "input": "x", "history": [["p", "r"]], "system": "s"}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "completions": ["a", [{"role": "assistant", "content": "b"}]]}"#,
        r#"{"context": [{"role": "user", "content": "q"}], "response1": "a", "response2": "b"}"#,
        r#"{"instruction": "i", "input": "x", "output": ["a", "b"], "history": [["p", "r"]]}"#,
        r#"{"custom_id": "c", "body": {"messages": [{"role": "user", "content": "q"}], "response": "a"}}"#,
    ];
    let goods: Vec<Vec<u8>> = goods.iter().map(|row| row.as_bytes().to_vec()).collect();
    survives("row", &goods, 10_000, line_fuzzing::row);
    for open in ["{\"chosen\":[", "{\"body\":", "{\"conversations\":[["] {
        assert!(!line_fuzzing::row(open.repeat(1_000_000).as_bytes()));
    }
}

/// Each would end the process, or never end, if it were executed without limits.
#[test]
fn hostile_templates_are_refused_in_time() {
    let grow = |start: &str, times: usize, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        )
    };
    let many = |start: &str, part: &str, end: &str| format!("{start}{}{end}", part.repeat(100_000));
    let harmful = [
        grow("'a'", 60, "ns.x ~ ns.x"),
        grow("'a'", 60, "ns.x + ns.x"),
        grow("'a'", 12, "ns.x|replace('a', 'aaaaaaaaaaaaaaaa')"),
        grow("'a'", 12, "ns.x.replace('a', 'aaaaaaaaaaaaaaaa')"),
        grow("'a'", 60, "(ns.x ~ ns.x)|safe"),
        "{% set x = 'a' * 50000000 %}".to_owned() + &grow("[]", 99_999, "ns.x + [x|safe]"),
        grow("'aaaaaaaaaa'", 12, "ns.x|join('aaaaaaaaaaaaaaaa')"),
        grow("[]", 60, "[ns.x, ns.x]") + "{{ ns.x }}",
        grow("[]", 60, "[ns.x, ns.x]") + "{{ ns.x|tojson(indent=4) }}",
        grow("[]", 5_000, "[ns.x]") + "{{ ns.x }}",
        grow("[]", 5_000, "[ns.x]") + "{{ ns.x|tojson }}",
        "{{ 'a' * 100000000000 }}".to_owned(),
        "{{ ('a\n' * 1000000)|indent(1000) }}".to_owned(),
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}".to_owned(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        many("{{ ", "(", " }}"),
        many("{{ ", "[", " }}"),
        many("{{ ", "-", "1 }}"),
        many("{{ ", "not ", "1 }}"),
        many("{{ ", "1 if 1 else ", "1 }}"),
        many("{{ a", ".a", " }}"),
        many("{{ 1", "|string", " }}"),
        many("{{ 1", "+1", " }}"),
        many("{{ 1", "**1", " }}"),
        many("{{ 'a'", " ~ 'a'", " }}"),
        many("", "{% if 1 %}", ""),
        many("", "{% set x %}", ""),
        many("", "{{a}}", "{{"),
        many("{% raw %}", "{% ", ""),
        " ".repeat(2 << 20),
        // Lists that are long for their cost.
        grow("[1]", 60, "ns.x + ns.x") + "{{ ns.x|length }}",
        "{% macro f(x, n) %}{% if n %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f([1], 40) }}"
            .to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([x + x]) }}{% endfor %}".to_owned(),
        "{{ ([['a'] * 1000000] * 1000)|sum(start=[])|length }}".to_owned(),
        "{{ (['a' * 1000000] * 100000)|sum(start='') }}".to_owned(),
        "{{ ([1] * 100000000).count(1) }}".to_owned(),
        "{{ ([1] * 100000000).copy()|length }}".to_owned(),
        "{{ ('\n' * 90000000).splitlines()|length }}".to_owned(),
        "{{ (' a' * 40000000).split()|length }}".to_owned(),
        "{{ ('a,' * 40000000).rsplit(',')|length }}".to_owned(),
        "{{ ('\n' * 90000000)|indent(0) }}".to_owned(),
        // Lists that are nested deeper than the stack allows, or larger than their parts.
        many("", "{% set x=[x] %}", "").chars().take(900_000).collect::<String>(),
        "{% for x in [1] recursive %}{{ loop([[[[[[[[[[x]]]]]]]]]]) }}{% endfor %}".to_owned(),
        // Cycles, which would never be freed.
        "{% set ns = namespace() %}{% set ns.x = [ns] %}".to_owned(),
        "{% for x in [1] %}{{ loop.changed([loop]) }}{% endfor %}".to_owned(),
        grow("[1]", 60, "[ns.x, ns.x]") + "{{ ns.x == [ns.x] }}",
        grow("[1]", 20, "[ns.x, ns.x]") + "{{ ns.x * 1000000 ~ '' }}",
        grow("['a' * 1000000]", 15, "[ns.x, ns.x]") + "{{ ns.x in 'a' }}",
        "{{ {[1]: 1} }}".to_owned(),
        // Strings and names that are read many times.
        "{{ ('a' * 5000000).startswith(('a' * 4999999 ~ 'b',) * 1000000) }}".to_owned(),
        "{{ ([{}] * 5000000)|map(attribute='a' * 5000000)|list|length }}".to_owned(),
    ];
    for template in harmful {
        let began = Instant::now();
        let start: String = template.chars().take(100).collect();
        assert!(!fuzzing::template(template.as_bytes()), "{start}");
        println!("{:?}: {start}", began.elapsed());
        assert!(began.elapsed() < CALL_MAX, "{start}: {:?}", began.elapsed());
    }
}

/// Each repeats a slow operation until its fuel is spent.
#[test]
fn slow_operations_in_loops_run_out_of_fuel_in_time() {
    const TWINS: &str = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(17) %}\
        {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    const STRINGS: &str = "{% set x = 'a' * 50000000 %}{% set y = 'a' * 50000000 %}";
    let entries: String = (0..80_000).map(|index| format!("'{index}':1,")).collect();
    let mapping = format!("{{% set d = {{{entries}}} %}}");
    let work = [
        (TWINS, "{% if (ns.x + [1]) == ns.y + [1] %}{% endif %}"),
        (TWINS, "{% if ns.x in [ns.y] %}{% endif %}"),
        (TWINS, "{% if ns.x is eq ns.y %}{% endif %}"),
        (TWINS, "{% if [ns.x]|select('equalto', ns.y)|list %}{% endif %}"),
        (TWINS, "{% if [ns.x, ns.y, ns.x]|sort %}{% endif %}"),
        (TWINS, "{% if {'a': ns.x, 'b': ns.y}|dictsort(by='value') %}{% endif %}"),
        (TWINS, "{% if [ns.x].count(ns.y) %}{% endif %}"),
        (TWINS, "{% if {(ns.x, 1): 1} %}{% endif %}"),
        ("{% set x = [1] * 1000000 %}", "{{ x }}{{ x|tojson }}"),
        (STRINGS, "{% if x == y %}{% endif %}"),
        (STRINGS, "{% if x is lower %}{% endif %}"),
        (STRINGS, "{% if {'a': 1}[x] or {}.get(x) %}{% endif %}"),
        (STRINGS, "{% if 'b'.find(x) %}{% endif %}"),
        (
            "{% set x = 'a' * 3000000 %}{% set y = 'b' * 3000000 ~ 'a' %}",
            "{% if x.strip(y) or x|trim(y) %}{% endif %}",
        ),
        ("{% set x = [''] * 1000000 %}", "{% if x|join or ''.join(x) %}{% endif %}"),
        ("{% set x = [1] * 1000000 %}", "{% if x|trim('[]1, ') or x is upper %}{% endif %}"),
        (&mapping, "{% if namespace(d) %}{% endif %}"),
        (STRINGS, "{% if x|safe == y %}{% endif %}"),
        (STRINGS, "{% if x|safe|trim|upper is string %}{% endif %}"),
        ("{% set x = ('a' * 50000000)|safe %}", "{% if x|length or x.find('b') or x.strip() %}{% endif %}"),
    ];
    for (start, body) in work {
        let again = "{% for a in range(99999) %}{% for b in range(99999) %}";
        let template = format!("{start}{again}{body}{{% endfor %}}{{% endfor %}}");
        let began = Instant::now();
        assert!(!fuzzing::template(template.as_bytes()), "{body}");
        println!("{:?}: {body}", began.elapsed());
        assert!(began.elapsed() < CALL_MAX, "{body}: {:?}", began.elapsed());
    }
}

#[test]
fn a_damaged_tokenizer_is_an_error_and_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(demo_model().join(name), dir.path().join(name)).unwrap();
    }
    let good = fs::read(demo_model().join("tokenizer.json")).unwrap();
    let mut random = Random::new(7);
    for round in 0..200 {
        fs::write(dir.path().join("tokenizer.json"), mutated(&good, &mut random)).unwrap();
        let conversation = kudos::Conversation::exchange("What is 1+1?", "2 ü 😀");
        let tried = catch_unwind(|| {
            let prompt = kudos::Prompt::open(dir.path(), kudos::PromptOptions::default());
            prompt.and_then(|prompt| prompt.tokens(&conversation, 1000)).map(drop)
        });
        assert!(tried.is_ok(), "round {round}");
    }
}

#[test]
fn long_text_without_word_boundaries_is_tokenized_in_time() {
    for text in [
        "a".repeat(300_000),
        " ".repeat(300_000),
        "\\n".repeat(200_000),
        "1".repeat(300_000),
        "é😀".repeat(60_000),
    ] {
        let began = Instant::now();
        let line = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"{text}\"}}]}}");
        let run = kudos(&["render", "--model", demo_model().to_str().unwrap(), "-"], &line);
        // Too long for the model, unless the template trims it.
        let refused = run.stdout.contains("\"too_long\"");
        assert!(run.status == Some(i32::from(refused)), "{}", run.stderr);
        assert!(began.elapsed() < CALL_MAX, "{:?}", began.elapsed());
    }
}
