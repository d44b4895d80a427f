//! The `service.name` of each service of the platform, for
//! [`Telemetry::builder`](crate::Telemetry::builder).
//!
//! ```
//! use dalston_telemetry::services::service_name;
//!
//! assert_eq!(service_name::GATEWAY, "dalston-gateway");
//! assert_eq!(service_name::engine("faster-whisper"), "dalston-engine-faster-whisper");
//! ```

/// The name in log lines and audit records.
pub(crate) fn short(service: &str) -> &str {
    service.strip_prefix(PREFIX).unwrap_or(service)
}

const PREFIX: &str = "dalston-";

/// The gateway.
pub const GATEWAY: &str = "dalston-gateway";
/// The orchestrator.
pub const ORCHESTRATOR: &str = "dalston-orchestrator";
/// The router of realtime sessions.
pub const SESSION_ROUTER: &str = "dalston-session-router";
/// The exporter of the queues' metrics.
pub const QUEUE_EXPORTER: &str = "dalston-queue-exporter";

/// An engine, by its id.
#[must_use]
pub fn engine(engine_id: &str) -> String {
    format!("{PREFIX}engine-{engine_id}")
}

/// A worker of realtime sessions, by its instance.
#[must_use]
pub fn realtime(instance: &str) -> String {
    format!("{PREFIX}realtime-{instance}")
}
