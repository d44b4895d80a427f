//! Audit records: what was done with jobs and recordings, and by which actor.
//!
//! A record is one JSON line with the platform's field names, and with the trace id and the request
//! id of the current work. Records do not pass through [`tracing`]: no log filter, level or sampler
//! drops one. They go to a writer of their own, a file by default.
//!
//! ```
//! use dalston_telemetry::audit::{AuditAction, AuditConfig, AuditEvent, AuditLog};
//! use dalston_telemetry::metrics::Metrics;
//! use dalston_telemetry::services::service_name;
//!
//! # let dir = std::env::temp_dir().join(format!("dalston-audit-example-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let path = dir.join("audit.jsonl");
//! let audit = AuditLog::open(service_name::GATEWAY, AuditConfig::file(path), &Metrics::new())?;
//! audit.record(
//!     AuditEvent::new(AuditAction::JobCreated, "acme", "j-1")
//!         .actor("api_key", "key_7")
//!         .audio_seconds(61.5),
//! );
//! audit.flush(std::time::Duration::from_secs(5));
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Records that can't be written
//!
//! [`AuditLog::record`] never blocks and never fails: a record that can't be written is counted in
//! `dalston_audit_records_total{status="failure"}`. [`AuditLog::record_or_fail`] waits until the
//! record is written, and returns an error otherwise, for actions that must not happen without one.
//!
//! A record has no text of a transcript. Values have at most 256 characters, and secrets in them
//! are masked.

mod event;
mod file;
mod log;

pub use self::event::{AuditAction, AuditEvent};
pub use self::log::{AuditConfig, AuditError, AuditLog};

/// The member `target` of every record.
pub const TARGET: &str = "dalston::audit";
