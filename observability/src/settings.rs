//! The settings of an installation. `cargo xtask rules` writes them into rules, tests and boards.

/// The share of tasks that must be read from their queue within [`PROMISED_WAIT_SECONDS`].
pub(crate) const OBJECTIVE: f64 = 0.95;

/// The days over which the objective is measured. Prometheus must keep its data longer.
pub(crate) const OBJECTIVE_DAYS: u32 = 30;

/// A bound of the buckets of `dalston_engine_queue_wait_seconds`. A bound is exact, while a
/// quantile is interpolated.
pub(crate) const PROMISED_WAIT_SECONDS: u32 = 60;

/// The first and the last hour (not included) in which jobs are expected, UTC.
pub(crate) const BUSINESS_HOURS: (u32, u32) = (8, 18);

/// The first and the last day on which jobs are expected. Sunday is 0.
pub(crate) const BUSINESS_DAYS: (u32, u32) = (1, 5);

/// A regular expression for the scrape jobs of engines.
pub(crate) const ENGINE_JOBS: &str = "engine-.*";

/// The beginning of the links to runbooks.
pub(crate) const RUNBOOKS: &str = "https://github.com/ssarunic/dalston/blob/main/docs/runbooks.md";

/// The address of Grafana, for the links to dashboards.
pub(crate) const GRAFANA: &str = "http://localhost:3001";

/// The share of the error budget of 30 days that one hour at this rate spends is 2 %.
pub(crate) const BURN_FAST: f64 = 14.4;
/// The share of the error budget that six hours at this rate spend is 5 %.
pub(crate) const BURN_FAST_LONG: f64 = 6.0;
/// The share of the error budget that a day at this rate spends is 10 %.
pub(crate) const BURN_SLOW: f64 = 3.0;
/// At this rate, the error budget is spent at the end of the period.
pub(crate) const BURN_SLOW_LONG: f64 = 1.0;
/// With fewer tasks, one slow task is a large share.
pub(crate) const BURN_TASKS: u32 = 20;

/// Tasks that wait for one engine.
pub(crate) const QUEUE_DEPTH: u32 = 20;
/// The age of the oldest task of a queue that no worker reads.
pub(crate) const UNSERVED_SECONDS: u32 = 120;
/// Shares of failures, of at least [`FAILURES`] failures.
pub(crate) const TASK_FAILURE_RATIO: f64 = 0.05;
pub(crate) const JOB_FAILURE_RATIO: f64 = 0.1;
pub(crate) const GATEWAY_ERROR_RATIO: f64 = 0.05;
pub(crate) const WEBHOOK_FAILURE_RATIO: f64 = 0.1;
pub(crate) const FAILURES: u32 = 3;
/// Redeliveries after a crash in 15 minutes.
pub(crate) const REDELIVERIES: u32 = 2;
/// The share of model loads in the time of an engine, with at least [`COLD_STARTS`] loads.
pub(crate) const COLD_START_RATIO: f64 = 0.3;
pub(crate) const COLD_STARTS: u32 = 3;
/// The share of busy inference threads.
pub(crate) const BUSY_RATIO: f64 = 0.95;
/// Batches that were split in 15 minutes.
pub(crate) const BATCH_SPLITS: u32 = 3;
/// The share of realtime sessions that end with an error, an abort or for their lag.
pub(crate) const SESSION_FAILURE_RATIO: f64 = 0.05;
/// A bound of the buckets of `dalston_realtime_final_latency_seconds`.
pub(crate) const FINAL_LATENCY_SECONDS: f64 = 2.5;
/// With fewer final transcripts in ten minutes, one slow transcript is a large share.
pub(crate) const UTTERANCES: u32 = 20;
/// The default of `DALSTON_REALTIME_LAG_WARNING_SECONDS`.
pub(crate) const LAG_SECONDS: u32 = 3;
/// Seconds of audio for each second of processing.
pub(crate) const SPEED: f64 = 1.0;
/// The 95th percentile of the time of a download or an upload.
pub(crate) const STORAGE_SECONDS: u32 = 30;
pub(crate) const GPU_MEMORY_RATIO: f64 = 0.95;
pub(crate) const GPU_CELSIUS: u32 = 85;
/// The use of a GPU below which an engine with work probably computes on the CPU, and the share of
/// busy time that counts as work.
pub(crate) const GPU_IDLE_RATIO: f64 = 0.05;
pub(crate) const GPU_WORK_RATIO: f64 = 0.5;
/// The share of the targets of a job that are down.
pub(crate) const TARGETS_DOWN_RATIO: f64 = 0.1;
