//! The router of realtime sessions: metrics of workers and allocations, and the span of an
//! allocation.

mod metrics;
pub mod spans;
mod steps;
mod worker_gauge;

pub use metrics::*;
pub use steps::{AllocatedWorker, RequestedSession, SessionRouterSteps};
