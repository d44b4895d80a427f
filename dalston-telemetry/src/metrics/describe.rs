//! Descriptions of families, for documentation and for programs without a running service.

use super::series::{Head, Kind};
use super::shape::{LabelDescription, Shape};

/// The description of a family. Returned by [`Metrics::families`](super::Metrics::families).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FamilyDescription {
    /// The name in queries, with unit and `_total`. For a histogram, without `_bucket`, `_sum` and
    /// `_count`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// `seconds`, `bytes`, `ratio`, or empty.
    pub unit: String,
    /// The help text, without a full stop.
    pub help: String,
    /// The labels, in the order of the text formats.
    pub labels: Vec<LabelDescription>,
    /// The upper bounds of a histogram, ascending and without infinity.
    pub buckets: Vec<f64>,
}

pub(crate) fn describe(head: &Head<'_>, shape: Shape) -> FamilyDescription {
    let (kind, suffix) = match head.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
        Kind::Histogram => ("histogram", ""),
        Kind::Info => ("info", "_info"),
        Kind::Unknown => ("unknown", ""),
    };
    FamilyDescription {
        name: format!("{}{suffix}", head.name),
        kind,
        unit: head.unit.to_owned(),
        help: head.help.to_owned(),
        labels: shape.labels,
        buckets: shape.buckets,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        BoundedFamily, Counter, DenseFamily, Histogram, Metrics, OpenLabel, Status, Unit, register_build_info,
    };
    use super::*;

    fn described(metrics: &Metrics, name: &str) -> FamilyDescription {
        let families = metrics.families();
        families
            .into_iter()
            .find(|family| family.name == name)
            .unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn a_family_without_series_is_described() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 3);
        let status = OpenLabel::of::<Status>();
        metrics.register(|registry| {
            let open =
                BoundedFamily::<2, Status, Histogram>::new([&model, &status], || Histogram::new(&[1.0]));
            registry.register_with_unit("wait", "Wait", Unit::Seconds, open);
            registry.register("jobs", "Jobs", DenseFamily::<(), Counter>::default());
        });
        let outcome = || LabelDescription::closed("status", vec!["success".into(), "failure".into()]);
        let wait = FamilyDescription {
            name: "wait_seconds".into(),
            kind: "histogram",
            unit: "seconds".into(),
            help: "Wait".into(),
            labels: vec![LabelDescription::open("model"), outcome(), outcome()],
            buckets: vec![1.0],
        };
        assert_eq!(described(&metrics, "wait_seconds"), wait);
        let jobs = described(&metrics, "jobs_total");
        assert_eq!(
            (jobs.kind, jobs.labels.len(), jobs.buckets.len()),
            ("counter", 0, 0)
        );
    }

    #[test]
    fn families_of_other_types_are_described() {
        let metrics = Metrics::new();
        register_build_info(&metrics, "engine-x", "1");
        let _model = metrics.open_label("model", 3);
        let labels = |name| {
            let labels = described(&metrics, name).labels;
            labels.iter().map(|label| label.name).collect::<Vec<_>>()
        };
        assert_eq!(labels("dalston_build_info"), ["service", "version"]);
        assert_eq!(labels("dalston_telemetry_label_values_folded_total"), ["label"]);
    }
}
