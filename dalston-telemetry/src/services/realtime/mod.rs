//! Workers of realtime sessions: metrics of sessions, audio and transcripts, and the spans of a
//! session.

mod metrics;
pub mod spans;
mod steps;

pub use metrics::*;
pub use steps::{
    AudioChunk, GeneratedTranscript, RealtimeSteps, SessionSteps, StartedSession, TranscriptSteps, Utterance,
};
