//! The gateway: metrics of its HTTP API and of WebSocket connections, and the spans of a request
//! that submits a job.

mod metrics;
pub mod spans;
mod submission;

pub use super::http::HttpMethod;
pub use metrics::*;
pub use submission::{CreatedJob, JobSubmission};
