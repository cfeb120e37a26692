//! The names of baselines, and the values of `--compare`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

/// An engine that has a script in `benches/baseline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Transformers,
    Vllm,
    Openvino,
    Onnxruntime,
}

/// One value of `--compare`: `[NAME=]PYTHON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    /// `None` for transformers alone, after the engine is closed.
    pub(super) peer: Option<Peer>,
    pub(super) python: PathBuf,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::Vllm => "vllm",
            Self::Openvino => "openvino",
            Self::Onnxruntime => "onnxruntime",
        }
    }

    /// The python packages that it needs.
    fn requirements(self) -> &'static str {
        match self {
            Self::Transformers => "benches/baseline/requirements.txt",
            Self::Vllm => "benches/baseline/requirements-vllm.txt",
            Self::Openvino => "benches/baseline/requirements-openvino.txt",
            Self::Onnxruntime => "benches/baseline/requirements-onnxruntime.txt",
        }
    }

    pub(super) fn hint(self) -> String {
        format!(
            "`--compare {self}=PYTHON` names a python that has the packages of {}; `--without {self}` leaves \
             it out",
            self.requirements()
        )
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compared {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // A path may have `=` in it, and a name has no separator.
        let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', '\\', '.']));
        let Some((name, python)) = named else {
            return Ok(Self { peer: None, python: text.into() });
        };
        let known = Peer::value_variants();
        let Some(&peer) = known.iter().find(|peer| peer.name() == name) else {
            let names: Vec<&str> = known.iter().map(|peer| peer.name()).collect();
            return Err(format!("no baseline is named `{name}`: the names are {}", names.join(", ")));
        };
        Ok(Self { peer: Some(peer), python: python.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_compare_is_a_path_or_a_name_and_a_path() {
        let of = |text: &str| text.parse::<Compared>();
        let named = |peer, python: &str| Ok(Compared { peer, python: python.into() });
        assert_eq!(of("/venv/bin/python"), named(None, "/venv/bin/python"));
        assert_eq!(of("/a=b/python"), named(None, "/a=b/python"));
        assert_eq!(of("vllm=python"), named(Some(Peer::Vllm), "python"));
        let error = of("tensorrt=python").unwrap_err();
        assert!(error.contains("`tensorrt`") && error.contains("onnxruntime"), "{error}");
    }
}
