//! The services of the platform: each has a folder with its metrics and the names of its spans.

pub mod audio_pipeline;
pub mod engine;
pub mod gateway;
pub mod http;
mod message;
mod names;
pub mod orchestrator;
pub mod queue;
pub mod realtime;
pub mod service_name;
pub mod session_router;
mod step;
pub mod webhook;

pub use message::MessageContext;
pub use names::{Name, SpanNames, attr, event};
