//! Messages to a person on standard error, and the outcome of a command.

use std::io::{self, Write};

use kudos::{DeviceInfo, Error};

/// The outcome of a command that ran to its end.
pub(crate) enum Outcome {
    /// Every line has its result.
    Complete,
    /// Some lines have an error instead.
    SomeFailed,
}

/// Writes a line to standard error. Unlike `eprintln!` it does not panic where that is a closed
/// pipe.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns the report of an error: its context and causes, and place and hint where the library
/// knows them.
pub fn report(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<Error>() {
            parts.push(error.report());
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
}

/// Returns the line that names the device, and the reason where the engine chose it.
pub fn running_on(device: &DeviceInfo) -> String {
    match &device.reason {
        Some(reason) => format!("running on {device}: {reason}"),
        None => format!("running on {device}"),
    }
}
