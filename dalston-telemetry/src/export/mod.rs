//! Delivery of telemetry to a collector.
//!
//! - [`traces`] and [`metrics`](self::metrics) know what is sent, one file per signal.
//! - [`delivery`] knows when, how often and for how long, and counts the items that are lost.
//! - `transport` sends requests over gRPC and HTTP.
//!
//! A further signal whose items wait in a queue needs one file beside [`traces`]: an
//! [`Item`](delivery::Item) and its [`BatchTransport`](delivery::BatchTransport).
//!
//! # Why not `opentelemetry-otlp` behind the SDK's batch processor
//!
//! `tests/it/peer.rs` shows each reason. A reason whose test fails can go.
//!
//! - Every lost span is counted and reported. `opentelemetry-otlp` returns `Ok` for a partial
//!   success. The batch processor returns `Ok` after the queue was full and after a refused batch
//!   at shutdown, and a flush returns the result of its last batch only.
//! - One bound ends all signals. The SDK's metric reader ignores its timeout and waits for 5 s.
//! - Settings come from an [`Env`](crate::Env). `opentelemetry-otlp` reads the variables of the
//!   process.
//! - No runtime is needed. Over gRPC, `opentelemetry-otlp` needs a Tokio runtime when it is built,
//!   and another thread of that runtime during shutdown.
//! - Bytes are bounded. A request stays below the 4 MiB that a gRPC server accepts, and the queue
//!   holds at most 64 MiB.
//!
//! Messages come from `opentelemetry-proto`, transports from tonic and reqwest.

pub(crate) mod config;
mod delivery;
mod exporter_config;
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(crate) mod metrics;
#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
#[path = "no_metrics.rs"]
pub(crate) mod metrics;
pub(crate) mod traces;
#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod transport;

pub use config::{OtlpCompression, OtlpConfig, OtlpProtocol};
pub use delivery::ExportStats;
pub(crate) use delivery::{Console, Exporter, Exporters, REPORTS, ReportTo};
pub(crate) use exporter_config::{BatchConfig, ExporterConfig, NO_LIMIT, PushConfig, TraceExporters};
