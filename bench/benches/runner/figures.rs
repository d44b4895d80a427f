//! One measurement of throughput.

use serde_json::{Value, json};
use testbed::report::number;

use bench::machine;

/// Time and processor time of a number of tasks.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    tasks: f64,
    seconds: f64,
    /// Processor seconds of the worker and of the Redis server.
    worker: f64,
    server: f64,
    dropped_spans: u64,
}

impl Figures {
    pub(crate) const HEAD: [&str; 5] = [
        "",
        "Tasks/s",
        "Worker, µs/task",
        "Redis, µs/task",
        "Dropped spans",
    ];

    pub(crate) fn worker_micros(&self) -> f64 {
        self.worker * 1e6 / self.tasks
    }

    fn rate(&self) -> f64 {
        self.tasks / self.seconds
    }

    /// A row of the table with this [`HEAD`](Self::HEAD).
    pub(crate) fn row(&self, name: impl Into<String>) -> [String; 5] {
        [
            name.into(),
            number(self.rate()),
            number(self.worker_micros()),
            number(self.server * 1e6 / self.tasks),
            self.dropped_spans.to_string(),
        ]
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

/// The run with the median throughput.
pub(crate) fn median(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs.swap_remove(runs.len() / 2)
}

/// Measures from [`start`](Self::start) to [`stop`](Self::stop).
pub(crate) struct Stopwatch {
    started: std::time::Instant,
    worker: f64,
    server: f64,
    server_pid: u32,
}

impl Stopwatch {
    pub(crate) fn start(server_pid: u32) -> Self {
        Self {
            started: std::time::Instant::now(),
            worker: machine::processor_seconds(std::process::id()),
            server: machine::processor_seconds(server_pid),
            server_pid,
        }
    }

    pub(crate) fn stop(&self, tasks: usize) -> Value {
        json!({
            "tasks": tasks,
            "seconds": self.started.elapsed().as_secs_f64(),
            "worker": machine::processor_seconds(std::process::id()) - self.worker,
            "server": machine::processor_seconds(self.server_pid) - self.server,
        })
    }
}
