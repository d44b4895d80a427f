//! Values that were copied from other libraries.

use super::exemplar::Measured;
use super::series::{Buckets, Kind, Number, Value};

pub(super) enum OwnedValue {
    Number(Number),
    Histogram(OwnedHistogram),
}

impl OwnedValue {
    pub(super) fn as_value(&self, kind: Kind) -> Value<'_> {
        match self {
            Self::Number(number) if kind == Kind::Counter => Value::Counter(*number, None),
            Self::Number(number) => Value::Gauge(*number),
            Self::Histogram(histogram) => Value::Histogram(histogram),
        }
    }
}

/// A copy of a histogram.
#[derive(Default)]
pub(super) struct OwnedHistogram {
    pub(super) bounds: Vec<f64>,
    /// The values in each bucket. While the lines of a text are parsed: in it and in all below it.
    pub(super) counts: Vec<u64>,
    pub(super) sum: f64,
}

impl Buckets for OwnedHistogram {
    fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    fn count(&self, bucket: usize) -> u64 {
        self.counts.get(bucket).copied().unwrap_or(0)
    }

    fn exemplar(&self, _bucket: usize) -> Option<Measured> {
        None
    }

    fn sum(&self) -> f64 {
        self.sum
    }
}
