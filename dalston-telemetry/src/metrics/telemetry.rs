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

/// Telemetry about telemetry: what did not arrive.
///
/// `dalston_telemetry_spans_dropped_total` and `dalston_telemetry_export_failures_total`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TelemetryMetrics {
    spans_dropped: DenseFamily<DropReason, Counter>,
    export_failures: DenseFamily<Signal, Counter>,
}

impl TelemetryMetrics {
    /// The handles in this registry; registered when first asked for.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let this = Self {
                spans_dropped: DenseFamily::default(),
                export_failures: DenseFamily::default(),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_and_failures_are_counted_from_zero() {
        let metrics = Metrics::new();
        let telemetry = TelemetryMetrics::register(&metrics);
        TelemetryMetrics::register(&metrics).spans_dropped(DropReason::QueueFull, 3);
        telemetry.export_failed(Signal::Traces);
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
            ]
        );
    }
}
