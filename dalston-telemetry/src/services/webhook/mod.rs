//! Webhooks: metrics of deliveries.

mod metrics;

pub use metrics::*;
