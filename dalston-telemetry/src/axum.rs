//! For services that are built with axum.

use axum::http::{HeaderMap, header};
use axum::routing::{MethodRouter, get};

use crate::metrics::Metrics;

/// A route that serves metrics in the format that the client asks for.
///
/// ```
/// use axum::Router;
/// use dalston_telemetry::metrics::Metrics;
///
/// let metrics = Metrics::new();
/// let router: Router = Router::new().route("/metrics", dalston_telemetry::axum::metrics(metrics));
/// ```
pub fn metrics<S: Clone + Send + Sync + 'static>(metrics: Metrics) -> MethodRouter<S> {
    get(move |headers: HeaderMap| {
        let accept = headers.get_all(header::ACCEPT);
        let accept = accept.iter().filter_map(|value| value.to_str().ok());
        let (content_type, text) = metrics.encode_for(accept);
        async move { ([(header::CONTENT_TYPE, content_type)], text) }
    })
}
