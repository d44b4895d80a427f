use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::worker_gauge::{WorkerGauge, WorkerSeries};
use crate::metrics::{Counter, DenseFamily, Exemplar, Gauge, Histogram, Metrics, Unit, buckets};

crate::label! {
    /// The end of a session.
    pub enum SessionStatus = "status" {
        Completed => "completed",
        Error => "error",
        Timeout => "timeout",
    }
}

/// The metrics of the router of realtime sessions. Cheap to clone.
///
/// Each gateway counts all workers and their sessions, so queries take the maximum over the
/// gateways.
///
/// | What | PromQL |
/// |---|---|
/// | Registered workers that are not healthy | `max(dalston_session_router_workers_registered) - max(dalston_session_router_workers_healthy)` |
/// | Sessions of each worker and of all workers | `max by (worker_id) (dalston_session_router_sessions_active)`, and the `sum` of it |
/// | Share of sessions that failed | `sum(rate(dalston_session_router_sessions_total{status!="completed"}[5m])) / sum(rate(dalston_session_router_sessions_total[5m]))` |
/// | 95th percentile of the wait for a worker | `histogram_quantile(0.95, sum by (le) (rate(dalston_session_router_allocation_duration_seconds_bucket[5m])))` |
#[derive(Clone)]
pub struct SessionRouterMetrics {
    registered: DenseFamily<(), Gauge>,
    healthy: DenseFamily<(), Gauge>,
    active: WorkerGauge,
    sessions: DenseFamily<SessionStatus, Counter>,
    allocation: DenseFamily<(), Histogram>,
}

impl SessionRouterMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let worker = metrics.label("worker_id");
        metrics.set(|registry| {
            let mut registry = registry.with_prefix("dalston_session_router");
            Self {
                registered: registry.keep(
                    "workers_registered",
                    "Registered realtime workers",
                    DenseFamily::default(),
                ),
                healthy: registry.keep(
                    "workers_healthy",
                    "Realtime workers with a recent heartbeat",
                    DenseFamily::default(),
                ),
                active: registry.keep(
                    "sessions_active",
                    "Active sessions of a worker",
                    WorkerGauge::new(&worker),
                ),
                sessions: registry.keep(
                    "sessions",
                    "Sessions that have ended, by status",
                    DenseFamily::default(),
                ),
                allocation: registry.keep_with_unit(
                    "allocation_duration",
                    "Time to allocate a worker to a session",
                    Unit::Seconds,
                    DenseFamily::new(|| Histogram::with_exemplars(buckets::ALLOCATION)),
                ),
            }
        })
    }

    /// Sets the number of registered and of healthy workers:
    /// `dalston_session_router_workers_registered` and `dalston_session_router_workers_healthy`.
    pub fn workers(&self, registered: usize, healthy: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.registered.with(()).set(number(registered));
        self.healthy.with(()).set(number(healthy));
    }

    /// The number of sessions of a worker, which is zero for a new one. The series exists until the
    /// last handle is dropped: keep one while the worker is registered.
    #[must_use = "the series vanishes as soon as the handle is dropped"]
    pub fn worker(&self, worker_id: &str) -> WorkerSessions {
        WorkerSessions {
            entry: self.active.entry(worker_id),
        }
    }

    /// Counts a session that has ended: `dalston_session_router_sessions_total`.
    pub fn session_ended(&self, status: SessionStatus) {
        self.sessions.with(status).inc_in(Exemplar::current());
    }

    /// Records the duration of an allocation, whether it found a worker or not:
    /// `dalston_session_router_allocation_duration_seconds`.
    pub fn allocated(&self, time: Duration) {
        self.allocation
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }
}

impl fmt::Debug for SessionRouterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRouterMetrics").finish_non_exhaustive()
    }
}

/// The number of sessions of a worker. Returned by [`SessionRouterMetrics::worker`]; clones share
/// the number.
#[derive(Clone, Debug)]
pub struct WorkerSessions {
    entry: Arc<WorkerSeries>,
}

impl WorkerSessions {
    /// Sets the number: `dalston_session_router_sessions_active`.
    pub fn set(&self, active: usize) {
        self.entry.set(i64::try_from(active).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::OTHER;

    const ACTIVE: &str = "dalston_session_router_sessions_active";

    #[test]
    fn a_removed_worker_has_no_series_and_frees_its_place() {
        let metrics = Metrics::with_label_values(2);
        let router = SessionRouterMetrics::register(&metrics);
        let active = |worker: &str| metrics.snapshot().value(ACTIVE, &[("worker_id", worker)]);
        for round in 0..10 {
            let name = format!("worker-{round}");
            let worker = router.worker(&name);
            assert_eq!(active(&name), Some(0.0));
            worker.set(3);
            let again = router.worker(&name);
            drop(worker);
            assert_eq!(active(&name), Some(3.0));
            drop(again);
            assert_eq!(active(&name), None);
        }
        assert!(!metrics.encode().contains(ACTIVE), "{}", metrics.encode());
    }

    #[test]
    fn workers_beyond_the_cap_share_a_series() {
        let metrics = Metrics::with_label_values(2);
        let router = SessionRouterMetrics::register(&metrics);
        let workers: Vec<_> = (0..5)
            .map(|worker| router.worker(&format!("worker-{worker}")))
            .collect();
        for worker in &workers {
            worker.set(7);
            worker.set(2);
        }
        let other = || metrics.snapshot().value(ACTIVE, &[("worker_id", OTHER)]);
        assert_eq!(other(), Some(6.0));
        assert_eq!(metrics.snapshot().sum(ACTIVE, &[]), 10.0);
        let folded = metrics.snapshot().value(
            "dalston_telemetry_label_values_folded_total",
            &[("label", "worker_id")],
        );
        assert_eq!(folded, Some(3.0));
        // A second handle of the same worker.
        let again = router.worker("worker-4");
        again.set(3);
        assert_eq!(other(), Some(7.0));
        drop(again);
        drop(workers);
        assert_eq!(other(), None);
    }

    #[test]
    fn the_gauge_of_workers_is_described_without_a_worker() {
        let metrics = Metrics::new();
        let _router = SessionRouterMetrics::register(&metrics);
        let families = metrics.families();
        let active = families.iter().find(|family| family.name == ACTIVE).unwrap();
        let labels: Vec<_> = active.labels.iter().map(|label| label.name).collect();
        assert_eq!(labels, ["worker_id"]);
    }

    #[test]
    fn session_counters_start_at_zero() {
        let metrics = Metrics::new();
        let router = SessionRouterMetrics::register(&metrics);
        router.workers(4, 3);
        router.session_ended(SessionStatus::Timeout);
        router.allocated(Duration::from_millis(2));
        let text = metrics.encode();
        for line in [
            "dalston_session_router_workers_registered 4\n",
            "dalston_session_router_workers_healthy 3\n",
            "dalston_session_router_sessions_total{status=\"completed\"} 0\n",
            "dalston_session_router_sessions_total{status=\"error\"} 0\n",
            "dalston_session_router_sessions_total{status=\"timeout\"} 1\n",
            "dalston_session_router_allocation_duration_seconds_sum 0.002\n",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
