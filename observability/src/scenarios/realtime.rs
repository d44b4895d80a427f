use super::series::of_realtime;
use super::{Scenario, fires, silent};

const TINY: [(&str, &str); 1] = [("model", "tiny")];

pub(super) fn scenarios() -> Vec<Scenario> {
    [sessions(), times()].into_iter().flatten().collect()
}

fn sessions() -> Vec<Scenario> {
    const FULL: &str = "RealtimeNoCapacity";
    const FAILING: &str = "RealtimeSessionsFailing";
    let rejected = |reason: &str, values: &str| {
        let labels = format!(r#"reason="{reason}","#);
        of_realtime("dalston_realtime_sessions_rejected_total", &labels, values)
    };
    let ended = |reason: &str, values: &str| {
        let labels = format!(r#"reason="{reason}","#);
        of_realtime("dalston_realtime_session_ends_total", &labels, values)
    };
    vec![
        fires(FULL, "a session is refused each minute", "20m", &[], "5")
            .with([rejected("no_capacity", "0+1x30"), rejected("draining", "0+0x30")]),
        silent(FULL, "one session was refused", "20m").with([
            rejected("no_capacity", "0+0x9 1+0x20"),
            rejected("draining", "0+0x30"),
        ]),
        silent(FULL, "workers that drain refuse sessions", "20m")
            .with([rejected("no_capacity", "0+0x30"), rejected("draining", "0+1x30")]),
        fires(
            FAILING,
            "one of four sessions ends with an error",
            "20m",
            &[],
            "25%",
        )
        .with([ended("completed", "0+3x30"), ended("error", "0+1x30")]),
        fires(FAILING, "sessions lag too far behind", "20m", &[], "10%").with([
            ended("completed", "0+9x30"),
            ended("lag", "0+1x30"),
            ended("error", "0+0x30"),
        ]),
        silent(FAILING, "two sessions fail, of three", "20m")
            .with([ended("completed", "0+0x9 1+0x20"), ended("error", "0+0x9 2+0x20")]),
        silent(FAILING, "clients hang up", "20m").with([
            ended("client_closed", "0+3x30"),
            ended("idle", "0+1x30"),
            ended("error", "0+0x30"),
        ]),
        silent(FAILING, "no session", "20m").with([ended("completed", "9+0x30"), ended("error", "1+0x30")]),
    ]
}

fn times() -> Vec<Scenario> {
    const LATENCY: &str = "RealtimeLatencyHigh";
    const LAG: &str = "RealtimeLagHigh";
    let up_to = |name: &str, bound: &str, values: &str| {
        let labels = format!(r#"model="tiny",le="{bound}","#);
        of_realtime(
            &format!("dalston_realtime_{name}_seconds_bucket"),
            &labels,
            values,
        )
    };
    let finals = |until_2_5: &str, all: &str| {
        [
            up_to("final_latency", "2.5", until_2_5),
            up_to("final_latency", "5", all),
            up_to("final_latency", "+Inf", all),
            of_realtime(
                "dalston_realtime_final_latency_seconds_count",
                r#"model="tiny","#,
                all,
            ),
        ]
    };
    let lags = |until_2_5: &str, all: &str| {
        [
            up_to("lag", "2.5", until_2_5),
            up_to("lag", "5", all),
            up_to("lag", "+Inf", all),
        ]
    };
    vec![
        fires(LATENCY, "all take between 2.5 s and 5 s", "30m", &TINY, "4.875s")
            .with(finals("0+0x40", "0+10x40")),
        silent(LATENCY, "all take less than 2.5 s", "30m").with(finals("0+10x40", "0+10x40")),
        silent(LATENCY, "one slow utterance in ten minutes", "30m").with(finals("0+0x40", "0+0x20 1+0x20")),
        fires(LAG, "sessions are 2.5 s to 5 s behind", "20m", &TINY, "4.875s")
            .with(lags("0+0x30", "0+10x30")),
        silent(LAG, "sessions keep up", "20m").with(lags("0+10x30", "0+10x30")),
        silent(LAG, "no session", "20m").with(lags("5+0x30", "9+0x30")),
    ]
}
