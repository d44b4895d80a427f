//! Workers of realtime sessions: metrics of sessions, audio and transcripts.

mod metrics;

pub use metrics::*;
