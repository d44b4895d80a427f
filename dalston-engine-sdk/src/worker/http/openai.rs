//! `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`: the form of OpenAI's API.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use dalston_telemetry::services::engine::DirectEndpoint;
use serde::Serialize;
use serde_json::{Value, json};

use super::api::{Api, TranscriptionRequest, model};
use super::events;
use super::form::{Fields, quoted};
use super::json;
use super::refusal::Refusal;
use crate::protocol::Capabilities;
use crate::stage::{Metadata, Segment, Transcript};
use crate::subtitles::{Pieces, srt, vtt};

/// Responds with a transcript in one of five formats or as events, and with errors in OpenAI's
/// form.
#[derive(Debug)]
pub(super) struct Transcriptions;

/// As [`Transcriptions`], with an English text for speech in any language.
#[derive(Debug)]
pub(super) struct Translations;

#[derive(Debug)]
pub(super) struct ResponseOptions {
    /// `transcribe` or `translate`.
    task: &'static str,
    format: Format,
    segments: bool,
    words: bool,
    /// Whether the response is a stream of events.
    stream: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
}

/// What requests for times expect.
const WITH_TIMES: &str = "expected response_format to be verbose_json, srt or vtt";

impl Format {
    fn has_times(self) -> bool {
        matches!(self, Self::VerboseJson | Self::Srt | Self::Vtt)
    }
}

const FORMATS: [(&str, Format); 5] = [
    ("json", Format::Json),
    ("text", Format::Text),
    ("srt", Format::Srt),
    ("verbose_json", Format::VerboseJson),
    ("vtt", Format::Vtt),
];

impl Api for Transcriptions {
    const ENDPOINT: DirectEndpoint = DirectEndpoint::OpenAi;
    const URL_FIELD: Option<&'static str> = None;
    const FIELDS: &'static [&'static str] = &[
        "file",
        "model",
        "language",
        "prompt",
        "response_format",
        "stream",
        "temperature",
        "timestamp_granularities",
        "timestamp_granularities[]",
        "word_timestamps",
    ];
    type ResponseOptions = ResponseOptions;

    fn read(
        fields: &Fields,
        engine: &Capabilities,
    ) -> Result<(ResponseOptions, TranscriptionRequest), Refusal> {
        if fields.has("include") || fields.has("include[]") {
            return Err(Refusal::field("include", "not supported, leave it out"));
        }
        let (mut options, mut request) = read(fields, engine, "transcribe")?;
        if let Some(language) = fields.text("language")? {
            request.config.insert("language".to_owned(), language.into());
        }
        let granularities = fields.all(["timestamp_granularities[]", "timestamp_granularities"]);
        let refuse = |problem: String| Refusal::field("timestamp_granularities", problem);
        if !granularities.is_empty() && !options.format.has_times() {
            return Err(refuse(format!("given: {WITH_TIMES}")));
        }
        if let Some(other) = granularities
            .iter()
            .find(|name| !matches!(**name, "word" | "segment"))
        {
            return Err(refuse(format!("{}: expected word or segment", quoted(other))));
        }
        options.segments = granularities.is_empty() || granularities.contains(&"segment");
        if granularities.contains(&"word") {
            if !engine.supports_word_timestamps {
                return Err(no_words(&engine.engine_id));
            }
            options.words = true;
            request.config.insert("word_timestamps".to_owned(), true.into());
        }
        options.stream = fields.flag("stream")? == Some(true);
        if options.stream && options.format != Format::Json {
            let problem = "true: expected response_format to be json";
            return Err(Refusal::field("stream", problem));
        }
        Ok((options, request))
    }

    fn respond(options: ResponseOptions, engine_id: &str, data: Value) -> Result<Response, Refusal> {
        respond(&options, engine_id, data)
    }

    fn refuse(refusal: &Refusal) -> Value {
        json!({ "error": refusal.openai_error() })
    }
}

impl Api for Translations {
    const ENDPOINT: DirectEndpoint = DirectEndpoint::OpenAiTranslations;
    const URL_FIELD: Option<&'static str> = None;
    const FIELDS: &'static [&'static str] = &[
        "file",
        "model",
        "prompt",
        "response_format",
        "temperature",
        "word_timestamps",
    ];
    type ResponseOptions = ResponseOptions;

    fn read(
        fields: &Fields,
        engine: &Capabilities,
    ) -> Result<(ResponseOptions, TranscriptionRequest), Refusal> {
        read(fields, engine, "translate")
    }

    fn respond(options: ResponseOptions, engine_id: &str, data: Value) -> Result<Response, Refusal> {
        respond(&options, engine_id, data)
    }

    fn refuse(refusal: &Refusal) -> Value {
        Transcriptions::refuse(refusal)
    }
}

/// Reads the fields that both routes have.
fn read(
    fields: &Fields,
    engine: &Capabilities,
    task: &'static str,
) -> Result<(ResponseOptions, TranscriptionRequest), Refusal> {
    const TEMPERATURE: &str = "a number from 0 to 1";
    /// The temperatures that OpenAI's API tries for 0, its default.
    const FALLBACKS: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];

    let format = match fields.text("response_format")? {
        None => Format::Json,
        Some(name) => FORMATS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, format)| *format)
            .ok_or_else(|| {
                let known = FORMATS.map(|(name, _)| name).join(", ");
                let problem = format!("{}: expected one of {known}", quoted(name));
                Refusal::field("response_format", problem)
            })?,
    };
    // The option of Whisper's tools, beside OpenAI's granularities.
    let words = fields.flag("word_timestamps")? == Some(true);
    if words && !format.has_times() {
        return Err(Refusal::field("word_timestamps", format!("true: {WITH_TIMES}")));
    }
    if words && !engine.supports_word_timestamps {
        let problem = format!("true: the engine {} finds no times of words", engine.engine_id);
        return Err(Refusal::field("word_timestamps", problem));
    }
    let options = ResponseOptions {
        task,
        format,
        segments: true,
        words,
        stream: false,
    };
    let mut request = TranscriptionRequest {
        model: model(fields, &engine.engine_id)?.filter(|model| !is_openai_model(model)),
        ..TranscriptionRequest::default()
    };
    let config = &mut request.config;
    if let Some(prompt) = fields.text("prompt")? {
        config.insert("prompt".to_owned(), prompt.into());
    }
    let temperature = fields.parse::<f64>("temperature", TEMPERATURE)?.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&temperature) {
        let problem = format!("{temperature}: expected {TEMPERATURE}");
        return Err(Refusal::field("temperature", problem));
    }
    let temperature = match temperature {
        0.0 => json!(FALLBACKS),
        other => json!(other),
    };
    config.insert("temperature".to_owned(), temperature);
    config.insert("word_timestamps".to_owned(), words.into());
    if task != "transcribe" {
        config.insert("task".to_owned(), task.into());
    }
    Ok((options, request))
}

fn respond(options: &ResponseOptions, engine_id: &str, data: Value) -> Result<Response, Refusal> {
    let transcript: Transcript = serde_json::from_value(data).map_err(|error| {
        Refusal::internal(
            "invalid_output",
            &format!("the engine's output is not a transcript: {error}"),
        )
    })?;
    let has_words = |segment: &Segment| segment.words.as_ref().is_some_and(|words| !words.is_empty());
    if options.words && !transcript.text.is_empty() && !transcript.segments.iter().any(has_words) {
        return Err(no_words(engine_id));
    }
    if options.stream {
        return Ok(events::response(&transcript));
    }
    let pieces = match options.words {
        true => Pieces::Words,
        false => Pieces::Segments,
    };
    let plain = |kind: &'static str, text: String| ([(header::CONTENT_TYPE, kind)], text).into_response();
    Ok(match options.format {
        Format::Json => json::response(&json!({ "text": transcript.text })),
        Format::Text => plain("text/plain; charset=utf-8", transcript.text),
        Format::VerboseJson => json::response(&Verbose::of(options, transcript)),
        Format::Srt => plain("text/plain; charset=utf-8", srt(&transcript.segments, pieces)),
        Format::Vtt => plain("text/vtt; charset=utf-8", vtt(&transcript.segments, pieces)),
    })
}

fn no_words(engine_id: &str) -> Refusal {
    let problem = format!("word: the engine {engine_id} finds no times of words: expected segment");
    Refusal::field("timestamp_granularities", problem)
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
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
    /// Not in OpenAI's API, but in its Whisper.
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
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
                probability: word.confidence,
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
            task: options.task,
            language: transcript.language,
            duration: transcript.duration.unwrap_or(last),
            text: transcript.text,
            segments,
            words,
            warnings: transcript.warnings,
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn words_of_an_engine_without_words_are_refused() {
        let engine = crate::EngineInfo::new("plain", "1.0.0").capabilities();
        let fields = |granularity: &str| {
            Fields::from_iter([
                ("response_format", "verbose_json"),
                ("timestamp_granularities[]", granularity),
            ])
        };
        let refusal = Transcriptions::read(&fields("word"), &engine).unwrap_err();
        assert_eq!(
            (refusal.status.as_u16(), &*refusal.message),
            (
                400,
                "timestamp_granularities: word: the engine plain finds no times of words: expected segment"
            )
        );
        assert!(Transcriptions::read(&fields("segment"), &engine).is_ok());
    }
}
