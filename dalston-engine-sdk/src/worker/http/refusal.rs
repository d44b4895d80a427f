//! Why a request gets no transcript, before it is put in the words of one route or the other.

use axum::http::StatusCode;
use dalston_telemetry::redact;

use crate::error::chain;
use crate::runner::DirectError;
use crate::store::StoreError;
use crate::{TaskError, TaskErrorKind};

/// Seconds after which a client may try again that came when there was no room.
pub(super) const RETRY_AFTER: &str = "5";
/// Errors of engines may be as long as they like.
const LONGEST: usize = 1_000;

/// An answer without a transcript.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Short and static: an attribute, and OpenAI's `code`.
    pub(super) code: &'static str,
    /// The field that is wrong.
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
        let message = format!("the recording has more than {limit} bytes, which is the most that is taken");
        Self {
            field: Some("file"),
            ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        }
    }

    pub(super) fn too_slow() -> Self {
        let message = "the request did not arrive in time: send it without pauses";
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub(super) fn busy() -> Self {
        let message = "the engine is busy: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }

    pub(super) fn stopping() -> Self {
        let message = "the engine is shutting down: try again later, or another one";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
    }

    /// Something is wrong with us. What it is stands in the log, not in the answer.
    pub(super) fn internal(code: &'static str, problem: &str) -> Self {
        tracing::error!(error = %redact::text(problem), code, "direct_request_failed");
        let message = "the engine failed: its log has the reason under the request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
    }

    /// The task failed. With `model_named` it was the request that chose the model.
    pub(super) fn of_task(error: &DirectError, model_named: bool) -> Self {
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
                "the recording was not transcribed in the time that a task may take",
            ),
            _ if retryable || is_ours(code) || (code.contains("model") && !model_named) => {
                let message =
                    format!("the engine failed ({code}): its log has the reason under the request's id");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
            }
            _ => Self::bad(code, for_strangers(text)),
        }
    }

    pub(super) fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Locator { .. } | StoreError::NoBucket { .. } | StoreError::NotFound { .. } => {
                Self::field("audio_url", for_strangers(&error.to_string()))
            }
            StoreError::TooLarge { limit, .. } => Self::too_large(*limit as u64),
            _ => Self::internal("storage", &chain(error)),
        }
    }
}

/// The disk, most likely.
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

/// Permanent failures that no other request would avoid.
fn is_ours(code: &str) -> bool {
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

/// A message as anyone may read it: without secrets, and without where things lie on this machine.
pub(super) fn for_strangers(text: &str) -> String {
    let clean = redact::text(text);
    let words = clean.split(' ').map(without_directories);
    let text: String = words.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Leaves the last part of an absolute path, and every other word as it is.
fn without_directories(word: &str) -> String {
    let Some(start) = word.find('/') else {
        return word.to_owned();
    };
    let (before, path) = word.split_at(start);
    // A path begins a word, but for a quote, a bracket or `file://`.
    let begins = before.chars().all(|c| "\"'`([{<=".contains(c)) || before == "file:";
    if !begins || !path.trim_start_matches('/').contains('/') && !path.starts_with("//") {
        return word.to_owned();
    }
    let last = path.trim_end_matches('/').rfind('/').unwrap_or(0);
    format!("{before}{}", &path[last + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_machine_and_secrets_do_not_leave_it() {
        for (text, expected) in [
            ("talk.wav is empty", "talk.wav is empty"),
            (
                "loading \"x\": /models/x/config.json: no such file",
                "loading \"x\": config.json: no such file",
            ),
            ("reading (/tmp/dalston_task_1/in.wav)", "reading (in.wav)"),
            ("file:///etc/hosts: no", "file:hosts: no"),
            (
                "https://host/a/b.wav answered 404",
                "https://host/a/b.wav answered 404",
            ),
            (
                "s3://bucket/a/b.wav: there is no such object",
                "s3://bucket/a/b.wav: there is no such object",
            ),
            ("\"../../etc\": no", "\"../../etc\": no"),
            ("expected 1/2 or n/a", "expected 1/2 or n/a"),
            ("a / b", "a / b"),
        ] {
            assert_eq!(for_strangers(text), expected);
        }
        let shown = for_strangers("https://u:hunter2@host/x?X-Amz-Signature=abcdef0123456789 failed");
        assert!(!shown.contains("hunter2") && !shown.contains("abcdef"), "{shown}");
        assert_eq!(for_strangers(&"ä".repeat(2_000)).chars().count(), LONGEST + 1);
    }

    #[test]
    fn who_is_at_fault_decides_the_status() {
        let status = |code, retryable, named| {
            let error = DirectError::Failed {
                error: "reading /models/x/y: no".to_owned(),
                code,
                retryable,
            };
            let refusal = Refusal::of_task(&error, named);
            assert!(!refusal.message.contains("/models"), "{}", refusal.message);
            refusal.status.as_u16()
        };
        assert_eq!(status("audio_empty", false, false), 400);
        assert_eq!(status("unknown_language", false, false), 400);
        assert_eq!(status("invalid_config", false, false), 400);
        assert_eq!(status("model_not_found", false, true), 400);
        assert_eq!(status("model_not_found", false, false), 500);
        assert_eq!(status("invalid_output", false, true), 500);
        assert_eq!(status("error", true, true), 500);
        assert_eq!(status("panic", true, true), 500);
        assert_eq!(status("deadline_exceeded", true, true), 504);
        assert_eq!(Refusal::of_task(&DirectError::Busy, false).status.as_u16(), 503);
        assert_eq!(
            Refusal::of_task(&DirectError::Stopping, false).status.as_u16(),
            503
        );
    }
}
