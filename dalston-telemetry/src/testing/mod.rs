//! Look at telemetry in tests: spans, log lines and metrics, and whole traces compared with one
//! literal (feature `testing`).
//!
//! Nothing here touches anything global, so tests run side by side.

mod log_line;
mod telemetry;
mod tree;

pub use log_line::LogLine;
pub use telemetry::TestTelemetry;
pub use tree::{SpanTree, TreeMismatch};
