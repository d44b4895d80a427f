//! The audio pipeline: metrics of the way from a voice to its answer.

mod metrics;

pub use metrics::*;
