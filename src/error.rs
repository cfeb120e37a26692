//! [`Error`]: a failure, its place, and a hint for the user.
//!
//! One type serves the whole library. It is `Clone`, because the failure of one pass completes many
//! requests. `{}` prints one line, `{:#}` the report that the commands print:
//!
//! ```text
//! error: tensor `model.norm.weight` has shape [64], expected [128]
//!   at models/rm/model.safetensors (config.json: hidden_size 128)
//!
//! hint: the weights and config.json are from different models; point `--model` at the folder they came from
//! ```

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of the library's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: its [kind](ErrorKind) to match on, a message, a place, a cause, and a hint.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    /// The message without the causes.
    summary: String,
    /// The summary, and the causes after it.
    message: String,
    cause: Option<Arc<dyn StdError + Send + Sync>>,
    place: Option<String>,
    hint: Option<String>,
}

/// The kind of an [`Error`]. Callers match on this; messages may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder could not be read or written.
    Io,
    /// An option has a value that cannot work (a rank count that the model does not divide into,
    /// zero threads).
    Options,
    /// `config.json` is missing something, contradicts itself, or is not JSON.
    Config,
    /// The model needs something that is not implemented and would change its rewards.
    Unsupported,
    /// A weight file is damaged, or its tensors are not the ones that `config.json` describes.
    Weights,
    /// `tokenizer.json` or `tokenizer_config.json` is missing or cannot be used.
    Tokenizer,
    /// The chat template is missing, cannot be parsed, or refused this conversation.
    Template,
    /// The input cannot be scored: bad JSON, no messages, content of a wrong type, ids outside the
    /// vocabulary.
    InvalidInput,
    /// A conversation has more tokens than the model or the options allow.
    TooLong {
        /// Its length in tokens.
        tokens: usize,
        /// The limit it is over, in tokens.
        limit: usize,
    },
    /// A reward came out as NaN or infinite.
    NonFinite,
    /// The engine's queue is full.
    QueueFull,
    /// The device or the machine has too little memory.
    Memory,
    /// The device or its driver is missing or failed.
    Device,
    /// The engine was closed, or stopped after an earlier failure.
    Stopped,
}

impl ErrorKind {
    /// Returns the kind's name in machine-readable output, in `snake_case`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Options => "options",
            Self::Config => "config",
            Self::Unsupported => "unsupported",
            Self::Weights => "weights",
            Self::Tokenizer => "tokenizer",
            Self::Template => "template",
            Self::InvalidInput => "invalid_input",
            Self::TooLong { .. } => "too_long",
            Self::NonFinite => "non_finite",
            Self::QueueFull => "queue_full",
            Self::Memory => "memory",
            Self::Device => "device",
            Self::Stopped => "stopped",
        }
    }
}

impl Error {
    /// Makes an error of `kind`. `message` is one sentence without a period: what was found, and
    /// what was expected.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let summary = message.into();
        let message = summary.clone();
        Self(Box::new(Inner { kind, summary, message, cause: None, place: None, hint: None }))
    }

    /// Sets the cause, which [`source`](StdError::source) returns.
    pub fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        let mut next: Option<&dyn StdError> = Some(&cause);
        while let Some(error) = next {
            self.0.message += &format!(": {error}");
            next = error.source();
        }
        self.0.cause = Some(Arc::new(cause));
        self
    }

    /// Sets the place: a file, a tensor, a line, a rank. Replaces an earlier one.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(place.to_string());
        self
    }

    /// Sets the hint: what the user can do about the failure. Replaces an earlier one.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts `prefix: ` before the message.
    pub fn prefixed(mut self, prefix: impl fmt::Display) -> Self {
        let prefix = format!("{prefix}: ");
        self.0.summary.insert_str(0, &prefix);
        self.0.message.insert_str(0, &prefix);
        self
    }

    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the message with the causes, without place and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the place of the failure, where it is known.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    /// Returns what the user can do about the failure, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Returns message, causes, place and hint on several lines, as `{:#}` prints them.
    pub fn report(&self) -> String {
        format!("{self:#}")
    }
}

/// `{}` is one line, without causes and hint; `{:#}` is the [report](Error::report).
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return match self.place() {
                Some(place) => write!(f, "{place}: {}", self.0.summary),
                None => f.write_str(&self.0.summary),
            };
        }
        f.write_str(self.message())?;
        if let Some(place) = self.place() {
            write!(f, "\n  at {place}")?;
        }
        if let Some(hint) = self.hint() {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn one_line_names_the_place_and_the_report_has_all() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = Error::new(ErrorKind::Io, "the file cannot be read").caused_by(cause);
        let error = error.at("rm/config.json").with_hint("name a folder");
        assert_eq!(error.to_string(), "rm/config.json: the file cannot be read");
        assert_eq!(error.message(), "the file cannot be read: no such file");
        assert_eq!(
            error.report(),
            "the file cannot be read: no such file\n  at rm/config.json\n\nhint: name a folder"
        );
        let cause = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
        assert!(Error::new(ErrorKind::Io, "x").source().is_none());
    }
}
