use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::exemplar::{Exemplar, LatestExemplar, Measured};
use super::series::{Buckets, Kind, Metric, Number, Value};

/// A number that only increases.
///
/// It is a cell of a family, of `DenseFamily<(), Counter>` if it has no labels. An increment is one
/// atomic addition.
#[derive(Default)]
pub struct Counter {
    count: AtomicU64,
    /// Fits into the rest of the cell's cache lines.
    exemplar: LatestExemplar,
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Adds several.
    pub fn inc_by(&self, n: u64) {
        self.count.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one, with the span in which it happened; see [`Exemplar::current`].
    pub fn inc_in(&self, exemplar: Option<Exemplar>) {
        self.inc();
        if let Some(exemplar) = exemplar {
            self.exemplar.set(exemplar, 1.0);
        }
    }

    /// The current count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counter").field(&self.get()).finish()
    }
}

impl Metric for Counter {
    const KIND: Kind = Kind::Counter;

    fn value(&self) -> Value<'_> {
        Value::Counter(Number::Whole(self.get()), self.exemplar.get())
    }
}

/// A counter of seconds.
///
/// It holds whole nanoseconds: the sum of a day of audio in chunks of 20 ms is exact, which the sum
/// of floating-point numbers is not. The largest value is 584 years.
#[derive(Default)]
pub struct DurationCounter {
    nanoseconds: AtomicU64,
}

impl DurationCounter {
    /// Adds a duration.
    pub fn add(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let add = |sum: u64| Some(sum.saturating_add(time));
        let _ = self
            .nanoseconds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// The sum of all durations.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for DurationCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DurationCounter").field(&self.get()).finish()
    }
}

impl Metric for DurationCounter {
    const KIND: Kind = Kind::Counter;

    fn value(&self) -> Value<'_> {
        Value::Counter(Number::Real(self.get().as_secs_f64()), None)
    }
}

/// A number that increases and decreases.
#[derive(Default)]
pub struct Gauge {
    value: AtomicI64,
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.value.fetch_sub(1, Ordering::Relaxed);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gauge").field(&self.get()).finish()
    }
}

impl Metric for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn value(&self) -> Value<'_> {
        Value::Gauge(Number::Signed(self.get()))
    }
}

/// The distribution of values over buckets. Lock-free: an observation is a search over the bounds
/// and two atomic additions.
pub struct Histogram {
    /// Inclusive upper bounds, ascending.
    bounds: &'static [f64],
    /// One for each bound, and one for values above all bounds.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
    /// One for each bucket, or none.
    exemplars: Box<[LatestExemplar]>,
}

impl Histogram {
    /// A histogram with these inclusive upper bounds, in ascending order; see
    /// [`buckets`](super::buckets).
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.is_sorted(), "bounds of a histogram ascend");
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            counts,
            sum: AtomicU64::new(0),
            exemplars: Box::default(),
        }
    }

    /// A histogram with exemplars: each bucket keeps the newest value that was recorded with a
    /// span. Takes 48 bytes more for each bucket.
    #[must_use]
    pub fn with_exemplars(bounds: &'static [f64]) -> Self {
        Self {
            exemplars: (0..=bounds.len()).map(|_| LatestExemplar::default()).collect(),
            ..Self::new(bounds)
        }
    }

    /// Records a value. Infinity and NaN are ignored, because the sum would never be finite again.
    pub fn observe(&self, value: f64) {
        self.observe_in(value, None);
    }

    /// Records a value with the span in which it was measured (see [`Exemplar::current`]), which a
    /// histogram [with exemplars](Self::with_exemplars) keeps.
    pub fn observe_in(&self, value: f64, exemplar: Option<Exemplar>) {
        if !value.is_finite() {
            return;
        }
        let bucket = self
            .bounds
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if let Some(exemplar) = exemplar
            && let Some(latest) = self.exemplars.get(bucket)
        {
            latest.set(exemplar, value);
        }
    }

    /// Records a duration in seconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    /// Records a duration in seconds with the span in which it was measured.
    pub fn observe_duration_in(&self, duration: Duration, exemplar: Option<Exemplar>) {
        self.observe_in(duration.as_secs_f64(), exemplar);
    }

    /// The number of recorded values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// The sum of all recorded values.
    #[must_use]
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("sum", &self.sum())
            .finish_non_exhaustive()
    }
}

impl Metric for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn value(&self) -> Value<'_> {
        Value::Histogram(self)
    }
}

impl Buckets for Histogram {
    fn bounds(&self) -> &[f64] {
        self.bounds
    }

    fn count(&self, bucket: usize) -> u64 {
        self.counts[bucket].load(Ordering::Relaxed)
    }

    fn exemplar(&self, bucket: usize) -> Option<Measured> {
        self.exemplars.get(bucket)?.get()
    }

    fn sum(&self) -> f64 {
        self.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_infinite_values_are_ignored() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            histogram.observe(value);
        }
        let counts: Vec<_> = histogram
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        assert_eq!(counts, [2, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 5.5));
    }

    #[test]
    fn the_sum_of_small_durations_is_exact() {
        let counter = DurationCounter::default();
        let chunk = Duration::from_micros(7_500);
        for _ in 0..11_520_000 / 8 {
            counter.add(chunk);
        }
        assert_eq!(counter.get(), Duration::from_secs(3 * 60 * 60));
        let Value::Counter(Number::Real(seconds), None) = counter.value() else {
            panic!("a counter of seconds")
        };
        assert_eq!(seconds, 10_800.0);
        counter.add(Duration::MAX);
        assert_eq!(counter.get(), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn concurrent_observations_are_all_counted() {
        let histogram = Histogram::new(&[1.0]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(1.0)));
            }
        });
        assert_eq!((histogram.count(), histogram.sum()), (4000, 4000.0));
    }
}
