//! The servers do what the tests that use them rely on.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod proxy;
mod redis;
mod s3;
