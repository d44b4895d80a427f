//! One measurement of throughput, and how it is shown.

use serde_json::{Value, json};

use crate::machine;

/// What a number of tasks took.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    tasks: f64,
    seconds: f64,
    /// Processor seconds of the worker and of the Redis server.
    worker: f64,
    server: f64,
    pub(crate) dropped_spans: u64,
}

impl Figures {
    pub(crate) const HEAD: &str = "                                             tasks/s  worker µs  server µs  both µs   tasks/s ratio  µs ratio";

    pub(crate) fn rate(&self) -> f64 {
        self.tasks / self.seconds
    }

    pub(crate) fn server_micros(&self) -> f64 {
        self.server * 1e6 / self.tasks
    }

    fn worker_micros(&self) -> f64 {
        self.worker * 1e6 / self.tasks
    }

    fn micros(&self) -> f64 {
        self.worker_micros() + self.server_micros()
    }

    /// A line of the table, with the ratios to another line.
    pub(crate) fn row(&self, name: &str, other: &Self) -> String {
        format!(
            "  {name:<40} {:>9.0} {:>10.1} {:>10.1} {:>8.1} {:>15.2} {:>9.2}",
            self.rate(),
            self.worker_micros(),
            self.server_micros(),
            self.micros(),
            self.rate() / other.rate(),
            self.micros() / other.micros(),
        )
    }
}

impl From<Value> for Figures {
    fn from(value: Value) -> Self {
        let number = |name: &str| value[name].as_f64().unwrap();
        Self {
            tasks: number("tasks"),
            seconds: number("seconds"),
            worker: number("worker"),
            server: number("server"),
            dropped_spans: value["dropped_spans"].as_u64().unwrap_or(0),
        }
    }
}

/// The run with the middle throughput.
pub(crate) fn median(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs.swap_remove(runs.len() / 2)
}

/// Measures from its making to [`stop`](Self::stop).
pub(crate) struct Stopwatch {
    begun: std::time::Instant,
    worker: f64,
    server: f64,
    server_pid: u32,
}

impl Stopwatch {
    pub(crate) fn start(server_pid: u32) -> Self {
        Self {
            begun: std::time::Instant::now(),
            worker: machine::processor_seconds(std::process::id()),
            server: machine::processor_seconds(server_pid),
            server_pid,
        }
    }

    pub(crate) fn stop(&self, tasks: usize) -> Value {
        json!({
            "tasks": tasks,
            "seconds": self.begun.elapsed().as_secs_f64(),
            "worker": machine::processor_seconds(std::process::id()) - self.worker,
            "server": machine::processor_seconds(self.server_pid) - self.server,
        })
    }
}
