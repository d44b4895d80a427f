//! The messages of a session: section 10 of the protocol.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::audio::Encoding;
use crate::stage::{Transcript, Word};

/// Codes of the message `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorCode {
    InvalidAudio,
    InvalidMessage,
    LanguageUnsupported,
    NoCapacity,
    SessionTimeout,
    LagExceeded,
    InternalError,
}

impl ErrorCode {
    fn as_str(self) -> &'static str {
        match self {
            Self::InvalidAudio => "invalid_audio",
            Self::InvalidMessage => "invalid_message",
            Self::LanguageUnsupported => "language_unsupported",
            Self::NoCapacity => "no_capacity",
            Self::SessionTimeout => "session_timeout",
            Self::LagExceeded => "lag_exceeded",
            Self::InternalError => "internal_error",
        }
    }
}

/// Codes of close frames.
pub(super) mod close {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const PROTOCOL_ERROR: u16 = 1002;
    pub(crate) const POLICY: u16 = 1008;
    pub(crate) const TOO_BIG: u16 = 1009;
    pub(crate) const SERVICE_RESTART: u16 = 1012;
    pub(crate) const TRY_AGAIN: u16 = 1013;
    pub(crate) const LAG_EXCEEDED: u16 = 4010;
    pub(crate) const INVALID_REQUEST: u16 = 4400;
    pub(crate) const NOT_FOUND: u16 = 4404;
}

/// A text message of a client.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Command {
    Config(ConfigChange),
    /// Also sent as `commit` by the platform's ElevenLabs route.
    #[serde(alias = "commit")]
    Flush,
    Clear,
    End,
    Keepalive,
}

/// The keys of `config`. Other keys are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigChange {
    pub(super) language: Option<String>,
    pub(super) vad_threshold: Option<f32>,
    pub(super) min_silence_duration_ms: Option<u64>,
    pub(super) prefix_padding_ms: Option<u64>,
    /// Only in the protocol of OpenAI, as what follows. An empty text is none.
    #[serde(skip)]
    pub(super) prompt: Option<String>,
    #[serde(skip)]
    pub(super) model: Option<String>,
    #[serde(skip)]
    pub(super) vad: Option<bool>,
    /// Only before the first audio.
    #[serde(skip)]
    pub(super) audio: Option<AudioChange>,
}

/// Another format of the audio that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AudioChange {
    pub(super) encoding: Encoding,
    pub(super) rate: u32,
}

impl Command {
    /// Reads a text message. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let command: Self = serde_json::from_str(text).map_err(|error| {
            format!(
                "the message is not valid: {error}; expected config, flush, commit, clear, keepalive or end"
            )
        })?;
        if let Self::Config(change) = &command {
            change.check()?;
        }
        Ok(command)
    }
}

impl ConfigChange {
    pub(super) fn check(&self) -> Result<(), String> {
        let is_within =
            |value: Option<u64>, least, most| value.is_none_or(|value| (least..=most).contains(&value));
        if self
            .vad_threshold
            .is_some_and(|threshold| !(0.0..=1.0).contains(&threshold))
        {
            return Err("vad_threshold is out of range: expected a number from 0 to 1".to_owned());
        }
        if !is_within(self.min_silence_duration_ms, 50, 2_000) {
            return Err("min_silence_duration_ms is out of range: expected 50 to 2000".to_owned());
        }
        if !is_within(self.prefix_padding_ms, 0, 5_000) {
            return Err("prefix_padding_ms is out of range: expected 0 to 5000".to_owned());
        }
        Ok(())
    }
}

/// A time of received audio in seconds, to the millisecond.
pub(super) fn seconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64())
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

pub(super) fn error(code: ErrorCode, message: &str, recoverable: bool) -> Value {
    json!({"type": "error", "code": code.as_str(), "message": message, "recoverable": recoverable})
}

/// The message `error` about an utterance. Its times are additional keys, as in its transcript.
pub(super) fn failed(message: &str, start: Duration, end: Duration, from_flush: bool) -> Value {
    let mut error = error(ErrorCode::InternalError, message, true);
    error["start"] = seconds(start).into();
    error["end"] = seconds(end).into();
    if from_flush {
        error["from_flush"] = true.into();
    }
    error
}

pub(super) fn speech_start(at: Duration) -> Value {
    json!({"type": "vad.speech_start", "timestamp": seconds(at)})
}

pub(super) fn speech_end(at: Duration) -> Value {
    json!({"type": "vad.speech_end", "timestamp": seconds(at)})
}

pub(super) fn partial(text: &str, stable_until: usize, start: Duration, end: Duration) -> Value {
    json!({
        "type": "transcript.partial",
        "text": text,
        "start": seconds(start),
        "end": seconds(end),
        "stable_until": stable_until,
    })
}

/// What the message `transcript.final` says.
#[derive(Debug, Clone, Default)]
pub(super) struct Final {
    pub(super) text: String,
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) confidence: f64,
    /// `None` unless the client asks for words.
    pub(super) words: Option<Vec<Value>>,
    /// It answers `flush` or `commit`.
    pub(super) from_flush: bool,
}

pub(super) fn final_transcript(transcript: &Final) -> Value {
    let mut message = Map::new();
    message.insert("type".to_owned(), "transcript.final".into());
    message.insert("text".to_owned(), transcript.text.as_str().into());
    message.insert("start".to_owned(), seconds(transcript.start).into());
    message.insert("end".to_owned(), seconds(transcript.end).into());
    message.insert("confidence".to_owned(), rounded(transcript.confidence).into());
    if let Some(words) = &transcript.words {
        message.insert("words".to_owned(), words.clone().into());
    }
    if transcript.from_flush {
        message.insert("from_flush".to_owned(), true.into());
    }
    Value::Object(message)
}

/// A word. The platform's worker calls its text `word`, and the platform's Python client reads
/// `text`. `offset` is the position of the audio in seconds.
pub(super) fn word(word: &Word, offset: f64) -> Value {
    let text = word.text.trim();
    json!({
        "word": text,
        "text": text,
        "start": rounded(word.start + offset),
        "end": rounded(word.end + offset),
        "confidence": word.confidence.map(rounded).unwrap_or(1.0),
    })
}

/// The mean confidence of the segments; 1 if the engine gives none.
pub(super) fn confidence(transcript: &Transcript) -> f64 {
    let words = || {
        transcript
            .segments
            .iter()
            .flat_map(|segment| segment.words.iter().flatten())
    };
    let of_segments: Vec<f64> = transcript
        .segments
        .iter()
        .filter_map(|segment| segment.confidence)
        .collect();
    let of_words: Vec<f64> = words().filter_map(|word| word.confidence).collect();
    let values = if of_segments.is_empty() {
        of_words
    } else {
        of_segments
    };
    match values.len() {
        0 => 1.0,
        count => values.iter().sum::<f64>() / count as f64,
    }
}

/// Why a session is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Termination {
    Lag,
    Shutdown,
}

pub(super) fn terminated(session_id: &str, why: Termination, last_transcript: Duration) -> Value {
    /// How much audio before the last transcript a client should keep.
    const BUFFER_MS: u64 = 30_000;
    let (reason, retry_after_ms) = match why {
        Termination::Lag => ("lag_exceeded", 1_000),
        Termination::Shutdown => ("worker_shutdown", 0),
    };
    let offset = u64::try_from(last_transcript.as_millis()).unwrap_or(u64::MAX);
    json!({
        "type": "session.terminated",
        "session_id": session_id,
        "reason": reason,
        "recoverable": true,
        "last_transcript_offset_ms": offset,
        "recovery_hint": {
            "action": "reconnect",
            "buffer_window_ms": BUFFER_MS,
            "retry_after_ms": retry_after_ms,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_others_explained() {
        let parse = |text: &str| Command::parse(text).unwrap();
        assert_eq!(parse(r#"{"type":"flush"}"#), Command::Flush);
        assert_eq!(parse(r#"{"type":"commit"}"#), Command::Flush);
        assert_eq!(parse(r#"{"type":"keepalive","id":7}"#), Command::Keepalive);
        let change = parse(r#"{"type":"config","language":"de","vad_threshold":0.3,"other":[]}"#);
        assert_eq!(
            change,
            Command::Config(ConfigChange {
                language: Some("de".to_owned()),
                vad_threshold: Some(0.3),
                ..ConfigChange::default()
            })
        );
        for (text, problem) in [
            (
                r#"{"type":"config","vad_threshold":"0.3"}"#,
                "invalid type: string",
            ),
            (
                r#"{"type":"config","vad_threshold":2}"#,
                "expected a number from 0 to 1",
            ),
            (
                r#"{"type":"config","min_silence_duration_ms":1}"#,
                "expected 50 to 2000",
            ),
            (r#"{"type":"config","prefix_padding_ms":-1}"#, "invalid value"),
            (r#"{"type":"dance"}"#, "unknown variant `dance`"),
            ("[]", "the message is not valid"),
            ("{", "the message is not valid"),
        ] {
            let error = Command::parse(text).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn word_has_both_keys_and_the_time_of_the_recording() {
        let heard = Word::new(0.25, 0.5, " five ").confidence(0.98);
        assert_eq!(
            word(&heard, 60.0),
            json!({"word": "five", "text": "five", "start": 60.25, "end": 60.5, "confidence": 0.98})
        );
    }

    #[test]
    fn terminated_session_says_where_to_go_on() {
        let message = terminated("sess_1", Termination::Shutdown, Duration::from_millis(14_940));
        assert_eq!(
            message,
            json!({
                "type": "session.terminated", "session_id": "sess_1", "reason": "worker_shutdown",
                "recoverable": true, "last_transcript_offset_ms": 14_940,
                "recovery_hint": {"action": "reconnect", "buffer_window_ms": 30_000, "retry_after_ms": 0},
            })
        );
    }
}
