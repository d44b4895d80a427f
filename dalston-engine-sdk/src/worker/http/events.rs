//! Transcripts as a stream of server-sent events, in the form of OpenAI's API.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::stage::Transcript;

/// A response with an event `transcript.text.delta` for each segment, and the event
/// `transcript.text.done` with the whole text.
///
/// An engine returns its transcript at the end, so all events are sent at once.
pub(super) fn response(transcript: &Transcript) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, stream(transcript)).into_response()
}

fn stream(transcript: &Transcript) -> String {
    let event = |event: Value| format!("data: {event}\n\n");
    let deltas = deltas(transcript).into_iter();
    let deltas = deltas.map(|delta| event(json!({"type": "transcript.text.delta", "delta": delta})));
    let done = event(json!({"type": "transcript.text.done", "text": transcript.text}));
    deltas.chain([done]).collect()
}

/// The parts of the text, which joined are the text: up to the end of each segment.
fn deltas(transcript: &Transcript) -> Vec<&str> {
    let mut rest = &*transcript.text;
    let mut parts = Vec::new();
    for segment in &transcript.segments {
        let text = segment.text.trim();
        // A segment whose text is not there as it is becomes a part of the next delta.
        let Some(start) = rest.find(text).filter(|_| !text.is_empty()) else {
            continue;
        };
        let (part, after) = rest.split_at(start + text.len());
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Segment;

    #[test]
    fn joined_deltas_are_the_text() {
        let segments = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| Segment::new(0.0, 1.0, *text))
                .collect::<Vec<_>>()
        };
        for (text, of_segments, expected) in [
            (
                "one two. Three",
                vec![" one two.", " Three "],
                vec!["one two.", " Three"],
            ),
            ("one, two!", vec!["one", "zwei", ""], vec!["one", ", two!"]),
            ("all", vec![], vec!["all"]),
            ("", vec![""], vec![]),
        ] {
            let transcript = Transcript::new(text, segments(&of_segments));
            assert_eq!(deltas(&transcript), expected);
            assert_eq!(deltas(&transcript).concat(), text);
        }
    }
}
