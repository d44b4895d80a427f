//! The span of a WebSocket: [`UpgradeSpan`] and [`WebSocketSession`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::KeyValue;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::exchange::Exchange;
use crate::logs::context::LogContext;
use crate::services::attr;

/// How many events a session may add to its span.
const MAX_EVENTS: u32 = 64;

/// The span of a request that asks for another protocol: in its extensions, and an extractor for
/// axum (feature `axum`).
///
/// Take it in the handler and [`open`](Self::open) it where the connection is upgraded. If it is
/// dropped instead, the span ends.
///
/// ```
/// use dalston_telemetry::tower::UpgradeSpan;
///
/// async fn serve(upgrade: UpgradeSpan) {
///     let mut session = upgrade.open();
///     session.id("sess_0123456789abcdef");
///     session.received(3_200);
///     session.sent(120);
///     session.closed(1000);
/// }
/// ```
#[derive(Clone, Default)]
pub struct UpgradeSpan {
    slot: Arc<Slot>,
}

#[derive(Default)]
struct Slot(Mutex<Option<(Exchange, LogContext)>>);

impl Slot {
    fn take(&self) -> Option<(Exchange, LogContext)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A session that was never opened: the client has left before the upgrade was complete.
impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((exchange, _)) = self.take() {
            exchange.closed(Some("client_disconnected"));
        }
    }
}

impl UpgradeSpan {
    pub(super) fn hand_over(&self, exchange: Exchange, log: LogContext) {
        let mut slot = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some((exchange, log));
    }

    /// Opens the session. Call it after the upgrade: the response with the status 101 has left
    /// then. A second session of one request, or one before the response, records nothing.
    pub fn open(self) -> WebSocketSession {
        let (exchange, log) = self.slot.take().unzip();
        WebSocketSession {
            exchange,
            log: log.unwrap_or_default(),
            messages_received: 0,
            messages_sent: 0,
            received: 0,
            events: 0,
            close_code: None,
        }
    }
}

impl fmt::Debug for UpgradeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradeSpan").finish_non_exhaustive()
    }
}

#[cfg(feature = "axum")]
impl<S: Sync> axum::extract::FromRequestParts<S> for UpgradeSpan {
    type Rejection = std::convert::Infallible;

    /// A request that the layer excludes gets a span that records nothing.
    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// An open WebSocket. Its span, which is that of the request, ends when it is dropped.
///
/// Messages are counted and have no spans of their own: a session of an hour has tens of thousands.
/// A session without [`closed`](Self::closed) has `error.type=client_disconnected`.
#[must_use = "the span ends as soon as the session is dropped"]
pub struct WebSocketSession {
    exchange: Option<Exchange>,
    log: LogContext,
    messages_received: i64,
    messages_sent: i64,
    received: usize,
    events: u32,
    close_code: Option<u16>,
}

impl WebSocketSession {
    /// The span of the session, for [`Instrument`](tracing::Instrument) and for child spans.
    #[must_use]
    pub fn span(&self) -> Span {
        self.exchange
            .as_ref()
            .map_or_else(Span::none, |exchange| exchange.span().clone())
    }

    /// The log context of the request, for
    /// [`with_log_context`](crate::context::WithLogContext::with_log_context).
    #[must_use]
    pub fn log_context(&self) -> LogContext {
        self.log.clone()
    }

    /// Sets the id of the session: `dalston.session_id`, and `session_id` in
    /// [`log_context`](Self::log_context).
    pub fn id(&mut self, id: impl Into<String>) {
        let id = id.into();
        self.log = std::mem::take(&mut self.log).field("session_id", id.clone());
        self.span().set_attribute(attr::SESSION_ID, id);
    }

    /// Counts a received message with so many bytes.
    pub fn received(&mut self, bytes: usize) {
        self.messages_received += 1;
        self.received = self.received.saturating_add(bytes);
    }

    /// Counts a sent message with so many bytes.
    pub fn sent(&mut self, bytes: usize) {
        self.messages_sent += 1;
        if let Some(exchange) = &mut self.exchange {
            exchange.sent(bytes);
        }
    }

    /// Adds an event to the span, for example `vad_endpoint`. The first 64 count.
    pub fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        if self.events < MAX_EVENTS {
            self.events += 1;
            self.span().add_event(name, attributes);
        }
    }

    /// Records the code of the close frame, of whichever side.
    pub fn closed(&mut self, code: u16) {
        self.close_code = Some(code);
    }
}

impl Drop for WebSocketSession {
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.take() else {
            return;
        };
        let span = exchange.span();
        span.set_attribute(attr::WEBSOCKET_MESSAGES_RECEIVED, self.messages_received);
        span.set_attribute(attr::WEBSOCKET_MESSAGES_SENT, self.messages_sent);
        if let Some(code) = self.close_code {
            span.set_attribute(attr::WEBSOCKET_CLOSE_CODE, i64::from(code));
        }
        if let Some(received) = exchange.received() {
            received.add(self.received);
        }
        let error_type = match self.close_code {
            Some(_) => None,
            None if std::thread::panicking() => Some("panic"),
            None => Some("client_disconnected"),
        };
        exchange.closed(error_type);
    }
}

impl fmt::Debug for WebSocketSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketSession").finish_non_exhaustive()
    }
}
