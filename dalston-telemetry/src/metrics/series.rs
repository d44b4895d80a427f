//! What a metric looks like to whoever reads all of them: the text that is scraped, and the push.

#![expect(
    missing_debug_implementations,
    reason = "made and taken apart within one call"
)]

use std::borrow::Cow;

pub(crate) use super::exemplar::Measured;
use super::label_text::parse_labels;
use super::shape::Shape;

/// A type of cell: [`Counter`](super::Counter), [`Gauge`](super::Gauge), [`Histogram`](super::Histogram).
///
/// Sealed: its methods are not for use outside of this crate.
pub trait Metric: Send + Sync + 'static {
    #[doc(hidden)]
    const KIND: Kind;

    #[doc(hidden)]
    fn value(&self) -> Value<'_>;
}

/// What a [`Registry`](super::Registry) holds: a [`DenseFamily`](super::DenseFamily) or a
/// [`BoundedFamily`](super::BoundedFamily).
///
/// Sealed: its methods are not for use outside of this crate.
pub trait Family: Send + Sync + 'static {
    #[doc(hidden)]
    fn kind(&self) -> Kind;

    /// What all series have in common, known before there is one.
    #[doc(hidden)]
    fn shape(&self) -> Shape;

    /// Shows every series, in an order that stays the same.
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

/// One series of a family at this moment.
pub struct Series<'a> {
    /// The labels as they stand between the braces of a line, in two parts, of which the second can follow the first as it is.
    pub(crate) open: &'a str,
    pub(crate) closed: &'a str,
    /// What stands for the labels in a push, where that is something else.
    pub(crate) attributes: Option<&'a [(String, String)]>,
    pub(crate) value: Value<'a>,
}

impl Series<'_> {
    /// What stands between the braces of a line.
    pub(crate) fn text(&self) -> String {
        [self.open, self.closed].concat()
    }

    /// The labels, or what stands for them in a push.
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

/// The inside of a histogram. Buckets are counted from 0 and hold what is in them alone; there is one more of them than
/// there are bounds.
pub trait Buckets {
    fn bounds(&self) -> &[f64];
    fn count(&self, bucket: usize) -> u64;
    fn exemplar(&self, bucket: usize) -> Option<Measured>;
    fn sum(&self) -> f64;
}

/// What is said once about all series of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// With its unit, without `_total`.
    pub(crate) name: &'a str,
    /// Without a full stop at the end.
    pub(crate) help: &'a str,
    /// As it stands in the name, `seconds`; empty for none.
    pub(crate) unit: &'a str,
    pub(crate) kind: Kind,
    /// What the instrument was called that is exposed under this name, if it is one of OpenTelemetry's.
    pub(crate) original: Option<Original<'a>>,
}

/// An instrument of OpenTelemetry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original<'a> {
    pub(crate) scope: &'a str,
    pub(crate) name: &'a str,
    pub(crate) unit: &'a str,
    /// Whether values are added up, be it with negative ones, rather than replaced.
    pub(crate) is_sum: bool,
}

/// Whoever reads all metrics.
pub(crate) trait Visitor {
    /// Called before the first series of a family; again for each scope of OpenTelemetry that has some.
    fn family(&mut self, head: &Head<'_>);
    fn series(&mut self, head: &Head<'_>, series: &Series<'_>);

    /// Whether instruments of OpenTelemetry are told apart by their original names and attributes. If not, those that are one to
    /// Prometheus are shown once.
    fn knows_originals(&self) -> bool {
        false
    }
}
