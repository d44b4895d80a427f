use super::panel::{Link, heatmap, series, stat, traces};
use super::query::{ENGINE, average, engine, of, quantile, quantiles, rate, share, sum};
use super::{Board, row};

const ENGINES: Link = Link::Board("dalston-engine-performance");

pub(super) fn board() -> Board {
    let latency = "stt_latency_seconds";
    Board {
        uid: "audio-pipeline",
        title: "Audio Pipeline",
        description: "The way of audio through the services. Speech synthesis is not part of this platform, so its times are not here.",
        price: false,
        rows: vec![
            row("End to end", [
                series("End-to-end audio pipeline latency", "s", "Time from the end of an utterance to the start of its answer, as quantiles.")
                    .targets(quantiles("", "end_to_end_response_duration_seconds", "")).exemplars(),
                series("Job duration by stages", "s", "The 95th percentile of the time from the creation of a job to its end, by its number of stages.")
                    .target(quantile("0.95", "stage_count", "dalston_orchestrator_job_duration_seconds", ""), "{{stage_count}} stages").exemplars(),
                series("Tasks by stage", "ops", "Tasks that were queued, by stage.")
                    .target(sum("stage", &rate(&of("dalston_orchestrator_tasks_scheduled_total", ""))), "{{stage}}")
                    .link(Link::Board("audio-orchestrator-overview")),
            ]),
            row("Speech to text", [
                series("STT processing times", "s", "Duration of a transcription, as quantiles.")
                    .targets(quantiles("", "stt_transcription_duration_seconds", "")).exemplars(),
                series("STT latency", "s", "Time from the request for a transcription to its result, as quantiles.")
                    .targets(quantiles("", latency, "")).exemplars(),
                series("STT requests", "reqps", "Requested transcriptions.")
                    .target(sum("", &rate(&of("stt_requests_total", ""))), "requests"),
                series("STT failures", "percentunit", "The share of transcriptions that failed, by model.")
                    .target(share("model", &of("stt_transcriptions_total", r#"status="failure""#), &of("stt_transcriptions_total", "")), "{{model}}"),
                series("Encoding before STT", "s", "The 95th percentile of the time to encode audio for transcription.")
                    .target(quantile("0.95", "", "pre_stt_encode_seconds", ""), "p95"),
                series("Stages of engines", "s", "The average duration of the inference of a task, by engine: one for each stage.")
                    .target(average("engine_id", "dalston_engine_task_duration_seconds", ENGINE), "{{engine_id}}").link(ENGINES),
            ]),
            row("Audio", [
                series("Audio quality metrics", "short", "The median and the 5th percentile of the quality score, from 0 to 1.")
                    .target(quantile("0.5", "", "audio_quality_score", ""), "p50")
                    .target(quantile("0.05", "", "audio_quality_score", ""), "p5"),
                series("Audio processing", "s", "Time to process a chunk of audio, as quantiles.")
                    .targets(quantiles("", "audio_processing_duration_seconds", "")).exemplars(),
                series("Chunks", "ops", "Processed chunks of audio.")
                    .target(sum("", &rate(&of("audio_chunks_processed_total", ""))), "chunks"),
                heatmap("VAD segments", "short", "Segments of speech in the audio of a task, of engines that count them.")
                    .target(sum("le", &format!("increase({}[$__rate_interval])", engine("dalston_engine_vad_segment_count_bucket", ""))), "{{le}}").link(ENGINES),
                series("Wake detection performance", "s", "Time to search for the wake phrase, as quantiles.")
                    .targets(quantiles("", "wake_detection_duration_seconds", "")).exemplars(),
                stat("Length of audio", "s", "The average length of a task's audio.")
                    .target(average("", "dalston_engine_audio_duration_seconds", ENGINE), "").link(ENGINES),
            ]),
            row("Traces", [traces("Cross-service communication", "The newest traces of the orchestrator: the spans of gateway, orchestrator and engines of a job.", "dalston-orchestrator")]),
        ],
    }
}
