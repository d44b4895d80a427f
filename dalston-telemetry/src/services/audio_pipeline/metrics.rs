use std::fmt;
use std::time::Duration;

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Histogram, Metrics, Status, Unit, buckets,
};

/// The metrics of a voice assistant's pipeline, from the end of an utterance to the answer.
///
/// Their names have no prefix, because existing dashboards use them. Cheap to clone.
///
/// | What | PromQL |
/// |---|---|
/// | 95th percentile of the time from an utterance to its answer | `histogram_quantile(0.95, sum by (le) (rate(end_to_end_response_duration_seconds_bucket[5m])))` |
/// | Share of the transcription in that time | `sum(rate(stt_latency_seconds_sum[5m])) / sum(rate(end_to_end_response_duration_seconds_sum[5m]))` |
/// | Median of the quality score | `histogram_quantile(0.5, sum by (le) (rate(audio_quality_score_bucket[1h])))` |
/// | Chunks of audio per second | `sum(rate(audio_chunks_processed_total[5m]))` |
/// | Share of failed transcriptions | `sum(rate(stt_transcriptions_total{status="failure"}[5m])) / sum(rate(stt_transcriptions_total[5m]))` |
#[doc(alias("create_audio_metrics", "migrate_discord_metrics"))]
#[derive(Clone)]
pub struct AudioPipelineMetrics {
    processing: DenseFamily<(), Histogram>,
    quality: DenseFamily<(), Histogram>,
    chunks: DenseFamily<(), Counter>,
    wake_detection: DenseFamily<(), Histogram>,
    end_to_end: DenseFamily<(), Histogram>,
    encode: DenseFamily<(), Histogram>,
    requests: DenseFamily<(), Counter>,
    latency: DenseFamily<(), Histogram>,
    transcriptions: BoundedFamily<1, Status, Counter>,
    transcription: DenseFamily<(), Histogram>,
}

impl AudioPipelineMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let model = metrics.label("model");
        metrics.set(|registry| {
            let step = || DenseFamily::new(|| Histogram::with_exemplars(buckets::PIPELINE_STEP));
            let this = Self {
                processing: step(),
                quality: DenseFamily::new(|| Histogram::new(buckets::SCORE)),
                chunks: DenseFamily::default(),
                wake_detection: step(),
                end_to_end: step(),
                encode: step(),
                requests: DenseFamily::default(),
                latency: step(),
                transcriptions: BoundedFamily::new([&model], Counter::default),
                transcription: step(),
            };
            for (name, help, family) in [
                (
                    "audio_processing_duration",
                    "Time to process a chunk of audio",
                    &this.processing,
                ),
                (
                    "wake_detection_duration",
                    "Time to search for the wake phrase",
                    &this.wake_detection,
                ),
                (
                    "end_to_end_response_duration",
                    "Time from the end of an utterance to the start of its answer",
                    &this.end_to_end,
                ),
                (
                    "pre_stt_encode",
                    "Time to encode audio for transcription",
                    &this.encode,
                ),
                (
                    "stt_latency",
                    "Time from the request for a transcription to its result",
                    &this.latency,
                ),
                (
                    "stt_transcription_duration",
                    "Duration of a transcription",
                    &this.transcription,
                ),
            ] {
                registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            }
            registry.register(
                "audio_quality_score",
                "Quality score of a chunk of audio, from 0 to 1",
                this.quality.clone(),
            );
            registry.register(
                "audio_chunks_processed",
                "Processed chunks of audio",
                this.chunks.clone(),
            );
            registry.register("stt_requests", "Requested transcriptions", this.requests.clone());
            registry.register(
                "stt_transcriptions",
                "Transcriptions that have ended, by status",
                this.transcriptions.clone(),
            );
            this
        })
    }

    /// Records a chunk of audio with the duration of its processing: `audio_chunks_processed_total`
    /// and `audio_processing_duration_seconds`.
    pub fn chunk_processed(&self, time: Duration) {
        self.chunks.with(()).inc();
        observe(&self.processing, time);
    }

    /// Records the quality of a chunk of audio, from 0 to 1: `audio_quality_score`. Other values
    /// are clamped to this range. NaN is ignored.
    pub fn quality(&self, score: f64) {
        if !score.is_nan() {
            self.quality.with(()).observe(score.clamp(0.0, 1.0));
        }
    }

    /// Records the duration of a search for the wake phrase: `wake_detection_duration_seconds`.
    pub fn wake_detection(&self, time: Duration) {
        observe(&self.wake_detection, time);
    }

    /// Records the time from the end of an utterance to the start of its answer:
    /// `end_to_end_response_duration_seconds`.
    pub fn end_to_end(&self, time: Duration) {
        observe(&self.end_to_end, time);
    }

    /// Records the duration of the encoding of audio for transcription: `pre_stt_encode_seconds`.
    pub fn encoded(&self, time: Duration) {
        observe(&self.encode, time);
    }

    /// Counts a requested transcription: `stt_requests_total`.
    pub fn requested(&self) {
        self.requests.with(()).inc_in(Exemplar::current());
    }

    /// Records the time from the request for a transcription to its result: `stt_latency_seconds`.
    pub fn latency(&self, time: Duration) {
        observe(&self.latency, time);
    }

    /// Records a transcription that has ended, with its model and its duration:
    /// `stt_transcriptions_total` and `stt_transcription_duration_seconds`.
    pub fn transcribed(&self, model: &str, status: Status, time: Duration) {
        self.transcriptions
            .with([model])
            .with(status)
            .inc_in(Exemplar::current());
        observe(&self.transcription, time);
    }
}

impl fmt::Debug for AudioPipelineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AudioPipelineMetrics").finish_non_exhaustive()
    }
}

fn observe(histogram: &DenseFamily<(), Histogram>, time: Duration) {
    histogram.with(()).observe_duration_in(time, Exemplar::current());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_changes_exactly_its_series() {
        let metrics = Metrics::new();
        let pipeline = AudioPipelineMetrics::register(&metrics);
        let before = metrics.snapshot();
        let second = Duration::from_secs(1);
        pipeline.chunk_processed(second);
        for score in [0.75, 7.0, f64::NAN] {
            pipeline.quality(score);
        }
        pipeline.wake_detection(second);
        pipeline.encoded(second);
        pipeline.requested();
        pipeline.latency(second);
        pipeline.transcribed("tiny", Status::Success, second);
        pipeline.end_to_end(second);
        let after = metrics.snapshot();
        let moved: Vec<_> = after
            .diff(&before)
            .iter()
            .filter(|change| !change.series.ends_with("_count"))
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            moved,
            [
                "audio_chunks_processed_total: 0 -> 1",
                "audio_processing_duration_seconds_sum: 0 -> 1",
                "audio_quality_score_sum: 0 -> 1.75",
                "end_to_end_response_duration_seconds_sum: 0 -> 1",
                "pre_stt_encode_seconds_sum: 0 -> 1",
                "stt_latency_seconds_sum: 0 -> 1",
                "stt_requests_total: 0 -> 1",
                "stt_transcription_duration_seconds_sum: 0 -> 1",
                r#"stt_transcriptions_total{model="tiny",status="success"}: 0 -> 1"#,
                "wake_detection_duration_seconds_sum: 0 -> 1",
            ]
        );
        let failed = [("model", "tiny"), ("status", "failure")];
        assert_eq!(after.value("stt_transcriptions_total", &failed), Some(0.0));
    }
}
