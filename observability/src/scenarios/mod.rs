//! For each alert: series that fire it and series that must not, run by `promtool test rules`.
//!
//! Names and labels are those of the real programs, whose counters exist at zero before the first
//! event. Time begins at midnight of a Thursday, UTC.

mod engines;
mod jobs;
mod platform;
mod queues;
mod realtime;
mod series;

use std::fmt::Write as _;

use crate::rules::{self, Alert};
use crate::yaml::{HEAD, entry, quoted};

type Labels = Vec<(&'static str, &'static str)>;

/// A state of the platform and the expected alerts.
#[derive(Debug)]
struct Scenario {
    alert: &'static str,
    condition: &'static str,
    series: Vec<String>,
    at: &'static str,
    fires: Vec<(Labels, &'static str)>,
    samples: Vec<(&'static str, Option<(&'static str, f64)>)>,
}

/// The alert fires in this state, until the scenario says otherwise once with these labels and this
/// text of its value.
fn fires(
    alert: &'static str,
    condition: &'static str,
    at: &'static str,
    labels: &[(&'static str, &'static str)],
    value: &'static str,
) -> Scenario {
    Scenario {
        fires: vec![(labels.to_vec(), value)],
        ..silent(alert, condition, at)
    }
}

/// The alert must not fire in this state.
fn silent(alert: &'static str, condition: &'static str, at: &'static str) -> Scenario {
    Scenario {
        alert,
        condition,
        series: Vec::new(),
        at,
        fires: Vec::new(),
        samples: Vec::new(),
    }
}

impl Scenario {
    fn with(mut self, series: impl IntoIterator<Item = String>) -> Self {
        self.series.extend(series);
        self
    }

    /// The expression has one sample, with these labels and this value.
    fn sample(mut self, expr: &'static str, labels: &'static str, value: f64) -> Self {
        self.samples.push((expr, Some((labels, value))));
        self
    }

    /// The expression has no sample.
    fn no_sample(mut self, expr: &'static str) -> Self {
        self.samples.push((expr, None));
        self
    }

    fn write(&self, alert: &Alert, out: &mut String) {
        let word = if self.fires.is_empty() { "silent" } else { "fires" };
        let name = format!("{} {word}: {}", self.alert, self.condition);
        let _ = writeln!(out, "  - name: {}\n    interval: 1m", quoted(&name));
        if self.series.is_empty() {
            let _ = writeln!(out, "    input_series: []");
        } else {
            let _ = writeln!(out, "    input_series:");
        }
        for series in &self.series {
            let (series, values) = series.rsplit_once(" = ").unwrap_or((series, ""));
            let _ = writeln!(out, "      - series: '{series}'\n        values: {values}");
        }
        let _ = writeln!(
            out,
            "    alert_rule_test:\n      - alertname: {}\n        eval_time: {}",
            self.alert, self.at
        );
        if self.fires.is_empty() {
            let _ = writeln!(out, "        exp_alerts: []");
        } else {
            let _ = writeln!(out, "        exp_alerts:");
        }
        for (labels, value) in &self.fires {
            let own = [
                ("severity", alert.severity.as_str()),
                ("component", alert.component.as_str()),
            ];
            let _ = writeln!(out, "          - exp_labels:");
            for (name, value) in labels.iter().chain(&own) {
                let _ = writeln!(out, "              {name}: {}", quoted(value));
            }
            let _ = writeln!(out, "            exp_annotations:");
            for (name, template) in alert.annotations() {
                entry(out, 14, name, &rendered(&template, labels, value));
            }
        }
        if !self.samples.is_empty() {
            let _ = writeln!(out, "    promql_expr_test:");
        }
        for (expr, sample) in &self.samples {
            let _ = writeln!(out, "      - expr: {expr}\n        eval_time: {}", self.at);
            let _ = match sample {
                None => writeln!(out, "        exp_samples: []"),
                Some((labels, value)) => writeln!(
                    out,
                    "        exp_samples:\n          - labels: '{labels}'\n            value: {value}"
                ),
            };
        }
    }
}

/// The text that Prometheus makes of a template.
fn rendered(template: &str, labels: &Labels, value: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").unwrap_or((after, ""));
        text += before;
        text += match action.trim().strip_prefix("$labels.") {
            Some(label) => {
                let found = labels.iter().find(|(name, _)| *name == label);
                found.map_or("", |(_, value)| value)
            }
            None => value,
        };
        rest = after;
    }
    text + rest
}

/// The scenarios of minutes, and those of hours, which are evaluated less often to save time.
pub(crate) fn files() -> [(&'static str, String); 2] {
    [
        ("minutes.yml", file("1m", |scenario| !scenario.at.contains('h'))),
        ("hours.yml", file("5m", |scenario| scenario.at.contains('h'))),
    ]
}

fn file(interval: &str, contains: impl Fn(&Scenario) -> bool) -> String {
    let mut out = format!(
        "{HEAD}rule_files:\n  - ../rules/recording.yml\n  - ../rules/alerts.yml\nevaluation_interval: {interval}\ntests:\n"
    );
    let mut scenarios = queues::scenarios();
    scenarios.extend(engines::scenarios());
    scenarios.extend(jobs::scenarios());
    scenarios.extend(platform::scenarios());
    scenarios.extend(realtime::scenarios());
    for (_, alerts) in rules::groups() {
        for alert in &alerts {
            let of_alert = scenarios.iter().filter(|scenario| scenario.alert == alert.name);
            for scenario in of_alert.filter(|scenario| contains(scenario)) {
                scenario.write(alert, &mut out);
            }
        }
    }
    out
}
