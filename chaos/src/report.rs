//! What is printed: a line now and then, and a table at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use dalston_engine_sdk::fault::Point;

use crate::fleet::{self, Fleet};
use crate::orchestrator::{self, How, Orchestrator};
use crate::storm;

/// What is known at the end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    seed: u64,
    rows: Vec<(&'static str, String)>,
    /// How long it took until the last task had ended, after everything worked again.
    pub(crate) calm: Duration,
    pub(crate) lost: usize,
    /// Results of which an engine that was stopped in the middle of an upload overwrote a part after their end.
    pub(crate) mixed: usize,
    /// Of the group.
    pub(crate) consumers: usize,
    /// Instances in the registry that died without a word.
    pub(crate) ghosts: usize,
    /// Entries that are still in the stream, all acknowledged.
    pub(crate) queue: u64,
}

/// One line about how far it is.
pub(crate) fn progress(
    elapsed: Duration,
    tasks: &orchestrator::Counts,
    engines: &fleet::Counts,
    servers: &storm::Counts,
) -> String {
    format!(
        "{:>5}  {} tasks, {} open, {} kills, {} stops, {} drains, {} Redis restarts, {} violations",
        seconds(elapsed),
        tasks.tasks,
        tasks.open,
        engines.kills(),
        engines.stopped,
        engines.drained,
        servers.redis_restarts,
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

    pub(crate) fn storm(&mut self, servers: storm::Counts, fleet: &Fleet, orchestrator: &Orchestrator) {
        let engines = &fleet.counts;
        let rows = &mut self.rows;
        rows.push(("kills survived", engines.kills().to_string()));
        rows.push(("  at random instants", engines.killed_anywhere.to_string()));
        rows.push(("  at fault points", points(&engines.killed_at)));
        rows.push(("stops past or within a lease", engines.stopped.to_string()));
        rows.push(("  at fault points", points(&fleet::stops(&fleet.setup.directory))));
        rows.push(("graceful ends", engines.drained.to_string()));
        rows.push(("restarts of Redis", servers.redis_restarts.to_string()));
        rows.push(("troubles of the network", servers.network_faults.to_string()));
        rows.push(("troubles of the storage", servers.storage_faults.to_string()));
        rows.push(("longest queue", format!("{} entries", servers.longest_queue)));
        rows.push((
            "directories of killed processes",
            engines.directories_left.to_string(),
        ));
        rows.push(("until all tasks had ended", seconds(self.calm)));
        let mut waits = |title, how| rows.push((title, distribution(&orchestrator.takeovers(how))));
        waits("in the storm, from a kill to a peer", How::Killed);
        waits("  to the process that came back", How::KilledAndBack);
        waits("  from a hand-back to a peer", How::HandedBack);
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
            .push(("from a hand-back to an idle peer", row(drained, drained_limit)));
    }

    pub(crate) fn print(&self, tasks: &orchestrator::Counts) {
        let mut rows = vec![
            ("seed", self.seed.to_string()),
            ("tasks", tasks.tasks.to_string()),
            ("tasks lost", self.lost.to_string()),
            ("  completed", tasks.completed.to_string()),
            (
                "  failed as they were meant to",
                tasks.failed_as_meant.to_string(),
            ),
            (
                "  failed because the storage did",
                tasks.failed_by_storage.to_string(),
            ),
            ("  cancelled", tasks.cancelled.to_string()),
            ("queued again after a failure", tasks.retries.to_string()),
            ("executions begun", tasks.starts.to_string()),
            ("duplicate executions, harmless", tasks.duplicates.to_string()),
            ("results overwritten after their end", self.mixed.to_string()),
        ];
        rows.extend(self.rows.iter().cloned());
        rows.push(("consumers left in the group", self.consumers.to_string()));
        rows.push(("acknowledged entries in the queue", self.queue.to_string()));
        rows.push(("dead instances in the registry", self.ghosts.to_string()));
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

/// How often at which point, in the order in which a task comes by.
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
