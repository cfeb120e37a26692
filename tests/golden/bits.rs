//! The file of golden bits, its cases, and the comparison with it. Used by `tests/golden/main.rs`
//! and, for arithmetics that only the library's internals can select, by `src/engine/golden.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use serde_json::{Map, Value};

/// Every section of the file, in its order, and the ranks that its bits are computed with.
pub(crate) const SECTIONS: [(&str, usize); 12] = [
    ("portable", 1),
    ("f32-vector", 1),
    ("f32-vector, 2 ranks", 2),
    ("f32-amx", 1),
    ("f32-amx, 2 ranks", 2),
    ("bf16-avx512", 1),
    ("bf16-amx", 1),
    ("softgpu sm75", 1),
    ("softgpu sm75, 2 ranks", 2),
    ("softgpu sm80", 1),
    ("softgpu sm80, 2 ranks", 2),
    ("softgpu sm90a", 1),
];

/// The environment variable by which sections are written instead of compared.
const WRITE: &str = "KUDOS_WRITE_GOLDEN";

/// Number of differences that a failure prints, at most.
const PRINTED_MAX: usize = 12;

/// Maps model and case to the logits, each as bits and value, the reward first.
type Section = Map<String, Value>;

/// A model, token ids that are scored alone, and a batch of sequences that share prefixes.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) alone: Vec<(String, Vec<u32>)>,
    pub(crate) together: Vec<Vec<u32>>,
}

impl Model {
    fn new(name: &str, folder: PathBuf, alone: Vec<(String, Vec<u32>)>) -> Self {
        let mut ids: Vec<&[u32]> = alone.iter().map(|(_, ids)| &ids[..]).collect();
        ids.sort_by_key(|ids| ids.len());
        // A shared prefix, a sequence that is another's prefix, a duplicate, one token: like
        // `family` of tests/common.
        assert_eq!(ids.len(), 9, "cases of {name}");
        let (tail, long) = (ids[3], ids[6]);
        let prompt = &long[..long.len() / 2 + 5];
        let response = [prompt, tail].concat();
        let together = vec![
            response.clone(),
            long.to_vec(),
            prompt.to_vec(),
            [prompt, &tail[..tail.len() / 2], long].concat(),
            response,
            long[..1].to_vec(),
        ];
        Self { name: name.to_owned(), folder, alone, together }
    }

    /// Returns the names of its cases, in the file's order.
    fn cases(&self) -> Vec<String> {
        let together = (0..self.together.len()).map(|index| format!("together {index}"));
        self.alone.iter().map(|(name, _)| name.clone()).chain(together).collect()
    }
}

/// Returns the repository's root, like `root` of tests/common.
fn root() -> PathBuf {
    env::var_os("KUDOS_TEST_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Returns the checkpoints in a folder of tests/fixtures, with the first nine cases of each.
fn fixtures(folder: &str) -> Vec<Model> {
    let folder = root().join("tests/fixtures").join(folder);
    let mut folders: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("cases.json").exists())
        .collect();
    folders.sort();
    let model = |folder: PathBuf| {
        let cases = read(&folder.join("cases.json"));
        let cases = cases["cases"].as_array().unwrap().iter().take(9).map(|case| {
            let ids = ids(&case["input_ids"]);
            (if ids.len() == 1 { "1 token".to_owned() } else { format!("{} tokens", ids.len()) }, ids)
        });
        Model::new(folder.file_name().unwrap().to_str().unwrap(), folder.clone(), cases.collect())
    };
    folders.into_iter().map(model).collect()
}

/// Returns every checkpoint of tests/fixtures/models with all its cases, those of other families,
/// and the demo with nine of its conversations.
pub(crate) fn models() -> Vec<Model> {
    let demo = root().join("demo");
    let expected = read(&demo.join("expected.json"));
    let rows = expected["rows"].as_array().unwrap().iter().step_by(12);
    let conversations = rows.map(|row| (row["id"].as_str().unwrap().to_owned(), ids(&row["input_ids"])));
    let demo = Model::new("demo", demo.join("model"), conversations.collect());
    fixtures("models").into_iter().chain(fixtures("families")).chain([demo]).collect()
}

/// Computes the logits of models' cases in the file's format.
fn record<S>(models: &[Model], open: impl Fn(&Path) -> Option<S>) -> Section
where
    S: Fn(&[Vec<u32>]) -> Vec<Vec<f32>>,
{
    let written = |logits: &Vec<f32>| {
        let logits: Vec<String> = logits.iter().map(|x| format!("{:08x} {x}", x.to_bits())).collect();
        Value::String(logits.join(", "))
    };
    let mut section = Section::new();
    for model in models {
        let Some(score) = open(&model.folder) else { continue };
        let alone = model.alone.iter().flat_map(|(_, ids)| score(std::slice::from_ref(ids)));
        let logits: Vec<Vec<f32>> = alone.chain(score(&model.together)).collect();
        let cases = model.cases();
        assert_eq!(cases.len(), logits.len(), "{}", model.name);
        let cases: Section = cases.into_iter().zip(logits.iter().map(written)).collect();
        assert_eq!(cases.len(), logits.len(), "{}: the names of cases are not unique", model.name);
        section.insert(model.name.clone(), Value::Object(cases));
    }
    section
}

fn path() -> PathBuf {
    root().join("tests/golden/bits.json")
}

/// Reads the file; returns an empty one where it does not exist and will be written.
fn file() -> Map<String, Value> {
    if env::var_os(WRITE).is_some() && !path().exists() {
        return Map::new();
    }
    let Value::Object(sections) = read(&path()) else { panic!("{}: no object", path().display()) };
    sections
}

/// Compares the logits that `arithmetic` computes with a section of the file, or writes the
/// section. `open` returns a function that scores sequences with a model, or `None` where the arithmetic
/// is not for this model.
///
/// A comparison leaves out cases longer than `tokens_max`. All arithmetics of one section have
/// equal bits: when it is written, the first one writes it and the others are compared.
pub(crate) fn hold<S>(name: &str, arithmetic: &str, tokens_max: usize, open: impl Fn(&Path) -> Option<S>)
where
    S: Fn(&[Vec<u32>]) -> Vec<Vec<f32>>,
{
    static WRITTEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    assert!(SECTIONS.iter().any(|(section, _)| *section == name), "`{name}` is not among SECTIONS");
    let mut models = models();
    if env::var_os(WRITE).is_some()
        && WRITTEN.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned())
    {
        return write(name, record(&models, open));
    }
    let mut expected = file().remove(name).unwrap_or_else(|| panic!("bits.json has no section `{name}`"));
    for model in &mut models {
        for (case, _) in model.alone.extract_if(.., |(_, ids)| ids.len() > tokens_max) {
            if let Some(cases) = expected.get_mut(&model.name) {
                cases.as_object_mut().unwrap().remove(&case);
            }
        }
    }
    let (all, differences) = differences(expected.as_object().unwrap(), &record(&models, open));
    assert!(
        differences.is_empty(),
        "`{name}` as computed by {arithmetic}: {} of {all} cases differ from tests/golden/bits.json\n{}{}\n\
         If the commit message says which bits change and why, run `make golden` to write the file again.",
        differences.len(),
        differences[..differences.len().min(PRINTED_MAX)].join("\n"),
        if differences.len() > PRINTED_MAX { "\n  .." } else { "" },
    );
}

/// Returns the number of cases on either side, and the cases that differ.
fn differences(expected: &Section, found: &Section) -> (usize, Vec<String>) {
    let mut cases: BTreeMap<(&str, &str), [Option<&str>; 2]> = BTreeMap::new();
    for (side, section) in [expected, found].into_iter().enumerate() {
        for (model, model_cases) in section {
            for (case, logits) in model_cases.as_object().unwrap() {
                cases.entry((model, case)).or_default()[side] = logits.as_str();
            }
        }
    }
    let shown = |logits: Option<&str>| logits.unwrap_or("nothing").to_owned();
    let differs = cases.iter().filter(|(_, [expected, found])| expected.is_none() || expected != found);
    let line = |(&(model, case), &[expected, found]): (&(&str, &str), &[Option<&str>; 2])| {
        format!("  {model}, {case}: expected {}, found {}", shown(expected), shown(found))
    };
    (cases.len(), differs.map(line).collect())
}

/// Asserts that the file has all sections, and each section all cases of its models.
pub(crate) fn is_whole() {
    let file = file();
    let names: Vec<&str> = file.keys().map(String::as_str).collect();
    assert_eq!(names, SECTIONS.map(|(section, _)| section), "sections of tests/golden/bits.json");
    let models: BTreeMap<String, Vec<String>> =
        models().into_iter().map(|model| (model.name.clone(), model.cases())).collect();
    for (section, ranks) in SECTIONS {
        let recorded = file[section].as_object().unwrap();
        for (model, cases) in recorded {
            let cases: Vec<&String> = cases.as_object().unwrap().keys().collect();
            let expected = models.get(model).unwrap_or_else(|| panic!("`{section}`: no model is {model}"));
            assert_eq!(cases, expected.iter().collect::<Vec<_>>(), "`{section}`, {model}");
        }
        // Not every model can be divided among ranks, or is one for Hopper's attention.
        let has_all = ranks == 1 && !section.contains("sm90a");
        let whole = if has_all { recorded.len() == models.len() } else { !recorded.is_empty() };
        assert!(whole, "`{section}` has {} models of {}", recorded.len(), models.len());
    }
}

/// Replaces one section and keeps the others.
fn write(name: &str, found: Section) {
    static FILE: Mutex<()> = Mutex::new(());
    let _turn = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut old = file();
    old.insert(name.to_owned(), Value::Object(found));
    let sections = SECTIONS.iter().filter_map(|(name, _)| Some(((*name).to_owned(), old.remove(*name)?)));
    let new = Value::Object(sections.collect());
    fs::write(path(), serde_json::to_string_pretty(&new).unwrap() + "\n").unwrap();
}
