use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::exemplar::{Exemplar, LatestExemplar, Measured};
use super::series::{Buckets, Kind, Metric, Number, Value};

/// A number that only grows.
///
/// Lives in a [`DenseFamily`](super::DenseFamily), the one without labels being `DenseFamily<(), Counter>`.
/// Counting is one atomic addition.
#[derive(Default)]
pub struct Counter {
    count: AtomicU64,
    /// Fits into what is left of the cache lines that a cell has for itself.
    exemplar: LatestExemplar,
}

impl Counter {
    /// Counts one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts several.
    pub fn inc_by(&self, n: u64) {
        self.count.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one, and remembers the span that it was counted in; see [`Exemplar::current`].
    pub fn inc_in(&self, exemplar: Option<Exemplar>) {
        self.inc();
        if let Some(exemplar) = exemplar {
            self.exemplar.set(exemplar, 1.0);
        }
    }

    /// The present count.
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
/// It is kept in whole nanoseconds, so that a day of audio in pieces of 20 ms is a day to the last digit, which a sum of
/// floating-point numbers would not be. It stays at its largest value, some 584 years.
#[derive(Default)]
pub struct DurationCounter {
    nanoseconds: AtomicU64,
}

impl DurationCounter {
    /// Adds a stretch of time.
    pub fn add(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let add = |sum: u64| Some(sum.saturating_add(time));
        let _ = self
            .nanoseconds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// The sum of all that was added.
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

/// A number that goes up and down.
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

    /// Takes one away.
    pub fn dec(&self) {
        self.value.fetch_sub(1, Ordering::Relaxed);
    }

    /// The present value.
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

/// How often values fell into which range. Lock-free: an observation is a search over the bounds and two atomic
/// additions.
pub struct Histogram {
    /// Inclusive upper bounds, ascending.
    bounds: &'static [f64],
    /// One more than there are bounds; the last counts what is above all of them.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
    /// One per bucket, or none at all.
    exemplars: Box<[LatestExemplar]>,
}

impl Histogram {
    /// A histogram with these inclusive upper bounds, in ascending order; see [`buckets`](super::buckets).
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

    /// A histogram that keeps, for every bucket, the span of the newest value that was recorded with one. Takes 48
    /// bytes more for each bucket.
    #[must_use]
    pub fn with_exemplars(bounds: &'static [f64]) -> Self {
        Self {
            exemplars: (0..=bounds.len()).map(|_| LatestExemplar::default()).collect(),
            ..Self::new(bounds)
        }
    }

    /// Records a value. What is not a finite number is ignored: it would spoil the sum for ever.
    pub fn observe(&self, value: f64) {
        self.observe_in(value, None);
    }

    /// Records a value, and the span that it was measured in if this histogram [keeps them](Self::with_exemplars);
    /// see [`Exemplar::current`].
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

    /// Records a duration in seconds, and the span that it was measured in.
    pub fn observe_duration_in(&self, duration: Duration, exemplar: Option<Exemplar>) {
        self.observe_in(duration.as_secs_f64(), exemplar);
    }

    /// How many values were recorded.
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
    fn a_value_on_a_bound_belongs_below_it_and_nonsense_is_ignored() {
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
    fn a_day_in_small_pieces_is_a_day() {
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
    fn no_observation_is_lost_when_threads_observe_at_once() {
        let histogram = Histogram::new(&[1.0]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(1.0)));
            }
        });
        assert_eq!((histogram.count(), histogram.sum()), (4000, 4000.0));
    }
}
