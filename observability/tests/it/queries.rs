//! The queries of boards, rules and guides against the list of known defects of such queries.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::boards::{boards, exprs, panels};
use crate::files::{read, text};
use crate::pages::{blocks, guides};
use crate::rules::{RULES, checker, rules};

/// Everything that queries metrics, and the metrics.
struct Queries {
    boards: BTreeMap<&'static str, Value>,
    /// Of boards, rules and guides.
    exprs: Vec<String>,
    guides: String,
    metrics: Vec<Value>,
}

type Row = (&'static str, &'static str, fn(&Queries) -> bool);

/// A row for each known defect: its number, and the sentence that must be true.
const ROWS: [Row; 13] = [
    ("4.1", "480 s of audio in 45 s are a speed of 10.7", |queries| {
        let says = |words: &str| queries.guides.contains(words);
        says("A recording of 480 s that takes 45 s has a speed of 10.7") && !says("5.6x")
    }),
    ("4.2", "no query divides by a quantile", |queries| {
        let mut divisors = queries.exprs.iter().flat_map(|expr| expr.split('/').skip(1));
        !divisors.any(|divisor| divisor.trim_start().starts_with("histogram_quantile("))
    }),
    (
        "4.3",
        "speed and realtime factor say which is better",
        |queries| {
            let describes = |title: &str, words: &str| {
                let panel = queries.panel("dalston-engine-performance", title);
                panel["description"].as_str().unwrap().contains(words)
            };
            describes("Speed (x realtime)", "Higher is faster")
                && describes("Realtime factor", "lower is faster")
                && !queries.guides.contains("dalston_engine_rtf{")
        },
    ),
    (
        "4.4",
        "both sides of speed are about the same tasks and have the labels of hardware",
        |queries| {
            let has_hardware = |name| queries.labels(name).contains(&"instance_type".to_owned());
            let panel = queries.panel("dalston-engine-performance", "Speed by instance type");
            let expr = exprs(&panel).next().unwrap().to_owned();
            has_hardware("dalston_engine_audio_duration_seconds")
                && has_hardware("dalston_engine_inference_seconds_total")
                && expr.contains("dalston_engine_audio_duration_seconds_sum")
                && expr.contains("dalston_engine_inference_seconds_total")
        },
    ),
    ("4.5", "the bare name of a histogram is no series", |_| {
        let bare = checker().check("dalston_engine_task_duration_seconds");
        bare.is_err()
            && checker()
                .check("dalston_engine_task_duration_seconds_sum")
                .is_ok()
    }),
    (
        "4.6",
        "buckets reach as far as tasks and recordings do",
        |queries| {
            let longest = |name: &str| {
                queries.metric(name)["buckets"]
                    .as_array()
                    .unwrap()
                    .last()
                    .cloned()
            };
            let reaches = |name: &str, seconds: f64| longest(name).unwrap().as_f64() >= Some(seconds);
            reaches("dalston_engine_task_duration_seconds", 3_600.0)
                && reaches("dalston_engine_queue_wait_seconds", 3_600.0)
                && reaches("dalston_engine_audio_duration_seconds", 14_400.0)
        },
    ),
    (
        "4.7",
        "quantiles of tasks in guides have a window of half an hour at least",
        |queries| {
            let quantiles = queries.guides.split("histogram_quantile(").skip(1);
            let mut windows = quantiles.filter_map(|rest| rest.split_once("_bucket[")?.1.split(']').next());
            windows.all(|window| ["30m", "1h"].contains(&window))
        },
    ),
    ("4.8", "windows of boards follow the resolution", |queries| {
        queries.exprs.iter().all(|expr| !expr.contains("[$interval]"))
    }),
    (
        "4.9",
        "only the info metric has a label of the service",
        |queries| {
            let names = queries
                .metrics
                .iter()
                .map(|metric| metric["name"].as_str().unwrap());
            names.filter(|name| *name != "dalston_build_info").all(|name| {
                let labels = queries.labels(name);
                !["job", "instance", "service"]
                    .iter()
                    .any(|label| labels.contains(&(*label).to_owned()))
            })
        },
    ),
    (
        "4.10",
        "jobs in progress and error logs have metrics",
        |queries| {
            let shows = |title: &str, name: &str| {
                let panel = queries.panel("dalston-overview", title);
                panel["targets"].to_string().contains(name)
            };
            queries.metric("dalston_orchestrator_jobs_in_progress")["type"] == "gauge"
                && shows("Jobs in progress", "dalston_orchestrator_jobs_in_progress")
                && shows("Error logs/sec", "dalston_log_messages_total")
                && shows("Workers healthy/total", "dalston_session_router_workers_healthy")
        },
    ),
    ("4.11", "the model is a label and an attribute", |queries| {
        let labels = queries.labels("dalston_engine_task_duration_seconds");
        labels.contains(&"model".to_owned()) && read("docs/reference/spans.md").contains("`dalston.model`")
    }),
    ("4.12", "no metric has a label of the language", |queries| {
        let mut names = queries
            .metrics
            .iter()
            .map(|metric| metric["name"].as_str().unwrap());
        names.all(|name| !queries.labels(name).contains(&"language".to_owned()))
    }),
    (
        "4.13",
        "the number of stages has a fixed list of values",
        |queries| {
            let metric = queries.metric("dalston_orchestrator_job_duration_seconds");
            let mut labels = metric["labels"].as_array().unwrap().iter();
            let stages = labels.find(|label| label["name"] == "stage_count").unwrap();
            stages["values"].is_array()
        },
    ),
];

impl Queries {
    fn load() -> Self {
        let boards = boards();
        let mut found: Vec<String> = Vec::new();
        for board in boards.values() {
            for panel in panels(board).filter(|panel| panel["datasource"]["type"] == "prometheus") {
                found.extend(exprs(panel).map(str::to_owned));
            }
        }
        for rule in RULES.iter().flat_map(|name| rules(name)) {
            found.push(text(&rule["expr"]).to_owned());
        }
        let pages: Vec<String> = guides().into_iter().map(|(_, page)| page).collect();
        for page in &pages {
            found.extend(
                blocks(page, "promql")
                    .into_iter()
                    .flat_map(|block| block.split("\n\n"))
                    .map(str::to_owned),
            );
        }
        let metrics: Value = serde_json::from_str(&read("docs/reference/metrics.json")).unwrap();
        Self {
            boards,
            exprs: found,
            guides: pages.concat(),
            metrics: metrics["metrics"].as_array().unwrap().clone(),
        }
    }

    fn panel(&self, uid: &str, title: &str) -> Value {
        let mut found = panels(&self.boards[uid]).filter(|panel| panel["title"] == title);
        found
            .next()
            .unwrap_or_else(|| panic!("{uid}: no panel {title}"))
            .clone()
    }

    fn metric(&self, name: &str) -> &Value {
        let mut found = self.metrics.iter().filter(|metric| metric["name"] == name);
        found.next().unwrap_or_else(|| panic!("no metric {name}"))
    }

    fn labels(&self, name: &str) -> Vec<String> {
        let labels = self.metric(name)["labels"].as_array().unwrap().iter();
        labels
            .map(|label| label["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn no_known_defect_is_in_the_queries() {
    let queries = Queries::load();
    assert!(queries.exprs.len() > 200, "{}", queries.exprs.len());
    let failed: Vec<_> = ROWS
        .iter()
        .filter(|(_, _, check)| !check(&queries))
        .map(|(row, sentence, _)| format!("{row}: {sentence}"))
        .collect();
    assert!(failed.is_empty(), "not true any more: {failed:#?}");
}
