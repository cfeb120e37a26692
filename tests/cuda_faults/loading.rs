//! Loading reads files with calls: no page fault waits for the disk, and a file that has become
//! shorter is an error.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use kudos::ErrorKind;
use kudos::internals::backend::Geometry;
use kudos::internals::backend::cuda::LoadPath;
use kudos::internals::backend::cuda::probe::devices;
use kudos::internals::config::ModelConfig;
use kudos::internals::model::rope::frequencies;
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Checkpoint, LayerTensors, ModelTensors};

use crate::common::{ModelSizes, random_model};
use crate::gpu::{Gpu, in_own_processes};

/// Layers of 30 MiB, whose weights take several chunks of pinned memory.
const SIZES: ModelSizes = ModelSizes { hidden: 1024, ffn: 4096, layers: 4, vocab: 64 };

/// Bytes of a chunk of pinned memory.
const CHUNK_BYTES: u64 = 4 << 20;

/// The layers of a model, and the path to the first GPU.
fn open(model: &Path) -> (LoadPath, Vec<LayerTensors>) {
    let config = ModelConfig::read(model).unwrap();
    let shard = Shard::new(&config, 0, 1).unwrap();
    let tensors = ModelTensors::open(&Checkpoint::open(model).unwrap(), &config, &shard).unwrap();
    let geometry = Geometry::new(&config, shard, frequencies(&config.rope, config.head_dim), 1);
    let path = LoadPath::new(&devices().unwrap()[0], &geometry, &tensors.layers[0]).unwrap();
    (path, tensors.layers)
}

/// Major faults, read calls and bytes from the disk of this process so far.
fn reads() -> [u64; 3] {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let count = |key: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let major_faults = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(9).unwrap();
    [major_faults.parse().unwrap(), count("syscr:"), count("read_bytes:")]
}

fn drop_pages(file: &Path) {
    let file = File::open(file).unwrap();
    file.sync_all().unwrap();
    // SAFETY: the file is open, and dropping its pages changes no byte of it.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn cold_layers_are_read_in_few_calls_and_without_faults() {
    // Counts are of a process, in which other tests run and read.
    let test = "loading::cold_layers_are_read_in_few_calls_and_without_faults";
    in_own_processes(test, &["cold"], |_| cold_layers_are_read_well());
}

fn cold_layers_are_read_well() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let (mut path, layers) = open(dir.path());
    let bytes = layers.iter().map(LayerTensors::size_bytes).sum::<usize>() as u64;
    let tensors = layers.iter().flat_map(LayerTensors::tensors).count() as u64;
    // The code that runs is in memory by the second time.
    path.read(&layers).unwrap();
    drop_pages(&dir.path().join("model.safetensors"));
    let before = reads();
    path.read(&layers).unwrap();
    let after = reads();
    let [major_faults, read_calls, disk_bytes] = [0, 1, 2].map(|index| after[index] - before[index]);
    println!("{bytes} bytes in {read_calls} calls, {disk_bytes} bytes from the disk");
    drop(path);
    gpu.assert_free();
    if disk_bytes < bytes {
        println!(
            "did not run: the file system of {} keeps pages that are to be dropped",
            dir.path().display()
        );
        return;
    }
    assert_eq!(major_faults, 0);
    // A chunk ends where its weight does, and a call where its tensor does. Some read the counts.
    let calls_max = bytes / CHUNK_BYTES + 2 * tensors + 8;
    assert!(read_calls <= calls_max, "{read_calls} calls, at most {calls_max} are needed");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_file_that_becomes_shorter_is_an_error_with_its_name() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    let bytes = random_model(dir.path(), SIZES) as u64;
    let file = dir.path().join("model.safetensors");
    let (mut path, layers) = open(dir.path());
    File::options().write(true).open(&file).unwrap().set_len(bytes / 2).unwrap();
    let errors = [path.read(&layers).unwrap_err(), path.copy(&layers).unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let message = error.message();
        assert!(
            message.starts_with("tensor `model.layers.") && message.contains("its file has become shorter"),
            "{message}"
        );
        assert_eq!(error.place(), Some(file.to_str().unwrap()));
        assert!(error.hint().is_some_and(|hint| hint.contains("rename")), "{error}");
    }
    drop(path);
    gpu.assert_free();
}
