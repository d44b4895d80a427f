//! The labels and the bounds that all series of a family have in common.

/// A label of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelDescription {
    /// Its name.
    pub name: &'static str,
    /// All values; `None` for an open label.
    pub values: Option<Vec<String>>,
}

impl LabelDescription {
    pub(crate) fn open(name: &'static str) -> Self {
        Self { name, values: None }
    }

    pub(crate) fn closed(name: &'static str, values: Vec<String>) -> Self {
        Self {
            name,
            values: Some(values),
        }
    }
}

/// The labels and bounds of all series of a family.
#[derive(Debug, Default)]
pub struct Shape {
    pub(crate) labels: Vec<LabelDescription>,
    pub(crate) buckets: Vec<f64>,
}

impl Shape {
    pub(crate) fn with_labels(labels: Vec<LabelDescription>) -> Self {
        Self {
            labels,
            buckets: Vec::new(),
        }
    }
}
