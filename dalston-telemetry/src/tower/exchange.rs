//! A request and its response: [`Exchange`] ends the span and the metrics of both exactly once.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, Status};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::head::Route;
use crate::metrics::Exemplar;
use crate::redact;
use crate::services::http::{CLIENT_CLOSED_REQUEST, EndedRequest, HttpMethod, RequestMetrics};
use crate::services::{attr, event};

/// The length of a message of an exception.
const LONGEST_MESSAGE: usize = 1_000;

/// Counts the received bytes of a request, also after its response.
#[derive(Debug, Default)]
pub(super) struct Received(AtomicU64);

impl Received {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why an exchange has ended without the whole response.
enum Failure {
    /// The client has disconnected.
    Gone,
    /// The handler or the body failed, or panicked.
    Failed,
}

/// A request whose response has not ended. Dropping it means that the client has disconnected, or
/// that the thread panics.
pub(super) struct Exchange {
    span: Span,
    method: HttpMethod,
    route: Option<Route>,
    metrics: Option<Arc<dyn RequestMetrics>>,
    exemplar: Option<Exemplar>,
    /// `None` for a request without a body.
    received: Option<Arc<Received>>,
    is_upload: bool,
    duplicate: bool,
    began: Instant,
    answered_after: Option<Duration>,
    status: Option<StatusCode>,
    sent: u64,
    is_counted: bool,
    is_ended: bool,
}

impl Exchange {
    pub(super) fn begin(
        span: Span,
        trace: &SpanContext,
        (method, route): (HttpMethod, Option<Route>),
        metrics: Option<Arc<dyn RequestMetrics>>,
        received: Option<Arc<Received>>,
        is_upload: bool,
        duplicate: bool,
    ) -> Self {
        if let Some(metrics) = &metrics {
            metrics.begun();
        }
        let exemplar = match span.is_disabled() {
            true => None,
            false => Exemplar::of(trace),
        };
        Self {
            exemplar,
            span,
            method,
            route,
            metrics,
            received,
            is_upload,
            duplicate,
            began: Instant::now(),
            answered_after: None,
            status: None,
            sent: 0,
            is_counted: false,
            is_ended: false,
        }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn received(&self) -> Option<&Arc<Received>> {
        self.received.as_ref()
    }

    fn received_bytes(&self) -> u64 {
        self.received.as_ref().map_or(0, |received| received.get())
    }

    /// Records the header of the response.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.record_status(status);
        if status.is_server_error() {
            self.span
                .set_attribute(attr::ERROR_TYPE, status.as_str().to_owned());
            self.span.set_status(Status::error(""));
        }
    }

    /// Records a panic of the handler, which is answered with 500.
    pub(super) fn panicked(&mut self, message: &str) {
        self.record_status(StatusCode::INTERNAL_SERVER_ERROR);
        self.record_error("panic", Some(message));
    }

    fn record_status(&mut self, status: StatusCode) {
        self.answered_after = Some(self.began.elapsed());
        self.status = Some(status);
        let code = i64::from(status.as_u16());
        self.span.set_attribute(attr::HTTP_RESPONSE_STATUS_CODE, code);
        if self.duplicate {
            self.span.set_attribute(attr::HTTP_STATUS_CODE, code);
        }
    }

    /// Records sent bytes of the response.
    pub(super) fn sent(&mut self, bytes: usize) {
        if self.sent == 0 && bytes > 0 {
            self.span.add_event(event::FIRST_BYTE, Vec::new());
        }
        self.sent += bytes as u64;
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent
    }

    /// Counts the upgrade of the connection. The span stays open.
    pub(super) fn upgraded(&mut self) {
        self.count(self.status.unwrap_or(StatusCode::SWITCHING_PROTOCOLS));
        if let Some(metrics) = &self.metrics {
            metrics.websocket_opened();
        }
    }

    /// Counts the end of an upgraded connection.
    pub(super) fn closed(mut self, error_type: Option<&'static str>) {
        if let Some(metrics) = &self.metrics {
            metrics.websocket_closed();
        }
        if let Some(error_type) = error_type {
            self.span.set_attribute(attr::ERROR_TYPE, error_type);
        }
        self.end(None);
    }

    /// Records the end of the response.
    pub(super) fn finish(mut self) {
        self.end(None);
    }

    /// Records an error of the handler or of the body.
    pub(super) fn fail(mut self, error_type: &'static str) {
        self.record_error(error_type, None);
        self.end(Some(Failure::Failed));
    }

    fn record_error(&self, error_type: &'static str, message: Option<&str>) {
        self.span.set_attribute(attr::ERROR_TYPE, error_type);
        self.span.set_status(Status::error(error_type));
        if let Some(message) = message {
            let message: Cow<'_, str> = redact::text(message);
            let message: String = message.chars().take(LONGEST_MESSAGE).collect();
            let attributes = vec![
                KeyValue::new(attr::EXCEPTION_TYPE, error_type),
                KeyValue::new(attr::EXCEPTION_MESSAGE, message),
            ];
            self.span.add_event(event::EXCEPTION, attributes);
        }
    }

    fn end(&mut self, failure: Option<Failure>) {
        self.is_ended = true;
        let received = self.received_bytes();
        if !self.span.is_disabled() {
            let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            if received > 0 {
                self.span
                    .set_attribute(attr::HTTP_REQUEST_BODY_SIZE, bytes(received));
            }
            self.span
                .set_attribute(attr::HTTP_RESPONSE_BODY_SIZE, bytes(self.sent));
        }
        let status = match failure {
            None => self.status,
            Some(Failure::Gone) => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).ok(),
            Some(Failure::Failed) => Some(StatusCode::INTERNAL_SERVER_ERROR),
        };
        self.count(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    }

    fn count(&mut self, status: StatusCode) {
        if std::mem::replace(&mut self.is_counted, true) {
            return;
        }
        if let Some(metrics) = &self.metrics {
            let mut ended = EndedRequest::new(self.method, self.route.as_ref().map(Route::as_str), status);
            ended.time = self.answered_after.unwrap_or_else(|| self.began.elapsed());
            ended.exemplar = self.exemplar;
            if self.is_upload {
                ended.uploaded = self.received_bytes();
            }
            metrics.ended(&ended);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        if std::thread::panicking() {
            self.record_error("panic", None);
            return self.end(Some(Failure::Failed));
        }
        self.span.set_attribute(attr::ERROR_TYPE, "client_disconnected");
        self.end(Some(Failure::Gone));
    }
}
