//! The router of realtime sessions: metrics of workers and allocations.

mod metrics;
mod roster;

pub use metrics::*;
