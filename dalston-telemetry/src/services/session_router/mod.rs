//! The router of realtime sessions: metrics of workers and allocations.

mod metrics;
mod worker_gauge;

pub use metrics::*;
