//! The queues of a deployment: their metrics, and the exporter that reads them from Redis.

#[cfg(feature = "queue-exporter")]
pub mod exporter;
mod metrics;

pub use metrics::*;
