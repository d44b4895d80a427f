//! Look at telemetry in tests: spans, and whole traces compared with one literal (feature `testing`).
//!
//! Nothing here touches anything global, so tests run side by side.

mod telemetry;
mod tree;

pub use telemetry::TestTelemetry;
pub use tree::{ParseTreeError, SpanTree, TreeMismatch};
