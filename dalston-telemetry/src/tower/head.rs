//! The span of a request, from the header of the request.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry::{Context, KeyValue, Value};
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::propagate;
use crate::redact;
use crate::services::attr;
use crate::services::http::HttpMethod;

/// The template of a route.
#[derive(Clone)]
pub(super) enum Route {
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
    Found(String),
}

impl Route {
    pub(super) fn as_str(&self) -> &str {
        match self {
            #[cfg(feature = "axum")]
            Self::Matched(path) => path.as_str(),
            Self::Found(template) => template,
        }
    }
}

/// The header of a request, and the span that it opened.
pub(super) struct Head {
    pub(super) method: HttpMethod,
    pub(super) route: Option<Route>,
    pub(super) span: Span,
    /// The context of the caller, if the span continues it.
    pub(super) carried: Context,
}

impl Head {
    /// Opens the span. With `trusted`, it continues the trace of the caller, else it links to it.
    pub(super) fn open(parts: &Parts, route: Option<Route>, trusted: bool) -> Self {
        let method = HttpMethod::from(&parts.method);
        let caller = propagate::extract_headers(&parts.headers);
        let carried = match trusted {
            true => caller.clone(),
            false => Context::new(),
        };
        // The name is made only if a layer wants the span. The empty fields reserve memory for the
        // attributes that follow.
        let span = info_span!(
            parent: None,
            "http.request",
            otel.name = span_name(method, route.as_ref().map(Route::as_str)),
            otel.kind = "server",
            request_id = Empty,
            path = Empty,
            route = Empty,
            query = Empty,
            user_agent = Empty,
            server = Empty,
            port = Empty,
            method = Empty,
            scheme = Empty,
            version = Empty,
            status = Empty,
            size = Empty,
        );
        // Fails only without an OpenTelemetry layer, and then there are no spans.
        let _ = span.set_parent(carried.clone());
        if !trusted && caller.has_active_span() {
            span.add_link(caller.span().span_context().clone());
        }
        Self {
            method,
            route,
            span,
            carried,
        }
    }

    /// The span of the request, or that of the caller while tracing is off.
    pub(super) fn trace(&self) -> SpanContext {
        let own = self.span.context().span().span_context().clone();
        match own.is_valid() {
            true => own,
            false => self.carried.span().span_context().clone(),
        }
    }

    /// Sets the attributes of the request. With `duplicate`, also those of earlier conventions.
    pub(super) fn set_attributes(&self, parts: &Parts, request_id: Arc<str>, duplicate: bool) {
        let context = self.span.context();
        let span = context.span();
        let set = |name: &'static str, value: Value| span.set_attribute(KeyValue::new(name, value));
        let set_text = |name, value: &str| set(name, redact::text(value).into_owned().into());
        set(attr::REQUEST_ID, request_id.into());
        set_text(attr::URL_PATH, parts.uri.path());
        if let Some(route) = &self.route {
            set(attr::HTTP_ROUTE, route.as_str().to_owned().into());
        }
        if let Some(query) = parts.uri.query() {
            // With the `?`, names of parameters that sign a request are recognised.
            let query = format!("?{query}");
            let query = redact::text(&query);
            let query = query.strip_prefix('?').unwrap_or(&query).to_owned();
            set(attr::URL_QUERY, query.into());
        }
        if let Some(agent) = header_text(&parts.headers, header::USER_AGENT) {
            set_text(attr::USER_AGENT_ORIGINAL, agent);
        }
        if self.method == HttpMethod::Unknown {
            set_text(attr::HTTP_REQUEST_METHOD_ORIGINAL, parts.method.as_str());
        }
        if let Some((host, port)) = host(&parts.uri, &parts.headers) {
            set_text(attr::SERVER_ADDRESS, host);
            if let Some(port) = port {
                set(attr::SERVER_PORT, i64::from(port).into());
            }
        }
        let scheme = match parts.uri.scheme_str() {
            Some("https") => "https",
            _ => "http",
        };
        let version = match parts.version {
            http::Version::HTTP_10 => "1.0",
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_3 => "3",
            _ => "1.1",
        };
        set(attr::HTTP_REQUEST_METHOD, self.method.as_str().into());
        if duplicate {
            set(attr::HTTP_METHOD, self.method.as_str().into());
        }
        set(attr::URL_SCHEME, scheme.into());
        set(attr::NETWORK_PROTOCOL_VERSION, version.into());
    }
}

/// The status that grants another protocol, such as WebSocket, if the request asks for one.
pub(super) fn status_of_upgrade(parts: &Parts) -> Option<StatusCode> {
    if parts.method == Method::CONNECT {
        // The extended CONNECT of HTTP/2.
        return Some(StatusCode::OK);
    }
    let asks = parts.headers.contains_key(header::UPGRADE);
    asks.then_some(StatusCode::SWITCHING_PROTOCOLS)
}

/// Whether the body is a file, by its type.
pub(super) fn is_upload(headers: &HeaderMap) -> bool {
    const FILES: [&str; 4] = [
        "multipart/form-data",
        "audio/",
        "video/",
        "application/octet-stream",
    ];
    let kind = header_text(headers, header::CONTENT_TYPE).unwrap_or_default();
    FILES.iter().any(|file| {
        let start = kind.as_bytes().get(..file.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(file.as_bytes()))
    })
}

fn span_name(method: HttpMethod, route: Option<&str>) -> String {
    // OpenTelemetry's word for a method without a name.
    let method = match method {
        HttpMethod::Unknown => "HTTP",
        known => known.as_str(),
    };
    match route {
        Some(route) => [method, " ", route].concat(),
        None => method.to_owned(),
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<(&'a str, Option<u16>)> {
    if let Some(host) = uri.host() {
        return Some((host, uri.port_u16()));
    }
    let host = header_text(headers, header::HOST)?;
    // The port of `[::1]` is not within the brackets.
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => Some((name, port.parse().ok())),
        _ => Some((host, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_told_apart() {
        let headers = |host: &str| HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
        let uri = Uri::from_static("/v1/jobs");
        assert_eq!(host(&uri, &headers("a:8000")), Some(("a", Some(8000))));
        assert_eq!(host(&uri, &headers("a")), Some(("a", None)));
        assert_eq!(host(&uri, &headers("[::1]:80")), Some(("[::1]", Some(80))));
        assert_eq!(host(&uri, &headers("[::1]")), Some(("[::1]", None)));
        let absolute = Uri::from_static("http://b:81/x");
        assert_eq!(host(&absolute, &headers("a")), Some(("b", Some(81))));
    }

    #[test]
    fn uploads_are_known_by_their_type() {
        let upload = |kind: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
            is_upload(&headers)
        };
        assert!(upload("Multipart/form-data; boundary=x") && upload("audio/wav"));
        assert!(!upload("application/json") && !is_upload(&HeaderMap::new()));
    }
}
