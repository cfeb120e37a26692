//! The options of a server.

use std::fmt;
use std::time::Duration;

use kudos::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::canary::Canary;

/// Options of a [`Server`](crate::Server). New fields may come with any version: end a literal with
/// `..Options::default()`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model's name in answers, where a request gives none.
    pub model_name: String,
    /// Names of the model. Where there are some, requests for other models are refused, and the
    /// first is the name in answers.
    pub served_model_names: Vec<String>,
    /// Names under which the server may be addressed, besides IP addresses, `localhost` and the
    /// name that it is bound to. `*` is every name.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages elsewhere that may call the server, such as `https://example.org`.
    pub allowed_origins: Vec<String>,
    /// The key that requests must have; none by default.
    pub api_key: Option<ApiKey>,
    /// Limit on the bytes of a request's body, or of a line of a stream.
    pub body_bytes_max: usize,
    /// Tokens that may wait, from which on requests are refused; by default those of 32 passes.
    pub queue_tokens: Option<usize>,
    /// Time for which an idle server waits for more requests when one arrives.
    pub gather: Duration,
    /// Limit on the time of a request, which a request may shorten.
    pub timeout: Option<Duration>,
    /// Limit on the time in which a request's headers arrive, and between two requests of a
    /// connection.
    pub header_timeout: Duration,
    /// Limit on the time in which a request's body arrives, and between two parts of a stream.
    pub body_timeout: Duration,
    /// Limit on connections; more wait to be accepted.
    pub connections_max: usize,
    /// Limit on the time for requests that are under way when the server ends.
    pub drain: Duration,
    /// Conversations whose rewards show that the server works.
    pub canary: Canary,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model_name: "kudos".to_owned(),
            served_model_names: Vec::new(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            api_key: None,
            body_bytes_max: 64 << 20,
            queue_tokens: None,
            gather: Duration::ZERO,
            timeout: None,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            connections_max: 4096,
            drain: Duration::from_secs(30),
            canary: Canary::default(),
        }
    }
}

impl Options {
    /// Returns the model's name in answers.
    pub(crate) fn name(&self) -> &str {
        self.served_model_names.first().unwrap_or(&self.model_name)
    }
}

/// A key that requests must have. Only its digest is kept.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// Takes a key.
    ///
    /// # Errors
    ///
    /// `Options` for an empty one, and for one that a header cannot hold.
    pub fn new(key: &str) -> Result<Self> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "the API key is empty, or has characters other than visible ASCII ones";
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("make one with `openssl rand -hex 32`, for example"));
        }
        Ok(Self(digest(key.as_bytes())))
    }

    /// Returns whether `given` is the key, in a time that does not depend on either.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(&digest(given)).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}
