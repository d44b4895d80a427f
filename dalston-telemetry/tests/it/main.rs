//! Behaviour that only shows from outside: against collectors, with a whole subscriber.

#![allow(clippy::unwrap_used)]
#![cfg(all(feature = "otlp-grpc", feature = "otlp-http"))]

mod delivery;
mod exposition;
mod faults;
mod logs;
mod panic;
mod service;
mod tls;
