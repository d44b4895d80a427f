//! The series of metrics, which scrapes and pushes visit.

#![expect(missing_debug_implementations, reason = "these values live for one call")]

use std::borrow::Cow;

pub(crate) use super::exemplar::Measured;
use super::label_text::parse_labels;
use super::shape::Shape;

/// A type of cell: [`Counter`](super::Counter), [`Gauge`](super::Gauge),
/// [`Histogram`](super::Histogram).
///
/// Sealed: its methods are not for use outside of this crate.
pub trait Metric: Send + Sync + 'static {
    #[doc(hidden)]
    const KIND: Kind;

    #[doc(hidden)]
    fn value(&self) -> Value<'_>;
}

/// A family of metrics in a [`Registry`](super::Registry): a [`DenseFamily`](super::DenseFamily) or
/// a [`BoundedFamily`](super::BoundedFamily).
///
/// Sealed: its methods are not for use outside of this crate.
pub trait Family: Send + Sync + 'static {
    #[doc(hidden)]
    fn kind(&self) -> Kind;

    /// The labels and bounds of all series, which are known before there is a series.
    #[doc(hidden)]
    fn shape(&self) -> Shape;

    /// Visits all series, in a stable order.
    #[doc(hidden)]
    fn visit(&self, each: &mut dyn FnMut(&Series<'_>));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
    Unknown,
}

/// A series of a family with its current value.
pub struct Series<'a> {
    /// The labels in the form of a line, in two parts that are concatenated without a separator.
    pub(crate) open: &'a str,
    pub(crate) closed: &'a str,
    /// The attributes of a push, if they differ from the labels.
    pub(crate) attributes: Option<&'a [(String, String)]>,
    pub(crate) value: Value<'a>,
}

impl Series<'_> {
    /// The labels in the form of a line.
    pub(crate) fn text(&self) -> String {
        [self.open, self.closed].concat()
    }

    /// The attributes of a push.
    pub(crate) fn attributes(&self) -> Cow<'_, [(String, String)]> {
        match self.attributes {
            Some(attributes) => Cow::Borrowed(attributes),
            None => Cow::Owned(parse_labels(&self.text()).unwrap_or_default()),
        }
    }
}

pub enum Value<'a> {
    Counter(Number, Option<Measured>),
    Gauge(Number),
    Histogram(&'a dyn Buckets),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Whole(u64),
    Signed(i64),
    Real(f64),
}

impl Number {
    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Signed(number) => number as f64,
            Self::Real(number) => number,
        }
    }
}

/// The content of a histogram. Buckets are numbered from 0 and not cumulative. There is one for
/// each bound, and one for values above all bounds.
pub trait Buckets {
    fn bounds(&self) -> &[f64];
    fn count(&self, bucket: usize) -> u64;
    fn exemplar(&self, bucket: usize) -> Option<Measured>;
    fn sum(&self) -> f64;
}

/// The metadata of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// With its unit, without `_total`.
    pub(crate) name: &'a str,
    /// Without a full stop at the end.
    pub(crate) help: &'a str,
    /// The suffix of the name, such as `seconds`; empty if there is no unit.
    pub(crate) unit: &'a str,
    pub(crate) kind: Kind,
    /// The instrument of OpenTelemetry, if the family is one.
    pub(crate) original: Option<Original<'a>>,
}

/// An instrument of OpenTelemetry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original<'a> {
    pub(crate) scope: &'a str,
    pub(crate) name: &'a str,
    pub(crate) unit: &'a str,
    /// Whether the value is a sum, not the last value.
    pub(crate) is_sum: bool,
}

/// A reader of all metrics.
pub(crate) trait Visitor {
    /// Called before the first series of a family, and for an instrument again in each scope.
    fn family(&mut self, head: &Head<'_>);
    fn series(&mut self, head: &Head<'_>, series: &Series<'_>);

    /// Whether the reader distinguishes instruments of OpenTelemetry by their original names and
    /// attributes. Otherwise, those that are the same series in Prometheus are visited once.
    fn knows_originals(&self) -> bool {
        false
    }
}
