//! What a request must have: the key of the API, and no page of another site behind it.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Shared;
use super::error::ApiError;

/// Parameters and headers with the key, in the order in which they are tried. A browser can't set
/// headers of a WebSocket.
pub(super) const SECRETS: [&str; 3] = ["token", "api_key", "xi-api-key"];

/// Why a browser is refused.
pub(super) const READ_ONLY: &str = "the page is read-only (DALSTON_PAGE_READ_ONLY)";

/// Whether a client may have a realtime session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Access {
    Granted,
    /// The key is missing or wrong.
    NoKey,
    /// A page of another site asks: the browser would add the key by itself.
    OtherSite,
    /// A browser asks, and the page is read-only.
    ReadOnly,
}

/// Decides about a WebSocket. Its key may also be a parameter, or the header `xi-api-key`.
pub(super) fn decide(
    key: Option<&str>,
    is_read_only: bool,
    headers: &HeaderMap,
    query: &[(String, String)],
) -> Access {
    let parameter = |secret: &str| {
        let found = query.iter().find(|(name, _)| name == secret);
        let header = || headers.get(secret)?.to_str().ok();
        found.map(|(_, value)| value.as_str()).or_else(header)
    };
    let given = || given_key(headers).or_else(|| SECRETS.into_iter().find_map(parameter).map(str::to_owned));
    match key {
        Some(key) if given().as_deref() != Some(key) => Access::NoKey,
        _ if !is_from_here(headers) => Access::OtherSite,
        _ if is_read_only && is_from_browser(headers) => Access::ReadOnly,
        _ => Access::Granted,
    }
}

/// Asks for the key, if there is one: as a bearer token, or from a browser as the password of HTTP
/// Basic with any user name.
pub(super) async fn authorize(
    State(gateway): Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match &gateway.api_key {
        Some(key) if given_key(request.headers()).as_deref() != Some(&**key) => Err(ApiError::unauthorized()),
        _ => Ok(next.run(request).await),
    }
}

fn given_key(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let (_, password) = decoded.split_once(':')?;
    Some(password.to_owned())
}

/// Refuses changes that a page may not make. A page of another site never may: the browser would
/// add the key by itself. The page of this server may not while it is read-only.
pub(super) async fn refuse_pages(
    State(gateway): Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !request.method().is_safe() {
        if !is_from_here(request.headers()) {
            return Err(ApiError::forbidden("a page of another site has sent the request"));
        }
        if gateway.platform.page.is_read_only && is_from_browser(request.headers()) {
            return Err(ApiError::forbidden(READ_ONLY));
        }
    }
    Ok(next.run(request).await)
}

/// Whether a browser has sent a request that is no plain look at a page. Programs set neither of
/// the headers.
fn is_from_browser(headers: &HeaderMap) -> bool {
    headers.contains_key("sec-fetch-site") || headers.contains_key(header::ORIGIN)
}

/// Whether a page of this server has sent a request, or a program that is no browser.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text("origin") else {
        return true;
    };
    let host = origin.split_once("://").map(|(_, host)| host);
    host.is_some() && host == text("host")
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        let pairs =
            pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn key_is_bearer_token_or_password() {
        for value in ["Bearer a:b", "basic dXNlcjphOmI=", "Basic OmE6Yg=="] {
            let given = given_key(&headers(&[("authorization", value)]));
            assert_eq!(given.as_deref(), Some("a:b"), "{value}");
        }
        for value in ["Bearer", "Basic a:b", "Digest a:b", "Basic dXNlcg=="] {
            assert_eq!(given_key(&headers(&[("authorization", value)])), None, "{value}");
        }
    }

    #[test]
    fn websocket_has_its_key_in_a_header_or_a_parameter() {
        let query = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            pairs.collect::<Vec<_>>()
        };
        let with_key =
            |header, pairs: &[(&str, &str)]| decide(Some("k"), false, &headers(header), &query(pairs));
        assert_eq!(with_key(&[("authorization", "Bearer k")], &[]), Access::Granted);
        assert_eq!(with_key(&[("xi-api-key", "k")], &[]), Access::Granted);
        for name in SECRETS {
            assert_eq!(with_key(&[], &[(name, "k")]), Access::Granted, "{name}");
        }
        // The header comes first.
        assert_eq!(
            with_key(&[("authorization", "Bearer x")], &[("token", "k")]),
            Access::NoKey
        );
        assert_eq!(with_key(&[], &[("token", "x"), ("api_key", "k")]), Access::NoKey);
        assert_eq!(with_key(&[], &[]), Access::NoKey);
        let other = [("authorization", "Bearer k"), ("sec-fetch-site", "cross-site")];
        assert_eq!(with_key(&other, &[]), Access::OtherSite);
        assert_eq!(decide(None, false, &headers(&[]), &[]), Access::Granted);
    }

    #[test]
    fn read_only_page_opens_no_session_and_programs_do() {
        let with = |header: &[(&'static str, &'static str)]| decide(None, true, &headers(header), &[]);
        let host = ("host", "here:8000");
        assert_eq!(with(&[host, ("origin", "http://here:8000")]), Access::ReadOnly);
        assert_eq!(with(&[host, ("sec-fetch-site", "same-origin")]), Access::ReadOnly);
        assert_eq!(with(&[host, ("user-agent", "python")]), Access::Granted);
    }

    #[test]
    fn page_of_another_site_is_recognised() {
        let host = ("host", "here:8000");
        for (other, is_here) in [
            (("user-agent", "curl"), true),
            (("sec-fetch-site", "same-origin"), true),
            (("sec-fetch-site", "none"), true),
            (("sec-fetch-site", "same-site"), false),
            (("sec-fetch-site", "cross-site"), false),
            (("origin", "http://here:8000"), true),
            (("origin", "http://here:8001"), false),
            (("origin", "null"), false),
        ] {
            assert_eq!(is_from_here(&headers(&[host, other])), is_here, "{other:?}");
        }
    }
}
