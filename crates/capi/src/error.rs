//! Failures: their status, and the last one of each thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use kudos::{Error, ErrorKind};

/// The outcome of a call. Values of later versions are added at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum KudosStatus {
    /// The call succeeded.
    Ok = 0,
    /// A file or folder could not be read or written.
    Io = 1,
    /// An option is unknown, or has a value that cannot work.
    Options = 2,
    /// `config.json` is missing something, contradicts itself, or is not JSON.
    Config = 3,
    /// The model needs something that is not implemented and would change its rewards.
    Unsupported = 4,
    /// A weight file is damaged, or its tensors are not the ones that `config.json` describes.
    Weights = 5,
    /// `tokenizer.json` or `tokenizer_config.json` is missing or cannot be used.
    Tokenizer = 6,
    /// The chat template is missing, cannot be parsed, or refused this conversation.
    Template = 7,
    /// The input cannot be scored: bad JSON, no messages, ids outside the vocabulary.
    InvalidInput = 8,
    /// A conversation has more tokens than the model or the options allow.
    TooLong = 9,
    /// A reward came out as NaN or infinite.
    NonFinite = 10,
    /// The engine's queue is full.
    QueueFull = 11,
    /// The device or the machine has too little memory.
    Memory = 12,
    /// The device or its driver is missing or failed.
    Device = 13,
    /// The engine was closed, or stopped after an earlier failure.
    Stopped = 14,
    /// A pointer is NULL, a handle is wrong or closed, or a string is not UTF-8.
    Argument = 15,
    /// The library panicked, which is a bug in it.
    Panic = 16,
    /// A failure of a kind that this version of the C interface does not name.
    Other = 17,
    /// No failure: the result of `kudos_poll` is still being computed.
    NotReady = 18,
}

/// A failure of a call.
#[derive(Debug)]
pub struct Failure {
    status: KudosStatus,
    kind: &'static str,
    message: String,
    place: Option<String>,
    hint: Option<String>,
}

impl Failure {
    /// Makes the failure of an argument.
    pub(crate) fn argument(message: impl Into<String>, hint: &str) -> Self {
        let hint = Some(hint.to_owned());
        Self { status: KudosStatus::Argument, kind: "argument", message: message.into(), place: None, hint }
    }

    /// Makes the failure of a call that panicked.
    pub(crate) fn panic(message: &str) -> Self {
        let message = format!("kudos has a bug: it panicked: {message}");
        Self { status: KudosStatus::Panic, kind: "panic", message, place: None, hint: None }
    }

    /// Returns the failure's status.
    pub(crate) fn status(&self) -> KudosStatus {
        self.status
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            status: status_of(error.kind()),
            kind: error.kind().name(),
            message: error.message().to_owned(),
            place: error.place().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

fn status_of(kind: ErrorKind) -> KudosStatus {
    match kind {
        ErrorKind::Io => KudosStatus::Io,
        ErrorKind::Options => KudosStatus::Options,
        ErrorKind::Config => KudosStatus::Config,
        ErrorKind::Unsupported => KudosStatus::Unsupported,
        ErrorKind::Weights => KudosStatus::Weights,
        ErrorKind::Tokenizer => KudosStatus::Tokenizer,
        ErrorKind::Template => KudosStatus::Template,
        ErrorKind::InvalidInput => KudosStatus::InvalidInput,
        ErrorKind::TooLong { .. } => KudosStatus::TooLong,
        ErrorKind::NonFinite => KudosStatus::NonFinite,
        ErrorKind::QueueFull => KudosStatus::QueueFull,
        ErrorKind::Memory => KudosStatus::Memory,
        ErrorKind::Device => KudosStatus::Device,
        ErrorKind::Stopped => KudosStatus::Stopped,
        _ => KudosStatus::Other,
    }
}

/// The last failure of a thread, as C reads it.
#[derive(Default)]
struct Last {
    kind: Option<CString>,
    message: Option<CString>,
    place: Option<CString>,
    hint: Option<CString>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Keeps a failure as this thread's last one. Has no effect on a thread that is ending, whose
/// variables are gone.
pub(crate) fn keep(failure: Failure) {
    let Failure { kind, message, place, hint, .. } = failure;
    let last = Last {
        kind: Some(c_string(kind)),
        message: Some(c_string(&message)),
        place: place.as_deref().map(c_string),
        hint: hint.as_deref().map(c_string),
    };
    let _ = LAST.try_with(|slot| slot.replace(last));
}

/// Returns a string without NUL bytes, which would end it early in C.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Returns a part of this thread's last failure, or NULL. The string is freed when a later call on
/// this thread fails.
fn part(field: impl Fn(&Last) -> Option<&CStr>) -> *const c_char {
    let pointer = |last: &RefCell<Last>| field(&last.borrow()).map_or(ptr::null(), CStr::as_ptr);
    LAST.try_with(pointer).unwrap_or(ptr::null())
}

/// Returns the kind of this thread's last failure, in lower case, such as `invalid_input`; NULL
/// where no call on this thread has failed. The string is the library's, and valid until a later
/// call on this thread fails or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_error_kind() -> *const c_char {
    part(|last| last.kind.as_deref())
}

/// Returns the message of this thread's last failure: what was found, and what was expected. Like
/// `kudos_error_kind` otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_error_message() -> *const c_char {
    part(|last| last.message.as_deref())
}

/// Returns the place of this thread's last failure: a file, a tensor, a rank. NULL where it has
/// none. Like `kudos_error_kind` otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_error_place() -> *const c_char {
    part(|last| last.place.as_deref())
}

/// Returns what to do about this thread's last failure. NULL where that is unknown. Like
/// `kudos_error_kind` otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_error_hint() -> *const c_char {
    part(|last| last.hint.as_deref())
}
