//! What the gateway sees of a session: its audio, its transcripts and its end.

use std::collections::HashMap;

use dalston_telemetry::services::session_router::SessionStatus;
use serde::Deserialize;
use serde_json::Value;

use super::protocol::{Protocol, code_of};
use super::side::Frame;

/// The figures of a session.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    bytes_per_second: f64,
    /// Whether the times of the worker go on from those of another session.
    is_resumed: bool,
    bytes: u64,
    /// The end of the last final transcript, in seconds.
    last_final: Option<f64>,
    /// The audio after the end of the last transcript when it came, in seconds.
    lag: Option<f64>,
    has_ended: bool,
    has_timed_out: bool,
}

/// The keys of a worker's message that matter here.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: String,
    end: Option<f64>,
    /// Only in OpenAI's protocol: the configuration of the session.
    #[serde(default)]
    session: Value,
}

impl Tally {
    /// The figures of a session with these parameters.
    pub(super) fn new(protocol: Protocol, query: &HashMap<String, String>) -> Self {
        let number = |name: &str| query.get(name).and_then(|value| value.parse::<f64>().ok());
        let rate = number("client_sample_rate").or_else(|| number("sample_rate"));
        let sample = match query.get("encoding").map(String::as_str) {
            Some("pcm_f32le") => 4.0,
            Some("mulaw" | "alaw") => 1.0,
            _ => 2.0,
        };
        let channels = number("channels").unwrap_or(1.0);
        Self {
            bytes_per_second: (rate.unwrap_or(protocol.rate()) * sample * channels).max(1.0),
            is_resumed: query.get("resume_session_id").is_some_and(|id| !id.is_empty()),
            bytes: 0,
            last_final: None,
            lag: None,
            has_ended: false,
            has_timed_out: false,
        }
    }

    /// The client has sent audio.
    pub(super) fn audio(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The worker has sent a message.
    pub(super) fn frame(&mut self, frame: &Frame) {
        if let Frame::Text(text) = frame {
            self.message(text);
        }
    }

    fn message(&mut self, text: &str) {
        let Ok(message) = serde_json::from_str::<Message>(text) else {
            return;
        };
        match &*message.kind {
            "transcript.partial" | "transcript.final" => {
                let Some(end) = message.end else { return };
                if message.kind == "transcript.final" {
                    self.last_final = Some(end);
                }
                if !self.is_resumed {
                    self.lag = Some((self.audio_seconds() - end).max(0.0));
                }
            }
            "session.created" | "session.updated" | "transcription_session.updated" => {
                let format = &message.session["audio"]["input"]["format"];
                if let Some(bytes_per_second) = bytes_per_second(format) {
                    self.bytes_per_second = bytes_per_second;
                }
            }
            "session.end" => self.has_ended = true,
            "error" => {
                let error: Value = serde_json::from_str(text).unwrap_or_default();
                self.has_timed_out |= code_of(&error) == Some("session_timeout");
            }
            _ => {}
        }
    }

    /// The client has left a session whose protocol has no last message.
    pub(super) fn left(&mut self) {
        self.has_ended = true;
    }

    pub(super) fn audio_seconds(&self) -> f64 {
        self.bytes as f64 / self.bytes_per_second
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The end of the last final transcript, in milliseconds.
    pub(super) fn last_final_ms(&self) -> Option<u64> {
        self.last_final.map(|seconds| (seconds * 1e3).round() as u64)
    }

    pub(super) fn status(&self) -> SessionStatus {
        match (self.has_timed_out, self.has_ended) {
            (true, _) => SessionStatus::Timeout,
            (false, true) => SessionStatus::Completed,
            (false, false) => SessionStatus::Error,
        }
    }

    /// The figures in the session's hash.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let lag = self.lag.map_or_else(String::new, |lag| format!("{lag:.1}"));
        vec![
            ("audio_seconds", format!("{:.1}", self.audio_seconds())),
            ("lag_seconds", lag),
        ]
    }
}

/// The bytes of a second of audio in a format of OpenAI's protocol, as an object or by its name in
/// the beta.
fn bytes_per_second(format: &Value) -> Option<f64> {
    let kind = format["type"].as_str().or(format.as_str())?;
    let rate = format["rate"].as_f64();
    match kind {
        "audio/pcm" | "pcm16" => Some(2.0 * rate.unwrap_or(Protocol::OpenAi.rate())),
        _ => Some(8_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(pairs: &[(&str, &str)]) -> Tally {
        let pairs = pairs.iter();
        Tally::new(
            Protocol::Platform,
            &pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn bytes_become_seconds_by_the_declared_form() {
        for (parameters, bytes) in [
            (&[][..], 32_000),
            (&[("encoding", "mulaw"), ("sample_rate", "8000")], 8_000),
            (&[("encoding", "pcm_f32le"), ("channels", "2")], 128_000),
            (
                &[("sample_rate", "16000"), ("client_sample_rate", "48000")],
                96_000,
            ),
        ] {
            let mut tally = tally(parameters);
            tally.audio(bytes);
            assert_eq!(tally.audio_seconds(), 1.0, "{parameters:?}");
        }
    }

    #[test]
    fn openai_session_says_its_format_in_an_event() {
        let mut tally = Tally::new(Protocol::OpenAi, &HashMap::new());
        tally.audio(48_000);
        assert_eq!(tally.audio_seconds(), 1.0);
        for (format, seconds) in [
            (r#"{"type":"audio/pcm","rate":16000}"#, 1.5),
            (r#"{"type":"audio/pcm"}"#, 1.0),
            (r#""g711_alaw""#, 6.0),
            ("null", 6.0),
        ] {
            let session = format!(r#"{{"audio":{{"input":{{"format":{format}}}}}}}"#);
            tally.message(&format!(r#"{{"type":"session.updated","session":{session}}}"#));
            assert_eq!(tally.audio_seconds(), seconds, "{format}");
        }
        tally.message(r#"{"type":"error","error":{"code":"session_timeout"}}"#);
        tally.left();
        assert_eq!(tally.status(), SessionStatus::Timeout);
    }

    #[test]
    fn lag_is_the_audio_after_the_last_transcript() {
        let mut tally = tally(&[]);
        tally.audio(96_000);
        tally.message(r#"{"type":"transcript.final","text":"one","start":0.5,"end":2.25}"#);
        tally.audio(32_000);
        tally.message(r#"{"type":"vad.speech_start","timestamp":3.5}"#);
        let fields = tally.fields();
        let expected = [
            ("audio_seconds", "4.0".to_owned()),
            ("lag_seconds", "0.8".to_owned()),
        ];
        assert_eq!(fields, expected);
        assert_eq!(tally.last_final_ms(), Some(2_250));
    }

    #[test]
    fn status_tells_complete_from_cut_off_sessions() {
        let status = |messages: &[&str]| {
            let mut tally = tally(&[]);
            messages.iter().for_each(|message| tally.message(message));
            tally.status()
        };
        let end = r#"{"type":"session.end","segments":[{"end":1.0}]}"#;
        let timeout = r#"{"type":"error","code":"session_timeout"}"#;
        assert_eq!(status(&[]), SessionStatus::Error);
        assert_eq!(status(&["no JSON", end]), SessionStatus::Completed);
        assert_eq!(status(&[timeout, end]), SessionStatus::Timeout);
    }
}
