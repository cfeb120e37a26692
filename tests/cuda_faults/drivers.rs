//! Drivers and libraries of other versions than the build's, and what they take of a GPU.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{ModelSizes, kudos_in, random_model, root};
use crate::{LINE, MODEL, assert_error, assert_missing, score};

/// The folder of the software GPU's libraries.
fn software() -> PathBuf {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let holds = |folder: &PathBuf| folder.join("libcuda.so").exists();
    std::env::split_paths(&path).find(holds).expect("libcuda.so is on LD_LIBRARY_PATH")
}

/// A folder with these of the software GPU's libraries, for a process to load from.
fn with_libraries(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        symlink(software().join(name).canonicalize().unwrap(), folder.path().join(name)).unwrap();
    }
    folder
}

/// Runs the command with the libraries of one folder, which `with_libraries` made.
fn with_folder(folder: &Path, variables: &[(&str, Option<&str>)]) -> crate::common::Run {
    score("cuda", &[&[("LD_LIBRARY_PATH", folder.to_str())], variables].concat())
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_machine_without_a_library_is_an_error_or_uses_the_cpu() {
    // Beside the software GPU's own.
    let installed = Command::new("/sbin/ldconfig").arg("-p").output().map(|output| output.stdout);
    let installed = String::from_utf8(installed.unwrap_or_default()).unwrap();
    let system_has = |name: &str| installed.contains(&format!("{name} "));
    if !system_has("libcuda.so.1") {
        assert_missing(&[("LD_LIBRARY_PATH", None)], "no CUDA driver on this machine");
    }
    if !["libcublasLt.so.13", "libcublasLt.so.12"].into_iter().any(system_has) {
        let folder = with_libraries(&["libcuda.so"]);
        assert_missing(&[("LD_LIBRARY_PATH", folder.path().to_str())], "cublasLt is not on this machine");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_newest_cublaslt_that_the_driver_runs_is_loaded() {
    let versions = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"];
    // The unversioned name is an older library's, as CUDA 12's development packages have it.
    let older = [("SOFTGPU_CUBLASLT", Some("120400"))];
    for (missing, version) in
        [(&versions[3..], "13.0.0"), (&versions[2..], "12.9.0"), (&versions[1..], "12.4.0")]
    {
        let names: Vec<&str> = versions.into_iter().filter(|name| !missing.contains(name)).collect();
        let folder = with_libraries(&[&["libcuda.so"], &names[..]].concat());
        let run = with_folder(folder.path(), &older);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert!(run.stderr.contains(&format!("cublasLt {version} (/")), "{missing:?}: {}", run.stderr);
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_driver_for_an_older_cuda_is_refused_with_both_versions() {
    assert_missing(&[("SOFTGPU_DRIVER", Some("11080"))], "the CUDA driver is for CUDA 11.8, but ");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn ordinary_memory_that_is_read_late_changes_no_reward() {
    let expected = score("cuda", &[]);
    assert_eq!(expected.status, Some(0), "{expected:?}");
    let late = score("cuda", &[("SOFTGPU_PAGEABLE", Some("late"))]);
    assert_eq!((late.status, late.stdout), (expected.status, expected.stdout), "{}", late.stderr);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn bits_of_matmuls_are_checked_on_request() {
    let expected = score("cuda", &[]);
    let checked = score("cuda", &[("KUDOS_CHECK_BITS", Some("1"))]);
    assert_eq!((checked.status, checked.stdout), (Some(0), expected.stdout), "{}", checked.stderr);
    assert_error(&score("cuda", &[("KUDOS_CHECK_BITS", Some("yes"))]), &["KUDOS_CHECK_BITS is ", "0 or 1"]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn nccl_that_runs_out_of_memory_fails_while_the_engine_opens() {
    let model = root().join(MODEL);
    // A communicator takes 150 MiB, and as much again in its first collective.
    let variables = [
        ("SOFTGPU_MEMORY_GIB", Some("0.33")),
        ("SOFTGPU_LIBRARY_MIB", Some("1,0.01,150")),
        ("SOFTGPU_DEVICES", Some("2")),
    ];
    let arguments = [
        "score",
        "--device",
        "cuda",
        "--ranks",
        "2",
        "--gpu-reserve-gib",
        "0",
        "--max-tokens",
        "64",
        "--model",
    ];
    let run = kudos_in(&variables, &[&arguments[..], &[model.to_str().unwrap(), "-"]].concat(), LINE);
    assert_error(&run, &["out of memory", "NCCL's buffers did not fit", "--batch-tokens"]);
    assert!(!run.stderr.contains("in a pass of"), "{}", run.stderr);
    assert!(!run.stderr.contains("running on"), "{}", run.stderr);
    // By default, as much is left to it.
    let arguments: Vec<&str> =
        arguments.iter().copied().filter(|part| !["--gpu-reserve-gib", "0"].contains(part)).collect();
    let run = kudos_in(&variables, &[&arguments[..], &[model.to_str().unwrap(), "-"]].concat(), LINE);
    assert_error(&run, &["1.25 for libraries", "the GPU has 0.3"]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_hang_is_noticed_before_the_launch_queue_is_full() {
    let folder = tempfile::tempdir().unwrap();
    // Some 1,800 launches a pass, all of them queued behind the first all-reduce.
    random_model(folder.path(), ModelSizes { hidden: 128, ffn: 128, layers: 180, vocab: 64 });
    let input = folder.path().join("in.jsonl");
    fs::write(&input, LINE).unwrap();
    // Collectives of rank 1: the first two are those of the open.
    for fault in ["1/hang:1", "1/hang:3"] {
        a_hang_is_noticed(folder.path(), &input, fault);
    }
}

fn a_hang_is_noticed(folder: &Path, input: &Path, fault: &str) {
    let variables = [("SOFTGPU_DEVICES", Some("2")), ("SOFTGPU_FAIL", Some(fault))];
    let arguments =
        ["score", "--device", "cuda", "--ranks", "2", "--peer-timeout", "3", "--max-tokens", "16"];
    let model = ["--model", folder.to_str().unwrap(), input.to_str().unwrap()];
    let begun = Instant::now();
    let run = kudos_in(&variables, &[&arguments[..], &model].concat(), "");
    assert_error(&run, &["waiting for the other ranks: one did not come within 3 s"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_longest_conversation_keeps_all_layers_on_the_gpu() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), ModelSizes { hidden: 128, ffn: 128, layers: 3, vocab: 64 });
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let longer = text.replace("\"max_position_embeddings\":512", "\"max_position_embeddings\":131072");
    assert_ne!(text, longer);
    fs::write(&config, longer).unwrap();
    let line = format!("{{\"input_ids\":{:?}}}\n", vec![1; 131_072]);
    let run = |options: &[&str], line: &str| {
        let variables = [
            ("SOFTGPU_MEMORY_GIB", Some("0.08")),
            ("SOFTGPU_LIBRARY_MIB", Some("0,0,0")),
            ("SOFTGPU_DEVICES", Some("1")),
        ];
        let model = ["--model", folder.path().to_str().unwrap(), "-", "--gpu-reserve-gib", "0"];
        kudos_in(&variables, &[&["score", "--device", "cuda"][..], &model, options].concat(), line)
    };
    let refused = run(&[], &line);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    for part in ["the conversation has 131072 tokens, the limit is ", "the GPU's memory", "`--max-tokens`"] {
        assert!(refused.stdout.contains(part), "`{part}` is not in {}", refused.stdout);
    }
    assert!(!refused.stderr.contains("streamed"), "{}", refused.stderr);
    // The model's own limit needs more memory than there is.
    assert_error(&run(&["--max-tokens", "131072"], LINE), &["the model needs 0."]);
    assert_eq!(run(&[], LINE).status, Some(0));
}
