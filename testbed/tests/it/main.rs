//! Tests of the servers themselves.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod pages;
mod proxy;
mod redis;
mod s3;
