//! The transcript of a session: [`Segments`].

use std::time::Duration;

use serde_json::{Value, json};

use super::messages::seconds;

/// The final transcripts of a session.
#[derive(Debug, Default)]
pub(super) struct Segments {
    all: Vec<Segment>,
    /// The last language that the engine has detected.
    detected: Option<String>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) text: String,
    /// Only kept for the stored transcript.
    pub(super) words: Vec<Value>,
}

impl Segments {
    /// Adds a transcript in this language, which may be empty or `und`.
    pub(super) fn push(&mut self, segment: Segment, language: &str) {
        if !matches!(language, "" | "und") {
            self.detected = Some(language.to_owned());
        }
        self.all.push(segment);
    }

    /// The end of the last one.
    pub(super) fn end(&self) -> Option<Duration> {
        self.all.last().map(|segment| segment.end)
    }

    pub(super) fn text(&self) -> String {
        let texts: Vec<&str> = self.all.iter().map(|segment| &*segment.text).collect();
        texts.join(" ")
    }

    /// As the message `session.end` has them.
    pub(super) fn messages(&self) -> Vec<Value> {
        let message = |segment: &Segment| {
            json!({
                "start": seconds(segment.start),
                "end": seconds(segment.end),
                "text": segment.text,
            })
        };
        self.all.iter().map(message).collect()
    }

    /// The stored transcript of a session with this much audio. `language` is the requested one.
    pub(super) fn document(&self, session_id: &str, language: Option<&str>, received: Duration) -> Value {
        let utterance = |(number, segment): (usize, &Segment)| {
            json!({
                "id": format!("utt_{:04}", number + 1),
                "start": seconds(segment.start),
                "end": seconds(segment.end),
                "text": segment.text,
                "words": segment.words,
            })
        };
        let utterances: Vec<Value> = self.all.iter().enumerate().map(utterance).collect();
        json!({
            "session_id": session_id,
            "language": language.or(self.detected.as_deref()).unwrap_or("auto"),
            "duration_seconds": seconds(received),
            "text": self.text(),
            "utterances": utterances,
        })
    }
}
