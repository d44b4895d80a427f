//! What families there are, for people and programs that have no running service at hand.

use super::series::{Head, Kind};
use super::shape::{LabelDescription, Shape};

/// A family of metrics as it is declared. Made by [`Metrics::families`](super::Metrics::families).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FamilyDescription {
    /// The name to ask for: with unit and `_total`; that of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// `seconds`, `bytes`, `ratio`, or empty.
    pub unit: String,
    /// What it counts or measures.
    pub help: String,
    /// Its labels, in the order in which they are written.
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
        BoundedFamily, Counter, DenseFamily, Histogram, Metrics, OpenLabel, Outcome, Unit,
        register_build_info,
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
    fn a_family_is_described_before_anything_was_counted() {
        let metrics = Metrics::new();
        let model = metrics.open_label("model", 3);
        let status = OpenLabel::of::<Outcome>();
        metrics.register(|registry| {
            let open =
                BoundedFamily::<2, Outcome, Histogram>::new([&model, &status], || Histogram::new(&[1.0]));
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
    fn what_is_no_ordinary_family_is_described_too() {
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
