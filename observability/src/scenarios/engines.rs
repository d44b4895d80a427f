use super::series::{audio_sum, batch_splits, busy, gpu, of_model, redelivered, tasks, transfers_up_to, up};
use super::{Scenario, fires, silent};

const WHISPER: [(&str, &str); 1] = [("engine_id", "whisper")];
const ON_GPU: [(&str, &str); 3] = [("gpu", "0"), ("job", "engine-whisper"), ("instance", "w1:9100")];
const W1: [(&str, &str); 2] = [("job", "engine-whisper"), ("instance", "w1:9100")];
const FAILURES: &str = "dalston:engine_task_failures:ratio_rate10m";

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = failures();
    scenarios.extend(processes());
    scenarios.extend(speed());
    scenarios.extend(storage());
    scenarios.extend(gpus());
    scenarios
}

fn failures() -> Vec<Scenario> {
    const RATE: &str = "EngineErrorRateHigh";
    vec![
        fires(RATE, "a third of the tasks fail", "20m", &WHISPER, "33.33%")
            .with([tasks("success", "0+2x30"), tasks("failure", "0+1x30")]),
        fires(
            RATE,
            "five failures before the first success (3.8)",
            "8m",
            &WHISPER,
            "100%",
        )
        .with([tasks("success", "0+0x10"), tasks("failure", "0 5+0x10")]),
        silent(RATE, "one failure of two tasks (3.7)", "8m")
            .with([tasks("success", "0 1+0x10"), tasks("failure", "0 1+0x10")])
            .sample(
                FAILURES,
                r#"dalston:engine_task_failures:ratio_rate10m{engine_id="whisper"}"#,
                0.5,
            ),
        silent(RATE, "no failure, which is 0 % and not absent (3.9)", "8m")
            .with([tasks("success", "0+1x10"), tasks("failure", "0+0x10")])
            .sample(
                FAILURES,
                r#"dalston:engine_task_failures:ratio_rate10m{engine_id="whisper"}"#,
                0.0,
            ),
        silent(RATE, "no failure and no series for failures (3.9)", "8m")
            .with([tasks("success", "0+1x10")])
            .sample(
                FAILURES,
                r#"dalston:engine_task_failures:ratio_rate10m{engine_id="whisper"}"#,
                0.0,
            ),
        silent(RATE, "an idle engine has no ratio, not NaN (3.10)", "20m")
            .with([tasks("success", "9+0x30"), tasks("failure", "1+0x30")])
            .no_sample(FAILURES),
        silent(RATE, "the engine is gone with its series (3.6)", "20m")
            .with([tasks("success", "0+1x4 stale"), tasks("failure", "0+1x4 stale")]),
    ]
}

fn processes() -> Vec<Scenario> {
    const DOWN: &str = "EngineDown";
    const REDELIVERED: &str = "TasksRedelivered";
    const SPLIT: &str = "BatchesSplit";
    vec![
        fires(DOWN, "a worker has crashed (3.6)", "10m", &W1, "0").with([
            up("engine-whisper", "w1:9100", "1+0x4 0+0x10"),
            up("engine-whisper", "w2:9100", "1+0x20"),
        ]),
        silent(DOWN, "a worker restarts within a minute", "10m").with([up(
            "engine-whisper",
            "w1:9100",
            "1+0x4 0 1+0x10",
        )]),
        silent(DOWN, "the gateway is down", "10m").with([up("gateway", "g1:8000", "0+0x20")]),
        fires(
            REDELIVERED,
            "three workers crash in a row",
            "30m",
            &[("stage", "transcribe")],
            "3",
        )
        .with([
            redelivered("engine_crash", "0+0x19 1 2 3+0x10"),
            redelivered("deferred", "0+0x40"),
        ]),
        silent(REDELIVERED, "two workers are killed", "30m").with([
            redelivered("engine_crash", "0+0x19 1 2+0x20"),
            redelivered("deferred", "0+0x40"),
        ]),
        silent(REDELIVERED, "a drain hands tasks back", "30m").with([
            redelivered("engine_crash", "0+0x40"),
            redelivered("deferred", "0+1x40"),
        ]),
        fires(
            SPLIT,
            "memory does not suffice for a batch each two minutes",
            "30m",
            &[("engine_id", "whisper"), ("reason", "oom")],
            "7",
        )
        .with([
            batch_splits("oom", "0+0x10 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10"),
            batch_splits("panic", "0+0x40"),
        ]),
        silent(SPLIT, "one batch is split and then fits", "30m").with([
            batch_splits("oom", "0+0x19 1+0x20"),
            batch_splits("panic", "0+0x40"),
        ]),
    ]
}

fn speed() -> Vec<Scenario> {
    const COLD: &str = "ColdStartShareHigh";
    const SLOW: &str = "SlowerThanRealtime";
    const LOADS: &str = "dalston_engine_model_load_seconds_count";
    const LOADING: &str = "dalston_engine_model_load_seconds_sum";
    const WORKING: &str = "dalston_engine_task_duration_seconds_sum";
    const INFERENCE: &str = "dalston_engine_inference_seconds_total";
    const SPEED: &str = "dalston:engine_speed:ratio_rate30m";
    const SPEED_OF_WHISPER: &str = r#"dalston:engine_speed:ratio_rate30m{engine_id="whisper"}"#;
    vec![
        fires(COLD, "models are loaded for each task", "45m", &WHISPER, "75%").with([
            of_model(LOADS, "0+1x60"),
            of_model(LOADING, "0+30x60"),
            of_model(WORKING, "0+10x60"),
        ]),
        silent(COLD, "one load of half a minute and little work", "20m").with([
            of_model(LOADS, "0 1+0x60"),
            of_model(LOADING, "0 30+0x60"),
            of_model(WORKING, "0 0 10+0x60"),
        ]),
        silent(COLD, "many loads and much work", "45m").with([
            of_model(LOADS, "0+1x60"),
            of_model(LOADING, "0+10x60"),
            of_model(WORKING, "0+40x60"),
        ]),
        fires(
            SLOW,
            "half a second of audio for each second",
            "45m",
            &WHISPER,
            "0.50",
        )
        .with([
            audio_sum("0+30x60"),
            of_model(WORKING, "0+60x60"),
            of_model(INFERENCE, "0+60x60"),
        ]),
        fires(
            SLOW,
            "an engine of the Python SDK, which counts no time in the engine",
            "45m",
            &WHISPER,
            "0.50",
        )
        .with([audio_sum("0+30x60"), of_model(WORKING, "0+60x60")]),
        silent(SLOW, "ten seconds of audio for each second", "45m").with([
            audio_sum("0+300x60"),
            of_model(WORKING, "0+30x60"),
            of_model(INFERENCE, "0+30x60"),
        ]),
        silent(SLOW, "batches of four, whose times overlap", "45m")
            .with([
                audio_sum("0+120x60"),
                of_model(WORKING, "0+240x60"),
                of_model(INFERENCE, "0+60x60"),
            ])
            .sample(SPEED, SPEED_OF_WHISPER, 2.0),
        silent(SLOW, "sessions keep the engine busy beside its tasks", "45m")
            .with([
                audio_sum("0+30x60"),
                of_model(WORKING, "0+15x60"),
                of_model(INFERENCE, "0+15x60"),
                busy("w1:9100", "1+0x60"),
            ])
            .sample(SPEED, SPEED_OF_WHISPER, 2.0),
        silent(SLOW, "an engine that reads no audio", "45m")
            .with([
                audio_sum("0+0x60"),
                of_model(WORKING, "0+30x60"),
                of_model(INFERENCE, "0+0x60"),
            ])
            .no_sample(SPEED),
        silent(SLOW, "an idle engine", "45m")
            .with([
                audio_sum("300+0x60"),
                of_model(WORKING, "600+0x60"),
                of_model(INFERENCE, "600+0x60"),
            ])
            .no_sample(SPEED),
    ]
}

fn storage() -> Vec<Scenario> {
    const SLOW: &str = "StorageSlow";
    let transfers = |direction: &str, until_30: &str| {
        [
            transfers_up_to(direction, "30", until_30),
            transfers_up_to(direction, "60", "0+10x60"),
            transfers_up_to(direction, "+Inf", "0+10x60"),
        ]
    };
    vec![
        fires(SLOW, "downloads take a minute", "45m", &WHISPER, "58.5s")
            .with(transfers("download", "0+0x60"))
            .with(transfers("upload", "0+10x60")),
        fires(SLOW, "uploads take a minute", "45m", &WHISPER, "58.5s")
            .with(transfers("download", "0+10x60"))
            .with(transfers("upload", "0+0x60")),
        silent(SLOW, "downloads and uploads are fast", "45m")
            .with(transfers("download", "0+10x60"))
            .with(transfers("upload", "0+10x60")),
    ]
}

fn gpus() -> Vec<Scenario> {
    const FULL: &str = "GpuMemoryNearlyFull";
    const HOT: &str = "GpuHot";
    const IDLE: &str = "GpuIdleWithWork";
    vec![
        fires(FULL, "24 of 25 GB in use", "15m", &ON_GPU, "96%").with([
            gpu("memory_used_bytes", "24e9+0x20"),
            gpu("memory_total_bytes", "25e9+0x20"),
        ]),
        silent(FULL, "20 of 25 GB in use", "15m").with([
            gpu("memory_used_bytes", "20e9+0x20"),
            gpu("memory_total_bytes", "25e9+0x20"),
        ]),
        fires(HOT, "90 °C", "15m", &ON_GPU, "90").with([gpu("temperature_celsius", "90+0x20")]),
        silent(HOT, "80 °C", "15m").with([gpu("temperature_celsius", "80+0x20")]),
        fires(IDLE, "threads are busy and the GPU is not", "15m", &W1, "1%")
            .with([gpu("utilization_ratio", "0.01+0x20"), busy("w1:9100", "0.9+0x20")]),
        silent(IDLE, "the GPU works", "15m")
            .with([gpu("utilization_ratio", "0.7+0x20"), busy("w1:9100", "0.9+0x20")]),
        silent(IDLE, "no work", "15m").with([gpu("utilization_ratio", "0+0x20"), busy("w1:9100", "0+0x20")]),
        silent(IDLE, "a worker on a machine without GPU", "15m").with([busy("w2:9100", "0.9+0x20")]),
    ]
}
