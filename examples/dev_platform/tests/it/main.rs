//! The platform as real processes, with a real Redis, an S3 server and an OTLP collector.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod boards;
mod browser;
mod client;
mod demo;
mod fixture;
mod guides;
mod job;
mod kills;
mod names;
mod page;
mod page_sessions;
mod page_trace;
mod pictures;
mod proxy;
mod python_engine;
mod retry;
mod rig;
mod rotel;
mod stream;
mod stream_faults;
mod stream_openai;
mod traces;
mod tree;
