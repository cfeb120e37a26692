//! Descriptions of the server: its model, its health, its metrics.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::schema::{Failed, Health, Models, Version};
use crate::app::App;
use crate::body::{json_response, typed_response};

/// Lists the model, as OpenAI's interface does
#[utoipa::path(get, path = "/v1/models", tag = "server", responses(
    (status = 200, body = Models), (status = "4XX", body = Failed),
))]
pub(super) async fn models(State(app): State<App>) -> Response {
    let names = match &app.options.served_model_names[..] {
        [] => vec![app.options.name().to_owned()],
        names => names.to_vec(),
    };
    let model = |name: &String| {
        json!({
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "kudos",
            "max_model_len": app.engine.plan().max_tokens,
        })
    };
    let models: Vec<_> = names.iter().map(model).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

/// Describes the model as SGLang does
#[utoipa::path(get, path = "/get_model_info", tag = "vLLM and SGLang", responses(
    (status = 200, body = Object), (status = "4XX", body = Failed),
))]
pub(super) async fn model_info(State(app): State<App>) -> Response {
    let info = json!({"model_path": app.options.name(), "tokenizer_path": null, "is_generation": false});
    json_response(StatusCode::OK, &info)
}

/// Says whether the engine works
///
/// Status 503 once it has failed: the process has to be started again.
#[utoipa::path(get, path = "/health", tag = "server", security(()), responses(
    (status = 200, body = Health), (status = "4XX", body = Failed), (status = 503, body = Health),
))]
pub(super) async fn health(State(app): State<App>) -> Response {
    match app.engine.failure() {
        None => json_response(StatusCode::OK, &json!({"healthy": true})),
        Some(error) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"healthy": false, "reason": error.to_string()}),
        ),
    }
}

/// Says whether the server should get requests
///
/// Status 503 until the canary has its expected reward, after that drifts, and while the server ends.
#[utoipa::path(get, path = "/ready", tag = "server", security(()), responses(
    (status = 200, body = Health), (status = "4XX", body = Failed), (status = 503, body = Health),
))]
pub(super) async fn ready(State(app): State<App>) -> Response {
    match app.not_ready() {
        None => json_response(StatusCode::OK, &json!({"ready": true})),
        Some(reason) => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"ready": false, "reason": reason}))
        }
    }
}

/// Shows counts in the text format of OpenMetrics
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
    (status = "4XX", body = Failed),
))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.metrics.text(&app.engine, app.scheduler.waiting(), app.not_ready().is_none());
    typed_response(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
}

/// Names the version
#[utoipa::path(get, path = "/version", tag = "server", responses(
    (status = 200, body = Version), (status = "4XX", body = Failed),
))]
pub(super) async fn version() -> Response {
    json_response(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn openapi(description: String) -> Response {
    typed_response(StatusCode::OK, "application/json", description)
}
