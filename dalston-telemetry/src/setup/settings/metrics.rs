use std::time::Duration;

use super::{Milliseconds, OneOf, Switch, Text, Variable, WholeNumber};

variables! {
    /// Prometheus can scrape a service without any of these.
    pub group METRICS = "Metrics";

    /// Whether metrics are served and pushed.
    pub(crate) static DALSTON_METRICS_ENABLED: Variable<bool> =
        Variable::new(&["DALSTON_METRICS_ENABLED", "METRICS_ENABLED"], &Switch).default("true");

    /// How many tenants, routes, engines, models and workers metrics tell apart, of each. Further
    /// ones share `__other__`.
    pub(crate) static DALSTON_METRICS_LABEL_VALUES: Variable<usize> =
        Variable::new(&["DALSTON_METRICS_LABEL_VALUES"], &WholeNumber(1, 10_000)).default("100");

    /// `otlp`: metrics are also pushed, unless `OTEL_ENABLED` is set to `false`. `prometheus`: they
    /// are scraped, as always. `console` is ignored: `/metrics` is text.
    pub(crate) static OTEL_METRICS_EXPORTER: Variable<String> =
        Variable::new(&["OTEL_METRICS_EXPORTER"], &Text("otlp, prometheus or both, or none alone"))
            .default("none")
            .unsupported(&[
                ("console", ""),
                ("logging", ""),
                ("logging-otlp", ""),
                ("otlp/stdout", ""),
                ("experimental-otlp/stdout", ""),
                ("zipkin", ""),
                ("jaeger", ""),
            ]);

    /// Milliseconds between two pushes.
    pub(crate) static OTEL_METRIC_EXPORT_INTERVAL: Variable<Duration> =
        Variable::new(&["OTEL_METRIC_EXPORT_INTERVAL"], &Milliseconds(1)).default("60000");

    /// Milliseconds for one push with all its retries. 0: a day.
    pub(crate) static OTEL_METRIC_EXPORT_TIMEOUT: Variable<Duration> =
        Variable::new(&["OTEL_METRIC_EXPORT_TIMEOUT"], &Milliseconds(0)).default("30000");

    /// Whether counters and histograms are pushed as totals since the start, or with `delta` and
    /// `lowmemory` as the increase since the last push that the collector received.
    pub(crate) static OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: Variable<Temporality> = Variable::new(
        &["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"],
        &OneOf(&[
            ("cumulative", Temporality::Cumulative),
            ("delta", Temporality::Delta),
            // It differs from delta in instruments that ask for their values, of which there are
            // none.
            ("lowmemory", Temporality::Delta),
        ]),
    )
    .default("cumulative");
}

/// The values of [`OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temporality {
    Cumulative,
    Delta,
}
