//! The metrics that exist: those of our programs by `docs/reference/metrics.json`, and a few of
//! others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::files::read;

/// The kind of a series, as far as the checks need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Of a counter or of a part of a histogram.
    Cumulative,
    Gauge,
}

/// A series by its name in Prometheus.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) kind: Kind,
    /// Labels, each with its values if those are known.
    pub(crate) labels: BTreeMap<String, Option<BTreeSet<String>>>,
}

/// All series by their names.
#[derive(Debug)]
pub(crate) struct Manifest(BTreeMap<String, Series>);

/// Series of Prometheus itself and of cAdvisor, with their labels.
const OTHERS: [(&str, Kind, &[&str]); 7] = [
    ("up", Kind::Gauge, &[]),
    ("scrape_samples_scraped", Kind::Gauge, &[]),
    ("scrape_duration_seconds", Kind::Gauge, &[]),
    (
        "ALERTS",
        Kind::Gauge,
        &["alertname", "alertstate", "severity", "component"],
    ),
    (
        "container_cpu_usage_seconds_total",
        Kind::Cumulative,
        &["container"],
    ),
    ("container_memory_working_set_bytes", Kind::Gauge, &["container"]),
    ("container_spec_memory_limit_bytes", Kind::Gauge, &["container"]),
];

impl Manifest {
    pub(crate) fn load() -> Self {
        let manifest: Value = serde_json::from_str(&read("docs/reference/metrics.json")).unwrap();
        let mut all = BTreeMap::new();
        let mut add = |name: String, kind, labels: BTreeMap<_, _>| {
            all.insert(name, Series { kind, labels });
        };
        for (name, kind, labels) in OTHERS {
            add(
                name.into(),
                kind,
                with_target(labels.iter().map(|name| ((*name).into(), None))),
            );
        }
        for metric in manifest["metrics"].as_array().unwrap() {
            let name = metric["name"].as_str().unwrap().to_owned();
            let labels = metric["labels"].as_array().unwrap().iter().map(|label| {
                let values = label["values"].as_array().map(|values| {
                    let values = values.iter().map(|value| value.as_str().unwrap().to_owned());
                    values.collect()
                });
                (label["name"].as_str().unwrap().to_owned(), values)
            });
            let labels = with_target(labels);
            match metric["type"].as_str().unwrap() {
                "histogram" => {
                    add(format!("{name}_sum"), Kind::Cumulative, labels.clone());
                    add(format!("{name}_count"), Kind::Cumulative, labels.clone());
                    let bounds = metric["buckets"].as_array().unwrap().iter();
                    let bounds = bounds.map(|bound| bound.as_f64().unwrap());
                    // As our programs write them, and as Prometheus 3 stores them.
                    let mut values: BTreeSet<String> = bounds
                        .flat_map(|bound| [bound.to_string(), format!("{bound:?}")])
                        .collect();
                    values.insert("+Inf".to_owned());
                    let mut labels = labels;
                    labels.insert("le".to_owned(), Some(values));
                    add(format!("{name}_bucket"), Kind::Cumulative, labels);
                }
                "counter" => add(name, Kind::Cumulative, labels),
                "gauge" | "info" => add(name, Kind::Gauge, labels),
                other => panic!("{name}: unknown type {other}"),
            }
        }
        Self(all)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Series> {
        self.0.get(name)
    }

    /// The error of a series that no program has, or with labels that it lacks.
    pub(crate) fn check(&self, name: &str, labels: &[(&str, &str)]) -> Result<(), String> {
        let Some(series) = self.get(name) else {
            return Err(format!("no program has the series {name}"));
        };
        for (label, value) in labels {
            match series.labels.get(*label) {
                None => return Err(format!("{name} has no label {label}")),
                Some(Some(values)) if !values.contains(*value) && *value != "__other__" => {
                    return Err(format!("{label} of {name} is never {value:?}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// With the labels that Prometheus adds to each target.
fn with_target(
    labels: impl Iterator<Item = (String, Option<BTreeSet<String>>)>,
) -> BTreeMap<String, Option<BTreeSet<String>>> {
    let target = ["job", "instance"].map(|name| (name.to_owned(), None));
    labels.chain(target).collect()
}
