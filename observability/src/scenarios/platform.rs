use super::series::{of_exporter, of_gateway, up};
use super::{Scenario, fires, silent};

pub(super) fn scenarios() -> Vec<Scenario> {
    const REDIS: &str = "RedisDown";
    const TARGETS: &str = "TargetDown";
    const LOST: &str = "TelemetryLost";
    const FOLDED: &str = "LabelValuesFolded";
    const CONNECTED: &str = "dalston_redis_connected";
    const GATEWAY: [(&str, &str); 1] = [("job", "gateway")];
    let spans = |values| {
        of_gateway(
            "dalston_telemetry_spans_dropped_total",
            r#"reason="queue_full","#,
            values,
        )
    };
    let lines = |values| of_gateway("dalston_log_lines_dropped_total", "", values);
    vec![
        fires(REDIS, "the exporter can't read Redis", "5m", &[], "0")
            .with([of_exporter(CONNECTED, "q1:9100", "1 0+0x20")]),
        silent(REDIS, "one of two exporters can't read Redis", "5m").with([
            of_exporter(CONNECTED, "q1:9100", "0+0x20"),
            of_exporter(CONNECTED, "q2:9100", "1+0x20"),
        ]),
        silent(REDIS, "no exporter runs", "5m"),
        fires(TARGETS, "one of two gateways is down", "15m", &GATEWAY, "50%").with([
            up("gateway", "g1:8000", "1+0x20"),
            up("gateway", "g2:8000", "0+0x20"),
        ]),
        silent(TARGETS, "all targets are up", "15m").with([
            up("gateway", "g1:8000", "1+0x20"),
            up("gateway", "g2:8000", "1+0x20"),
        ]),
        silent(TARGETS, "one of twenty workers is down", "15m").with((1..=20).map(|worker| {
            let values = if worker == 1 { "0+0x20" } else { "1+0x20" };
            up("engine-whisper", &format!("w{worker}:9100"), values)
        })),
        fires(LOST, "spans are dropped", "30m", &GATEWAY, "40")
            .with([spans("0+0x19 40+0x20"), lines("0+0x40")]),
        fires(LOST, "log lines are dropped", "30m", &GATEWAY, "7")
            .with([spans("0+0x40"), lines("0+0x19 7+0x20")]),
        silent(LOST, "nothing is dropped", "30m").with([spans("0+0x40"), lines("0+0x40")]),
        silent(LOST, "spans were dropped an hour ago", "80m").with([spans("0+0x9 40+0x90"), lines("0+0x90")]),
        fires(
            FOLDED,
            "a label has more values than its cap",
            "5m",
            &[("job", "gateway"), ("label", "tenant_id")],
            "3",
        )
        .with([of_gateway(
            "dalston_telemetry_label_values_folded_total",
            r#"label="tenant_id","#,
            "_x3 3+0x20",
        )]),
        silent(FOLDED, "all labels are below their caps", "5m").with([of_gateway(
            "dalston_telemetry_label_values_folded_total",
            r#"label="tenant_id","#,
            "0+0x20",
        )]),
        fires("Watchdog", "always", "0m", &[], "1"),
    ]
}
