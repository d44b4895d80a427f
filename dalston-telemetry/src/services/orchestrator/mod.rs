//! The orchestrator: metrics of jobs, scheduling and events.

mod metrics;

pub use metrics::*;
