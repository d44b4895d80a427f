//! The steps of a realtime worker, each as a span with its metrics: [`RealtimeSteps`].

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, SystemTime};

use opentelemetry::{Context, KeyValue};
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::metrics::{RealtimeMetrics, RealtimeModelMetrics, RealtimeSession, SessionEnd, TranscriptType};
use super::spans::{attr, span};
use crate::logs::context::LogContext;
use crate::services::names::attr as shared;
use crate::services::{SpanNames, step};
use crate::setup::telemetry::{TelemetryHandle, TimedSpan};

/// One chunk in so many gets a span, unless the worker says otherwise.
const CHUNKS_PER_SPAN: u32 = 10;

/// The steps of a realtime worker. Each runs in its span, and counts in [`RealtimeMetrics`]. Cheap
/// to clone.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use dalston_telemetry::services::realtime::{
///     GeneratedTranscript, RealtimeSteps, SessionEnd, StartedSession, TranscriptType, Utterance,
/// };
///
/// # type Error = std::io::Error;
/// # async fn transcribe(audio: &[f32]) -> Result<String, Error> { Ok(String::new()) }
/// async fn serve(steps: &RealtimeSteps, session: &StartedSession<'_>, audio: &[f32]) -> Result<(), Error> {
///     let mut session = steps.begin(session);
///     let arrived = Instant::now();
///     let chunk = session.chunk();
///     // … resampling, voice activity …
///     session.chunk_done(chunk, Duration::from_millis(100), arrived.elapsed());
///
///     let utterance = Utterance { start: Duration::ZERO, end: Duration::from_millis(900) };
///     session.vad_endpoint(utterance);
///     let facts = |text: &String| Some(GeneratedTranscript::of(text));
///     let text = session
///         .transcripts()
///         .generate(TranscriptType::Final, utterance, transcribe(audio), facts)
///         .await?;
///     session.close(SessionEnd::Completed, async { println!("{text}") }).await;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct RealtimeSteps {
    telemetry: TelemetryHandle,
    metrics: RealtimeMetrics,
    chunks_per_span: u32,
    names: SpanNames,
}

/// A session that begins.
#[derive(Clone, Debug)]
pub struct StartedSession<'a> {
    /// The session.
    pub session_id: &'a str,
    /// The model; empty for the default.
    pub model: &'a str,
    /// The requested language; empty if it is detected.
    pub language: &'a str,
    /// The trace context of the client. It has no span if the client sends none.
    pub parent: Context,
}

/// A stretch of speech, in time of received audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utterance {
    /// Its start.
    pub start: Duration,
    /// Its end.
    pub end: Duration,
}

/// The size of a transcript. Its text is in no span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneratedTranscript {
    /// The number of words.
    pub words: usize,
    /// The number of characters.
    pub characters: usize,
}

impl GeneratedTranscript {
    /// The size of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self {
            words: text.split_whitespace().count(),
            characters: text.chars().count(),
        }
    }
}

impl RealtimeSteps {
    /// Steps that count in `metrics`. One chunk in ten gets a span.
    #[must_use]
    pub fn new(telemetry: TelemetryHandle, metrics: RealtimeMetrics) -> Self {
        Self {
            telemetry,
            metrics,
            chunks_per_span: CHUNKS_PER_SPAN,
            names: SpanNames::default(),
        }
    }

    /// Sets how many chunks of a session share a span. 0 counts as 1, which is a span for each.
    #[must_use]
    pub fn one_span_in(mut self, chunks: u32) -> Self {
        self.chunks_per_span = chunks.max(1);
        self
    }

    /// Sets the names of the spans.
    #[must_use]
    pub fn names(mut self, names: SpanNames) -> Self {
        self.names = names;
        self
    }

    /// The metrics, for what is no step: rejected sessions, resampling, lag.
    #[must_use]
    pub fn metrics(&self) -> &RealtimeMetrics {
        &self.metrics
    }

    /// Begins a session: its span `realtime.session`, and the short span `realtime.session.begin`.
    #[must_use = "the session has ended as soon as its steps are dropped"]
    pub fn begin(&self, session: &StartedSession<'_>) -> SessionSteps {
        let span = info_span!(parent: None, span::SESSION, otel.kind = "server");
        // Fails only without an OpenTelemetry layer, and then there are no spans.
        let _ = span.set_parent(session.parent.clone());
        let texts = [
            (shared::SESSION_ID, Some(session.session_id)),
            (shared::ENGINE_ID, Some(self.metrics.engine_id())),
            (shared::INSTANCE, Some(self.metrics.worker_id())),
            (shared::MODEL, Some(session.model)),
            (shared::LANGUAGE, Some(session.language)),
        ];
        step::set_texts(&span, texts);
        let metrics = self.metrics.model(session.model);
        let steps = SessionSteps {
            log: LogContext::new()
                .field("session_id", session.session_id)
                .carrier(session.parent.clone()),
            active: Some(metrics.session()),
            metrics,
            steps: self.clone(),
            span,
            chunks_until_span: 0,
            chunks: 0,
            audio: Duration::ZERO,
            latency: Duration::ZERO,
        };
        let now = SystemTime::now();
        let attributes = vec![KeyValue::new(shared::SESSION_ID, session.session_id.to_owned())];
        steps.record(span::SESSION_BEGIN, now, now, attributes);
        steps
    }
}

/// The steps of one session. Made by [`RealtimeSteps::begin`].
///
/// If it is dropped without [`close`](Self::close), the session ends with the reason `aborted`.
#[derive(Debug)]
#[must_use = "the session has ended as soon as its steps are dropped"]
pub struct SessionSteps {
    steps: RealtimeSteps,
    metrics: RealtimeModelMetrics,
    /// `None` once the session has ended.
    active: Option<RealtimeSession>,
    span: Span,
    log: LogContext,
    chunks_until_span: u32,
    chunks: u64,
    audio: Duration,
    latency: Duration,
}

/// A chunk of audio that is processed. Made by [`SessionSteps::chunk`].
#[derive(Debug)]
#[must_use = "the chunk is counted by SessionSteps::chunk_done"]
pub struct AudioChunk {
    /// `None` for a chunk between two sampled ones.
    span: Option<Span>,
}

impl AudioChunk {
    /// Its span, for the spans of its processing; a disabled one if it is not sampled.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(Span::none)
    }
}

impl SessionSteps {
    /// The span of the session.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The log context of the session: its log lines have `session_id`.
    #[must_use]
    pub fn log_context(&self) -> LogContext {
        self.log.clone()
    }

    /// The metrics of the session's model.
    #[must_use]
    pub fn metrics(&self) -> &RealtimeModelMetrics {
        &self.metrics
    }

    /// Begins the processing of a chunk of audio. The first chunk of the session gets a span, and
    /// then one in so many.
    pub fn chunk(&mut self) -> AudioChunk {
        let span = match self.chunks_until_span.checked_sub(1) {
            Some(rest) => {
                self.chunks_until_span = rest;
                None
            }
            None => {
                self.chunks_until_span = self.steps.chunks_per_span - 1;
                Some(match self.steps.names {
                    SpanNames::Guide => info_span!(parent: &self.span, span::PROCESS_AUDIO_CHUNK),
                    SpanNames::Live => info_span!(parent: &self.span, span::LIVE_PROCESS_AUDIO_CHUNK),
                })
            }
        };
        AudioChunk { span }
    }

    /// Ends the processing of a chunk of this length, `latency` after its arrival. A chunk that
    /// took longer than its audio has a span in any case.
    ///
    /// Counts `dalston_realtime_audio_processed_seconds_total` and
    /// `dalston_realtime_chunk_latency_seconds`.
    pub fn chunk_done(&mut self, chunk: AudioChunk, length: Duration, latency: Duration) {
        self.metrics.audio_processed(length);
        self.metrics.chunk_latency(latency);
        let index = self.chunks;
        self.chunks += 1;
        self.audio += length;
        self.latency += latency;
        if chunk.span.is_some() || latency > length {
            self.record_chunk(&chunk, index, length, latency);
        }
    }

    #[cold]
    fn record_chunk(&self, chunk: &AudioChunk, index: u64, length: Duration, latency: Duration) {
        let attributes = [
            KeyValue::new(attr::CHUNK_INDEX, i64::try_from(index).unwrap_or(i64::MAX)),
            KeyValue::new(shared::AUDIO_DURATION_SECONDS, length.as_secs_f64()),
            KeyValue::new(attr::CHUNK_LATENCY_SECONDS, latency.as_secs_f64()),
        ];
        match &chunk.span {
            Some(span) => attributes
                .into_iter()
                .for_each(|attribute| span.set_attribute(attribute.key, attribute.value)),
            None => {
                let now = SystemTime::now();
                let name = match self.steps.names {
                    SpanNames::Guide => span::PROCESS_AUDIO_CHUNK,
                    SpanNames::Live => span::LIVE_PROCESS_AUDIO_CHUNK,
                };
                self.record(
                    name,
                    now.checked_sub(latency).unwrap_or(now),
                    now,
                    attributes.into(),
                );
            }
        }
    }

    /// Records the duration of the resampling of a chunk:
    /// `dalston_realtime_resample_duration_seconds`.
    pub fn resampled(&self, from_hertz: u32, to_hertz: u32, time: Duration) {
        self.steps.metrics.resampled(from_hertz, to_hertz, time);
    }

    /// Records the end of an utterance as the span `vad_endpoint`.
    pub fn vad_endpoint(&self, utterance: Utterance) {
        let span = match self.steps.names {
            SpanNames::Guide => info_span!(parent: &self.span, span::VAD_ENDPOINT),
            SpanNames::Live => info_span!(parent: &self.span, span::LIVE_VAD_ENDPOINT),
        };
        let length = utterance.end.saturating_sub(utterance.start);
        span.set_attribute(attr::VAD_SPEECH_DURATION_S, length.as_secs_f64());
        span.set_attribute(attr::VAD_TIMESTAMP, utterance.end.as_secs_f64());
    }

    /// The part of the steps that generates transcripts, also in tasks beside the session's own.
    #[must_use]
    pub fn transcripts(&self) -> TranscriptSteps {
        TranscriptSteps {
            span: self.span.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Ends the session: runs `work` in the span `session_close`, counts the end in
    /// `dalston_realtime_session_ends_total`, and records the length of the session. The span of
    /// the session gets its totals.
    pub async fn close<T>(mut self, reason: SessionEnd, work: impl Future<Output = T>) -> T {
        let span = info_span!(parent: &self.span, span::SESSION_CLOSE);
        step::set_texts(&span, [(attr::END_REASON, Some(reason.as_str()))]);
        let done = work.instrument(span).await;
        self.end(reason);
        done
    }

    fn end(&mut self, reason: SessionEnd) {
        let Some(active) = self.active.take() else { return };
        let span = self.span.clone();
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        step::set_texts(&span, [(attr::END_REASON, Some(reason.as_str()))]);
        span.set_attribute(attr::TOTAL_CHUNKS, number(self.chunks));
        span.set_attribute(attr::TOTAL_AUDIO_S, self.audio.as_secs_f64());
        if self.chunks > 0 {
            let mean = self.latency.as_secs_f64() * 1e3 / self.chunks as f64;
            span.set_attribute(attr::AVG_CHUNK_LATENCY_MS, mean);
        }
        span.in_scope(|| {
            self.steps.metrics.session_ended(reason);
            drop(active);
        });
    }

    /// Records a span with explicit times below that of the session.
    fn record(&self, name: &'static str, start: SystemTime, end: SystemTime, attributes: Vec<KeyValue>) {
        if !self.steps.telemetry.traces_enabled() {
            return;
        }
        let parent = self.span.context();
        let mut span = TimedSpan::new(name, &parent, start, end);
        span.attributes = attributes;
        self.steps.telemetry.record_span(span);
    }
}

impl Drop for SessionSteps {
    fn drop(&mut self) {
        self.end(SessionEnd::Aborted);
    }
}

/// Generates the transcripts of a session. Made by [`SessionSteps::transcripts`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct TranscriptSteps {
    span: Span,
    metrics: RealtimeModelMetrics,
}

impl TranscriptSteps {
    /// Generates a transcript of this stretch of audio, in the span `generate_transcript`.
    ///
    /// `describe` tells the size of the result, or `None` if no transcript is sent. One that is
    /// sent counts in `dalston_realtime_transcripts_total`.
    ///
    /// # Errors
    ///
    /// The error of `work`, which the span records.
    pub async fn generate<T, E: Display>(
        &self,
        kind: TranscriptType,
        audio: Utterance,
        work: impl Future<Output = Result<T, E>>,
        describe: impl FnOnce(&T) -> Option<GeneratedTranscript>,
    ) -> Result<T, E> {
        let span = info_span!(parent: &self.span, span::GENERATE_TRANSCRIPT);
        step::set_texts(&span, [(attr::TRANSCRIPT_TYPE, Some(kind.as_str()))]);
        let length = audio.end.saturating_sub(audio.start);
        span.set_attribute(shared::AUDIO_DURATION_SECONDS, length.as_secs_f64());
        let result = step::run(span.clone(), work).await?;
        if let Some(transcript) = describe(&result) {
            let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            span.set_attribute(attr::TRANSCRIPT_WORDS, number(transcript.words));
            span.set_attribute(attr::TRANSCRIPT_CHARACTERS, number(transcript.characters));
            span.in_scope(|| self.metrics.transcript(kind));
        }
        Ok(result)
    }
}
