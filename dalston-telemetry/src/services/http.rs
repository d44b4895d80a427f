//! HTTP requests to a service: the label of their method, and the trait of their metrics.

use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use crate::metrics::Exemplar;

crate::label! {
    /// The method of a request.
    pub enum HttpMethod = "method" {
        Get => "GET",
        Head => "HEAD",
        Post => "POST",
        Put => "PUT",
        Patch => "PATCH",
        Delete => "DELETE",
        Options => "OPTIONS",
        Connect => "CONNECT",
        Trace => "TRACE",
        /// Another method. The name is that of OpenTelemetry.
        Unknown => "_OTHER",
    }
}

impl From<&Method> for HttpMethod {
    fn from(method: &Method) -> Self {
        match method.as_str() {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "CONNECT" => Self::Connect,
            "TRACE" => Self::Trace,
            _ => Self::Unknown,
        }
    }
}

/// The header with the id of a request.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The header with the id of the trace of a request.
pub const TRACE_ID_HEADER: HeaderName = HeaderName::from_static("x-trace-id");

/// The status of a request whose client has disconnected before the end of the response. Proxies
/// use the same number.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request that has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct EndedRequest<'a> {
    /// The method.
    pub method: HttpMethod,
    /// The template of the route, for example `/v1/jobs/{id}`. `None` if no route matched.
    pub route: Option<&'a str>,
    /// The status. 499 if the client has disconnected, also in the middle of the response.
    pub status: StatusCode,
    /// The time from the header of the request to the header of the response, or to the end of the
    /// request if there was no response.
    pub time: Duration,
    /// Received bytes of an uploaded file; 0 for a request without one.
    pub uploaded: u64,
    /// The span of the request, if it is sampled.
    pub exemplar: Option<Exemplar>,
}

#[cfg(feature = "tower")]
impl<'a> EndedRequest<'a> {
    pub(crate) fn new(method: HttpMethod, route: Option<&'a str>, status: StatusCode) -> Self {
        Self {
            method,
            route,
            status,
            time: Duration::ZERO,
            uploaded: 0,
            exemplar: None,
        }
    }
}

/// Metrics of the HTTP requests of a service, for `tower::HttpLayer` (feature `tower`).
///
/// [`GatewayMetrics`](super::gateway::GatewayMetrics) and
/// [`DirectMetrics`](super::engine::DirectMetrics) implement it.
pub trait RequestMetrics: Send + Sync {
    /// A request was received.
    fn begun(&self) {}

    /// A request has ended. Called once for each [`begun`](Self::begun): at the end of the
    /// response, or for a WebSocket with the status 101.
    fn ended(&self, request: &EndedRequest<'_>);

    /// A WebSocket was opened.
    fn websocket_opened(&self) {}

    /// A WebSocket was closed. Called once for each [`websocket_opened`](Self::websocket_opened).
    fn websocket_closed(&self) {}
}
