//! The boards: the rules of Grafana's dashboard linter, the metrics that exist, and the panels that
//! must be there.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::files::{STACK, read, text};
use crate::rules::{alerts, checker};

/// Files and titles, in the order of the boards' list.
const BOARDS: [(&str, &str); 7] = [
    ("dalston-overview", "Dalston Overview"),
    ("audio-orchestrator-overview", "Operations"),
    ("dalston-engine-performance", "Engine Performance"),
    ("dalston-cost", "Cost"),
    ("audio-pipeline", "Audio Pipeline"),
    ("dalston-realtime", "Realtime"),
    ("service-details", "Service Details"),
];

/// The panels that the platform's documents name, by board. Speech synthesis is left out.
const REQUIRED: [(&str, &[&str]); 7] = [
    (
        "dalston-overview",
        &[
            "Requests/sec",
            "Error rate (%)",
            "Avg latency",
            "Jobs in progress",
            "Queue depth by engine",
            "Job completion rate",
            "Processing time by engine",
            "Task throughput",
            "Failure rate by engine",
            "Active sessions",
            "Workers healthy/total",
            "Session duration distribution",
            "Redis connectivity",
            "Queue oldest task age",
            "Error logs/sec",
            "Error budget left",
            "Error budget burn",
            "Job success",
            "Audio per hour",
            "Queue wait",
            "Engines up",
            "GPU utilization",
            "Firing alerts",
        ],
    ),
    (
        "audio-orchestrator-overview",
        &[
            "Service health overview",
            "Request rates and latencies",
            "Error rates by service",
            "Active sessions",
            "Memory utilization",
            "CPU utilization",
            "Engine processing time",
            "Queue depth by engine",
            "Error rate by engine",
            "Job completion rate",
            "Queue wait time (p95)",
            "Busy ratio",
            "Redeliveries",
            "Decisions about events",
            "Scans",
            "Webhooks",
            "Redis connected",
            "Spans dropped",
        ],
    ),
    (
        "dalston-engine-performance",
        &[
            "Speed (x realtime)",
            "Speed by instance type",
            "Task duration",
            "Time of tasks",
            "Realtime factor",
            "Cold-start share",
            "Cache hits",
            "Batch size",
            "Batches split",
            "GPU utilization",
            "GPU memory",
            "GPU power",
            "GPU temperature",
        ],
    ),
    (
        "dalston-cost",
        &[
            "Jobs completed/hour",
            "Audio minutes processed",
            "Engine processing time per audio minute",
            "Audio by instance type",
            "Instance-seconds per second",
            "Cost per audio hour",
            "Idle share",
            "Power",
        ],
    ),
    (
        "audio-pipeline",
        &[
            "End-to-end audio pipeline latency",
            "STT processing times",
            "Audio quality metrics",
            "Wake detection performance",
            "Cross-service communication",
            "VAD segments",
        ],
    ),
    (
        "dalston-realtime",
        &[
            "Active sessions",
            "Rejected sessions",
            "Lag",
            "Final latency",
            "Partial latency",
            "Ends by reason",
        ],
    ),
    (
        "service-details",
        &[
            "Build",
            "Log lines by level",
            "Spans dropped",
            "Target",
            "Resource utilization: CPU",
            "Resource utilization: memory",
            "Redis",
            "Storage",
            "Error tracking",
            "Custom metrics from /metrics",
        ],
    ),
];

/// Series without the labels of a process, so that the variables can't select them.
const WITHOUT_PROCESS: [(&str, &str); 3] = [
    ("dalston:", "recorded for all processes of an engine"),
    ("ALERTS", "an alert can be about several processes"),
    ("container_", "its labels are those of cAdvisor"),
];

/// Units of Grafana.
const UNITS: [&str; 14] = [
    "short",
    "s",
    "h",
    "percentunit",
    "reqps",
    "ops",
    "bytes",
    "Bps",
    "watt",
    "watth",
    "celsius",
    "bool_yes_no",
    "currencyUSD",
    "none",
];

pub(crate) fn boards() -> BTreeMap<&'static str, Value> {
    let load = |(uid, _): (&'static str, _)| {
        let file = read(&format!("{STACK}/grafana/dashboards/{uid}.json"));
        (uid, serde_json::from_str(&file).unwrap())
    };
    BOARDS.into_iter().map(load).collect()
}

fn elements(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// The panels of a board without its rows.
pub(crate) fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    elements(&board["panels"])
        .iter()
        .filter(|panel| panel["type"] != "row")
}

/// The panels that query Prometheus, of all boards.
fn queried(boards: &BTreeMap<&str, Value>) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (uid, board) in boards {
        for panel in panels(board).filter(|panel| panel["datasource"]["type"] == "prometheus") {
            found.push((format!("{uid}: {}", panel["title"]), panel.clone()));
        }
    }
    found
}

/// The expressions of a panel.
pub(crate) fn exprs(panel: &Value) -> impl Iterator<Item = &str> {
    elements(&panel["targets"])
        .iter()
        .map(|target| target["expr"].as_str().unwrap())
}

/// An expression with values in place of the variables.
fn replaced(expr: &str) -> String {
    expr.replace("$__rate_interval", "5m").replace("$price", "1")
}

fn selectors(expr: &str) -> Vec<VectorSelector> {
    struct Collect(Vec<VectorSelector>);
    impl ExprVisitor for Collect {
        type Error = ();
        fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
            match expr {
                Expr::VectorSelector(selector) => self.0.push(selector.clone()),
                Expr::MatrixSelector(matrix) => self.0.push(matrix.vs.clone()),
                _ => {}
            }
            Ok(true)
        }
    }
    let mut collect = Collect(Vec::new());
    walk_expr(&mut collect, &parser::parse(&replaced(expr)).unwrap()).unwrap();
    collect.0
}

fn variable(board: &Value, name: &str) -> Value {
    let variables = elements(&board["templating"]["list"]);
    let found = variables.iter().find(|variable| variable["name"] == name);
    found
        .unwrap_or_else(|| panic!("{}: no variable {name}", board["title"]))
        .clone()
}

/// The rules template-datasource, template-job, template-instance and template-label-promql.
#[test]
fn variables_follow_the_linter() {
    for (uid, board) in boards() {
        let source = variable(&board, "datasource");
        assert_eq!(
            (&source["type"], &source["query"]),
            (&"datasource".into(), &"prometheus".into()),
            "{uid}"
        );
        for name in ["service", "job", "instance", "engine_id"] {
            let variable = variable(&board, name);
            assert_eq!(variable["type"], "query", "{uid}: {name}");
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{uid}: {name}");
            assert!(
                variable["multi"] == true && variable["includeAll"] == true,
                "{uid}: {name}"
            );
            // All jobs are those of the selected services, and not all that exist.
            let all = if name == "job" { Value::Null } else { ".+".into() };
            assert_eq!(variable["allValue"], all, "{uid}: {name}");
            assert_eq!(variable["refresh"], 2, "{uid}: {name} must follow the time range");
            let query = variable["query"].as_str().unwrap();
            let inner = query
                .strip_prefix("label_values(")
                .unwrap()
                .strip_suffix(')')
                .unwrap();
            let (series, label) = inner.rsplit_once(", ").unwrap();
            let labels = checker().check(series).unwrap();
            assert!(labels.contains(label), "{uid}: {query}");
        }
        let interval = variable(&board, "interval");
        assert_eq!(interval["type"], "interval", "{uid}");
    }
}

/// The rules panel-datasource, panel-title-description and panel-units.
#[test]
fn panels_follow_the_linter() {
    for (uid, board) in boards() {
        let mut titles = BTreeSet::new();
        for panel in panels(&board) {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(title), "{uid}: two panels {title}");
            assert!(
                panel["description"].as_str().unwrap().ends_with('.'),
                "{uid}: {title}"
            );
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
            assert!(UNITS.contains(&unit), "{uid}: {title}: unit {unit}");
            let source = &panel["datasource"];
            let expected = if source["type"] == "jaeger" {
                "jaeger"
            } else {
                "${datasource}"
            };
            assert_eq!(source["uid"], expected, "{uid}: {title}");
            assert!(!elements(&panel["targets"]).is_empty(), "{uid}: {title}");
            for target in elements(&panel["targets"]) {
                assert_eq!(&target["datasource"], source, "{uid}: {title}");
            }
        }
    }
}

/// The rules target-promql, target-rate-interval, target-job and target-instance.
#[test]
fn queries_follow_the_linter() {
    for (name, panel) in queried(&boards()) {
        for expr in exprs(&panel) {
            for range in expr.split('[').skip(1) {
                assert!(range.starts_with("$__rate_interval]"), "{name}: {expr}");
            }
            for selector in selectors(expr) {
                let series = selector.name.unwrap();
                if WITHOUT_PROCESS
                    .iter()
                    .any(|(prefix, _)| series.starts_with(prefix))
                {
                    continue;
                }
                for label in ["job", "instance"] {
                    let mut matchers = selector.matchers.matchers.iter();
                    assert!(
                        matchers.any(|found| found.name == label),
                        "{name}: {series} without {label}"
                    );
                }
            }
        }
    }
}

#[test]
fn queries_use_existing_metrics_and_labels() {
    let checker = checker();
    for (name, panel) in queried(&boards()) {
        for target in elements(&panel["targets"]) {
            let expr = replaced(target["expr"].as_str().unwrap());
            let labels = checker
                .check(&expr)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            for named in target["legendFormat"].as_str().unwrap().split("{{").skip(1) {
                let label = named.split("}}").next().unwrap();
                assert!(labels.contains(label), "{name}: no label {label} in {expr}");
            }
        }
    }
}

#[test]
fn queries_use_defined_variables_only() {
    for (uid, board) in boards() {
        let variables = elements(&board["templating"]["list"]);
        let defined: BTreeSet<&str> = variables
            .iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        for panel in panels(&board) {
            for used in panel["targets"].to_string().split('$').skip(1) {
                let used = used.trim_start_matches('{');
                let end = used
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap();
                let known = defined.contains(&used[..end]) || &used[..end] == "__rate_interval";
                assert!(known, "{uid}: {}: ${}", panel["title"], &used[..end]);
            }
        }
        for name in ["service", "engine_id", "interval"] {
            assert!(
                board.to_string().matches(&format!("${name}")).count() > 1,
                "{uid}: {name} has no effect"
            );
        }
    }
}

#[test]
fn panels_have_unique_ids_and_places() {
    for (uid, board) in boards() {
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in elements(&board["panels"]) {
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{uid}: {}",
                panel["title"]
            );
            let [x, y, width, height] =
                ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().unwrap());
            assert!(
                width > 0 && height > 0 && x + width <= 24,
                "{uid}: {}",
                panel["title"]
            );
            for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{uid}: {} overlaps another", panel["title"]);
            }
        }
    }
}

#[test]
fn boards_have_the_required_panels() {
    let boards = boards();
    for (uid, title) in BOARDS {
        assert_eq!(boards[uid]["title"], title);
        assert_eq!(boards[uid]["uid"], uid);
        assert_eq!(boards[uid]["editable"], false, "{uid}");
    }
    for (uid, required) in REQUIRED {
        let titles: Vec<&str> = panels(&boards[uid])
            .map(|panel| panel["title"].as_str().unwrap())
            .collect();
        for title in required {
            assert!(titles.contains(title), "{uid}: no panel {title}");
        }
    }
}

#[test]
fn quantiles_have_three_lines_and_exemplars() {
    let boards = boards();
    let panel = |uid: &str, title: &str| {
        let mut found = panels(&boards[uid]).filter(|panel| panel["title"] == title);
        found.next().unwrap().clone()
    };
    for (uid, title) in [
        ("dalston-overview", "Processing time by engine"),
        ("audio-orchestrator-overview", "Engine processing time"),
        ("dalston-engine-performance", "Processing time by engine"),
    ] {
        let panel = panel(uid, title);
        let legends = elements(&panel["targets"])
            .iter()
            .map(|target| target["legendFormat"].to_string());
        let legends: String = legends.collect();
        assert!(
            ["p50", "p95", "p99"]
                .iter()
                .all(|quantile| legends.contains(quantile)),
            "{uid}"
        );
    }
    // Histograms whose buckets carry the traces of slow requests and tasks.
    let traced = [
        "request_duration",
        "task_duration",
        "queue_wait",
        "model_load",
        "job_duration",
    ];
    for (name, panel) in queried(&boards) {
        for target in elements(&panel["targets"]) {
            let expr = target["expr"].as_str().unwrap();
            let is_traced = traced
                .iter()
                .any(|part| expr.contains(&format!("{part}_seconds_bucket")));
            if is_traced && expr.starts_with("histogram_quantile") {
                assert_eq!(target["exemplar"], true, "{name}");
            }
        }
    }
}

#[test]
fn shares_of_failures_are_zero_without_failures() {
    let failures = [
        r#"status="failure""#,
        r#"status="failed""#,
        r#"status_code=~"5..""#,
    ];
    for (name, panel) in queried(&boards()) {
        if panel["fieldConfig"]["defaults"]["unit"] != "percentunit" {
            continue;
        }
        for expr in exprs(&panel) {
            if failures.iter().any(|part| expr.contains(part)) {
                assert!(expr.contains(" or 0 * "), "{name}: {expr}");
            }
        }
    }
}

#[test]
fn links_lead_to_existing_boards() {
    let boards = boards();
    let leads = |url: &str| {
        let board = url
            .split("/d/")
            .nth(1)
            .map(|rest| rest.split('?').next().unwrap());
        board.is_none_or(|uid| boards.contains_key(uid))
    };
    for (uid, board) in &boards {
        for panel in panels(board) {
            let links = elements(&panel["links"]);
            assert!(!links.is_empty(), "{uid}: {} has no link", panel["title"]);
            for link in links {
                let url = link["url"].as_str().unwrap();
                assert!(leads(url), "{uid}: {url}");
                assert!(
                    !url.contains(&format!("/d/{uid}?")),
                    "{uid}: {} leads to itself",
                    panel["title"]
                );
            }
        }
    }
    for alert in alerts() {
        let url = text(&alert["annotations"]["dashboard_url"]);
        assert!(leads(url), "{url}");
    }
}
