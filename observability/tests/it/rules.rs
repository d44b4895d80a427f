//! The rules and their scenarios.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml_ng::Value;
use testbed::promtool;

use crate::files::{STACK, list, read, text, workspace, yaml};
use crate::manifest::Manifest;
use crate::promql::Checker;

pub(crate) const RULES: [&str; 2] = ["prometheus/rules/recording.yml", "prometheus/rules/alerts.yml"];
const TESTS: [&str; 2] = ["prometheus/tests/minutes.yml", "prometheus/tests/hours.yml"];

/// The rows of the list of known defects of alert rules, each with a scenario.
const ROWS: [&str; 11] = [
    "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "3.10", "3.11",
];

/// All rules of a file.
pub(crate) fn rules(name: &str) -> Vec<Value> {
    let groups = list(&yaml(name)["groups"]);
    groups.iter().flat_map(|group| list(&group["rules"])).collect()
}

pub(crate) fn alerts() -> Vec<Value> {
    rules(RULES[1])
}

/// A checker that knows the recorded series.
pub(crate) fn checker() -> Checker {
    let mut checker = Checker::new();
    for rule in rules(RULES[0]) {
        let added = checker.record(text(&rule["record"]), text(&rule["expr"]));
        added.unwrap_or_else(|error| panic!("{error}"));
    }
    checker
}

#[test]
fn rules_use_existing_metrics_and_labels() {
    let checker = checker();
    for alert in alerts() {
        let labels = checker
            .check(text(&alert["expr"]))
            .unwrap_or_else(|error| panic!("{error}"));
        let annotations = alert["annotations"].as_mapping().unwrap();
        for template in annotations.values() {
            for named in text(template).split("$labels.").skip(1) {
                let end = named
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap();
                assert!(labels.contains(&named[..end]), "{:?}: {named}", alert["alert"]);
            }
        }
    }
}

#[test]
fn promtool_accepts_the_rules() {
    for name in RULES {
        let path = workspace().join(STACK).join(name);
        let said = promtool(&["check", "rules", "--lint-fatal", path.to_str().unwrap()], "").unwrap_err();
        assert!(
            said.starts_with("exit status: 0") && said.contains("SUCCESS"),
            "{said}"
        );
    }
}

#[test]
fn alerts_fire_in_their_scenarios_only() {
    let paths = TESTS.map(|name| workspace().join(STACK).join(name));
    let paths = paths.iter().map(|path| path.to_str().unwrap());
    let arguments: Vec<&str> = ["test", "rules"].into_iter().chain(paths).collect();
    let said = promtool(&arguments, "").unwrap_err();
    assert!(
        said.starts_with("exit status: 0") && said.matches("SUCCESS").count() == TESTS.len(),
        "{said}"
    );
}

#[test]
fn each_alert_has_a_firing_and_a_silent_scenario() {
    let mut scenarios = BTreeMap::<String, [usize; 2]>::new();
    let mut names = String::new();
    for test in TESTS.iter().flat_map(|name| list(&yaml(name)["tests"])) {
        names += text(&test["name"]);
        for expected in list(&test["alert_rule_test"]) {
            let fires = !list(&expected["exp_alerts"]).is_empty();
            let counts = scenarios
                .entry(text(&expected["alertname"]).to_owned())
                .or_default();
            counts[usize::from(fires)] += 1;
        }
    }
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let [silent, fires] = scenarios.remove(name).unwrap_or_default();
        assert!(fires > 0, "{name}: no scenario fires it");
        // An alert that always fires has no such scenario.
        assert!(
            silent > 0 || text(&alert["expr"]) == "vector(1)",
            "{name}: no scenario without it"
        );
    }
    assert!(scenarios.is_empty(), "no such alerts: {scenarios:?}");
    for row in ROWS {
        assert!(names.contains(&format!("({row})")), "no scenario for row {row}");
    }
}

#[test]
fn scenarios_use_series_of_the_programs() {
    let manifest = Manifest::load();
    for test in TESTS.iter().flat_map(|name| list(&yaml(name)["tests"])) {
        for series in list(&test["input_series"]) {
            let series = text(&series["series"]);
            let (name, labels) = series.strip_suffix('}').unwrap().split_once('{').unwrap();
            let labels = labels.split("\",").map(|label| label.trim_end_matches('"'));
            let labels: Vec<_> = labels.map(|label| label.split_once("=\"").unwrap()).collect();
            manifest
                .check(name, &labels)
                .unwrap_or_else(|error| panic!("{error}: {series}"));
            let given: BTreeSet<&str> = labels.iter().map(|(label, _)| *label).collect();
            let all = manifest.get(name).unwrap().labels.keys();
            let missing: Vec<_> = all.filter(|label| !given.contains(label.as_str())).collect();
            assert!(missing.is_empty(), "{series} lacks {missing:?}");
        }
    }
}

#[test]
fn alerts_have_labels_and_annotations() {
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let severity = text(&alert["labels"]["severity"]);
        assert!(
            ["critical", "warning", "info", "none"].contains(&severity),
            "{name}"
        );
        for annotation in ["summary", "description", "runbook_url", "dashboard_url"] {
            assert!(
                !text(&alert["annotations"][annotation]).is_empty(),
                "{name}: {annotation}"
            );
        }
        // An alert about something absent has no value.
        let description = text(&alert["annotations"]["description"]);
        let has_value = description.contains("$value");
        let has_none = ["absent(", "vector("]
            .iter()
            .any(|call| text(&alert["expr"]).contains(call));
        assert!(has_value || has_none, "{name}: no value in {description:?}");
    }
}

#[test]
fn bounds_match_both_forms_of_prometheus() {
    for rule in RULES.iter().flat_map(|name| rules(name)) {
        let expr = text(&rule["expr"]);
        for bound in expr.split("le=").skip(1) {
            assert!(bound.starts_with("~\"60(\\\\.0)?\""), "{expr}");
        }
    }
    // A bound that is no bound of a bucket would have no series.
    assert!(read("docs/reference/metrics.json").contains("\"dalston_engine_queue_wait_seconds\""));
    let checker = checker();
    checker
        .check("dalston_engine_queue_wait_seconds_bucket{le=\"60\"}")
        .unwrap();
}
