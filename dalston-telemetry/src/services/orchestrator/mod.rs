//! The orchestrator: metrics of jobs, scheduling and events, and the spans of its steps.

mod metrics;
pub mod spans;
mod steps;

pub use metrics::*;
pub use steps::{EndedJob, EndedTask, OrchestratorSteps, PlannedJob, ReceivedEvent, ScheduledTask};
