//! Errors as part of the product: what went wrong, where, and what to do about it.
//!
//! One type serves the whole library. It is `Clone`, because the failure of one pass answers many callers. The
//! commands print it as
//!
//! ```text
//! error: tensor `model.norm.weight` has shape [64], expected [128]
//!   at models/rm/model.safetensors (config.json: hidden_size 128)
//!
//! hint: the weights and config.json are from different models; point `--model` at the folder they came from
//! ```

use std::fmt;

/// What the library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: its [kind](ErrorKind) to match on, what happened, where, and a hint.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    place: Option<String>,
    hint: Option<String>,
}

/// What sort of failure an [`Error`] is. Callers match on this; messages may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder could not be read or written.
    Io,
    /// An option has a value that cannot work (a rank count that the model does not divide into, zero threads).
    Options,
    /// `config.json` is missing something, contradicts itself, or is not JSON.
    Config,
    /// The model needs something that is not implemented, and that would change its numbers.
    Unsupported,
    /// A weight file is damaged, or its tensors are not the ones that `config.json` describes.
    Weights,
    /// `tokenizer.json` or `tokenizer_config.json` is missing or cannot be used.
    Tokenizer,
    /// The chat template is missing, cannot be parsed, or refused this conversation.
    Template,
    /// A conversation is not one: bad JSON, no messages, content of a wrong type, ids outside the vocabulary.
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
    /// What is asked for does not fit into memory.
    Memory,
    /// The device or its driver failed, or is not there.
    Device,
    /// The engine has stopped after an earlier failure and scores nothing any more.
    Stopped,
}

impl ErrorKind {
    /// The kind's name in machine-readable output, `snake_case`.
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
    /// An error of `kind` that says `message`: what was found and what was expected, in one sentence, no period.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), place: None, hint: None }))
    }

    /// The same error, saying where: a file, a tensor, a line, a rank. Replaces a place said before.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(place.to_string());
        self
    }

    /// The same error with something the user can do about it. Replaces a hint said before.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error with `prefix: ` before its message: which of several things it befell.
    pub fn prefixed(mut self, prefix: impl fmt::Display) -> Self {
        self.0.message = format!("{prefix}: {}", self.0.message);
        self
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without place and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened, when that is known.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

impl std::error::Error for Error {}
