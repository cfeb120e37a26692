//! Bodies: of requests, read with limits on their bytes and time, and of answers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// Largest bodies that fit into memory at a time.
const BODIES: usize = 4;

/// Bytes of a permit of the budget.
const PERMIT_BYTES: usize = 1 << 10;

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON value.
    Json,
    /// A JSON object on each line.
    Lines,
}

const LINES: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];

/// Returns the form that the headers name. A page elsewhere can make a browser send other types
/// without asking the server.
pub(crate) fn form(headers: &HeaderMap) -> Result<Form, Failure> {
    let unsupported = |message: String| {
        Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message)
            .with_hint("send `Content-Type: application/json`, or application/x-ndjson for lines")
    };
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message = format!("the body is encoded ({encoding:?}), expected it as it is");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", message)
            .with_hint("send it without `Content-Encoding`"));
    }
    let Some(given) = headers.get(CONTENT_TYPE) else {
        return Err(unsupported("the request has no `Content-Type`".to_owned()));
    };
    let essence = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if LINES.contains(&essence.as_str()) {
        return Ok(Form::Lines);
    }
    let is_json = essence == "application/json"
        || essence.strip_prefix("application/").is_some_and(|subtype| subtype.ends_with("+json"));
    if is_json { Ok(Form::Json) } else { Err(unsupported(format!("the body's type is {given:?}"))) }
}

/// The limits of bodies, and a budget for the bytes of all that are in memory.
#[derive(Debug)]
pub(crate) struct Bodies {
    pub(crate) bytes_max: usize,
    pub(crate) timeout: Duration,
    budget: Arc<Semaphore>,
}

/// A body, whose bytes count until this is dropped.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(bytes_max: usize, timeout: Duration) -> Self {
        let budget = Arc::new(Semaphore::new(BODIES * bytes_max.div_ceil(PERMIT_BYTES)));
        Self { bytes_max, timeout, budget }
    }

    /// Reads a body of JSON.
    pub(crate) async fn json(&self, headers: &HeaderMap, body: Body) -> Result<Read, Failure> {
        if form(headers)? != Form::Json {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content_type",
                "this path takes one JSON value, not lines",
            )
            .with_hint("send `Content-Type: application/json`; /v1/rewards takes lines"));
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(length) = length {
            self.check(length)?;
        }
        match tokio::time::timeout(self.timeout, self.read(body)).await {
            Ok(read) => read,
            Err(_) => {
                let message = format!("the body did not arrive within {} s", self.timeout.as_secs_f64());
                Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
            }
        }
    }

    async fn read(&self, mut body: Body) -> Result<Read, Failure> {
        let (mut bytes, mut permit) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Failure::new(StatusCode::BAD_REQUEST, "body", format!("the body cannot be read: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            self.check(bytes.len() + data.len())?;
            self.reserve(bytes.len() + data.len(), &mut permit)?;
            bytes.extend_from_slice(&data);
        }
        Ok(Read { bytes: bytes.freeze(), _permit: permit })
    }

    /// Refuses a body of so many bytes where that is too many.
    pub(crate) fn check(&self, bytes: usize) -> Result<(), Failure> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        let message = format!("the body has {bytes} bytes or more, the limit is {}", self.bytes_max);
        Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            .with_hint("send it in parts, or as lines (`Content-Type: application/x-ndjson`) to /v1/rewards"))
    }

    /// Grows a permit to `bytes`, unless bodies fill the memory for them.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), Failure> {
        let held = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(PERMIT_BYTES).saturating_sub(held);
        let more = Arc::clone(&self.budget).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX));
        let more = more.map_err(|_| {
            let message = "the requests that are being read fill the memory for them";
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).with_retry_after(1)
        })?;
        match permit {
            Some(permit) => permit.merge(more),
            None => *permit = Some(more),
        }
        Ok(())
    }
}

/// Makes a response of a JSON value.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    typed_response(status, "application/json", value.to_string())
}

/// Makes a response of a text whose type is `content_type`.
pub(crate) fn typed_response(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Body>,
) -> Response {
    const NOSNIFF: (HeaderName, HeaderValue) =
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    let content_type = (CONTENT_TYPE, HeaderValue::from_static(content_type));
    (status, [content_type, NOSNIFF], text.into()).into_response()
}
