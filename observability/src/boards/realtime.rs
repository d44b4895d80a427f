use super::panel::{Link, heatmap, series, stacked, stat};
use super::query::{average, engine, max, of, quantile, quantiles, rate, sessions_of_workers, sum};
use super::{Board, row};

const ENGINES: Link = Link::Board("dalston-engine-performance");

pub(super) fn board() -> Board {
    let router = "dalston_session_router";
    Board {
        uid: "dalston-realtime",
        title: "Realtime",
        description: "Realtime sessions: how many, how they end, and how fast transcripts come.",
        price: false,
        rows: vec![
            row("Sessions", [
                stat("Active sessions", "short", "Open sessions of realtime workers.")
                    .target(sum("", &of("dalston_realtime_sessions_active", "")), "").narrow(),
                stat("Workers healthy/total", "short", "Realtime workers with a recent heartbeat, beside all registered ones.")
                    .target(max("", &of(&format!("{router}_workers_healthy"), "")), "healthy")
                    .target(max("", &of(&format!("{router}_workers_registered"), "")), "registered").narrow(),
                stacked("Ends by reason", "ops", "Sessions that have ended, by reason. error, aborted and lag are failures of the platform.")
                    .target(sum("reason", &rate(&of("dalston_realtime_session_ends_total", ""))), "{{reason}}"),
                stacked("Rejected sessions", "ops", "Sessions that did not begin, by reason. no_capacity: more workers or places are needed.")
                    .target(sum("reason", &rate(&of("dalston_realtime_sessions_rejected_total", ""))), "{{reason}}"),
                heatmap("Session duration", "s", "Lengths of sessions.")
                    .target(sum("le", &format!("increase({}[$__rate_interval])", engine("dalston_realtime_session_duration_seconds_bucket", ""))), "{{le}}"),
                series("Sessions by worker", "short", "Active sessions of each worker, as the router counts them.")
                    .target(sessions_of_workers(), "{{worker_id}}"),
            ]),
            row("Latency", [
                series("Final latency", "s", "Time from the end of speech to its final transcript, as quantiles by model. Above 2.5 s it disturbs a conversation.")
                    .targets(quantiles("model", "dalston_realtime_final_latency_seconds", "")).exemplars(),
                series("Partial latency", "s", "Time from the arrival of audio to the partial transcript that contains it, as quantiles by model.")
                    .targets(quantiles("model", "dalston_realtime_partial_latency_seconds", "")).exemplars(),
                series("Lag", "s", "The 95th percentile of received audio that is not processed yet, by model. Sessions end above five seconds.")
                    .target(quantile("0.95", "model", "dalston_realtime_lag_seconds", ""), "{{model}}").link(ENGINES),
                series("Chunk latency", "s", "Time from the arrival of a chunk of audio to the end of its processing, as quantiles by model.")
                    .targets(quantiles("model", "dalston_realtime_chunk_latency_seconds", "")).exemplars(),
                series("Allocation", "s", "The 95th percentile of the time to allocate a worker to a session.")
                    .target(quantile("0.95", "", &format!("{router}_allocation_duration_seconds"), ""), "p95").exemplars(),
            ]),
            row("Audio", [
                series("Audio processed", "short", "Seconds of session audio that are processed in a second, by engine and model.")
                    .target(sum("engine_id, model", &rate(&engine("dalston_realtime_audio_processed_seconds_total", ""))), "{{engine_id}} {{model}}").link(ENGINES),
                stacked("Transcripts", "ops", "Transcripts that were sent, by type.")
                    .target(sum("type", &rate(&engine("dalston_realtime_transcripts_total", ""))), "{{type}}"),
                series("Resampling", "s", "The average time to resample a chunk of audio, by rates.")
                    .target(average("from_rate, to_rate", "dalston_realtime_resample_duration_seconds", ""), "{{from_rate}} to {{to_rate}}"),
            ]),
        ],
    }
}
