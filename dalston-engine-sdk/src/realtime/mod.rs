//! Realtime sessions: audio comes in over a WebSocket, transcripts go out.
//!
#![doc = include_str!("../../docs/guides/realtime.md")]

mod connection;
mod endpoint;
mod input;
mod lag;
mod messages;
mod openai;
mod parameters;
mod partials;
mod peer;
mod resume;
mod segments;
mod server;
mod session;
mod storage;
mod streaming;
mod vad;
mod wav;

pub use crate::config::RealtimeConfig;
#[cfg(feature = "testing")]
pub(crate) use peer::{Gone, Peer, Received};
pub(crate) use server::RealtimeServer;
#[cfg(feature = "testing")]
pub(crate) use server::parse_query;
