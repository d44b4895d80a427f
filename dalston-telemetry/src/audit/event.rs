//! [`AuditEvent`] and its line.

use std::time::SystemTime;

use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};

use super::TARGET;
use crate::logs::context::LogContext;
use crate::logs::time::push_timestamp;
use crate::propagate;
use crate::redact;

/// The length of a value.
const LONGEST_VALUE: usize = 256;
/// The number of members of `detail`.
const MAX_DETAILS: usize = 16;

crate::label! {
    /// What was done.
    pub enum AuditAction = "action" {
        JobCreated => "job.created",
        JobCompleted => "job.completed",
        JobFailed => "job.failed",
        JobDeleted => "job.deleted",
        /// A job that had ended without a result runs again.
        JobRetried => "job.retried",
        /// A recording or a transcript was read.
        ArtifactRead => "artifact.read",
        /// Personal data was removed from a recording or a transcript.
        PiiRedacted => "pii.redacted",
    }
}

impl AuditAction {
    fn resource_type(self) -> &'static str {
        match self {
            Self::ArtifactRead => "artifact",
            _ => "job",
        }
    }
}

/// An audit record. The fields have the names of the platform.
#[derive(Clone, Debug)]
#[must_use = "an event is recorded by AuditLog::record"]
pub struct AuditEvent {
    pub(super) action: AuditAction,
    members: Map<String, Value>,
    detail: Map<String, Value>,
}

impl AuditEvent {
    /// `resource_id` is the id of the job, or of the artifact for [`AuditAction::ArtifactRead`].
    pub fn new(action: AuditAction, tenant_id: &str, resource_id: &str) -> Self {
        let event = Self {
            action,
            members: Map::new(),
            detail: Map::new(),
        };
        event
            .text("action", action.as_str())
            .text("resource_type", action.resource_type())
            .text("resource_id", resource_id)
            .text("tenant_id", tenant_id)
            .actor("system", "")
    }

    /// A record of personal data that was removed from a job, with the number of entities of each
    /// type, for example `[("phone_number", 2)]`. The first 16 types are named, and the total
    /// counts all of them. Only types and numbers are recorded, never the removed text.
    pub fn pii_redacted<'a>(
        tenant_id: &str,
        job_id: &str,
        entities: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Self {
        let mut by_type = Map::new();
        let mut total = 0_u64;
        for (kind, count) in entities {
            total = total.saturating_add(count);
            if by_type.len() < MAX_DETAILS {
                by_type.insert(bounded(kind), count.into());
            }
        }
        let mut event = Self::new(AuditAction::PiiRedacted, tenant_id, job_id);
        event.detail.insert("entity_count".to_owned(), total.into());
        event
            .detail
            .insert("entity_count_by_type".to_owned(), by_type.into());
        event
    }

    /// Sets the actor: `actor_type` (`api_key`, `user`, `console`) and `actor_id`. By default
    /// `system`.
    pub fn actor(self, kind: &str, id: &str) -> Self {
        self.text("actor_type", kind).text("actor_id", id)
    }

    /// Sets the address of the client.
    pub fn ip_address(self, address: std::net::IpAddr) -> Self {
        self.text("ip_address", &address.to_string())
    }

    /// Sets the program of the client.
    pub fn user_agent(self, agent: &str) -> Self {
        self.text("user_agent", agent)
    }

    /// Sets `audio_duration`, in seconds. A value that is negative or not finite is left out.
    pub fn audio_seconds(mut self, seconds: f64) -> Self {
        if seconds.is_finite() && seconds >= 0.0 {
            self.members.insert("audio_duration".to_owned(), seconds.into());
        }
        self
    }

    /// Sets the model.
    pub fn model(self, model: &str) -> Self {
        self.text("model", model)
    }

    /// Sets `job_id`, for an event about an artifact.
    pub fn job_id(self, id: &str) -> Self {
        self.text("job_id", id)
    }

    /// Sets a member of `detail`, for example the code of an error. The first 16 count. Never give
    /// it the text of a transcript.
    pub fn detail(mut self, name: &'static str, value: &str) -> Self {
        if self.detail.len() < MAX_DETAILS || self.detail.contains_key(name) {
            self.detail.insert(name.to_owned(), bounded(value).into());
        }
        self
    }

    fn text(mut self, name: &'static str, value: &str) -> Self {
        // An id that is absent is absent in the record.
        match value.is_empty() {
            true => self.members.remove(name),
            false => self.members.insert(name.to_owned(), bounded(value).into()),
        };
        self
    }

    /// The line, with the ids of the current span and of the current log context.
    pub(super) fn line(mut self, service: &str) -> Vec<u8> {
        let mut time = Vec::new();
        push_timestamp(&mut time, SystemTime::now());
        let time = String::from_utf8_lossy(&time).into_owned();
        let current = propagate::current_context();
        let trace = current.span().span_context().clone();
        if trace.is_valid() {
            self = self.text("trace_id", &trace.trace_id().to_string());
        }
        if let Some(request_id) = LogContext::current().get("request_id") {
            self = self.text("correlation_id", request_id);
        }
        let action = self.action.as_str();
        self = self
            .text("timestamp", &time)
            .text("level", "info")
            .text("service", service)
            .text("target", TARGET)
            .text("event", action);
        if !self.detail.is_empty() {
            self.members.insert("detail".to_owned(), self.detail.into());
        }
        let mut line = Value::Object(self.members).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

fn bounded(value: &str) -> String {
    redact::text(value).chars().take(LONGEST_VALUE).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(event: AuditEvent) -> Value {
        let mut value: Value = serde_json::from_slice(&event.line("gateway")).unwrap();
        let time = value["timestamp"].take();
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
        value
    }

    #[test]
    fn record_has_the_fields_of_the_platform() {
        let event = AuditEvent::new(AuditAction::ArtifactRead, "acme", "t-1:transcript")
            .job_id("j-1")
            .actor("api_key", "key_7")
            .ip_address([10, 0, 0, 7].into())
            .user_agent("curl/8")
            .audio_seconds(61.5)
            .model("tiny")
            .detail("format", "srt");
        let _context = LogContext::new().request_id("req_1").enter();
        assert_eq!(
            line(event),
            json!({"timestamp": null, "level": "info", "service": "gateway", "target": "dalston::audit",
                "event": "artifact.read", "action": "artifact.read", "actor_type": "api_key", "actor_id": "key_7",
                "resource_type": "artifact", "resource_id": "t-1:transcript", "job_id": "j-1", "tenant_id": "acme",
                "ip_address": "10.0.0.7", "user_agent": "curl/8", "audio_duration": 61.5, "model": "tiny",
                "detail": {"format": "srt"}, "correlation_id": "req_1"})
        );
    }

    #[test]
    fn redaction_names_types_and_numbers_of_entities() {
        let line = line(AuditEvent::pii_redacted(
            "acme",
            "j-1",
            [("phone_number", 2), ("person", 1)],
        ));
        assert_eq!(line["action"], "pii.redacted");
        assert_eq!(line["resource_id"], "j-1");
        assert_eq!(
            line["detail"],
            json!({"entity_count": 3, "entity_count_by_type": {"phone_number": 2, "person": 1}})
        );
    }

    #[test]
    fn values_are_bounded_and_secrets_masked() {
        let mut event = AuditEvent::new(AuditAction::JobFailed, "acme", &"x".repeat(1_000))
            .audio_seconds(f64::NAN)
            .user_agent("https://u:hunter2@host");
        for name in [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
        ] {
            event = event.detail(name, "1");
        }
        let line = line(event);
        assert_eq!(line["resource_id"].as_str().unwrap().len(), 256);
        assert_eq!(line["detail"].as_object().unwrap().len(), 16);
        assert_eq!(line["audio_duration"], Value::Null);
        assert!(!line.to_string().contains("hunter2"), "{line}");
    }
}
