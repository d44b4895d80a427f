//! Instrumentation of HTTP servers on tower, such as axum: [`HttpLayer`].
//!
//! ```
//! use axum::Router;
//! use axum::routing::get;
//! use dalston_telemetry::metrics::Metrics;
//! use dalston_telemetry::services::gateway::GatewayMetrics;
//! use dalston_telemetry::tower::{HttpLayer, RequestIds};
//!
//! async fn job(ids: RequestIds) -> String {
//!     tracing::info!("job_read"); // carries request_id and trace_id
//!     ids.request_id().to_owned()
//! }
//!
//! let metrics = Metrics::new();
//! let router: Router = Router::new()
//!     .route("/v1/jobs/{id}", get(job))
//!     .layer(
//!         HttpLayer::new()
//!             .metrics(GatewayMetrics::register(&metrics))
//!             .exclude(["/health", "/metrics"]),
//!     );
//! ```
//!
//! # What a request gets
//!
//! - A span `METHOD route`, for example `GET /v1/jobs/{id}`, of the kind server. It continues the
//!   `traceparent` of the caller, has the attributes of OpenTelemetry's conventions for HTTP, and
//!   ends with the body of the response. Without a route, its name is the method alone.
//! - An id: the one in `X-Request-ID` if that has 1 to 128 of `A-Z a-z 0-9 _ . -`, else a new one.
//!   All log lines of the request have it as `request_id`.
//! - The response headers `X-Request-ID` and `X-Trace-ID`, also for errors. [`RequestIds`] in the
//!   request's extensions gives both to the handler.
//! - Metrics, each with the trace as its exemplar ([`RequestMetrics`]).
//! - An answer with the status 500 if the handler panics. The span has the panic as an exception.
//!
//! A client that disconnects before the end of the response leaves the status of the span unset,
//! because that is no error of the server. The span has `error.type=client_disconnected`, and the
//! status in the metrics is 499. Statuses from 500 make the span an error, others do not.
//!
//! # WebSockets
//!
//! The handler of an upgrade takes an [`UpgradeSpan`] from the request and opens it as a
//! [`WebSocketSession`]. The span of the request then ends with the session.
//!
//! # Secrets
//!
//! Of the headers, only `User-Agent` and the host become attributes. Secrets in the query are
//! masked, for example those of presigned URLs ([`redact`](crate::redact)).

mod body;
mod exchange;
mod future;
mod head;
mod ids;
mod layer;
mod websocket;

pub use self::body::{RequestBody, ResponseBody};
pub use self::future::ResponseFuture;
pub use self::ids::RequestIds;
pub use self::layer::{HttpLayer, HttpService};
pub use self::websocket::{UpgradeSpan, WebSocketSession};
pub use crate::services::http::{EndedRequest, RequestMetrics};
