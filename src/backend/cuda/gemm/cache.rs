//! The fastest algorithms, on disk, so that the next start need not measure them again.
//!
//! There is a small file for each shape on each model of GPU. It names algorithms by the library's
//! description ([`Config`]), and nothing in it is ever passed to the library: a description is
//! searched among the algorithms that the library has just proposed, and that compute the right
//! bits. The library's own 64 bytes, which may be kept for the same version, would have to be
//! trusted instead. So a file that is broken, foreign or forged can at worst choose a slower
//! algorithm. Files and folders that cannot be read or written are no error: then algorithms are
//! measured again.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::{env, process};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::algorithm::Config;
use super::library::LtLibrary;
use super::lt::Share;
use super::shape::MatmulShape;
use crate::backend::cuda::format::ActivationFormat;
use crate::backend::cuda::probe::{DeviceInfo, driver_version};
use crate::error::Result;

/// Version of the files' contents.
const FORMAT: u32 = 2;

/// The most bytes of a file; a longer one is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The variable of the environment that names the folder of the files; empty for no files.
const FOLDER_VARIABLE: &str = "KUDOS_CACHE_DIR";

/// The files of one model of GPU.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    ordinal: usize,
    machine: Machine,
}

/// Everything but the shape that times depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    format: u32,
    gpu: String,
    capability: String,
    multiprocessors: usize,
    activations: String,
    cublaslt: usize,
    driver: i32,
}

/// The key of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    machine: Machine,
    matmul: MatmulShape,
}

/// The fastest algorithm for a count of rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fastest {
    /// The count of rows.
    pub rows: usize,
    /// The part of the GPU that it has.
    pub share: Share,
    /// The library's description of it.
    pub algorithm: Config,
    /// The time of one matmul, for readers of the file.
    pub microseconds: f32,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    fastest: Vec<Fastest>,
}

/// The folder of the user's files: `KUDOS_CACHE_DIR`, or the folder `kudos` of `XDG_CACHE_HOME` or
/// of `~/.cache`; `None` when the first is empty, or none of them is set.
pub fn user_folder() -> Option<PathBuf> {
    folder_in(|name| env::var_os(name).map(PathBuf::from))
}

fn folder_in(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(folder) = variable(FOLDER_VARIABLE) {
        return Some(folder).filter(|folder| !folder.as_os_str().is_empty());
    }
    // The standard ignores relative paths.
    let absolute = |name: &str| variable(name).filter(|folder| folder.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    caches.map(|folder| folder.join("kudos"))
}

impl Cache {
    /// The files of this model of GPU in `folder`; without a folder, there are none.
    pub fn new(folder: Option<PathBuf>, gpu: &DeviceInfo, format: ActivationFormat) -> Result<Self> {
        let machine = Machine {
            format: FORMAT,
            gpu: gpu.name.clone(),
            capability: gpu.capability.to_string(),
            multiprocessors: gpu.multiprocessors,
            activations: format!("{format:?}"),
            cublaslt: LtLibrary::get()?.version(),
            driver: driver_version()?,
        };
        Ok(Self { folder, ordinal: gpu.ordinal, machine })
    }

    /// The fastest algorithms of a matmul; none where no file has them.
    pub fn load(&self, matmul: MatmulShape) -> Vec<Fastest> {
        let key = self.key(matmul);
        let read = |folder: &PathBuf| {
            let mut text = String::new();
            File::open(folder.join(key.file_name()))
                .ok()?
                .take(FILE_BYTES_MAX)
                .read_to_string(&mut text)
                .ok()?;
            serde_json::from_str::<Entry>(&text).ok()
        };
        let entry = self.folder.as_ref().and_then(read);
        entry.filter(|entry| entry.key == key).map(|entry| entry.fastest).unwrap_or_default()
    }

    /// Keeps the fastest algorithms of a matmul, if a file can be written.
    pub fn store(&self, matmul: MatmulShape, fastest: &[Fastest]) {
        let entry = Entry { key: self.key(matmul), fastest: fastest.to_vec() };
        if let (Some(folder), Ok(text)) = (&self.folder, serde_json::to_string_pretty(&entry)) {
            // With a folder that is full or read-only, the next start measures again.
            let _ = self.replace(folder, &entry.key.file_name(), &text);
        }
    }

    /// Replaces a file at once: a reader sees the old one or the new one, never a part.
    fn replace(&self, folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let unfinished = folder.join(format!(".{name}.{}-{}", process::id(), self.ordinal));
        let written = File::create(&unfinished)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&unfinished, folder.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    fn key(&self, matmul: MatmulShape) -> Key {
        Key { machine: self.machine.clone(), matmul }
    }
}

impl Key {
    fn file_name(&self) -> String {
        let text = serde_json::to_string(self).expect("strings and numbers are JSON");
        let digest = Sha256::digest(text.as_bytes());
        let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("gemm-{digits}.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::gemm::shape::Out;

    const SHAPE: MatmulShape = MatmulShape {
        features: 8,
        width: 16,
        x_stride: 16,
        out_stride: 8,
        out: Out::Activation,
        bias: false,
    };

    const FASTEST: Fastest = Fastest {
        rows: 64,
        share: Share::Whole,
        algorithm: Config {
            id: 66,
            tile: 20,
            split_k: 1,
            reduction: 0,
            swizzle: 1,
            custom: 0,
            stages: 36,
            inner_shape: 0,
            cluster_shape: 2,
        },
        microseconds: 12.5,
    };

    fn cache(folder: &Path, gpu: &str) -> Cache {
        let machine = Machine {
            format: FORMAT,
            gpu: gpu.to_owned(),
            capability: "9.0".to_owned(),
            multiprocessors: 132,
            activations: "Bf16".to_owned(),
            cublaslt: 130_000,
            driver: 13_000,
        };
        Cache { folder: Some(folder.to_owned()), ordinal: 0, machine }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn entries_are_found_for_the_same_gpu_and_shape_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("made/when/needed");
        let here = cache(&folder, "H100");
        assert_eq!(here.load(SHAPE), []);
        here.store(SHAPE, &[FASTEST]);
        assert_eq!(here.load(SHAPE), [FASTEST]);
        assert_eq!(here.load(MatmulShape { bias: true, ..SHAPE }), []);
        assert_eq!(cache(&folder, "A100").load(SHAPE), []);
        let mut other = here.clone();
        other.machine.cublaslt += 1;
        assert_eq!(other.load(SHAPE), []);
        assert_eq!(files(&folder).len(), 1, "no unfinished file is left");
    }

    #[test]
    fn a_file_of_another_gpu_under_this_ones_name_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let (here, other) = (cache(dir.path(), "H100"), cache(dir.path(), "A100"));
        other.store(SHAPE, &[FASTEST]);
        fs::rename(
            dir.path().join(other.key(SHAPE).file_name()),
            dir.path().join(here.key(SHAPE).file_name()),
        )
        .unwrap();
        assert_eq!(here.load(SHAPE), []);
    }

    #[test]
    fn a_broken_file_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let here = cache(dir.path(), "H100");
        here.store(SHAPE, &[FASTEST]);
        let path = dir.path().join(here.key(SHAPE).file_name());
        let whole = fs::read(&path).unwrap();
        for broken in [&b""[..], b"[]", b"\xFF\xFE", &whole[..whole.len() / 2], &[b' '; 2 << 20]] {
            fs::write(&path, broken).unwrap();
            assert_eq!(here.load(SHAPE), []);
            here.store(SHAPE, &[FASTEST]);
            assert_eq!(here.load(SHAPE), [FASTEST]);
        }
    }

    #[test]
    fn files_that_cannot_be_written_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("no folder");
        fs::write(&file, "").unwrap();
        let nowhere = [Some(file.join("below a file")), None];
        for folder in nowhere {
            let here = Cache { folder, ..cache(dir.path(), "H100") };
            here.store(SHAPE, &[FASTEST]);
            assert_eq!(here.load(SHAPE), []);
        }
        // A folder that takes the file's place.
        let here = cache(dir.path(), "H100");
        fs::create_dir(dir.path().join(here.key(SHAPE).file_name())).unwrap();
        here.store(SHAPE, &[FASTEST]);
        assert_eq!(here.load(SHAPE), []);
        assert_eq!(files(dir.path()).len(), 2, "no unfinished file is left");
    }

    #[test]
    fn the_folder_is_that_of_the_variable_or_of_the_user() {
        let folder = |set: &[(&str, &str)]| {
            folder_in(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        let (xdg, home) = (("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me"));
        assert_eq!(folder(&[("KUDOS_CACHE_DIR", "/mine"), xdg, home]), Some("/mine".into()));
        assert_eq!(folder(&[("KUDOS_CACHE_DIR", ""), xdg, home]), None);
        assert_eq!(folder(&[xdg, home]), Some("/xdg/kudos".into()));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "not/absolute"), home]), Some("/home/me/.cache/kudos".into()));
        assert_eq!(folder(&[]), None);
    }
}
