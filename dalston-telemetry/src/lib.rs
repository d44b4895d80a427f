//! Traces, metrics and logs for Dalston services.

mod builder;
mod collect;
pub mod context;
mod env;
mod error;
mod format;
mod limits;
pub mod metrics;
pub mod names;
// With one transport left out, what only that one needs is left over.
#[cfg_attr(not(all(feature = "otlp-grpc", feature = "otlp-http")), allow(dead_code))]
mod otlp;
mod panic;
pub mod propagate;
pub mod redact;
mod resource;
mod sampler;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod waterfall;

pub use opentelemetry;
pub use opentelemetry_sdk;
pub use tracing;

pub use builder::{TelemetryBuilder, TelemetryLayer};
pub use collect::{CollectedSpan, SpanCollector};
pub use env::{Env, EnvError};
pub use error::{InitError, ShutdownError};
pub use format::{FilterError, LogBuffer, LogFormat, LogWriter};
pub use otlp::{ExportStats, OtlpCompression, OtlpConfig, OtlpProtocol};
pub use telemetry::{Telemetry, TelemetryHandle, TimedSpan};
pub use waterfall::Waterfall;

/// Sets up telemetry for the whole process, as the environment says.
///
/// The same as `Telemetry::builder(service).install()`.
///
/// # Errors
///
/// As [`TelemetryBuilder::install`].
///
/// ```no_run
/// # fn main() -> Result<(), dalston_telemetry::InitError> {
/// let _telemetry = dalston_telemetry::configure_tracing("orchestrator")?;
/// tracing::info!("ready");
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn configure_tracing(service: impl Into<String>) -> Result<Telemetry, InitError> {
    Telemetry::builder(service).install()
}
