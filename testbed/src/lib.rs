//! Real servers for tests and benchmarks. Each listens on a free port, keeps its files in its own
//! directory or in memory, and ends when its value is dropped.
//!
//! The callers are tests, so errors are panics.

#![allow(clippy::unwrap_used)]

mod clock;
pub mod collector;
mod imds;
mod prometheus;
mod proxy;
mod redis;
pub mod report;
mod s3;
mod tls;

pub use self::clock::{clock_ahead, clock_from};
pub use self::imds::{ImdsFault, TestImds};
pub use self::prometheus::{TestPrometheus, parse_open_metrics, promtool};
pub use self::proxy::Proxy;
pub use self::redis::{Fsync, RedisBuilder, TestRedis};
pub use self::s3::{Fault, StoredObject, TestS3, Trouble};
pub use self::tls::Authority;

pub use ::redis::Value as RedisValue;
