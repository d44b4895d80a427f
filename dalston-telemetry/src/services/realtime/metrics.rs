use std::fmt;
use std::time::{Duration, Instant};

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, DurationCounter, Exemplar, Histogram, Metrics, OTHER, OpenLabel,
    Unit, buckets,
};

crate::label! {
    /// Whether a transcript can still change.
    pub enum TranscriptType = "type" {
        Partial => "partial",
        Final => "final",
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
                    BoundedFamily::new([model], || Histogram::with_exemplars(buckets::CHUNK_LATENCY)),
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
        }
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
}

impl RealtimeModelMetrics {
    /// Starts a session, whose length is recorded when the guard is dropped:
    /// `dalston_realtime_session_duration_seconds`.
    pub fn session(&self) -> RealtimeSession {
        RealtimeSession {
            duration: self.session_duration.clone(),
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
}

/// An active session. Returned by [`RealtimeModelMetrics::session`].
#[derive(Debug)]
#[must_use = "the session has ended as soon as the guard is dropped"]
pub struct RealtimeSession {
    duration: DenseFamily<(), Histogram>,
    since: Instant,
}

impl Drop for RealtimeSession {
    fn drop(&mut self) {
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
        realtime.resampled(44_100, 16_000, Duration::from_millis(1));
        realtime.resampled(12_345, 16_000, Duration::from_millis(1));
        drop(session);

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
                r#"resample_duration_seconds_count{from_rate="44100",to_rate="16000"}: 0 -> 1"#,
                r#"resample_duration_seconds_count{from_rate="__other__",to_rate="16000"}: 0 -> 1"#,
                r#"resample_duration_seconds_sum{from_rate="44100",to_rate="16000"}: 0 -> 0.001"#,
                r#"resample_duration_seconds_sum{from_rate="__other__",to_rate="16000"}: 0 -> 0.001"#,
                r#"session_duration_seconds_count{engine_id="asr",model="tiny"}: 0 -> 1"#,
                r#"transcripts_total{engine_id="asr",model="tiny",type="partial"}: 0 -> 1"#,
            ]
        );
        let finals = [("engine_id", "asr"), ("model", "tiny"), ("type", "final")];
        let zero = after.value("dalston_realtime_transcripts_total", &finals);
        assert_eq!(zero, Some(0.0));
    }
}
