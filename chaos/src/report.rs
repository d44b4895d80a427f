//! The output: progress lines, and a table at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::fault::Point;

use crate::fleet::{self, Fleet};
use crate::measures::{self, Cause};
use crate::orchestrator::Orchestrator;
use crate::{checks, http, jobs, process, servers, takeover};

/// The results.
#[derive(Debug, Default)]
pub(crate) struct Report {
    seed: u64,
    rows: Vec<(&'static str, String)>,
    /// The time from the end of all faults to the end of the last task.
    pub(crate) recovery: Duration,
    pub(crate) lost: usize,
    /// Results of which a suspended engine overwrote a part after their end.
    pub(crate) mixed: usize,
    /// Tasks during which Redis failed over.
    pub(crate) failed_over: usize,
    /// Consumers in the group.
    pub(crate) consumers: usize,
    /// Instances in the registry whose process was killed.
    pub(crate) stale_instances: usize,
    /// Acknowledged entries that are still in the stream.
    pub(crate) queue: u64,
}

/// A progress line.
pub(crate) fn progress(
    elapsed: Duration,
    tasks: &measures::Counts,
    engines: &fleet::Counts,
    servers: &servers::Counts,
) -> String {
    format!(
        "{:>5}  {} tasks, {} open, {} kills, {} suspensions, {} drains, {} Redis restarts, {} violations",
        seconds(elapsed),
        tasks.tasks,
        tasks.open,
        engines.kills(),
        engines.stopped,
        engines.drained,
        servers.restarts,
        tasks.violations
    )
}

impl Report {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    pub(crate) fn storm(
        &mut self,
        servers: &servers::Counts,
        longest_queue: u64,
        fleet: &Fleet,
        orchestrator: &Orchestrator,
    ) {
        let engines = &fleet.counts;
        let rows = &mut self.rows;
        rows.push(("kills", engines.kills().to_string()));
        rows.push(("  at random times", engines.killed_anywhere.to_string()));
        rows.push(("  at fault points", points(&engines.killed_at)));
        rows.push(("  by tasks", engines.killed_by_tasks.to_string()));
        rows.push((
            "suspensions within or beyond a lease",
            engines.stopped.to_string(),
        ));
        rows.push((
            "  at fault points",
            points(&process::stops(&fleet.setup.directory)),
        ));
        rows.push(("engines with several slots", engines.several_slots.to_string()));
        rows.push(("engines with wrong clocks", engines.wrong_clocks.to_string()));
        rows.push(("full disks and missing locks", engines.breakages.to_string()));
        rows.push(("engines with full outputs", engines.full_outputs.to_string()));
        rows.push(("drains", engines.drained.to_string()));
        let limit = checks::duplicates_limit(&orchestrator.counts(), fleet, servers);
        rows.push(("duplicate starts that this explains", format!("{limit:.0}")));
        rows.push(("restarts of Redis", servers.restarts.to_string()));
        let longest = seconds(servers.longest_outage);
        rows.push(("  longest time without Redis", longest));
        rows.push(("refusals of writes by Redis", servers.refusals.to_string()));
        rows.push(("network faults", servers.network_faults.to_string()));
        rows.push(("  silent connections", servers.silences.to_string()));
        rows.push(("storage faults", servers.storage_faults.to_string()));
        rows.push(("longest queue", format!("{} entries", longest_queue)));
        rows.push((
            "directories of killed processes",
            engines.directories_left.to_string(),
        ));
        rows.push(("recovery until all tasks ended", seconds(self.recovery)));
        let mut waits = |title, cause| rows.push((title, distribution(&orchestrator.takeovers(cause))));
        waits("storm: from a kill to a peer", Cause::Killed);
        waits("  to the restarted process", Cause::KilledAndRestarted);
        waits("  from a release to a peer", Cause::Released);
    }

    pub(crate) fn http(&mut self, http: &http::Counts) {
        let text = format!(
            "{} answered, {} refused, {} broken",
            http.answered, http.refused, http.broken
        );
        self.rows.push(("requests over HTTP", text));
    }

    pub(crate) fn shared(&mut self, waits: &[f64]) {
        let limit = takeover::SHARED_TASK.as_secs_f64();
        let text = format!("{}; less than {limit:.1} s", distribution(waits));
        self.rows.push(("from the queue to an idle engine", text));
    }

    pub(crate) fn takeovers(
        &mut self,
        killed: &[f64],
        killed_limit: f64,
        drained: &[f64],
        drained_limit: f64,
    ) {
        let row = |took, limit| format!("{}; target {limit:.1} s", distribution(took));
        self.rows
            .push(("from a kill to an idle peer", row(killed, killed_limit)));
        self.rows
            .push(("from a release to an idle peer", row(drained, drained_limit)));
    }

    pub(crate) fn jobs(&mut self, jobs: &jobs::Counts) {
        let text = format!(
            "{} accepted, {} unanswered, {} kills, Redis emptied {} times",
            jobs.accepted, jobs.unanswered, jobs.kills, jobs.emptied
        );
        self.rows.push(("jobs of the development platform", text));
    }

    pub(crate) fn print(&self, orchestrator: &Orchestrator) {
        let tasks = orchestrator.counts();
        let mut rows = vec![
            ("seed", self.seed.to_string()),
            ("tasks", tasks.tasks.to_string()),
            ("tasks lost", self.lost.to_string()),
            ("  completed", tasks.completed.to_string()),
            ("  failed as configured", tasks.failed_as_configured.to_string()),
            (
                "  failed at the limit of deaths",
                tasks.failed_by_deaths.to_string(),
            ),
            (
                "  failed at the limit of hand-backs",
                tasks.failed_by_hand_backs.to_string(),
            ),
            ("  failed without a reason", tasks.failed_unplanned.to_string()),
            ("  cancelled", tasks.cancelled.to_string()),
            ("retries after a failure", tasks.retries.to_string()),
            ("starts", tasks.starts.to_string()),
            ("duplicate starts (harmless)", tasks.duplicates.to_string()),
            (
                "published copies of events",
                orchestrator.copies.published().to_string(),
            ),
            ("results overwritten after their end", self.mixed.to_string()),
        ];
        rows.extend(self.rows.iter().cloned());
        rows.push(("consumers left in the group", self.consumers.to_string()));
        rows.push(("acknowledged entries in the queue", self.queue.to_string()));
        rows.push((
            "stale instances in the registry",
            self.stale_instances.to_string(),
        ));
        rows.push(("tasks around a fail-over", self.failed_over.to_string()));
        rows.push(("violations", tasks.violations.to_string()));
        println!();
        for (name, value) in rows {
            println!("{name:<38}{value}");
        }
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

/// Counts by fault point, in the order of a task.
fn points(counted: &BTreeMap<String, usize>) -> String {
    let all: usize = counted.values().sum();
    let each: Vec<String> = Point::ALL
        .iter()
        .map(|point| format!("{point} {}", counted.get(point.as_str()).unwrap_or(&0)))
        .collect();
    format!("{all}: {}", each.join(", "))
}

fn distribution(sorted: &[f64]) -> String {
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(longest)) => format!(
            "median {median:.2} s, longest {longest:.2} s, of {}",
            sorted.len()
        ),
        _ => "never".to_owned(),
    }
}
