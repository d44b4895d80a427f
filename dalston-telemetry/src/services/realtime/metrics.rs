use std::fmt;
use std::time::{Duration, Instant};

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, DurationCounter, Exemplar, Gauge, Histogram, Metrics, OTHER,
    OpenLabel, Unit, buckets,
};

crate::label! {
    /// Whether a transcript can still change.
    pub enum TranscriptType = "type" {
        Partial => "partial",
        Final => "final",
    }
}

crate::label! {
    /// The reason for the end of a session.
    pub enum SessionEnd = "reason" {
        /// The client has sent `end`.
        Completed => "completed",
        /// The client has closed the connection without `end`.
        ClientClosed => "client_closed",
        /// The connection was lost.
        Disconnected => "disconnected",
        /// The client sent nothing for too long.
        Idle => "idle",
        /// The session reached its maximum length.
        TooLong => "too_long",
        /// The worker was too slow.
        Lag => "lag",
        /// The worker shuts down.
        Shutdown => "shutdown",
        /// The client sent what the worker can't accept.
        Invalid => "invalid",
        /// The worker failed.
        Error => "error",
        /// The worker dropped the session without an end.
        Aborted => "aborted",
    }
}

crate::label! {
    /// The reason for which a session did not begin.
    pub enum Rejection = "reason" {
        /// The worker has as many sessions as it can have.
        NoCapacity => "no_capacity",
        /// The worker shuts down.
        Draining => "draining",
        /// The request is invalid.
        InvalidRequest => "invalid_request",
        /// The engine does not know the language.
        Language => "language_unsupported",
    }
}

crate::label! {
    /// A file of a session in the storage.
    pub enum SessionFile = "file" {
        Audio => "audio",
        Transcript => "transcript",
    }
}

/// The metrics of a worker of realtime sessions. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use dalston_telemetry::metrics::Metrics;
/// use dalston_telemetry::services::realtime::{RealtimeMetrics, TranscriptType};
///
/// let metrics = Metrics::new();
/// let realtime = RealtimeMetrics::register(&metrics, "my-asr", "my-asr-rt-1f2e");
/// let model = realtime.model("tiny");
/// let session = model.session();
/// model.audio_processed(Duration::from_millis(100));
/// model.transcript(TranscriptType::Final);
/// drop(session);
/// ```
///
/// | What | PromQL |
/// |---|---|
/// | Seconds of audio per second, by model | `sum by (model) (rate(dalston_realtime_audio_processed_seconds_total[5m]))` |
/// | 95th percentile of the latency of a chunk | `histogram_quantile(0.95, sum by (model, le) (rate(dalston_realtime_chunk_latency_seconds_bucket[5m])))` |
/// | Final transcripts per second | `sum(rate(dalston_realtime_transcripts_total{type="final"}[5m]))` |
/// | Median length of a session | `histogram_quantile(0.5, sum by (le) (rate(dalston_realtime_session_duration_seconds_bucket[1h])))` |
/// | Time from the end of speech to its final transcript | `histogram_quantile(0.95, sum by (model, le) (rate(dalston_realtime_final_latency_seconds_bucket[5m])))` |
/// | Share of sessions that the worker ended | `sum(rate(dalston_realtime_session_ends_total{reason=~"lag\|error\|aborted"}[5m])) / sum(rate(dalston_realtime_session_ends_total[5m]))` |
/// | Time of resampling | `sum by (from_rate, to_rate) (rate(dalston_realtime_resample_duration_seconds_sum[5m]))` |
#[derive(Clone)]
pub struct RealtimeMetrics {
    families: Families,
    engine_id: String,
    worker_id: String,
}

#[derive(Clone)]
struct Families {
    session_duration: BoundedFamily<2, (), Histogram>,
    audio_processed: BoundedFamily<3, (), DurationCounter>,
    transcripts: BoundedFamily<2, TranscriptType, Counter>,
    resample: BoundedFamily<2, (), Histogram>,
    chunk_latency: BoundedFamily<1, (), Histogram>,
    final_latency: BoundedFamily<1, (), Histogram>,
    partial_latency: BoundedFamily<1, (), Histogram>,
    lag: BoundedFamily<1, (), Histogram>,
    active: DenseFamily<(), Gauge>,
    ends: DenseFamily<SessionEnd, Counter>,
    rejected: DenseFamily<Rejection, Counter>,
    not_stored: DenseFamily<SessionFile, Counter>,
}

impl RealtimeMetrics {
    /// The handles of this worker. The first call for a registry registers the families.
    #[must_use]
    pub fn register(metrics: &Metrics, engine_id: impl Into<String>, worker_id: impl Into<String>) -> Self {
        let room = metrics.combinations();
        let engine = &metrics.label("engine_id");
        let model = &metrics.label("model");
        let worker = &metrics.label("worker_id");
        let families = metrics.set(|registry| {
            let from = &OpenLabel::closed("from_rate", &SAMPLE_RATES);
            let to = &OpenLabel::closed("to_rate", &SAMPLE_RATES);
            let latency = || Histogram::with_exemplars(buckets::CHUNK_LATENCY);
            let mut registry = registry.with_prefix("dalston_realtime");
            Families {
                session_duration: registry.keep_with_unit(
                    "session_duration",
                    "Length of a session",
                    Unit::Seconds,
                    BoundedFamily::with_room_for(room, [engine, model], || {
                        Histogram::with_exemplars(buckets::SESSION_DURATION)
                    }),
                ),
                audio_processed: registry.keep_with_unit(
                    "audio_processed",
                    "Processed audio of sessions",
                    Unit::Seconds,
                    BoundedFamily::with_room_for(room, [engine, model, worker], DurationCounter::default),
                ),
                transcripts: registry.keep(
                    "transcripts",
                    "Transcripts that were sent, by type",
                    BoundedFamily::with_room_for(room, [engine, model], Counter::default),
                ),
                resample: registry.keep_with_unit(
                    "resample_duration",
                    "Time to resample a chunk of audio",
                    Unit::Seconds,
                    BoundedFamily::new([from, to], || Histogram::new(buckets::RESAMPLE)),
                ),
                chunk_latency: registry.keep_with_unit(
                    "chunk_latency",
                    "Time from the arrival of a chunk of audio to the end of its processing",
                    Unit::Seconds,
                    BoundedFamily::new([model], latency),
                ),
                final_latency: registry.keep_with_unit(
                    "final_latency",
                    "Time from the end of speech to its final transcript",
                    Unit::Seconds,
                    BoundedFamily::new([model], latency),
                ),
                partial_latency: registry.keep_with_unit(
                    "partial_latency",
                    "Time from the arrival of audio to the partial transcript that contains it",
                    Unit::Seconds,
                    BoundedFamily::new([model], latency),
                ),
                lag: registry.keep_with_unit(
                    "lag",
                    "Received audio of a session that is not processed yet",
                    Unit::Seconds,
                    BoundedFamily::new([model], || Histogram::new(buckets::CHUNK_LATENCY)),
                ),
                active: registry.keep("sessions_active", "Active sessions", DenseFamily::default()),
                ends: registry.keep(
                    "session_ends",
                    "Sessions that have ended, by reason",
                    DenseFamily::default(),
                ),
                rejected: registry.keep(
                    "sessions_rejected",
                    "Sessions that did not begin, by reason",
                    DenseFamily::default(),
                ),
                not_stored: registry.keep(
                    "storage_failures",
                    "Files of sessions that could not be stored, by file",
                    DenseFamily::default(),
                ),
            }
        });
        Self {
            families,
            engine_id: engine_id.into(),
            worker_id: worker_id.into(),
        }
    }

    /// The metrics of the sessions with a model, whose counters exist at zero after the call.
    #[must_use]
    pub fn model(&self, model: &str) -> RealtimeModelMetrics {
        let Self {
            families,
            engine_id,
            worker_id,
        } = self;
        RealtimeModelMetrics {
            session_duration: families.session_duration.with([engine_id, model]),
            audio_processed: families.audio_processed.with([engine_id, model, worker_id]),
            transcripts: families.transcripts.with([engine_id, model]),
            chunk_latency: families.chunk_latency.with([model]),
            final_latency: families.final_latency.with([model]),
            partial_latency: families.partial_latency.with([model]),
            lag: families.lag.with([model]),
            active: families.active.clone(),
        }
    }

    /// Counts a session that has ended: `dalston_realtime_session_ends_total`.
    pub fn session_ended(&self, reason: SessionEnd) {
        self.families.ends.with(reason).inc_in(Exemplar::current());
    }

    /// Counts a session that did not begin: `dalston_realtime_sessions_rejected_total`.
    pub fn session_rejected(&self, reason: Rejection) {
        self.families.rejected.with(reason).inc();
    }

    /// Counts a file of a session that could not be stored:
    /// `dalston_realtime_storage_failures_total`.
    pub fn file_not_stored(&self, file: SessionFile) {
        self.families.not_stored.with(file).inc();
    }

    pub(super) fn engine_id(&self) -> &str {
        &self.engine_id
    }

    pub(super) fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// Records the duration of the resampling of a chunk:
    /// `dalston_realtime_resample_duration_seconds`. Unusual rates share [`OTHER`].
    pub fn resampled(&self, from_hertz: u32, to_hertz: u32, time: Duration) {
        self.families
            .resample
            .with([rate_of(from_hertz), rate_of(to_hertz)])
            .with(())
            .observe_duration(time);
    }
}

impl fmt::Debug for RealtimeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealtimeMetrics")
            .field("engine_id", &self.engine_id)
            .field("worker_id", &self.worker_id)
            .finish_non_exhaustive()
    }
}

/// The metrics of the sessions with a model. Returned by [`RealtimeMetrics::model`]; cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct RealtimeModelMetrics {
    session_duration: DenseFamily<(), Histogram>,
    audio_processed: DenseFamily<(), DurationCounter>,
    transcripts: DenseFamily<TranscriptType, Counter>,
    chunk_latency: DenseFamily<(), Histogram>,
    final_latency: DenseFamily<(), Histogram>,
    partial_latency: DenseFamily<(), Histogram>,
    lag: DenseFamily<(), Histogram>,
    active: DenseFamily<(), Gauge>,
}

impl RealtimeModelMetrics {
    /// Starts a session, whose length is recorded when the guard is dropped:
    /// `dalston_realtime_session_duration_seconds`. Until then
    /// `dalston_realtime_sessions_active` counts it.
    pub fn session(&self) -> RealtimeSession {
        self.active.with(()).inc();
        RealtimeSession {
            duration: self.session_duration.clone(),
            active: self.active.clone(),
            since: Instant::now(),
        }
    }

    /// Adds processed audio: `dalston_realtime_audio_processed_seconds_total`. The sum is exact to
    /// the nanosecond.
    pub fn audio_processed(&self, length: Duration) {
        self.audio_processed.with(()).add(length);
    }

    /// Counts a transcript that was sent: `dalston_realtime_transcripts_total`.
    pub fn transcript(&self, kind: TranscriptType) {
        self.transcripts.with(kind).inc_in(Exemplar::current());
    }

    /// Records the time from the arrival of a chunk of audio to the end of its processing:
    /// `dalston_realtime_chunk_latency_seconds`.
    pub fn chunk_latency(&self, time: Duration) {
        self.chunk_latency
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the time from the end of speech to its final transcript:
    /// `dalston_realtime_final_latency_seconds`.
    pub fn final_latency(&self, time: Duration) {
        self.final_latency
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records the time from the arrival of audio to the partial transcript that contains it:
    /// `dalston_realtime_partial_latency_seconds`.
    pub fn partial_latency(&self, time: Duration) {
        self.partial_latency
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Records how much of a session's audio is not processed yet: `dalston_realtime_lag_seconds`.
    pub fn lag(&self, audio: Duration) {
        self.lag.with(()).observe_duration(audio);
    }
}

/// An active session. Returned by [`RealtimeModelMetrics::session`].
#[derive(Debug)]
#[must_use = "the session has ended as soon as the guard is dropped"]
pub struct RealtimeSession {
    duration: DenseFamily<(), Histogram>,
    active: DenseFamily<(), Gauge>,
    since: Instant,
}

impl Drop for RealtimeSession {
    fn drop(&mut self) {
        self.active.with(()).dec();
        self.duration
            .with(())
            .observe_duration_in(self.since.elapsed(), Exemplar::current());
    }
}

/// The sample rates with a label value, in hertz.
const SAMPLE_RATES: [&str; 10] = [
    "8000", "11025", "12000", "16000", "22050", "24000", "32000", "44100", "48000", "96000",
];

fn rate_of(hertz: u32) -> &'static str {
    let known = SAMPLE_RATES.iter().find(|rate| rate.parse() == Ok(hertz));
    known.copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_changes_exactly_its_series() {
        let metrics = Metrics::new();
        let realtime = RealtimeMetrics::register(&metrics, "asr", "asr-rt-1");
        let model = realtime.model("tiny");
        let before = metrics.snapshot();
        let session = model.session();
        for _ in 0..10 {
            model.audio_processed(Duration::from_millis(100));
        }
        model.transcript(TranscriptType::Partial);
        model.chunk_latency(Duration::from_millis(50));
        model.final_latency(Duration::from_millis(200));
        model.partial_latency(Duration::from_millis(300));
        model.lag(Duration::from_secs(1));
        realtime.session_ended(SessionEnd::Completed);
        realtime.session_rejected(Rejection::NoCapacity);
        realtime.file_not_stored(SessionFile::Audio);
        let active = |metrics: &Metrics| metrics.snapshot().value("dalston_realtime_sessions_active", &[]);
        assert_eq!(active(&metrics), Some(1.0));
        realtime.resampled(44_100, 16_000, Duration::from_millis(1));
        realtime.resampled(12_345, 16_000, Duration::from_millis(1));
        drop(session);
        assert_eq!(active(&metrics), Some(0.0));

        let after = metrics.snapshot();
        let moved: Vec<_> = after
            .diff(&before)
            .iter()
            .filter(|change| !change.series.contains("session_duration_seconds_sum"))
            .map(|change| change.to_string().replace("dalston_realtime_", ""))
            .collect();
        assert_eq!(
            moved,
            [
                r#"audio_processed_seconds_total{engine_id="asr",model="tiny",worker_id="asr-rt-1"}: 0 -> 1"#,
                r#"chunk_latency_seconds_count{model="tiny"}: 0 -> 1"#,
                r#"chunk_latency_seconds_sum{model="tiny"}: 0 -> 0.05"#,
                r#"final_latency_seconds_count{model="tiny"}: 0 -> 1"#,
                r#"final_latency_seconds_sum{model="tiny"}: 0 -> 0.2"#,
                r#"lag_seconds_count{model="tiny"}: 0 -> 1"#,
                r#"lag_seconds_sum{model="tiny"}: 0 -> 1"#,
                r#"partial_latency_seconds_count{model="tiny"}: 0 -> 1"#,
                r#"partial_latency_seconds_sum{model="tiny"}: 0 -> 0.3"#,
                r#"resample_duration_seconds_count{from_rate="44100",to_rate="16000"}: 0 -> 1"#,
                r#"resample_duration_seconds_count{from_rate="__other__",to_rate="16000"}: 0 -> 1"#,
                r#"resample_duration_seconds_sum{from_rate="44100",to_rate="16000"}: 0 -> 0.001"#,
                r#"resample_duration_seconds_sum{from_rate="__other__",to_rate="16000"}: 0 -> 0.001"#,
                r#"session_duration_seconds_count{engine_id="asr",model="tiny"}: 0 -> 1"#,
                r#"session_ends_total{reason="completed"}: 0 -> 1"#,
                r#"sessions_rejected_total{reason="no_capacity"}: 0 -> 1"#,
                r#"storage_failures_total{file="audio"}: 0 -> 1"#,
                r#"transcripts_total{engine_id="asr",model="tiny",type="partial"}: 0 -> 1"#,
            ]
        );
        let finals = [("engine_id", "asr"), ("model", "tiny"), ("type", "final")];
        let zero = after.value("dalston_realtime_transcripts_total", &finals);
        assert_eq!(zero, Some(0.0));
    }
}
