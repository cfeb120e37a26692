//! `model.safetensors.index.json` and its like: the file of each tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};

/// The longest index that is read. The 70B's has about 60 KB.
pub(super) const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Tensor name -> file name, each file name a plain one inside the model folder.
#[derive(Debug)]
pub(super) struct Index(pub(super) BTreeMap<String, String>);

impl Index {
    /// Checks the text of an index; `file` is only named in errors.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self> {
        let failed = |message: String| {
            Error::new(ErrorKind::Weights, message)
                .at(file.display())
                .with_hint("the index is damaged; download it again")
        };
        let parsed: Text = serde_json::from_str(text)
            .map_err(|error| failed("the index cannot be parsed".to_owned()).caused_by(error))?;
        let WeightMap(map) = parsed.weight_map;
        if map.is_empty() {
            return Err(failed("the index lists no tensor".to_owned()));
        }
        for (tensor, shard) in &map {
            if !is_plain_name(shard) {
                return Err(failed(format!(
                    "the index places tensor `{tensor}` in `{shard}`, expected the name of a file in the same folder"
                )));
            }
        }
        Ok(Self(map))
    }
}

/// Returns true if a name stays in its folder: no separators, no `..`, not absolute.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!(components.next(), Some(Component::Normal(component)) if component == name);
    plain && components.next().is_none() && !name.contains(['\\', '\0'])
}

#[derive(Deserialize)]
struct Text {
    weight_map: WeightMap,
}

/// A map in which a repeated name is an error; a plain map would keep the last.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor names and file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<WeightMap, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((tensor, shard)) = entries.next_entry::<String, String>()? {
            if map.contains_key(&tensor) {
                return Err(A::Error::custom(format_args!("tensor `{tensor}` is listed twice")));
            }
            map.insert(tensor, shard);
        }
        Ok(WeightMap(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Index> {
        Index::parse(text, Path::new("rm/model.safetensors.index.json"))
    }

    #[test]
    fn an_index_maps_tensors_to_files_and_its_metadata_is_not_read() {
        let index = parse(
            r#"{"metadata": {"total_size": "?"}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}"#,
        );
        let map: Vec<_> = index.unwrap().0.into_iter().collect();
        assert_eq!(map, [("a".into(), "1.safetensors".into()), ("b".into(), "2.safetensors".into())]);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for shard in ["../x", "/etc/passwd", "a/b", "a/../b", ".", "..", "", "a/", "./a", "a\\b", "\u{0}"] {
            let text = serde_json::json!({"weight_map": {"norm": shard}}).to_string();
            let error = parse(&text).unwrap_err();
            assert_eq!(
                error.message(),
                format!(
                    "the index places tensor `norm` in `{shard}`, expected the name of a file in the same folder"
                )
            );
            assert_eq!(error.place(), Some("rm/model.safetensors.index.json"));
        }
    }

    #[test]
    fn an_index_that_is_damaged_says_how() {
        let cases = [
            ("", "the index cannot be parsed: EOF while parsing a value"),
            ("{}", "the index cannot be parsed: missing field `weight_map`"),
            (r#"{"weight_map": {}}"#, "the index lists no tensor"),
            (r#"{"weight_map": {"a": 1}}"#, "the index cannot be parsed: invalid type: integer `1`"),
            (
                r#"{"weight_map": {"a": "1", "a": "2"}}"#,
                "the index cannot be parsed: tensor `a` is listed twice",
            ),
        ];
        for (text, message) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weights);
            assert!(error.message().starts_with(message), "{error}");
            assert_eq!(error.hint(), Some("the index is damaged; download it again"));
        }
    }

    /// No text may panic, and an accepted index names files in the folder only.
    #[test]
    fn mutated_indices_neither_panic_nor_leave_the_folder() {
        const SEED: u64 = 0x5eed_0002;
        const PIECES: [&str; 8] = ["../", "/", "\"", "{", "null", "\\u0000", "\\\\", "1e999"];
        let good =
            br#"{"metadata": {"total_size": 1}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let mut state = SEED;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let mut accepted = 0;
        for round in 0..4000 {
            let mut bytes = good.to_vec();
            for _ in 0..1 + below(3) {
                let at = below(bytes.len());
                match below(3) {
                    0 => bytes[at] = 32 + below(95) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => drop(bytes.splice(at..at, PIECES[below(PIECES.len())].bytes())),
                }
            }
            let text = String::from_utf8(bytes).expect("all pieces are ASCII");
            if let Ok(Index(map)) = parse(&text) {
                accepted += 1;
                for shard in map.values() {
                    let joined = Path::new("rm").join(shard);
                    assert_eq!(joined.parent(), Some(Path::new("rm")), "seed {SEED}, round {round}: {shard}");
                    assert!(shard != ".." && !shard.contains('/'), "seed {SEED}, round {round}: {shard}");
                }
            }
        }
        assert!(accepted > 100, "{accepted} accepted");
    }
}
