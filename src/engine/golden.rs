//! Golden bits of every CPU arithmetic, through the engine, on any machine: with the instructions
//! where this CPU has them, and with their emulation everywhere. `tests/golden/` has and describes
//! the file.

#[path = "../../tests/golden/bits.rs"]
#[allow(dead_code, reason = "only tests/golden/main.rs uses all of it")]
mod bits;

use std::path::Path;

use super::handle::Engine;
use super::options::{CpuOptions, Options};
use super::parts::{Parts, Weights};
use super::platform::CpuPlatform;
use crate::backend::cpu::{Arithmetic, TestArithmetic};
use crate::config::ModelConfig;
use crate::error::{Error, ErrorKind};
use crate::shard::allowed_ranks;
use crate::weights::Checkpoint;

/// Tokens of the longest case that emulation computes: tiles in portable code are slow.
const TOKENS_MAX_EMULATED: usize = 129;

fn open(folder: &Path, arithmetic: &Arithmetic, ranks: usize) -> Option<Engine> {
    let config = ModelConfig::read(folder).unwrap();
    if !allowed_ranks(&config).contains(&ranks) {
        return None;
    }
    let cpu = CpuOptions { ranks: Some(ranks), threads: Some(ranks), ..CpuOptions::default() };
    let platform = Box::new(CpuPlatform::with_arithmetic(&cpu, arithmetic.clone()).unwrap());
    let options = Options { device: cpu.into(), ..Options::default() };
    let weights = Weights::Stored(Checkpoint::open(folder).unwrap());
    let whole = weights.part(&config, 0, 1).unwrap();
    let parts = Parts::on(platform, None, config, &options, &weights, whole).unwrap();
    let no_text = Error::new(ErrorKind::Tokenizer, "golden bits are scored from token ids");
    Some(Engine::start(parts, Err(no_text), Vec::new(), options).unwrap())
}

/// Asserts that every arithmetic of a section gives the bits of the file.
fn hold(section: &str) {
    let (name, ranks) = section.split_once(", 2 ranks").map_or((section, 1), |(name, _)| (name, 2));
    let arithmetics = Arithmetic::for_tests().into_iter().filter(|test| test.section == name);
    for TestArithmetic { arithmetic, emulated, .. } in arithmetics {
        let tokens_max = if emulated { TOKENS_MAX_EMULATED } else { usize::MAX };
        bits::hold(section, &arithmetic.instructions(), tokens_max, |folder| {
            let engine = open(folder, &arithmetic, ranks)?;
            Some(move |sequences: &[Vec<u32>]| -> Vec<Vec<f32>> {
                engine
                    .score(sequences.iter().map(Vec::as_slice))
                    .into_iter()
                    .map(|score| score.unwrap().logits)
                    .collect()
            })
        });
    }
}

#[test]
fn bits_of_portable_code_are_golden() {
    hold("portable");
}

#[test]
fn bits_of_avx2_and_avx512_are_golden() {
    hold("f32-vector");
}

#[test]
fn bits_of_avx2_and_avx512_over_two_ranks_are_golden() {
    hold("f32-vector, 2 ranks");
}

#[test]
fn bits_of_f32_matmuls_by_amx_are_golden() {
    hold("f32-amx");
}

#[test]
fn bits_of_f32_matmuls_by_amx_over_two_ranks_are_golden() {
    hold("f32-amx, 2 ranks");
}

#[test]
fn bits_of_bf16_matmuls_by_avx512_are_golden() {
    hold("bf16-avx512");
}

#[test]
fn bits_of_bf16_matmuls_by_amx_are_golden() {
    hold("bf16-amx");
}
