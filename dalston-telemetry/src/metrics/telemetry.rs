use tracing::Level;

use super::{Counter, DenseFamily, Metrics};

crate::label! {
    /// Why a span was not delivered.
    pub enum DropReason = "reason" {
        /// The queue was full: the collector is too slow or does not answer.
        QueueFull => "queue_full",
        /// The span is larger than a request may be.
        TooLarge => "too_large",
        /// The collector could not be reached, or refused the batch permanently.
        ExportFailed => "export_failed",
        /// The collector accepted the batch and rejected some of its spans.
        Rejected => "rejected",
        /// The span ended after the shutdown, or could not be sent within its time.
        Shutdown => "shutdown",
    }
}

crate::label! {
    /// A kind of telemetry.
    pub enum Signal = "signal" {
        Traces => "traces",
        Metrics => "metrics",
        Logs => "logs",
    }
}

crate::label! {
    /// The level of a log line.
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

/// Metrics of telemetry itself: lost spans, failed exports, log lines and metrics that were left
/// out.
///
/// `dalston_telemetry_spans_dropped_total`, `dalston_telemetry_export_failures_total`,
/// `dalston_log_messages_total`, `dalston_log_lines_dropped_total` and
/// `dalston_telemetry_metrics_refused_total`. Cheap to clone.
///
/// Errors of a service per second: `sum(rate(dalston_log_messages_total{level="error"}[5m]))`.
#[derive(Clone, Debug)]
pub struct TelemetryMetrics {
    spans_dropped: DenseFamily<DropReason, Counter>,
    export_failures: DenseFamily<Signal, Counter>,
    log_messages: DenseFamily<LogLevel, Counter>,
    log_lines_dropped: DenseFamily<(), Counter>,
}

impl TelemetryMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let this = Self {
                spans_dropped: DenseFamily::default(),
                export_failures: DenseFamily::default(),
                log_messages: DenseFamily::default(),
                log_lines_dropped: DenseFamily::default(),
            };
            registry.register(
                "dalston_telemetry_spans_dropped",
                "Recorded spans that were not delivered",
                this.spans_dropped.clone(),
            );
            registry.register(
                "dalston_telemetry_export_failures",
                "Failed attempts to deliver a batch",
                this.export_failures.clone(),
            );
            registry.register(
                "dalston_telemetry_metrics_refused",
                "Metrics that are left out because another one has their name or that of a sample",
                registry.refused().clone(),
            );
            registry.register(
                "dalston_log_messages",
                "Log lines that were written",
                this.log_messages.clone(),
            );
            registry.register(
                "dalston_log_lines_dropped",
                "Log lines that were lost: too many waited for the output, or a write failed",
                this.log_lines_dropped.clone(),
            );
            this
        })
    }

    /// Counts spans that were not delivered.
    pub fn spans_dropped(&self, reason: DropReason, count: u64) {
        self.spans_dropped.with(reason).inc_by(count);
    }

    /// Counts a failed attempt to export.
    pub fn export_failed(&self, signal: Signal) {
        self.export_failures.with(signal).inc();
    }

    /// Counts a log line. Lines of this crate are counted already; a program with log lines of its
    /// own calls it.
    pub fn log_message(&self, level: LogLevel) {
        self.log_messages.with(level).inc();
    }

    /// Counts a log line that was lost. Lines of this crate are counted already.
    pub fn log_line_dropped(&self) {
        self.log_lines_dropped.with(()).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_series_start_at_zero() {
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
                "dalston_log_lines_dropped_total 0",
            ]
        );
    }
}
