//! Why a request gets no transcript, in a form that is independent of the route.

use axum::http::StatusCode;
use dalston_telemetry::redact;
use serde_json::{Value, json};

use crate::error::{chain, without_directories};
use crate::runner::DirectError;
use crate::store::StoreError;
use crate::{TaskError, TaskErrorKind};

/// The seconds after which a refused client may try again.
pub(super) const RETRY_AFTER: &str = "5";
/// The most characters of a message. The errors of engines have any length.
const LONGEST: usize = 1_000;

/// A response without a transcript.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Short and static, for an attribute and for OpenAI's `code`.
    pub(super) code: &'static str,
    /// The field that is wrong, if one is.
    pub(super) field: Option<&'static str>,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            field: None,
            message: message.into(),
        }
    }

    /// The request is wrong.
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A field of the request is wrong.
    pub(super) fn field(field: &'static str, problem: impl std::fmt::Display) -> Self {
        Self {
            field: Some(field),
            ..Self::bad("invalid_request", format!("{field}: {problem}"))
        }
    }

    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("the recording has more than {limit} bytes, the limit of this worker");
        Self {
            field: Some("file"),
            ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        }
    }

    pub(super) fn too_slow() -> Self {
        let message = "the recording arrives too slowly: send at least 8 KiB/s, and all within 30 minutes";
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub(super) fn busy() -> Self {
        let message = "the worker is busy: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }

    pub(super) fn stopping() -> Self {
        let message = "the worker is shutting down: try again later, or another worker";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
    }

    /// The worker failed. The reason goes to the log, not into the response.
    pub(super) fn internal(code: &'static str, problem: &str) -> Self {
        tracing::error!(error = %redact::text(problem), code, "direct_request_failed");
        let message = "the worker failed: its log has the reason under the id of this request";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
    }

    /// The error in the form of OpenAI's API.
    pub(super) fn openai_error(&self) -> Value {
        let kind = if self.status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        json!({"message": self.message, "type": kind, "param": self.field, "code": self.code})
    }

    /// The task failed. `model_named` says whether the request named the model.
    pub(super) fn from_direct_error(error: &DirectError, model_named: bool) -> Self {
        let (text, code, retryable) = match error {
            DirectError::Busy => return Self::busy(),
            DirectError::Stopping => return Self::stopping(),
            DirectError::Store(_) | DirectError::Protocol(_) => {
                return Self::internal("internal", &chain(error));
            }
            DirectError::Failed {
                error,
                code,
                retryable,
            } => (error, *code, *retryable),
        };
        match code {
            "deadline_exceeded" => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                code,
                "the recording was not transcribed within the time limit of a task",
            ),
            _ if retryable || is_internal(code) || (code.contains("model") && !model_named) => {
                let message = format!(
                    "the worker failed ({code}): its log has the reason under the id of this request"
                );
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
            }
            _ => Self::bad(code, redacted(text)),
        }
    }

    pub(super) fn from_store_error(error: &StoreError) -> Self {
        match error {
            StoreError::Locator { .. } | StoreError::NoBucket { .. } | StoreError::NotFound { .. } => {
                Self::field("audio_url", redacted(&error.to_string()))
            }
            StoreError::TooLarge { limit, .. } => Self::too_large(*limit as u64),
            _ => Self::internal("storage", &chain(error)),
        }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::internal("file", &error.to_string())
    }
}

impl From<TaskError> for Refusal {
    fn from(error: TaskError) -> Self {
        debug_assert_ne!(error.kind(), TaskErrorKind::Permanent);
        Self::internal(error.code(), &error.to_string())
    }
}

/// Whether a permanent failure is not the fault of the request.
fn is_internal(code: &str) -> bool {
    matches!(
        code,
        "cancelled"
            | "invalid_artifact"
            | "invalid_metadata"
            | "invalid_output"
            | "invalid_request"
            | "unusable_device"
    )
}

/// A message for clients: without secrets, and without directories of this machine.
pub(super) fn redacted(text: &str) -> String {
    let text = without_directories(&redact::text(text));
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_shows_no_local_directories_and_no_secrets() {
        for (text, expected) in [
            ("talk.wav is empty", "talk.wav is empty"),
            (
                "loading \"x\": /models/x/config.json: no such file",
                "loading \"x\": config.json: no such file",
            ),
            ("reading (/tmp/dalston_task_1/in.wav)", "reading (in.wav)"),
        ] {
            assert_eq!(redacted(text), expected);
        }
        let shown = redacted("https://u:hunter2@host/x?X-Amz-Signature=abcdef0123456789 failed");
        assert!(!shown.contains("hunter2") && !shown.contains("abcdef"), "{shown}");
        assert_eq!(redacted(&"ä".repeat(2_000)).chars().count(), LONGEST + 1);
    }

    #[test]
    fn status_depends_on_the_party_at_fault() {
        let status = |code, retryable, named| {
            let error = DirectError::Failed {
                error: "reading /models/x/y: no".to_owned(),
                code,
                retryable,
            };
            let refusal = Refusal::from_direct_error(&error, named);
            assert!(!refusal.message.contains("/models"), "{}", refusal.message);
            refusal.status.as_u16()
        };
        assert_eq!(status("unreadable_audio", false, false), 400);
        assert_eq!(status("unknown_language", false, false), 400);
        assert_eq!(status("invalid_config", false, false), 400);
        assert_eq!(status("model_not_found", false, true), 400);
        assert_eq!(status("model_not_found", false, false), 500);
        assert_eq!(status("invalid_output", false, true), 500);
        assert_eq!(status("error", true, true), 500);
        assert_eq!(status("panic", true, true), 500);
        assert_eq!(status("deadline_exceeded", true, true), 504);
        assert_eq!(
            Refusal::from_direct_error(&DirectError::Busy, false)
                .status
                .as_u16(),
            503
        );
        assert_eq!(
            Refusal::from_direct_error(&DirectError::Stopping, false)
                .status
                .as_u16(),
            503
        );
    }
}
