use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::{LabelDescription, Shape};
use crate::metrics::{Metrics, Unit};

/// The queues of a deployment, as somebody found them in Redis: the feature `queue-exporter` has who looks.
///
/// | Metric | |
/// |---|---|
/// | `dalston_redis_connected` | 1 when the last look at Redis told everything, 0 when it did not |
/// | `dalston_queue_depth` | tasks that no engine has taken yet, by `engine_id` |
/// | `dalston_queue_pending` | tasks that an engine has taken and not acknowledged, by `engine_id` |
/// | `dalston_queue_oldest_task_age_seconds` | how long the oldest task waits that nobody has taken; 0 when none waits |
/// | `dalston_events_dead_letters` | events that the orchestrator put aside |
/// | `dalston_queues_left_out` | queues beyond the most that are shown |
///
/// While Redis can't be read, the figures of the queues stay as they were for a while, which bridges a restart and a fail-over:
/// neither does an alert resolve nor a queue look empty. Then their series end, because a number that nobody
/// knows is no number. Ages go on growing: they are told as of the scrape. A queue that is gone from Redis is gone from here.
///
/// Unlike other metrics, these are one set of a registry with one source. Cheap to clone.
#[derive(Clone)]
pub struct QueueMetrics {
    board: Arc<Board>,
}

/// What was found by one look at all queues.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueuesSeen {
    /// The queues, in the order in which they are to be shown. Of two with the same engine, Prometheus refuses the whole scrape.
    pub queues: Vec<QueueSeen>,
    /// Entries of the stream of dead letters.
    pub dead_letters: u64,
    /// Queues that are there and not looked at.
    pub left_out: u64,
}

/// What was found of one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSeen {
    /// The engine whose queue it is.
    pub engine_id: String,
    /// Tasks that nobody has taken yet.
    pub depth: u64,
    /// Tasks that were taken and not acknowledged.
    pub pending: u64,
    /// Since when the oldest task waits that nobody has taken.
    pub oldest: Option<SystemTime>,
}

struct Board {
    /// How long figures stay that can't be read anew.
    keep: Duration,
    /// `None` while nobody looks.
    looks: Mutex<Option<Looks>>,
}

#[derive(Clone, Default)]
struct Looks {
    connected: bool,
    last: Option<(Instant, Arc<Seen>)>,
}

struct Seen {
    figures: QueuesSeen,
    /// The labels of each queue as they stand in a line.
    texts: Vec<String>,
}

impl QueueMetrics {
    /// The handles in this registry; registered when first asked for. `keep` counts then, too: for how long figures are shown
    /// that can't be read anew.
    #[must_use]
    pub fn register(metrics: &Metrics, keep: Duration) -> Self {
        metrics.set(|registry| {
            let board = Arc::new(Board {
                keep,
                looks: Mutex::default(),
            });
            let gauge = |gauge| View {
                board: board.clone(),
                gauge,
            };
            registry.register(
                "dalston_redis_connected",
                "Whether the last look at Redis told everything about the queues",
                gauge(Gauge::Connected),
            );
            registry.register(
                "dalston_queue_depth",
                "Tasks that no engine has taken yet",
                gauge(Gauge::Depth),
            );
            registry.register(
                "dalston_queue_pending",
                "Tasks that an engine has taken and not acknowledged",
                gauge(Gauge::Pending),
            );
            registry.register_with_unit(
                "dalston_queue_oldest_task_age",
                "How long the oldest task waits that no engine has taken, 0 if none waits",
                Unit::Seconds,
                gauge(Gauge::OldestAge),
            );
            registry.register(
                "dalston_events_dead_letters",
                "Events that the orchestrator put aside",
                gauge(Gauge::DeadLetters),
            );
            registry.register(
                "dalston_queues_left_out",
                "Queues beyond the most that are shown",
                gauge(Gauge::LeftOut),
            );
            Self { board }
        })
    }

    /// Shows what was found.
    pub fn seen(&self, figures: QueuesSeen) {
        let texts = figures.queues.iter().map(|queue| {
            let mut text = String::new();
            push_label(&mut text, "engine_id", &queue.engine_id);
            text
        });
        let texts = texts.collect();
        let seen = Arc::new(Seen { figures, texts });
        self.change(|_| {
            Some(Looks {
                connected: true,
                last: Some((Instant::now(), seen)),
            })
        });
    }

    /// Shows that Redis can't be read.
    pub fn unreachable(&self) {
        self.change(|looks| {
            Some(Looks {
                connected: false,
                ..looks.unwrap_or_default()
            })
        });
    }

    /// Shows nothing any more, because nobody looks.
    pub fn ended(&self) {
        self.change(|_| None);
    }

    /// Whether Redis could be read the last time; `None` while nobody looks.
    #[must_use]
    pub fn is_connected(&self) -> Option<bool> {
        self.board.looks().map(|looks| looks.connected)
    }

    fn change(&self, change: impl FnOnce(Option<Looks>) -> Option<Looks>) {
        let mut looks = self.board.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looks.take();
        *looks = change(before);
    }
}

impl fmt::Debug for QueueMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueMetrics")
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Board {
    fn looks(&self) -> Option<Looks> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.clone()
    }

    /// What was seen, unless that was too long ago.
    fn seen(&self) -> Option<Arc<Seen>> {
        let (when, seen) = self.looks()?.last?;
        (when.elapsed() < self.keep).then_some(seen)
    }
}

/// One metric of the board.
struct View {
    board: Arc<Board>,
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

impl Family for View {
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
                let connected = self.board.looks().map(|looks| looks.connected);
                return show(connected.map(u64::from), each);
            }
            Gauge::DeadLetters => {
                return show(self.board.seen().map(|seen| seen.figures.dead_letters), each);
            }
            Gauge::LeftOut => return show(self.board.seen().map(|seen| seen.figures.left_out), each),
            Gauge::Depth => |queue: &QueueSeen| Number::Whole(queue.depth),
            Gauge::Pending => |queue: &QueueSeen| Number::Whole(queue.pending),
            Gauge::OldestAge => |queue: &QueueSeen| Number::Real(age(queue.oldest)),
        };
        let Some(seen) = self.board.seen() else { return };
        for (queue, closed) in seen.figures.queues.iter().zip(&seen.texts) {
            each(&Series {
                open: "",
                closed,
                attributes: None,
                value: Value::Gauge(of_queue(queue)),
            });
        }
    }
}

fn show(value: Option<u64>, each: &mut dyn FnMut(&Series<'_>)) {
    if let Some(value) = value {
        each(&Series {
            open: "",
            closed: "",
            attributes: None,
            value: Value::Gauge(Number::Whole(value)),
        });
    }
}

/// The clocks of two hosts may differ, so a task can seem to come from the future.
fn age(since: Option<SystemTime>) -> f64 {
    let age = since.and_then(|since| since.elapsed().ok());
    age.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(engine_id: &str, depth: u64, oldest: Option<SystemTime>) -> QueueSeen {
        QueueSeen {
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
    fn queues_come_and_go_with_what_is_seen_and_nobody_waits_a_negative_time() {
        let metrics = Metrics::new();
        let queues = QueueMetrics::register(&metrics, Duration::from_secs(60));
        assert_eq!(lines(&metrics), [""; 0]);
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        queues.seen(QueuesSeen {
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
        queues.seen(QueuesSeen {
            queues: vec![queue("b", 0, None)],
            ..QueuesSeen::default()
        });
        assert_eq!(
            metrics
                .snapshot()
                .value("dalston_queue_depth", &[("engine_id", "a")]),
            None
        );
        queues.ended();
        assert_eq!(lines(&metrics), [""; 0]);
    }

    #[test]
    fn an_age_is_told_as_of_the_scrape() {
        let metrics = Metrics::new();
        let queues = QueueMetrics::register(&metrics, Duration::from_secs(60));
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        queues.seen(QueuesSeen {
            queues: vec![queue("a", 2, Some(hour_ago))],
            ..QueuesSeen::default()
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
    fn figures_outlive_a_lost_connection_for_a_while_and_no_longer() {
        for (keep, shown) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
            let metrics = Metrics::new();
            let queues = QueueMetrics::register(&metrics, keep);
            queues.seen(QueuesSeen {
                queues: vec![queue("a", 2, None)],
                ..QueuesSeen::default()
            });
            queues.unreachable();
            let lines = lines(&metrics);
            assert_eq!(lines[0], "dalston_redis_connected 0");
            let depth = r#"dalston_queue_depth{engine_id="a"} 2"#.to_owned();
            assert_eq!(lines.contains(&depth), shown, "{lines:?}");
            assert_eq!(lines.len() > 1, shown);
        }
    }
}
