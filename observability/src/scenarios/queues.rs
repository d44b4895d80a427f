use super::series::{busy, of_exporter, of_queue, tasks, wait_count, waits_up_to};
use super::{Scenario, fires, silent};

const DEPTH: &str = "dalston_queue_depth";
const AGE: &str = "dalston_queue_oldest_task_age_seconds";
const CONNECTED: &str = "dalston_redis_connected";
const WHISPER: [(&str, &str); 1] = [("engine_id", "whisper")];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = budget();
    scenarios.extend(waiting());
    scenarios.extend(exporter());
    scenarios
}

fn budget() -> Vec<Scenario> {
    const FAST: &str = "QueueWaitBudgetBurnFast";
    const SLOW: &str = "QueueWaitBudgetBurnSlow";
    vec![
        fires(
            FAST,
            "80 % of the tasks wait longer than a minute",
            "45m",
            &WHISPER,
            "80%",
        )
        .with([waits_up_to("60", "0+2x60"), wait_count("0+10x60")]),
        fires(
            FAST,
            "the same with the bounds of Prometheus 3",
            "45m",
            &WHISPER,
            "80%",
        )
        .with([waits_up_to("60.0", "0+2x60"), wait_count("0+10x60")]),
        fires(
            FAST,
            "40 % of the tasks wait longer than a minute",
            "45m",
            &WHISPER,
            "40%",
        )
        .with([waits_up_to("60", "0+6x60"), wait_count("0+10x60")]),
        silent(FAST, "20 % of the tasks wait longer than a minute", "45m")
            .with([waits_up_to("60", "0+8x60"), wait_count("0+10x60")]),
        silent(FAST, "fewer than 20 tasks, all of them late", "17m")
            .with([waits_up_to("60", "0+0x20"), wait_count("0+1x20")]),
        silent(FAST, "all tasks were late until 35 minutes ago", "80m")
            .with([waits_up_to("60", "0+0x45 10+10x60"), wait_count("0+10x105")]),
        fires(
            SLOW,
            "10 % of the tasks wait longer than a minute",
            "7h",
            &WHISPER,
            "10%",
        )
        .with([waits_up_to("60", "0+9x420"), wait_count("0+10x420")]),
        silent(SLOW, "4 % of the tasks wait longer than a minute", "7h")
            .with([waits_up_to("60", "0+24x420"), wait_count("0+25x420")]),
        silent(SLOW, "an idle engine", "7h")
            .with([waits_up_to("60", "5+0x420"), wait_count("5+0x420")])
            .no_sample("dalston:queue_wait_bad:ratio_rate5m"),
    ]
}

fn waiting() -> Vec<Scenario> {
    const NOT_SERVED: &str = "QueueNotServed";
    const HIGH: &str = "QueueDepthHigh";
    const SATURATED: &str = "EnginesSaturated";
    vec![
        fires(NOT_SERVED, "no worker exists (3.6)", "6m", &WHISPER, "6m 0s")
            .with([of_queue(AGE, "q1:9100", "0+60x10")]),
        fires(
            NOT_SERVED,
            "workers exist and read nothing",
            "6m",
            &WHISPER,
            "6m 0s",
        )
        .with([
            of_queue(AGE, "q1:9100", "0+60x10"),
            tasks("success", "7+0x10"),
            busy("w1:9100", "0+0x10"),
        ]),
        silent(NOT_SERVED, "tasks end while others wait", "10m").with([
            of_queue(AGE, "q1:9100", "300+0x10"),
            tasks("success", "0+1x10"),
            busy("w1:9100", "0+0x10"),
        ]),
        silent(NOT_SERVED, "a long recording keeps the only worker busy", "10m").with([
            of_queue(AGE, "q1:9100", "300+0x10"),
            tasks("success", "7+0x10"),
            busy("w1:9100", "1+0x10"),
        ]),
        fires(HIGH, "30 tasks wait", "8m", &WHISPER, "30").with([of_queue(DEPTH, "q1:9100", "30+0x10")]),
        fires(HIGH, "two exporters make one alert (3.11)", "8m", &WHISPER, "31").with([
            of_queue(DEPTH, "q1:9100", "30+0x10"),
            of_queue(DEPTH, "q2:9100", "31+0x10"),
        ]),
        silent(HIGH, "30 tasks wait for three minutes", "8m").with([of_queue(
            DEPTH,
            "q1:9100",
            "0+0x2 30+0x3 5+0x10",
        )]),
        silent(HIGH, "20 tasks wait", "8m").with([of_queue(DEPTH, "q1:9100", "20+0x10")]),
        fires(
            SATURATED,
            "both workers are busy and tasks wait",
            "20m",
            &WHISPER,
            "100%",
        )
        .with([
            busy("w1:9100", "1+0x20"),
            busy("w2:9100", "1+0x20"),
            of_queue(DEPTH, "q1:9100", "3+0x20"),
        ]),
        silent(SATURATED, "one of two workers is free", "20m").with([
            busy("w1:9100", "1+0x20"),
            busy("w2:9100", "0+0x20"),
            of_queue(DEPTH, "q1:9100", "3+0x20"),
        ]),
        silent(SATURATED, "no task waits", "20m")
            .with([busy("w1:9100", "1+0x20"), of_queue(DEPTH, "q1:9100", "0+0x20")]),
    ]
}

fn exporter() -> Vec<Scenario> {
    const ABSENT: &str = "QueueMetricsAbsent";
    vec![
        fires(
            ABSENT,
            "the exporter ends while tasks wait (3.11)",
            "12m",
            &[],
            "",
        )
        .with([
            of_queue(DEPTH, "q1:9100", "30+0x4 stale"),
            of_exporter(CONNECTED, "q1:9100", "1+0x4 stale"),
        ]),
        fires(
            ABSENT,
            "the exporter has not reached Redis for minutes",
            "12m",
            &[],
            "",
        )
        .with([
            of_queue(DEPTH, "q1:9100", "30+0x4 stale"),
            of_exporter(CONNECTED, "q1:9100", "1+0x3 0+0x20"),
        ]),
        silent(ABSENT, "a platform without any queue yet", "12m")
            .with([of_exporter(CONNECTED, "q1:9100", "1+0x20")]),
        silent(ABSENT, "one of two exporters ends", "12m").with([
            of_queue(DEPTH, "q1:9100", "30+0x4 stale"),
            of_queue(DEPTH, "q2:9100", "30+0x20"),
        ]),
    ]
}
