use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::{LabelDescription, Shape};
use crate::metrics::{Metrics, Unit};

/// The queues of a deployment. The `queue_exporter` (feature `queue-exporter`) updates them from
/// Redis.
///
/// | Metric | |
/// |---|---|
/// | `dalston_redis_connected` | 1 if the last poll of Redis succeeded, otherwise 0 |
/// | `dalston_queue_depth` | tasks that were not delivered yet, by `engine_id` |
/// | `dalston_queue_pending` | tasks that were delivered and not acknowledged, by `engine_id` |
/// | `dalston_queue_oldest_task_age_seconds` | age of the oldest task that was not delivered; 0 if there is none |
/// | `dalston_events_dead_letters` | events in the dead-letter stream |
/// | `dalston_queues_left_out` | queues beyond the limit of the exporter |
///
/// While Redis can't be read, the last values stay for a while, so that alerts do not resolve and
/// queues do not look empty during a restart or a fail-over. After that the series end. Ages are
/// computed at the scrape, so they keep growing. A queue that is removed from Redis has no series.
///
/// A registry has one set of these metrics. Cheap to clone.
#[derive(Clone)]
pub struct QueueMetrics {
    state: Arc<State>,
}

/// The state of all queues.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueSamples {
    /// The queues, in the order of their series. Their engines must differ: Prometheus refuses a
    /// scrape with the same series twice.
    pub queues: Vec<QueueSample>,
    /// The entries of the dead-letter stream.
    pub dead_letters: u64,
    /// The number of queues that are not in `queues`.
    pub left_out: u64,
}

/// The state of one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSample {
    /// The engine of the queue.
    pub engine_id: String,
    /// Tasks that were not delivered yet.
    pub depth: u64,
    /// Tasks that were delivered and not acknowledged.
    pub pending: u64,
    /// The time at which the oldest task that was not delivered was queued.
    pub oldest: Option<SystemTime>,
}

struct State {
    /// How long the last values stay while Redis can't be read.
    keep: Duration,
    /// `None` while no exporter runs.
    polls: Mutex<Option<Polls>>,
}

#[derive(Clone, Default)]
struct Polls {
    connected: bool,
    last: Option<(Instant, Arc<LabelledSamples>)>,
}

struct LabelledSamples {
    samples: QueueSamples,
    /// The text of the label of each queue.
    labels: Vec<String>,
}

impl QueueMetrics {
    /// The handles of this registry. The first call registers them and sets `keep`: how long the
    /// last values stay while Redis can't be read.
    #[must_use]
    pub fn register(metrics: &Metrics, keep: Duration) -> Self {
        metrics.set(|registry| {
            let state = Arc::new(State {
                keep,
                polls: Mutex::default(),
            });
            let gauge = |gauge| QueueGauge {
                state: state.clone(),
                gauge,
            };
            registry.register(
                "dalston_redis_connected",
                "Whether the last poll of Redis succeeded",
                gauge(Gauge::Connected),
            );
            registry.register(
                "dalston_queue_depth",
                "Tasks that were not delivered to an engine yet",
                gauge(Gauge::Depth),
            );
            registry.register(
                "dalston_queue_pending",
                "Tasks that were delivered to an engine and not acknowledged",
                gauge(Gauge::Pending),
            );
            registry.register_with_unit(
                "dalston_queue_oldest_task_age",
                "Age of the oldest task that was not delivered to an engine yet, 0 if there is none",
                Unit::Seconds,
                gauge(Gauge::OldestAge),
            );
            registry.register(
                "dalston_events_dead_letters",
                "Events in the dead-letter stream",
                gauge(Gauge::DeadLetters),
            );
            registry.register(
                "dalston_queues_left_out",
                "Queues beyond the limit of the exporter, which have no series",
                gauge(Gauge::LeftOut),
            );
            Self { state }
        })
    }

    /// Replaces all values.
    pub fn update(&self, samples: QueueSamples) {
        let labels = samples.queues.iter().map(|queue| {
            let mut text = String::new();
            push_label(&mut text, "engine_id", &queue.engine_id);
            text
        });
        let labels = labels.collect();
        let recent = Arc::new(LabelledSamples { samples, labels });
        self.change(|_| {
            Some(Polls {
                connected: true,
                last: Some((Instant::now(), recent)),
            })
        });
    }

    /// Sets `dalston_redis_connected` to 0.
    pub fn unreachable(&self) {
        self.change(|polls| {
            Some(Polls {
                connected: false,
                ..polls.unwrap_or_default()
            })
        });
    }

    /// Removes all series.
    pub fn clear(&self) {
        self.change(|_| None);
    }

    /// Whether the last poll succeeded; `None` while no exporter runs.
    #[must_use]
    pub fn is_connected(&self) -> Option<bool> {
        self.state.polls().map(|polls| polls.connected)
    }

    fn change(&self, change: impl FnOnce(Option<Polls>) -> Option<Polls>) {
        let mut polls = self.state.polls.lock().unwrap_or_else(PoisonError::into_inner);
        let before = polls.take();
        *polls = change(before);
    }
}

impl fmt::Debug for QueueMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueMetrics")
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl State {
    fn polls(&self) -> Option<Polls> {
        let polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
        polls.clone()
    }

    /// The last samples, unless they are too old.
    fn recent(&self) -> Option<Arc<LabelledSamples>> {
        let (when, recent) = self.polls()?.last?;
        (when.elapsed() < self.keep).then_some(recent)
    }
}

/// A metric of all queues.
struct QueueGauge {
    state: Arc<State>,
    gauge: Gauge,
}

#[derive(Clone, Copy)]
enum Gauge {
    Connected,
    Depth,
    Pending,
    OldestAge,
    DeadLetters,
    LeftOut,
}

impl Family for QueueGauge {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(match self.gauge {
            Gauge::Depth | Gauge::Pending | Gauge::OldestAge => vec![LabelDescription::open("engine_id")],
            Gauge::Connected | Gauge::DeadLetters | Gauge::LeftOut => Vec::new(),
        })
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        let of_queue = match self.gauge {
            Gauge::Connected => {
                let connected = self.state.polls().map(|polls| polls.connected);
                return visit_number(connected.map(u64::from), each);
            }
            Gauge::DeadLetters => {
                return visit_number(
                    self.state.recent().map(|recent| recent.samples.dead_letters),
                    each,
                );
            }
            Gauge::LeftOut => {
                return visit_number(self.state.recent().map(|recent| recent.samples.left_out), each);
            }
            Gauge::Depth => |queue: &QueueSample| Number::Whole(queue.depth),
            Gauge::Pending => |queue: &QueueSample| Number::Whole(queue.pending),
            Gauge::OldestAge => |queue: &QueueSample| Number::Real(age(queue.oldest)),
        };
        let Some(recent) = self.state.recent() else { return };
        for (queue, closed) in recent.samples.queues.iter().zip(&recent.labels) {
            each(&Series {
                open: "",
                closed,
                attributes: None,
                value: Value::Gauge(of_queue(queue)),
            });
        }
    }
}

fn visit_number(value: Option<u64>, each: &mut dyn FnMut(&Series<'_>)) {
    if let Some(value) = value {
        each(&Series {
            open: "",
            closed: "",
            attributes: None,
            value: Value::Gauge(Number::Whole(value)),
        });
    }
}

/// The age, which is 0 for a time in the future: the clocks of two hosts can differ.
fn age(since: Option<SystemTime>) -> f64 {
    let age = since.and_then(|since| since.elapsed().ok());
    age.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(engine_id: &str, depth: u64, oldest: Option<SystemTime>) -> QueueSample {
        QueueSample {
            engine_id: engine_id.into(),
            depth,
            pending: 1,
            oldest,
        }
    }

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.encode();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn queues_have_series_only_while_they_exist() {
        let metrics = Metrics::new();
        let queues = QueueMetrics::register(&metrics, Duration::from_secs(60));
        assert_eq!(lines(&metrics), [""; 0]);
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        queues.update(QueueSamples {
            queues: vec![queue("a", 2, Some(tomorrow)), queue("b\"", 0, None)],
            dead_letters: 7,
            left_out: 0,
        });
        assert_eq!(
            lines(&metrics),
            [
                "dalston_redis_connected 1",
                r#"dalston_queue_depth{engine_id="a"} 2"#,
                r#"dalston_queue_depth{engine_id="b\""} 0"#,
                r#"dalston_queue_pending{engine_id="a"} 1"#,
                r#"dalston_queue_pending{engine_id="b\""} 1"#,
                r#"dalston_queue_oldest_task_age_seconds{engine_id="a"} 0.0"#,
                r#"dalston_queue_oldest_task_age_seconds{engine_id="b\""} 0.0"#,
                "dalston_events_dead_letters 7",
                "dalston_queues_left_out 0",
            ]
        );
        queues.update(QueueSamples {
            queues: vec![queue("b", 0, None)],
            ..QueueSamples::default()
        });
        assert_eq!(
            metrics
                .snapshot()
                .value("dalston_queue_depth", &[("engine_id", "a")]),
            None
        );
        queues.clear();
        assert_eq!(lines(&metrics), [""; 0]);
    }

    #[test]
    fn ages_are_computed_at_the_scrape() {
        let metrics = Metrics::new();
        let queues = QueueMetrics::register(&metrics, Duration::from_secs(60));
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        queues.update(QueueSamples {
            queues: vec![queue("a", 2, Some(hour_ago))],
            ..QueueSamples::default()
        });
        let age = || {
            let snapshot = metrics.snapshot();
            snapshot.sum("dalston_queue_oldest_task_age_seconds", &[])
        };
        let first = age();
        assert!(first >= 3600.0, "{first}");
        assert!(age() > first);
    }

    #[test]
    fn values_stay_for_a_while_without_a_connection() {
        for (keep, stays) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
            let metrics = Metrics::new();
            let queues = QueueMetrics::register(&metrics, keep);
            queues.update(QueueSamples {
                queues: vec![queue("a", 2, None)],
                ..QueueSamples::default()
            });
            queues.unreachable();
            let lines = lines(&metrics);
            assert_eq!(lines[0], "dalston_redis_connected 0");
            let depth = r#"dalston_queue_depth{engine_id="a"} 2"#.to_owned();
            assert_eq!(lines.contains(&depth), stays, "{lines:?}");
            assert_eq!(lines.len() > 1, stays);
        }
    }
}
