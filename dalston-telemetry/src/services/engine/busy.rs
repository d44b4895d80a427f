//! The busy time of inference threads.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::metrics::series::{Kind, Metric, Number, Value};
use crate::metrics::{DenseFamily, lock};

/// The length of the window, in seconds.
const WINDOW: usize = 60;

/// The metrics of one inference thread. Returned by
/// [`EngineMetrics::slot`](super::EngineMetrics::slot); cheap to clone.
#[derive(Clone, Debug)]
pub struct SlotMetrics {
    pub(super) busy: DenseFamily<(), BusyRatio>,
}

impl SlotMetrics {
    /// Marks the thread as busy until the guard is dropped.
    ///
    /// A guard that is never dropped, because its thread is stuck, counts until the next call.
    pub fn busy(&self) -> BusyGuard {
        let period = self.busy.with(()).begin(Instant::now());
        BusyGuard {
            slot: self.clone(),
            period,
        }
    }

    /// The share of the last minute in which the thread was busy, from 0 to 1.
    #[must_use]
    pub fn busy_ratio(&self) -> f64 {
        self.busy.with(()).ratio(Instant::now())
    }
}

/// Marks an inference thread as busy. Returned by [`SlotMetrics::busy`].
#[derive(Debug)]
#[must_use = "the thread counts as idle after the drop of the guard"]
pub struct BusyGuard {
    slot: SlotMetrics,
    period: u64,
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.slot.busy.with(()).end(self.period, Instant::now());
    }
}

/// The share of the last minute in which a thread was busy.
#[derive(Debug)]
pub(super) struct BusyRatio {
    state: Mutex<BusyState>,
}

#[derive(Debug)]
struct BusyState {
    started: Instant,
    /// The number of busy periods. A guard ends its period only if it is the last one.
    period: u64,
    working_since: Option<Instant>,
    /// Busy time of each second of the window, at `second % WINDOW`.
    seconds: [Duration; WINDOW],
    /// The second, counted from `started`, that was written last.
    newest: u64,
}

impl Default for BusyRatio {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl BusyRatio {
    fn new(started: Instant) -> Self {
        let seconds = [Duration::ZERO; WINDOW];
        Self {
            state: Mutex::new(BusyState {
                started,
                period: 0,
                working_since: None,
                seconds,
                newest: 0,
            }),
        }
    }

    pub(super) fn begin(&self, now: Instant) -> u64 {
        let mut state = lock(&self.state);
        state.settle(now);
        state.period += 1;
        state.working_since = Some(now);
        state.period
    }

    pub(super) fn end(&self, period: u64, now: Instant) {
        let mut state = lock(&self.state);
        if state.period == period {
            state.settle(now);
            state.working_since = None;
        }
    }

    pub(super) fn ratio(&self, now: Instant) -> f64 {
        let mut state = lock(&self.state);
        state.settle(now);
        let age = now.saturating_duration_since(state.started).as_secs_f64();
        let busy: Duration = state.seconds.iter().sum();
        // The window holds complete seconds and the current one.
        let window = (WINDOW as f64 - 1.0 + age.fract()).min(age);
        if window > 0.0 {
            (busy.as_secs_f64() / window).min(1.0)
        } else {
            0.0
        }
    }
}

impl BusyState {
    /// Adds the busy time up to now, and removes the seconds that have left the window.
    fn settle(&mut self, now: Instant) {
        let now_at = now.saturating_duration_since(self.started);
        let this_second = now_at.as_secs();
        for second in (self.newest + 1..=this_second).rev().take(WINDOW) {
            self.seconds[slot_of(second)] = Duration::ZERO;
        }
        self.newest = self.newest.max(this_second);
        let Some(since) = self.working_since else { return };
        let since_at = since.saturating_duration_since(self.started);
        let oldest = this_second.saturating_sub(WINDOW as u64 - 1);
        for second in since_at.as_secs().max(oldest)..=this_second {
            let begin = since_at.max(Duration::from_secs(second));
            let end = now_at.min(Duration::from_secs(second + 1));
            self.seconds[slot_of(second)] += end.saturating_sub(begin);
        }
        self.working_since = Some(now.max(since));
    }
}

fn slot_of(second: u64) -> usize {
    (second % WINDOW as u64) as usize
}

impl Metric for BusyRatio {
    const KIND: Kind = Kind::Gauge;

    fn value(&self) -> Value<'_> {
        Value::Gauge(Number::Real(self.ratio(Instant::now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_ratio_covers_the_last_minute() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let busy = BusyRatio::new(start);
        assert_eq!(busy.ratio(start), 0.0);

        let period = busy.begin(at(0.5));
        assert!(
            (busy.ratio(at(2.0)) - 0.75).abs() < 1e-6,
            "work in progress counts"
        );
        busy.end(period, at(2.5));
        assert!((busy.ratio(at(4.0)) - 0.5).abs() < 1e-6);
        assert_eq!(busy.ratio(at(300.0)), 0.0, "old work is forgotten");

        let period = busy.begin(at(300.0));
        assert!((busy.ratio(at(330.0)) - 0.5).abs() < 0.01);
        assert!(
            (busy.ratio(at(1000.0)) - 1.0).abs() < 1e-6,
            "a task longer than the window fills it"
        );
        busy.end(period, at(1000.0));
    }

    #[test]
    fn a_replaced_thread_does_not_count_as_busy() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let busy = BusyRatio::new(start);
        let hanging = busy.begin(start);
        let replacement = busy.begin(at(10));
        busy.end(replacement, at(15));
        busy.end(hanging, at(30));
        assert!((busy.ratio(at(30)) - 0.5).abs() < 1e-6);
    }
}
