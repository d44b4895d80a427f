//! What differs between the protocol of the platform and that of OpenAI: [`Protocol`].
//!
//! Workers speak both, each at a path of its own, so messages are passed on as they are. The
//! gateway adds few messages, and reads few keys.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::side::Frame;

/// How much audio before the last transcript a client should keep, in milliseconds.
const BUFFER_MS: u64 = 30_000;
/// The sub-protocol by which a browser gives its key to OpenAI's API: it can't set headers.
const KEY_PROTOCOL: &str = "openai-insecure-api-key.";

/// The protocol of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Protocol {
    Platform,
    OpenAi,
}

/// The event of OpenAI's protocol with audio.
#[derive(Deserialize)]
struct Append<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    audio: Cow<'a, str>,
}

impl Protocol {
    /// That of a path of the gateway.
    pub(super) fn of(path: &str) -> Option<Self> {
        [Self::Platform, Self::OpenAi]
            .into_iter()
            .find(|protocol| protocol.path() == path)
    }

    /// The path at the gateway.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Platform => super::PATH,
            Self::OpenAi => super::OPENAI_PATH,
        }
    }

    /// The path at a worker.
    pub(super) fn worker_path(self) -> &'static str {
        match self {
            Self::Platform => "/session",
            Self::OpenAi => "/v1/realtime",
        }
    }

    /// The sub-protocols that a client may choose. It expects its choice back.
    pub(super) fn sub_protocols(self) -> &'static [&'static str] {
        match self {
            Self::Platform => &[],
            Self::OpenAi => &["realtime"],
        }
    }

    /// The key among the sub-protocols that a client offers.
    pub(super) fn key(self, offered: &str) -> Option<&str> {
        let mut names = offered.split(',').map(str::trim);
        match self {
            Self::Platform => None,
            Self::OpenAi => names.find_map(|name| name.strip_prefix(KEY_PROTOCOL)),
        }
    }

    /// The model that a client asks for; empty for any. The names of OpenAI's models are none.
    pub(super) fn model(self, asked: &str) -> &str {
        match self {
            Self::OpenAi if asked == "whisper-1" || asked.starts_with("gpt-") => "",
            _ => asked,
        }
    }

    /// The rate of audio whose client declares none.
    pub(super) fn rate(self) -> f64 {
        match self {
            Self::Platform => 16_000.0,
            Self::OpenAi => 24_000.0,
        }
    }

    /// The bytes of audio in a message of a client.
    pub(super) fn audio(self, frame: &Frame) -> usize {
        match (self, frame) {
            (Self::Platform, Frame::Audio(audio)) => audio.len(),
            (Self::OpenAi, Frame::Text(text)) => match serde_json::from_str::<Append<'_>>(text) {
                Ok(event) if event.kind == "input_audio_buffer.append" => {
                    event.audio.trim_end_matches('=').len() * 3 / 4
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// The message by which a client ends its session. OpenAI's protocol has none.
    pub(super) fn end(self) -> Option<Frame> {
        match self {
            Self::Platform => Some(Frame::Text(json!({"type": "end"}).to_string())),
            Self::OpenAi => None,
        }
    }

    /// The message `error`.
    pub(super) fn error(self, code: &str, message: &str, recoverable: bool) -> Frame {
        let error = match self {
            Self::Platform => {
                json!({"type": "error", "code": code, "message": message, "recoverable": recoverable})
            }
            Self::OpenAi => {
                let kind = match code {
                    "internal_error" | "no_capacity" | "session_terminated" => "server_error",
                    _ => "invalid_request_error",
                };
                json!({
                    "type": "error",
                    "event_id": format!("event_{}", &Uuid::new_v4().simple().to_string()[..20]),
                    "error": {"type": kind, "code": code, "message": message, "param": null, "event_id": null},
                })
            }
        };
        Frame::Text(error.to_string())
    }

    /// Tells a client of the gateway's end, and where to go on with another gateway.
    pub(super) fn terminated(self, session_id: &str, last_final_ms: u64) -> Frame {
        if self == Self::OpenAi {
            let text = "the gateway shuts down: open a new session";
            return self.error("session_terminated", text, true);
        }
        let message = json!({
            "type": "session.terminated",
            "session_id": session_id,
            "reason": "gateway_shutdown",
            "recoverable": true,
            "last_transcript_offset_ms": last_final_ms,
            "recovery_hint": {"action": "reconnect", "buffer_window_ms": BUFFER_MS, "retry_after_ms": 1_000},
        });
        Frame::Text(message.to_string())
    }
}

/// The code of a message `error` in either protocol.
pub(super) fn code_of(message: &Value) -> Option<&str> {
    let code = message.get("code").or_else(|| message.get("error")?.get("code"));
    code?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audio_of_each_protocol_is_counted() {
        let text = |text: &str| Frame::Text(text.to_owned());
        let audio = Frame::Audio(vec![0; 320].into());
        assert_eq!(Protocol::Platform.audio(&audio), 320);
        assert_eq!(Protocol::OpenAi.audio(&audio), 0);
        let append = |audio: &str| {
            text(&format!(
                r#"{{"audio":"{audio}","type":"input_audio_buffer.append"}}"#
            ))
        };
        for (base64, bytes) in [("", 0), ("AA==", 1), ("AAA=", 2), ("AAAA", 3), ("AAAAAAA=", 5)] {
            assert_eq!(Protocol::OpenAi.audio(&append(base64)), bytes, "{base64}");
            assert_eq!(Protocol::Platform.audio(&append(base64)), 0);
        }
        for other in [
            r#"{"type":"input_audio_buffer.commit"}"#,
            r#"{"audio":"AAAA"}"#,
            "AAAA",
            "",
        ] {
            assert_eq!(Protocol::OpenAi.audio(&text(other)), 0, "{other}");
        }
    }

    #[test]
    fn key_is_a_sub_protocol_of_openai_only() {
        let offered = "realtime, openai-insecure-api-key.secret,openai-beta.realtime-v1";
        assert_eq!(Protocol::OpenAi.key(offered), Some("secret"));
        assert_eq!(Protocol::OpenAi.key("realtime"), None);
        assert_eq!(Protocol::Platform.key(offered), None);
    }
}
