//! Rotary position embedding, in the spellings of transformers 4 (`rope_scaling`, `rope_theta`) and
//! 5 (`rope_parameters`).

use serde_json::Value;

use super::fields::{Fields, shown};
use crate::error::{ErrorKind, Result};

/// The base when the file names none.
const THETA_DEFAULT: f64 = 10_000.0;

/// Fields that any rope type may have with the given value, which has no effect.
const NEUTRAL: &[(&str, f64)] = &[("factor", 1.0), ("attention_factor", 1.0), ("partial_rotary_factor", 1.0)];

/// The fields that name the type, and the base.
const COMMON: &[&str] = &["rope_type", "type", "rope_theta"];
/// The other fields of the type `llama3`.
const LLAMA3: &[&str] =
    &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

/// Rotary position embedding: the base and how its frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base (`rope_theta`).
    pub theta: f64,
    /// The change of frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// The change of RoPE's frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// No change.
    Default,
    /// Llama 3.1's rule: long wavelengths divided by `factor`, short ones kept, a linear blend
    /// between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_tokens / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_tokens / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context length before scaling (`original_max_position_embeddings`).
        original_max_tokens: f64,
    },
}

/// Reads either spelling, or both if they agree.
pub(super) fn rope(fields: &Fields, max_tokens: usize) -> Result<Rope> {
    let old = fields.section("rope_scaling")?.map(|section| one(fields, &section, max_tokens)).transpose()?;
    let new =
        fields.section("rope_parameters")?.map(|section| one(fields, &section, max_tokens)).transpose()?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(fields
            .error(ErrorKind::Config, "`rope_scaling` and `rope_parameters` contradict each other")
            .with_hint("remove the one that is wrong")),
        (Some(rope), _) | (None, Some(rope)) => Ok(rope),
        (None, None) => Ok(Rope {
            theta: fields.positive("rope_theta", Some(THETA_DEFAULT))?,
            scaling: RopeScaling::Default,
        }),
    }
}

fn one(top: &Fields, section: &Fields, max_tokens: usize) -> Result<Rope> {
    let rope_type = rope_type(section)?;
    let scaling = match rope_type {
        "default" => {
            refuse_others(section, rope_type, COMMON)?;
            RopeScaling::Default
        }
        "llama3" => {
            refuse_others(section, rope_type, &[COMMON, LLAMA3].concat())?;
            llama3(top, section, max_tokens)?
        }
        other => {
            let message = format!("rope type `{other}` is not implemented (`default` and `llama3` are)");
            return Err(section.error(ErrorKind::Unsupported, message));
        }
    };
    let theta = agreeing(top, section, "rope_theta")?.unwrap_or(THETA_DEFAULT);
    Ok(Rope { theta, scaling })
}

/// Returns `rope_type`, or `type`, its former name.
fn rope_type<'a>(section: &Fields<'a>) -> Result<&'a str> {
    match (section.text("rope_type")?, section.text("type")?) {
        (Some(name), Some(old)) if name != old => {
            let message =
                format!("{} is `{name}`, but {} is `{old}`", section.name("rope_type"), section.name("type"));
            Err(section.error(ErrorKind::Config, message))
        }
        (name, old) => Ok(name.or(old).unwrap_or("default")),
    }
}

fn llama3(top: &Fields, section: &Fields, max_tokens: usize) -> Result<RopeScaling> {
    let low_freq_factor = section.positive("low_freq_factor", None)?;
    let high_freq_factor = section.positive("high_freq_factor", None)?;
    // The blend between the two divides by their difference.
    if high_freq_factor <= low_freq_factor {
        let message = format!(
            "{} {high_freq_factor} is not above {} {low_freq_factor}",
            section.name("high_freq_factor"),
            section.name("low_freq_factor")
        );
        return Err(section.error(ErrorKind::Config, message));
    }
    let original = agreeing(top, section, "original_max_position_embeddings")?;
    Ok(RopeScaling::Llama3 {
        factor: section.positive("factor", None)?,
        low_freq_factor,
        high_freq_factor,
        original_max_tokens: original.unwrap_or(max_tokens as f64),
    })
}

/// Returns a number that the section or the top level may give, or both with one value.
fn agreeing(top: &Fields, section: &Fields, name: &str) -> Result<Option<f64>> {
    let read = |fields: &Fields| match fields.value(name) {
        None => Ok(None),
        Some(_) => fields.positive(name, None).map(Some),
    };
    match (read(section)?, read(top)?) {
        (Some(inner), Some(outer)) if inner != outer => {
            let message = format!("{} is {inner}, but {} is {outer}", section.name(name), top.name(name));
            Err(section.error(ErrorKind::Config, message).with_hint("remove the one that is wrong"))
        }
        (inner, outer) => Ok(inner.or(outer)),
    }
}

fn refuse_others(section: &Fields, rope_type: &str, read: &[&str]) -> Result<()> {
    for (name, value) in section.iter() {
        let neutral = NEUTRAL.iter().any(|&(field, number)| field == name && value.as_f64() == Some(number));
        if read.contains(&name) || neutral || value.is_null() || *value == Value::Bool(false) {
            continue;
        }
        let message = format!(
            "{} is {}, which rope type `{rope_type}` does not read",
            section.name(name),
            shown(value)
        );
        return Err(section
            .error(ErrorKind::Unsupported, message)
            .with_hint("remove it if the model was trained without it"));
    }
    Ok(())
}
