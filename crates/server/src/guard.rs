//! Checks of where a request comes from: its host, its origin, its key.
//!
//! Browsers send requests for any page that is open in them. `Host` is a name that the page chose,
//! whatever address it resolves to; a name that is not this server's is refused. Addresses are
//! accepted: a page cannot make one lead here. `Origin` must be this server, too.

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION,
    HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::app::App;
use crate::failure::Failure;
use crate::options::{ApiKey, Options};

/// Paths that need no key.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// The names of this server.
#[derive(Debug)]
pub(crate) struct Guard {
    names: Vec<String>,
    /// Those of `names` that were given for it.
    allowed: Vec<String>,
    origins: Vec<String>,
    api_key: Option<ApiKey>,
}

impl Guard {
    /// Makes the guard of a server that is bound to the name or address `bound`.
    pub(crate) fn new(options: &Options, bound: &str) -> Self {
        let allowed: Vec<String> = options.allowed_hosts.iter().map(|name| normalized(name)).collect();
        let names = ["localhost", bound].map(normalized);
        Self {
            names: allowed.iter().cloned().chain(names).collect(),
            allowed,
            origins: options.allowed_origins.clone(),
            api_key: options.api_key.clone(),
        }
    }

    fn check(&self, request: &Request) -> Result<Option<HeaderValue>, Failure> {
        let headers = request.headers();
        let host = self.check_host(headers, request.uri().authority().map(|authority| authority.as_str()))?;
        let allowed = self.check_origin(headers, host)?;
        let needs_key = !OPEN.contains(&request.uri().path()) && request.method() != Method::OPTIONS;
        if let Some(key) = self.api_key.as_ref().filter(|_| needs_key)
            && !given_key(headers).is_some_and(|given| key.is(&given))
        {
            let message = "the request has no API key, or another one";
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "api_key", message)
                .with_hint("send the header `Authorization: Bearer KEY`"));
        }
        Ok(allowed)
    }

    /// Returns the host that the request is addressed to.
    fn check_host<'a>(
        &self,
        headers: &'a HeaderMap,
        authority: Option<&'a str>,
    ) -> Result<Option<&'a str>, Failure> {
        let mut hosts = headers.get_all(HOST).iter();
        let header = hosts.next();
        if hosts.next().is_some() {
            let message = "the request has more than one `Host`";
            return Err(Failure::new(StatusCode::BAD_REQUEST, "host", message));
        }
        let header = header.map(|host| host.to_str().unwrap_or("?"));
        for host in [header, authority].into_iter().flatten() {
            if !self.is_name(name_of(host)) {
                let message = format!("the request is for the host {:?}, which is not this server", host);
                return Err(Failure::new(StatusCode::FORBIDDEN, "host", message)
                    .with_hint("start the server with `--allow-host NAME` for each name that it has"));
            }
        }
        Ok(header.or(authority))
    }

    /// Returns the origin that may read the answer, where it is another one than this server.
    fn check_origin(&self, headers: &HeaderMap, host: Option<&str>) -> Result<Option<HeaderValue>, Failure> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(None) };
        let text = origin.to_str().unwrap_or("?");
        if self.origins.iter().any(|allowed| allowed == text) {
            return Ok(Some(origin.clone()));
        }
        let authority = text.split_once("://").map(|(_, authority)| authority);
        let is_this_server = authority
            .is_some_and(|authority| Some(authority) == host || is_among(&self.allowed, name_of(authority)));
        if is_this_server {
            return Ok(None);
        }
        let message = format!("the request is from a page of another origin, {text:?}");
        Err(Failure::new(StatusCode::FORBIDDEN, "origin", message)
            .with_hint("start the server with `--allow-origin ORIGIN` for pages that may call it"))
    }

    fn is_name(&self, name: &str) -> bool {
        let is_address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        is_address || is_among(&self.names, name)
    }
}

fn is_among(names: &[String], name: &str) -> bool {
    let name = normalized(name);
    names.iter().any(|known| *known == name || known == "*")
}

/// Returns a host's name or address, without the port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn normalized(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Returns the key of a request: a bearer's, or the password of any user, for which browsers ask.
fn given_key(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, rest) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    let user_and_key = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = user_and_key.iter().position(|&byte| byte == b':')?;
    scheme.eq_ignore_ascii_case("basic").then(|| user_and_key[colon + 1..].to_vec())
}

/// Refuses requests that the guard does not let in, and answers what browsers ask before they send
/// one from an allowed origin.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let allowed = match app.guard.check(&request) {
        Ok(allowed) => allowed,
        Err(failure) => return failure.into_response(),
    };
    let mut response = match request.method() {
        &Method::OPTIONS if allowed.is_some() => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, x-timeout-ms"),
        );
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let options = Options {
            allowed_hosts: vec!["Reward.Example.".to_owned()],
            allowed_origins: vec!["https://app.example".to_owned()],
            api_key: Some(ApiKey::new("secret").unwrap()),
            ..Options::default()
        };
        Guard::new(&options, "127.0.0.1")
    }

    /// Returns the kind of the failure of a request with these headers; empty where it is let in.
    fn check(path: &str, headers: &[(&str, &str)]) -> String {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        guard().check(&request).err().map_or_else(String::new, |failure| failure.kind().to_owned())
    }

    #[test]
    fn only_the_server_s_names_and_addresses_are_hosts() {
        for host in [
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.1.2.3",
            "localhost:1",
            "REWARD.example:80",
            "reward.example.",
        ] {
            assert_eq!(check("/health", &[("host", host)]), "", "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8000",
            "",
            "reward.example.evil",
        ] {
            assert_eq!(check("/health", &[("host", host)]), "host", "{host}");
        }
        assert_eq!(check("/health", &[("host", "127.0.0.1"), ("host", "evil.example")]), "host");
        assert_eq!(check("http://evil.example/health", &[("host", "127.0.0.1")]), "host");
    }

    #[test]
    fn only_pages_of_the_server_and_allowed_ones_are_origins() {
        let from = |origin: &str| check("/health", &[("host", "127.0.0.1:8000"), ("origin", origin)]);
        for origin in ["http://127.0.0.1:8000", "https://app.example", "https://reward.example:8443"] {
            assert_eq!(from(origin), "", "{origin}");
        }
        for origin in
            ["http://127.0.0.1:9000", "http://localhost:3000", "null", "https://app.example.evil", ""]
        {
            assert_eq!(from(origin), "origin", "{origin}");
        }
    }

    #[test]
    fn the_key_is_a_bearer_s_or_a_password() {
        let host = ("host", "localhost");
        assert_eq!(check("/v1/rewards", &[host]), "api_key");
        assert_eq!(check("/health", &[host]), "");
        assert_eq!(check("/ready", &[host]), "");
        // `any:secret` and `any:wrong`.
        for (given, kind) in [
            ("Bearer secret", ""),
            ("bearer secret", ""),
            ("Basic YW55OnNlY3JldA==", ""),
            ("Bearer secre", "api_key"),
            ("Bearer secrets", "api_key"),
            ("Basic YW55Ondyb25n", "api_key"),
            ("secret", "api_key"),
            ("Bearer", "api_key"),
        ] {
            assert_eq!(check("/v1/rewards", &[host, ("authorization", given)]), kind, "{given}");
        }
    }
}
