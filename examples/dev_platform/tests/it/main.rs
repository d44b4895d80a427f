//! The platform as real processes, with a real Redis, an S3 server and an OTLP collector.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod demo;
mod job;
mod kills;
mod rig;
mod tree;
