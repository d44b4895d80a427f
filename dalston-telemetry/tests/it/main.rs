//! Behaviour that only shows from outside: against collectors, with a whole subscriber.

#![allow(clippy::unwrap_used)]
#![cfg(all(feature = "otlp-grpc", feature = "otlp-http"))]

mod audit;
#[cfg(feature = "ec2")]
mod cloud;
mod delivery;
mod exposition;
mod faults;
#[cfg(all(feature = "axum", feature = "testing"))]
mod http_ends;
#[cfg(all(feature = "axum", feature = "testing"))]
mod http_layer;
#[cfg(all(feature = "axum", feature = "testing"))]
mod http_servers;
mod logs;
mod panic;
mod peer;
#[cfg(feature = "testing")]
mod platform;
mod push;
#[cfg(feature = "queue-exporter")]
mod queue_exporter;
#[cfg(feature = "testing")]
mod realtime;
mod service;
mod sets;
mod settings;
mod tls;
