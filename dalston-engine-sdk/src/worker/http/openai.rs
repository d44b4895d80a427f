//! `POST /v1/audio/transcriptions`: the form of OpenAI's API.

use std::fmt::Write as _;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use dalston_telemetry::services::engine::DirectEndpoint;
use serde::Serialize;
use serde_json::{Value, json};

use super::api::{Api, TranscriptionRequest, model};
use super::form::{Fields, quoted};
use super::json;
use super::refusal::Refusal;
use crate::stage::{Metadata, Segment, Transcript};

/// Responds in one of five formats, and with errors in OpenAI's form.
#[derive(Debug)]
pub(super) struct OpenAi;

#[derive(Debug)]
pub(super) struct ResponseOptions {
    format: Format,
    segments: bool,
    words: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
}

const FORMATS: [(&str, Format); 5] = [
    ("json", Format::Json),
    ("text", Format::Text),
    ("srt", Format::Srt),
    ("verbose_json", Format::VerboseJson),
    ("vtt", Format::Vtt),
];

impl Api for OpenAi {
    const ENDPOINT: DirectEndpoint = DirectEndpoint::OpenAi;
    const URL_FIELD: Option<&'static str> = None;
    type ResponseOptions = ResponseOptions;

    fn read(fields: &Fields, engine_id: &str) -> Result<(ResponseOptions, TranscriptionRequest), Refusal> {
        if fields.flag("stream")? == Some(true) {
            return Err(Refusal::field("stream", "true: not supported, leave it out"));
        }
        if fields.has("include") || fields.has("include[]") {
            return Err(Refusal::field("include", "not supported, leave it out"));
        }
        let format = match fields.text("response_format")? {
            None => Format::Json,
            Some(name) => FORMATS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, format)| *format)
                .ok_or_else(|| {
                    let known = FORMATS.map(|(name, _)| name).join(", ");
                    Refusal::field(
                        "response_format",
                        format_args!("{}: expected one of {known}", quoted(name)),
                    )
                })?,
        };
        let granularities = fields.all(["timestamp_granularities[]", "timestamp_granularities"]);
        let refuse = |problem: String| Refusal::field("timestamp_granularities", problem);
        if !granularities.is_empty() && format != Format::VerboseJson {
            return Err(refuse(
                "given: expected response_format to be verbose_json".to_owned(),
            ));
        }
        if let Some(other) = granularities
            .iter()
            .find(|name| !matches!(**name, "word" | "segment"))
        {
            return Err(refuse(format!("{}: expected word or segment", quoted(other))));
        }
        let words = granularities.contains(&"word");
        let options = ResponseOptions {
            format,
            segments: granularities.is_empty() || granularities.contains(&"segment"),
            words,
        };

        let mut request = TranscriptionRequest {
            model: model(fields, engine_id)?.filter(|model| !is_openai_model(model)),
            ..TranscriptionRequest::default()
        };
        for name in ["language", "prompt"] {
            if let Some(text) = fields.text(name)? {
                request.config.insert(name.to_owned(), text.into());
            }
        }
        const TEMPERATURE: &str = "a number from 0 to 1";
        if let Some(temperature) = fields.parse::<f64>("temperature", TEMPERATURE)? {
            if !(0.0..=1.0).contains(&temperature) {
                let problem = format!("{temperature}: expected {TEMPERATURE}");
                return Err(Refusal::field("temperature", problem));
            }
            request
                .config
                .insert("temperature".to_owned(), temperature.into());
        }
        request.config.insert("word_timestamps".to_owned(), words.into());
        Ok((options, request))
    }

    fn respond(options: ResponseOptions, _: &str, data: Value) -> Result<Response, Refusal> {
        let transcript: Transcript = serde_json::from_value(data).map_err(|error| {
            Refusal::internal(
                "invalid_output",
                &format!("the engine's output is not a transcript: {error}"),
            )
        })?;
        let plain = |kind: &'static str, text: String| ([(header::CONTENT_TYPE, kind)], text).into_response();
        Ok(match options.format {
            Format::Json => json::response(&json!({ "text": transcript.text })),
            Format::Text => plain("text/plain; charset=utf-8", transcript.text),
            Format::VerboseJson => json::response(&Verbose::of(&options, transcript)),
            Format::Srt => plain("text/plain; charset=utf-8", srt(&transcript.segments)),
            Format::Vtt => plain("text/vtt; charset=utf-8", vtt(&transcript.segments)),
        })
    }

    fn refuse(refusal: &Refusal) -> Response {
        let kind = if refusal.status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        let error = json!({"error": {
            "message": refusal.message, "type": kind, "param": refusal.field, "code": refusal.code,
        }});
        json::response(&error)
    }
}

/// OpenAI's clients must name a model. The names of OpenAI's own models select the engine's default
/// model.
fn is_openai_model(model: &str) -> bool {
    model == "whisper-1" || model.starts_with("gpt-")
}

#[derive(Serialize)]
struct Verbose {
    task: &'static str,
    language: String,
    duration: f64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<VerboseSegment>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<Vec<VerboseWord>>,
}

#[derive(Serialize)]
struct VerboseSegment {
    id: usize,
    seek: u32,
    start: f64,
    end: f64,
    text: String,
    tokens: Value,
    temperature: f64,
    avg_logprob: f64,
    compression_ratio: f64,
    no_speech_prob: f64,
}

#[derive(Serialize)]
struct VerboseWord {
    word: String,
    start: f64,
    end: f64,
}

impl Verbose {
    fn of(options: &ResponseOptions, transcript: Transcript) -> Self {
        let last = transcript.segments.last().map_or(0.0, |segment| segment.end);
        let words = options.words.then(|| {
            let words = transcript
                .segments
                .iter()
                .flat_map(|segment| segment.words.iter().flatten());
            let words = words.map(|word| VerboseWord {
                word: word.text.trim().to_owned(),
                start: word.start,
                end: word.end,
            });
            words.collect()
        });
        let segments = options.segments.then(|| {
            let segments = transcript.segments.into_iter().enumerate();
            segments
                .map(|(id, segment)| VerboseSegment::of(id, segment))
                .collect()
        });
        Self {
            task: "transcribe",
            language: transcript.language,
            duration: transcript.duration.unwrap_or(last),
            text: transcript.text,
            segments,
            words,
        }
    }
}

impl VerboseSegment {
    /// The defaults are those of the platform's other engines.
    fn of(id: usize, segment: Segment) -> Self {
        let number = |name, default| number(&segment.metadata, name).unwrap_or(default);
        let tokens = segment.metadata.get("tokens").filter(|tokens| tokens.is_array());
        Self {
            id,
            seek: 0,
            start: segment.start,
            end: segment.end,
            tokens: tokens.cloned().unwrap_or_else(|| json!([])),
            temperature: number("temperature", 0.0),
            avg_logprob: number("avg_logprob", -0.5),
            compression_ratio: number("compression_ratio", 1.0),
            no_speech_prob: number("no_speech_prob", 0.0),
            text: segment.text,
        }
    }
}

fn number(metadata: &Metadata, name: &str) -> Option<f64> {
    metadata.get(name)?.as_f64()
}

fn srt(segments: &[Segment]) -> String {
    let mut text = String::new();
    for (at, segment) in segments.iter().enumerate() {
        let (start, end) = (clock(segment.start, ','), clock(segment.end, ','));
        let _ = write!(
            text,
            "{}\n{start} --> {end}\n{}\n\n",
            at + 1,
            cue_text(&segment.text)
        );
    }
    text
}

fn vtt(segments: &[Segment]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in segments {
        let (start, end) = (clock(segment.start, '.'), clock(segment.end, '.'));
        let _ = write!(
            text,
            "{start} --> {end}\n{}\n\n",
            cue_text(&segment.text).replace("-->", "->")
        );
    }
    text
}

/// A text without empty lines, which would end its cue.
fn cue_text(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// Hours, minutes, seconds and milliseconds.
fn clock(seconds: f64, point: char) -> String {
    let milliseconds = (seconds * 1000.0).round() as u64;
    let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    format!(
        "{:02}:{:02}:{seconds:02}{point}{milliseconds:03}",
        minutes / 60,
        minutes % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtitle_times_are_rounded_and_carry_over() {
        assert_eq!(clock(0.0, ','), "00:00:00,000");
        assert_eq!(clock(59.9996, '.'), "00:01:00.000");
        assert_eq!(clock(3_723.25, ','), "01:02:03,250");
        assert_eq!(clock(360_000.0, '.'), "100:00:00.000");
    }

    #[test]
    fn text_of_several_lines_stays_one_subtitle() {
        let segments = [
            Segment::new(0.0, 1.5, " one\n\n two --> three "),
            Segment::new(1.5, 2.0, "four"),
        ];
        let first = "00:00:00,000 --> 00:00:01,500\none\ntwo --> three\n\n";
        assert_eq!(
            srt(&segments),
            format!("1\n{first}2\n00:00:01,500 --> 00:00:02,000\nfour\n\n")
        );
        let first = "00:00:00.000 --> 00:00:01.500\none\ntwo -> three\n\n";
        assert_eq!(
            vtt(&segments),
            format!("WEBVTT\n\n{first}00:00:01.500 --> 00:00:02.000\nfour\n\n")
        );
        assert_eq!((srt(&[]), vtt(&[])), (String::new(), "WEBVTT\n\n".to_owned()));
    }

    #[test]
    fn openai_model_names_are_recognised() {
        for name in [
            "whisper-1",
            "gpt-4o-transcribe",
            "gpt-4o-mini-transcribe-2025-12-15",
        ] {
            assert!(is_openai_model(name), "{name}");
        }
        assert!(!is_openai_model("whisper-large-v3"));
    }
}
