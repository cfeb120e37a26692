//! [`Failure`]: a request that has no answer but an error, as a response.

use std::borrow::Cow;

use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kudos::internals::results::error_object;
use kudos::{Error, ErrorKind};
use serde_json::{Map, Value, json};

use crate::body::json_response;

/// A request's error: its status, and an object like a line's error.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    /// `kind`, `message`, and `place` and `hint` where they are known.
    fields: Map<String, Value>,
    /// Seconds after which the request may succeed.
    retry_after: Option<u64>,
}

impl Failure {
    /// Makes a failure of a kind that the engine does not have.
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let fields = [("kind", Value::from(kind)), ("message", Value::from(message.into()))];
        let fields = fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        Self { status, fields, retry_after: None }
    }

    /// Makes the failure of a request whose content is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::InvalidInput.name(), message)
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.fields.insert("hint".to_owned(), Value::from(hint.into()));
        self
    }

    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Returns `message` and, after it, the hint.
    pub(crate) fn message(&self) -> Cow<'_, str> {
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str);
        let message = text("message").unwrap_or_default();
        match text("hint") {
            Some(hint) => format!("{message} ({hint})").into(),
            None => message.into(),
        }
    }

    /// Returns the name of the kind.
    pub(crate) fn kind(&self) -> &str {
        self.fields.get("kind").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the fields of a result that is this error.
    pub(crate) fn into_fields(self) -> Map<String, Value> {
        Map::from_iter([("error".to_owned(), Value::Object(self.fields))])
    }

    /// Makes a response with a body of another form than this server's own.
    pub(crate) fn with_body(self, body: &Value) -> Response {
        let mut response = json_response(self.status, body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"kudos\""));
            }
            // What is left of the body is not read.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// An error of a request, where that is all there is to answer.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::InvalidInput
            | ErrorKind::TooLong { .. }
            | ErrorKind::Template
            | ErrorKind::Tokenizer
            | ErrorKind::NonFinite
            | ErrorKind::Options => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, fields: error_object(&error), retry_after: None }
    }
}

/// `{"error": {"kind", "message", "place", "hint", "type", "code"}}`: `type` and `code`, the kind
/// and the status once more, are what clients of OpenAI's interface read.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut error = self.fields.clone();
        error.insert("type".to_owned(), json!(self.kind()));
        error.insert("code".to_owned(), json!(self.status.as_u16()));
        self.with_body(&json!({ "error": error }))
    }
}
