//! The change of a metric in a test: [`Moved`].

use std::fmt;

use dalston_telemetry::metrics::MetricChange;

/// The change of a metric while a task ran, of all its series together. Made by
/// [`TaskReport::moved`](super::TaskReport::moved).
///
/// It compares with a number, and a failed assertion shows the series that changed.
#[derive(Clone, PartialEq)]
pub struct Moved {
    series: Vec<MetricChange>,
}

impl Moved {
    pub(super) fn new(series: Vec<MetricChange>) -> Self {
        Self { series }
    }

    /// The change of those series that have this label.
    #[must_use]
    pub fn with(mut self, label: &str, value: &str) -> Self {
        self.series
            .retain(|change| change.label(label).as_deref() == Some(value));
        self
    }

    /// The sum of the changes. 0 if no series changed.
    #[must_use]
    pub fn total(&self) -> f64 {
        let changes = self.series.iter().map(|change| change.after - change.before);
        // `sum` of nothing is -0.
        changes.fold(0.0, |sum, change| sum + change)
    }

    /// The series that changed, in alphabetical order.
    #[must_use]
    pub fn series(&self) -> &[MetricChange] {
        &self.series
    }
}

impl PartialEq<f64> for Moved {
    fn eq(&self, total: &f64) -> bool {
        self.total() == *total
    }
}

/// The sum, and the series that changed.
impl fmt::Debug for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.total())?;
        for (index, change) in self.series.iter().enumerate() {
            let before = if index == 0 { ": " } else { ", " };
            write!(f, "{before}{change}")?;
        }
        Ok(())
    }
}
