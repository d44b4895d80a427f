//! Panels about realtime workers, of which each gateway counts all.

use std::fs;

use serde_json::Value;
use testbed::promtool;

use crate::boards::{boards, exprs, panels};

/// Panels and the samples that they show.
const EXPECTED: [(&str, &str, &[&[&str]]); 5] = [
    (
        "dalston-overview",
        "Workers healthy/total",
        &[&["{} 2"], &["{} 3"]],
    ),
    ("dalston-overview", "Active sessions", &[&["{} 5"]]),
    ("audio-orchestrator-overview", "Active sessions", &[&["{} 5"]]),
    (
        "dalston-realtime",
        "Workers healthy/total",
        &[&["{} 2"], &["{} 3"]],
    ),
    (
        "dalston-realtime",
        "Sessions by worker",
        &[&[r#"{worker_id="a"} 2"#, r#"{worker_id="b"} 3"#]],
    ),
];

/// What each of the two gateways exposes.
const SERIES: [(&str, &str); 4] = [
    ("workers_registered{", "3"),
    ("workers_healthy{", "2"),
    (r#"sessions_active{worker_id="a","#, "2"),
    (r#"sessions_active{worker_id="b","#, "3"),
];

#[test]
fn two_gateways_count_each_realtime_worker_once() {
    let mut series = String::new();
    for gateway in ["g1:8000", "g2:8000"] {
        for (name, value) in SERIES {
            series += &format!(
                "      - {{series: 'dalston_session_router_{name}job=\"gateway\",instance=\"{gateway}\"}}', values: {value}}}\n"
            );
        }
    }
    let boards = boards();
    let mut checks = String::new();
    let mut shown = 0;
    for (uid, board) in &boards {
        for panel in panels(board).filter(is_about_the_router) {
            let title = panel["title"].as_str().unwrap();
            let expected = EXPECTED.iter().find(|(of, name, _)| of == uid && *name == title);
            let (.., targets) = expected.unwrap_or_else(|| panic!("{uid}: {title} is not expected"));
            assert_eq!(exprs(panel).count(), targets.len(), "{uid}: {title}");
            shown += 1;
            for (expr, samples) in exprs(panel).zip(*targets) {
                let expr = expr.replace("$job", ".+").replace("$instance", ".+");
                checks += &format!("      - expr: '{expr}'\n        eval_time: 1m\n        exp_samples:\n");
                for sample in *samples {
                    let (labels, value) = sample.rsplit_once(' ').unwrap();
                    checks += &format!("          - {{labels: '{labels}', value: {value}}}\n");
                }
            }
        }
    }
    assert_eq!(shown, EXPECTED.len());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateways.yml");
    let test = format!(
        "evaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{series}    promql_expr_test:\n{checks}"
    );
    fs::write(&file, test).unwrap();
    let said = promtool(&["test", "rules", file.to_str().unwrap()], "").unwrap_err();
    assert!(
        said.starts_with("exit status: 0") && said.contains("SUCCESS"),
        "{said}"
    );
}

/// Whether a panel shows gauges of the session router.
fn is_about_the_router(panel: &&Value) -> bool {
    let targets = panel["targets"].to_string();
    ["workers_registered", "workers_healthy", "sessions_active"]
        .iter()
        .any(|name| targets.contains(&format!("dalston_session_router_{name}")))
}
