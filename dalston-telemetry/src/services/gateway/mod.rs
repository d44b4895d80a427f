//! The gateway: metrics of its HTTP API and of WebSocket connections.

mod metrics;

pub use super::http::HttpMethod;
pub use metrics::*;
