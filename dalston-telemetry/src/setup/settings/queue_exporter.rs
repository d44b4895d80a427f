use std::time::Duration;

use super::{Seconds, Text, Variable};

variables! {
    /// Of the program `dalston-queue-exporter`, which also reads `REDIS_URL`,
    /// `DALSTON_METRICS_PORT` and the variables of metrics and log lines.
    pub group QUEUE_EXPORTER = "The queue exporter";

    /// Seconds between two reads of the queues in Redis.
    pub(crate) static DALSTON_SCRAPE_INTERVAL: Variable<Duration> =
        Variable::new(&["DALSTON_SCRAPE_INTERVAL"], &Seconds(1.0, 3600.0)).default("15");

    /// The dead letters: the stream of events that the orchestrator could not handle.
    pub(crate) static DALSTON_EVENTS_DLQ_STREAM: Variable<String> =
        Variable::new(&["DALSTON_EVENTS_DLQ_STREAM"], &Text("a key")).default("dalston:events:dlq");
}
