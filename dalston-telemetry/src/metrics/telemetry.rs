use tracing::Level;

use super::{Counter, DenseFamily, Metrics};

crate::label! {
    /// Why a span was not delivered.
    pub enum DropReason = "reason" {
        /// The queue was full: the collector is slower than the work, or away.
        QueueFull => "queue_full",
        /// The span alone is larger than a collector takes in one request.
        TooLarge => "too_large",
        /// The collector could not be reached, or refused the batch for good.
        ExportFailed => "export_failed",
        /// The collector took the batch and rejected some of it.
        Rejected => "rejected",
        /// It ended after telemetry did, or time was up before it was sent.
        Shutdown => "shutdown",
    }
}

crate::label! {
    /// What kind of telemetry was to be delivered.
    pub enum Signal = "signal" {
        Traces => "traces",
        Metrics => "metrics",
        Logs => "logs",
    }
}

crate::label! {
    /// How serious a log line is.
    pub enum LogLevel = "level" {
        Error => "error",
        Warning => "warning",
        Info => "info",
        Debug => "debug",
        Trace => "trace",
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG => Self::Debug,
            Level::TRACE => Self::Trace,
        }
    }
}

/// Telemetry about telemetry: what did not arrive, and how much is logged.
///
/// `dalston_telemetry_spans_dropped_total`, `dalston_telemetry_export_failures_total` and `dalston_log_messages_total`. Cheap to
/// clone.
///
/// Errors a second of a service: `sum(rate(dalston_log_messages_total{level="error"}[5m]))`.
#[derive(Clone, Debug)]
pub struct TelemetryMetrics {
    spans_dropped: DenseFamily<DropReason, Counter>,
    export_failures: DenseFamily<Signal, Counter>,
    log_messages: DenseFamily<LogLevel, Counter>,
}

impl TelemetryMetrics {
    /// The handles in this registry; registered when first asked for.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let this = Self {
                spans_dropped: DenseFamily::default(),
                export_failures: DenseFamily::default(),
                log_messages: DenseFamily::default(),
            };
            registry.register(
                "dalston_telemetry_spans_dropped",
                "Spans that were recorded and not delivered",
                this.spans_dropped.clone(),
            );
            registry.register(
                "dalston_telemetry_export_failures",
                "Attempts to deliver a batch that failed",
                this.export_failures.clone(),
            );
            registry.register(
                "dalston_log_messages",
                "Log lines that were written",
                this.log_messages.clone(),
            );
            this
        })
    }

    /// Counts spans that were not delivered.
    pub fn spans_dropped(&self, reason: DropReason, count: u64) {
        self.spans_dropped.with(reason).inc_by(count);
    }

    /// Counts an attempt that failed.
    pub fn export_failed(&self, signal: Signal) {
        self.export_failures.with(signal).inc();
    }

    /// Counts a log line. For a program that writes its lines by other means; ours are counted.
    pub fn log_message(&self, level: LogLevel) {
        self.log_messages.with(level).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_failures_and_lines_are_counted_from_zero() {
        let metrics = Metrics::new();
        let telemetry = TelemetryMetrics::register(&metrics);
        TelemetryMetrics::register(&metrics).spans_dropped(DropReason::QueueFull, 3);
        telemetry.export_failed(Signal::Traces);
        telemetry.log_message(LogLevel::Warning);
        let text = metrics.encode();
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                r#"dalston_telemetry_spans_dropped_total{reason="queue_full"} 3"#,
                r#"dalston_telemetry_spans_dropped_total{reason="too_large"} 0"#,
                r#"dalston_telemetry_spans_dropped_total{reason="export_failed"} 0"#,
                r#"dalston_telemetry_spans_dropped_total{reason="rejected"} 0"#,
                r#"dalston_telemetry_spans_dropped_total{reason="shutdown"} 0"#,
                r#"dalston_telemetry_export_failures_total{signal="traces"} 1"#,
                r#"dalston_telemetry_export_failures_total{signal="metrics"} 0"#,
                r#"dalston_telemetry_export_failures_total{signal="logs"} 0"#,
                r#"dalston_log_messages_total{level="error"} 0"#,
                r#"dalston_log_messages_total{level="warning"} 1"#,
                r#"dalston_log_messages_total{level="info"} 0"#,
                r#"dalston_log_messages_total{level="debug"} 0"#,
                r#"dalston_log_messages_total{level="trace"} 0"#,
            ]
        );
    }
}
