//! Real servers for tests and benchmarks. Each listens on a free port, keeps its files in its own
//! directory or in memory, and ends when its value is dropped.
//!
//! The callers are tests, so errors are panics.

#![allow(clippy::unwrap_used)]

mod clock;
pub mod collector;
mod imds;
pub mod pages;
mod port;
mod prometheus;
mod proxy;
mod python;
mod recording;
mod redis;
pub mod report;
mod rotel;
mod s3;
mod tls;
mod websocket;

pub use self::clock::{clock_ahead, clock_from};
pub use self::imds::{ImdsFault, TestImds};
pub use self::port::free_port;
pub use self::prometheus::{TestPrometheus, parse_open_metrics, promtool, scrape_configs};
pub use self::proxy::Proxy;
pub use self::python::python;
pub use self::recording::stereo_recording;
pub use self::redis::{Fsync, RedisBuilder, TestRedis};
pub use self::rotel::TestRotel;
pub use self::s3::{Fault, StoredObject, TestS3, Trouble};
pub use self::tls::Authority;
pub use self::websocket::WebSocketClient;

pub use ::redis::Value as RedisValue;

/// Prints a warning of a test that passes, for example because a program is missing. The test
/// harness keeps the output of `eprintln!` to itself.
pub fn warn(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("\nwarning: {text}\n").as_bytes());
}
