//! The page at `/`, [`index`], and its files. They are in this program, and load nothing from elsewhere.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_FRAME_OPTIONS};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;

use super::schema::Failed;
use crate::app::App;
use crate::body::typed_response;

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($path:literal $content_type:ident $file:literal)*) => {
        [$(($path, $content_type, include_str!(concat!("../../page/", $file)))),*]
    };
}

/// Paths with the types and texts of their files.
const FILES: [(&str, &str, &str); 4] = files!(
    "/page.css" CSS "page.css"
    "/page.js" JS "page.js"
    "/file.js" JS "file.js"
    "/common.js" JS "common.js"
);

/// Headers of every file: a browser runs and shows nothing but these files, and keeps none of them
/// for another version of the server.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
        ),
    ),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

/// Shows a page that scores and compares conversations
#[utoipa::path(get, path = "/", tag = "server", responses(
    (status = 200, body = String, content_type = "text/html"), (status = "4XX", body = Failed),
))]
pub(super) async fn index() -> impl IntoResponse {
    let text = include_str!("../../page/index.html");
    (HEADERS, typed_response(StatusCode::OK, "text/html; charset=utf-8", text))
}

/// Adds the files of the page to a router.
pub(super) fn with_page(router: Router<App>) -> Router<App> {
    let file = |router: Router<App>, (path, content_type, text): (&str, &'static str, &'static str)| {
        router.route(
            path,
            get(move || async move { (HEADERS, typed_response(StatusCode::OK, content_type, text)) }),
        )
    };
    // Browsers ask for it.
    let router = router.route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT.into_response() }));
    FILES.into_iter().fold(router, file)
}
