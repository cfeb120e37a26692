//! The paths that are served, and their description in OpenAPI.

mod dialect;
mod forms;
mod info;
mod lines;
mod page;
mod rewards;
mod schema;
mod tei;
mod tokens;
mod trainers;
mod vllm;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use lines::LINES_KIB;

use crate::app::{self, App};
use crate::failure::Failure;
use crate::guard;

/// Rewards from a reward model.
#[derive(OpenApi)]
#[openapi(info(
    title = "kudos",
    description = "Rewards from reward models: raw logits, the same bits whatever else is scored at the time. \
                   `docs/server.md` describes each path."
))]
struct Description;

/// Returns the routes of a server.
pub(crate) fn router(app: App) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(rewards::rewards))
        .routes(routes!(rewards::render))
        .routes(routes!(trainers::get_reward))
        .routes(routes!(trainers::root, page::index))
        .routes(routes!(vllm::classify, vllm::put_classify))
        .routes(routes!(vllm::v1_classify))
        .routes(routes!(vllm::encode))
        .routes(routes!(vllm::pooling))
        .routes(routes!(vllm::embeddings))
        .routes(routes!(vllm::score))
        .routes(routes!(vllm::v1_score))
        .routes(routes!(vllm::rerank))
        .routes(routes!(vllm::v1_rerank))
        .routes(routes!(vllm::v2_rerank))
        .routes(routes!(tei::predict))
        .routes(routes!(tei::info))
        .routes(routes!(tei::chat_completions))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::detokenize))
        .routes(routes!(info::models))
        .routes(routes!(info::model_info))
        .routes(routes!(info::health))
        .routes(routes!(info::ready))
        .routes(routes!(info::metrics))
        .routes(routes!(info::version))
        .split_for_parts();
    let description = complete(description, app.options.api_key.is_some()).to_string();
    page::with_page(router)
        .route("/openapi.json", axum::routing::get(move || info::openapi(description.clone())))
        .fallback(|| async {
            let message = "there is nothing at this path";
            Failure::new(StatusCode::NOT_FOUND, "not_found", message)
                .with_hint("/openapi.json lists the paths; rewards are at /v1/rewards")
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path has another method";
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", message)
                .with_hint("/openapi.json lists the methods")
        })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .layer(from_fn_with_state(app.clone(), app::accept))
        .with_state(app)
}

/// Returns the description with its version, and with the key where requests need one.
fn complete(mut description: utoipa::openapi::OpenApi, needs_key: bool) -> Value {
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    if needs_key {
        let components = description.components.get_or_insert_default();
        for (name, scheme) in [("bearer", HttpAuthScheme::Bearer), ("basic", HttpAuthScheme::Basic)] {
            let scheme = HttpBuilder::new().scheme(scheme).build();
            components.add_security_scheme(name, SecurityScheme::Http(scheme));
            let requirement = SecurityRequirement::new(name, [""; 0]);
            description.security.get_or_insert_default().push(requirement);
        }
    }
    let mut description = serde_json::to_value(description).expect("the description is JSON");
    one_or_more(&mut description);
    description
}

/// Makes each `oneOf` an `anyOf`: a value may have several of the forms, as an empty list has.
fn one_or_more(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(forms) = fields.remove("oneOf") {
                fields.insert("anyOf".to_owned(), forms);
            }
            fields.values_mut().for_each(one_or_more);
        }
        Value::Array(items) => items.iter_mut().for_each(one_or_more),
        _ => {}
    }
}
