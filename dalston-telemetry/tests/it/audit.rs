//! Audit records: nothing silences them, and a lost one is known.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dalston_telemetry::audit::{AuditAction, AuditConfig, AuditError, AuditEvent, AuditLog};
use dalston_telemetry::context::LogContext;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::{Env, LogWriter};
use serde_json::Value;
use tracing::info_span;

use crate::service::Service;

fn created(job: &str) -> AuditEvent {
    AuditEvent::new(AuditAction::JobCreated, "acme", job).audio_seconds(3.0)
}

fn counted(metrics: &Metrics, status: &str) -> f64 {
    metrics
        .snapshot()
        .sum("dalston_audit_records_total", &[("status", status)])
}

#[test]
fn record_passes_filters_levels_and_samplers() {
    let env = [
        ("OTEL_ENABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("RUST_LOG", "off"),
    ];
    let service = Service::start(env.map(|(name, value)| (name.into(), value.into())).into());
    let (writer, lines) = LogWriter::buffer();
    let audit = AuditLog::open("gateway", AuditConfig::lines(writer), &Metrics::new()).unwrap();
    tracing::dispatcher::with_default(&service.dispatch, || {
        let _context = LogContext::new().request_id("req_1").enter();
        info_span!("POST /v1/audio/transcriptions").in_scope(|| audit.record(created("j-1")));
    });
    assert!(audit.flush(Duration::from_secs(10)));
    let record: Value = serde_json::from_str(&lines.lines()[0]).unwrap();
    assert_eq!(record["action"], "job.created");
    assert_eq!(record["correlation_id"], "req_1");
    assert_eq!(record["trace_id"].as_str().unwrap().len(), 32);
}

#[tokio::test]
async fn full_disk_is_an_error_for_those_who_ask() {
    let metrics = Metrics::new();
    let audit = AuditLog::open("gateway", AuditConfig::file("/dev/full"), &metrics).unwrap();
    audit.record(created("j-1"));
    let refused = audit.record_or_fail(created("j-2")).await.unwrap_err();
    let text = refused.to_string();
    assert!(
        text.starts_with("writing the audit record job.created: "),
        "{text}"
    );
    assert_eq!(
        (counted(&metrics, "failure"), counted(&metrics, "success")),
        (2.0, 0.0)
    );
}

/// A destination that takes nothing until it is told to.
struct Blocked(mpsc::Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn blocked_destination_blocks_no_caller() {
    let metrics = Metrics::new();
    let (open, opened) = mpsc::channel();
    let writer = LogWriter::new(Blocked(opened));
    let audit = AuditLog::open("gateway", AuditConfig::lines(writer), &metrics).unwrap();
    let refused = audit.record_or_fail(created("j-1")).await.unwrap_err();
    assert!(matches!(refused, AuditError::Blocked { .. }), "{refused}");

    let began = Instant::now();
    for _ in 0..2_000 {
        audit.record(created("j-2"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let lost = counted(&metrics, "failure");
    assert!((976.0..=977.0).contains(&lost), "{lost}");
    assert!(!audit.flush(Duration::ZERO));
    drop(open);
    assert!(audit.flush(Duration::from_secs(10)));
    assert_eq!(counted(&metrics, "success") + lost, 2_001.0);
}

#[test]
fn records_of_many_threads_are_all_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig::file(dir.path().join("audit.jsonl"))
        .rotate_at(40_000)
        .keep(100);
    let audit = AuditLog::open("gateway", config, &Metrics::new()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let audit = &audit;
            scope.spawn(move || {
                for number in 0..200 {
                    audit.record(created(&format!("{thread}-{number}")));
                }
            });
        }
    });
    assert!(audit.flush(Duration::from_secs(10)));
    let mut jobs = BTreeSet::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(text.len() <= 40_000);
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert!(jobs.insert(record["resource_id"].to_string()));
        }
    }
    assert_eq!(jobs.len(), 800);
}

#[test]
fn destination_comes_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let env = Env::from_pairs([
        ("DALSTON_AUDIT_LOG", path.to_str().unwrap()),
        ("DALSTON_AUDIT_KEEP", "0"),
    ]);
    let config = AuditConfig::from_env(&env).unwrap();
    let audit = AuditLog::open("gateway", config, &Metrics::new()).unwrap();
    audit.record(created("j-1"));
    assert!(audit.flush(Duration::from_secs(10)));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);

    let env = Env::from_pairs([("DALSTON_AUDIT_MAX_MB", "0")]);
    let error = AuditConfig::from_env(&env).unwrap_err().to_string();
    assert!(error.starts_with("DALSTON_AUDIT_MAX_MB is \"0\""), "{error}");
    let missing = AuditConfig::file(dir.path().join("no/such/audit.jsonl"));
    let error = AuditLog::open("gateway", missing, &Metrics::new()).unwrap_err();
    assert!(error.to_string().contains("no/such/audit.jsonl"), "{error}");
}
