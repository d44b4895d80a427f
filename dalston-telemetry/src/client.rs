//! Client spans: requests of this service to others.
//!
//! [`ClientRequest`] is for any HTTP client. With the feature `reqwest`, [`SendTraced`] sends a
//! request of reqwest in a client span and carries the context along:
//!
//! ```
//! # #[cfg(feature = "reqwest")]
//! # async fn example(client: reqwest::Client) -> reqwest::Result<()> {
//! use dalston_telemetry::client::SendTraced;
//!
//! let response = client.get("http://engine:9100/v1/capabilities").send_traced().await?;
//! # let _ = response;
//! # Ok(())
//! # }
//! ```

use std::fmt::Display;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use opentelemetry::trace::Status;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

use crate::logs::context::LogContext;
use crate::propagate;
use crate::redact;
use crate::services::attr;
use crate::services::http::{HttpMethod, REQUEST_ID_HEADER};

/// The span of an HTTP request to another service: `METHOD`, of the kind client, below the current
/// span.
///
/// A request that is dropped without an end was cancelled on purpose, which is no error.
#[derive(Debug)]
#[must_use = "the span ends when it is dropped"]
pub struct ClientRequest {
    span: Span,
}

impl ClientRequest {
    /// Opens the span. Secrets in the URL are masked.
    pub fn begin(method: &Method, url: &Url) -> Self {
        let known = HttpMethod::from(method);
        let name = match known {
            HttpMethod::Unknown => "HTTP",
            known => known.as_str(),
        };
        let span = info_span!("http.client", otel.name = name, otel.kind = "client");
        if !span.is_disabled() {
            span.set_attribute(attr::HTTP_REQUEST_METHOD, known.as_str());
            span.set_attribute(attr::URL_FULL, redact::text(url.as_str()).into_owned());
            if let Some(host) = url.host_str() {
                span.set_attribute(attr::SERVER_ADDRESS, host.to_owned());
            }
            if let Some(port) = url.port_or_known_default() {
                span.set_attribute(attr::SERVER_PORT, i64::from(port));
            }
        }
        Self { span }
    }

    /// Adds the trace context to the headers of the request, and the request id of the current log
    /// context as `X-Request-ID` unless there is one.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let context = match self.span.is_disabled() {
            // The context of the caller of this service, which travels on.
            true => propagate::current_context(),
            false => self.span.context(),
        };
        propagate::inject_headers(&context, headers);
        let request_id = LogContext::current()
            .get("request_id")
            .and_then(|id| HeaderValue::from_str(id).ok());
        if let Some(id) = request_id {
            headers.entry(REQUEST_ID_HEADER).or_insert(id);
        }
    }

    /// The span, to send the request in it.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Records the status of the response. Statuses from 400 are errors of a client.
    pub fn answered(self, status: StatusCode) {
        let code = i64::from(status.as_u16());
        self.span.set_attribute(attr::HTTP_RESPONSE_STATUS_CODE, code);
        if status.is_client_error() || status.is_server_error() {
            self.span
                .set_attribute(attr::ERROR_TYPE, status.as_str().to_owned());
            self.span.set_status(Status::error(""));
        }
    }

    /// Records that there is no response. `kind` is a short static code, for example `timeout`.
    pub fn failed(self, kind: &'static str, error: &impl Display) {
        if !self.span.is_disabled() {
            self.span.set_attribute(attr::ERROR_TYPE, kind);
            let text = redact::text(&error.to_string()).into_owned();
            self.span.set_status(Status::error(text));
        }
    }
}

/// Sends a request of reqwest in a client span.
#[cfg(feature = "reqwest")]
pub trait SendTraced {
    /// Sends the request with the trace context and the request id in its headers. The span ends
    /// with the header of the response.
    ///
    /// # Errors
    ///
    /// As [`reqwest::RequestBuilder::send`].
    fn send_traced(self) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send;
}

#[cfg(feature = "reqwest")]
impl SendTraced for reqwest::RequestBuilder {
    async fn send_traced(self) -> reqwest::Result<reqwest::Response> {
        use tracing::Instrument;

        let (client, request) = self.build_split();
        let mut request = request?;
        let sending = ClientRequest::begin(request.method(), request.url());
        sending.inject(request.headers_mut());
        let span = sending.span().clone();
        let result = client.execute(request).instrument(span).await;
        match &result {
            Ok(response) => sending.answered(response.status()),
            Err(error) if error.is_timeout() => sending.failed("timeout", error),
            Err(error) if error.is_connect() => sending.failed("connect", error),
            Err(error) => sending.failed("request", error),
        }
        result
    }
}
