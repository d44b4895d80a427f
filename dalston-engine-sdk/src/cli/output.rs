//! The two forms of a result: lines for a person, and JSON for a program.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

/// A file that was processed.
pub(super) struct Finished<'a> {
    pub(super) file: &'a Path,
    /// The response of the stage.
    pub(super) data: &'a Value,
    /// The processing time of the engine, without loading the model.
    pub(super) processing: Duration,
}

/// One line of JSON.
///
/// A transcript has the keys of Whisper's tools; the response of another stage is unchanged.
pub(super) fn json_line(finished: &Finished<'_>) -> String {
    let file = finished.file.to_string_lossy();
    let line = match Transcript::of(finished.data) {
        Some(transcript) => serde_json::to_string(&transcript.to_json(&file)),
        None => serde_json::to_string(&DataJson {
            file: &file,
            data: finished.data,
        }),
    };
    // It was JSON before, so it can be written as JSON.
    line.unwrap_or_default()
}

/// Lines for a person.
pub(super) fn readable(finished: &Finished<'_>) -> String {
    match Transcript::of(finished.data) {
        Some(transcript) => transcript.to_text(&finished.file.to_string_lossy(), finished.processing),
        None => format!("{:#}\n", finished.data),
    }
}

/// A response that is a transcript.
struct Transcript<'a> {
    data: &'a Map<String, Value>,
    text: &'a str,
    segments: &'a [Value],
}

impl<'a> Transcript<'a> {
    fn of(data: &'a Value) -> Option<Self> {
        let data = data.as_object()?;
        let text = data.get("text")?.as_str()?;
        let segments = data.get("segments")?.as_array()?;
        Some(Self { data, text, segments })
    }

    fn to_json(&self, file: &'a str) -> TranscriptJson<'a> {
        let segments: Vec<SegmentJson<'_>> = self.segments.iter().map(SegmentJson::of).collect();
        let mut tokens: Vec<&Value> = segments
            .iter()
            .filter_map(|segment| segment.tokens?.as_array())
            .flatten()
            .collect();
        if tokens.is_empty() {
            // Without timestamps there may be no segments.
            let all = self
                .data
                .get("metadata")
                .and_then(|metadata| metadata.get("tokens"));
            tokens = all.and_then(Value::as_array).into_iter().flatten().collect();
        }
        TranscriptJson {
            file,
            text: self.text,
            language: self.data.get("language"),
            language_probability: self.data.get("language_confidence"),
            duration: self.data.get("duration"),
            segments,
            tokens,
            warnings: self
                .data
                .get("warnings")
                .and_then(Value::as_array)
                .map_or(&[], Vec::as_slice),
        }
    }

    fn to_text(&self, file: &str, processing: Duration) -> String {
        let mut out = String::new();
        let timed = self.data.get("timestamp_granularity").and_then(Value::as_str) != Some("none");
        // Hours appear only in a long recording.
        let long = self.duration().is_some_and(|seconds| seconds >= 3600.0);
        for segment in self.segments {
            let text = printable(segment.get("text").and_then(Value::as_str).unwrap_or_default());
            match (seconds(segment, "start"), seconds(segment, "end")) {
                (Some(start), Some(end)) if timed => {
                    let _ = writeln!(out, "[{} -> {}]  {text}", clock(start, long), clock(end, long));
                }
                _ => {
                    let _ = writeln!(out, "{text}");
                }
            }
        }
        if self.segments.is_empty() {
            let text = printable(self.text);
            let _ = writeln!(out, "{}", if text.is_empty() { "(no speech)" } else { &text });
        }
        let _ = writeln!(out, "{}", self.summary(processing));
        if let Some(Value::Array(warnings)) = self.data.get("warnings") {
            for warning in warnings.iter().filter_map(Value::as_str) {
                let _ = writeln!(out, "warning: {}: {}", printable(file), printable(warning));
            }
        }
        out
    }

    /// Language, duration and speed.
    fn summary(&self, processing: Duration) -> String {
        let mut parts = Vec::new();
        match self.data.get("language").and_then(Value::as_str) {
            None | Some("und") => {}
            Some(language) => match self.data.get("language_confidence").and_then(Value::as_f64) {
                Some(confidence) => parts.push(format!("language {language} ({:.0} %)", confidence * 100.0)),
                None => parts.push(format!("language {language}")),
            },
        }
        let worked = processing.as_secs_f64();
        match self.duration().filter(|seconds| *seconds > 0.0) {
            Some(duration) => {
                parts.push(format!("{duration:.2} s of audio in {worked:.2} s"));
                parts.push(format!("realtime factor {:.3}", worked / duration));
            }
            None => parts.push(format!("took {worked:.2} s")),
        }
        parts.join(", ")
    }

    fn duration(&self) -> Option<f64> {
        self.data.get("duration").and_then(Value::as_f64)
    }
}

/// A transcript with the keys, and in the order, of Whisper's tools.
#[derive(Serialize)]
struct TranscriptJson<'a> {
    file: &'a str,
    text: &'a str,
    language: Option<&'a Value>,
    language_probability: Option<&'a Value>,
    duration: Option<&'a Value>,
    segments: Vec<SegmentJson<'a>>,
    tokens: Vec<&'a Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [Value],
}

#[derive(Serialize)]
struct SegmentJson<'a> {
    start: Option<&'a Value>,
    end: Option<&'a Value>,
    text: Option<&'a Value>,
    tokens: Option<&'a Value>,
    avg_logprob: Option<&'a Value>,
    no_speech_prob: Option<&'a Value>,
    compression_ratio: Option<&'a Value>,
    temperature: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<&'a Value>,
}

impl<'a> SegmentJson<'a> {
    fn of(segment: &'a Value) -> Self {
        Self {
            start: segment.get("start"),
            end: segment.get("end"),
            text: segment.get("text"),
            tokens: fact(segment, "tokens"),
            avg_logprob: fact(segment, "avg_logprob"),
            no_speech_prob: fact(segment, "no_speech_prob"),
            compression_ratio: fact(segment, "compression_ratio"),
            temperature: fact(segment, "temperature"),
            words: segment.get("words").filter(|words| words.is_array()),
        }
    }
}

/// The response of another stage.
#[derive(Serialize)]
struct DataJson<'a> {
    file: &'a str,
    data: &'a Value,
}

/// A value from the metadata of a segment, or else from the segment.
fn fact<'a>(segment: &'a Value, key: &str) -> Option<&'a Value> {
    segment
        .get("metadata")
        .and_then(|metadata| metadata.get(key))
        .or_else(|| segment.get(key))
}

fn seconds(segment: &Value, key: &str) -> Option<f64> {
    segment.get(key).and_then(Value::as_f64)
}

/// `1:02:03.45`, or `02:03.45` without hours.
fn clock(seconds: f64, hours: bool) -> String {
    let hundredths = (seconds.max(0.0) * 100.0).round() as u64;
    let (minutes, rest) = (hundredths / 6000, hundredths % 6000);
    let rest = format!("{:02}.{:02}", rest / 100, rest % 100);
    if hours {
        format!("{}:{:02}:{rest}", minutes / 60, minutes % 60)
    } else {
        format!("{minutes:02}:{rest}")
    }
}

/// A text without control characters, which could move the cursor of a terminal.
fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transcript() -> Value {
        json!({
            "schema_version": "1",
            "text": "eins zwei",
            "segments": [
                { "start": 0.0, "end": 1.24, "text": " eins", "words": null, "metadata": {
                    "tokens": [50364, 7, 50426], "avg_logprob": -0.25, "no_speech_prob": 0.01,
                    "compression_ratio": 0.5, "temperature": 0.0 } },
                { "start": 61.5, "end": 62.0, "text": " zwei", "metadata": { "tokens": [8], "avg_logprob": -0.5 } },
            ],
            "language": "de", "language_confidence": 0.985, "duration": 64.0,
            "timestamp_granularity": "segment", "engine_id": "test", "warnings": [],
        })
    }

    fn finished(data: &Value) -> Finished<'_> {
        Finished {
            file: Path::new("talk.wav"),
            data,
            processing: Duration::from_millis(3200),
        }
    }

    #[test]
    fn transcript_is_one_line_of_json_with_whisper_keys() {
        let data = transcript();
        let line = json_line(&finished(&data));
        assert!(!line.contains('\n'));
        assert!(
            line.starts_with(r#"{"file":"talk.wav","text":"eins zwei","language":"de","#),
            "{line}"
        );
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "file": "talk.wav", "text": "eins zwei", "language": "de", "language_probability": 0.985,
                "duration": 64.0,
                "segments": [
                    { "start": 0.0, "end": 1.24, "text": " eins", "tokens": [50364, 7, 50426], "avg_logprob": -0.25,
                      "no_speech_prob": 0.01, "compression_ratio": 0.5, "temperature": 0.0 },
                    { "start": 61.5, "end": 62.0, "text": " zwei", "tokens": [8], "avg_logprob": -0.5,
                      "no_speech_prob": null, "compression_ratio": null, "temperature": null },
                ],
                "tokens": [50364, 7, 50426, 8],
            })
        );
    }

    #[test]
    fn lines_show_times_language_and_speed() {
        let data = transcript();
        assert_eq!(
            readable(&finished(&data)),
            "[00:00.00 -> 00:01.24]  eins\n\
             [01:01.50 -> 01:02.00]  zwei\n\
             language de (98 %), 64.00 s of audio in 3.20 s, realtime factor 0.050\n"
        );
    }

    #[test]
    fn times_are_hidden_without_timestamp_granularity() {
        let mut data = transcript();
        data["timestamp_granularity"] = "none".into();
        assert!(readable(&finished(&data)).starts_with("eins\nzwei\nlanguage de"));
    }

    #[test]
    fn silence_is_shown_as_no_speech() {
        let data = json!({ "text": "", "segments": [], "language": "und", "duration": 6.0,
                           "warnings": ["no speech was found"] });
        assert_eq!(
            readable(&finished(&data)),
            "(no speech)\n6.00 s of audio in 3.20 s, realtime factor 0.533\nwarning: talk.wav: no speech was found\n"
        );
    }

    #[test]
    fn response_of_another_stage_is_unchanged() {
        let data = json!({ "words": 3 });
        assert_eq!(readable(&finished(&data)), "{\n  \"words\": 3\n}\n");
        assert_eq!(
            json_line(&finished(&data)),
            r#"{"file":"talk.wav","data":{"words":3}}"#
        );
    }

    #[test]
    fn hours_appear_in_long_recordings() {
        assert_eq!(clock(3723.456, true), "1:02:03.46");
        assert_eq!(clock(59.999, false), "01:00.00");
        assert_eq!(clock(-1.0, false), "00:00.00");
    }

    #[test]
    fn control_characters_are_removed() {
        let data =
            json!({ "text": "x", "segments": [{ "start": 0.0, "end": 1.0, "text": "a\u{1b}[2Jb\nc" }] });
        assert!(readable(&finished(&data)).starts_with("[00:00.00 -> 00:01.00]  a [2Jb c\n"));
    }
}
