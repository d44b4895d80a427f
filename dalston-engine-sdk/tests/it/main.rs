//! Behaviour of the public API.

#![allow(clippy::unwrap_used)] // A failing test may panic.

mod asynchronous;
#[cfg(feature = "audio")]
mod audio;
mod batching;
mod breaker;
mod broker;
mod direct;
mod hazards;
#[cfg(feature = "worker")]
mod http;
mod interruption;
mod leases;
#[cfg(feature = "worker")]
mod models;
mod pipeline;
mod protocol;
#[cfg(feature = "realtime")]
mod realtime;
#[cfg(feature = "redis")]
mod redis_wire;
#[cfg(feature = "redis")]
mod registry;
#[cfg(feature = "s3")]
mod results;
mod rig;
mod runner;
#[cfg(all(feature = "realtime", feature = "tch"))]
mod silero;
mod stage;
#[cfg(feature = "worker")]
mod support;
mod task_telemetry;
#[cfg(feature = "worker")]
mod tls;
#[cfg(feature = "tch")]
mod torch;
#[cfg(feature = "worker")]
mod worker;
