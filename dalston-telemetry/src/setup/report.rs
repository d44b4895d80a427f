//! The result of reading the settings, for the log: [`SetupReport`].

use crate::env::EnvWarning;

const TARGET: &str = "dalston_telemetry::setup";

/// Which signals go where, and the settings that were ignored. Kept until there is a subscriber to
/// log to.
#[derive(Debug)]
pub(crate) struct SetupReport {
    pub(crate) traces: Vec<String>,
    /// Whether Prometheus can scrape metrics.
    pub(crate) serves_metrics: bool,
    pub(crate) pushed_metrics: Option<String>,
    pub(crate) logs: &'static str,
    pub(crate) warnings: Warnings,
}

impl SetupReport {
    /// The destination of a signal that leaves the process by no way.
    pub(crate) const OFF: &str = "off";
    /// The destination of spans that are not exported: processors of the program.
    pub(crate) const PROCESS: &str = "process";

    pub(crate) fn log(&self) {
        for warning in &self.warnings.0 {
            tracing::warn!(
                target: TARGET,
                variable = warning.variable,
                value = warning.value,
                used = warning.used,
                accepted = %warning.accepted,
                "setting_not_supported"
            );
        }
        let list = |destinations: &[&str]| match destinations {
            [] => Self::OFF.to_owned(),
            destinations => destinations.join(", "),
        };
        let traces: Vec<_> = self.traces.iter().map(String::as_str).collect();
        let scraped = self.serves_metrics.then_some("scrape");
        let metrics: Vec<_> = scraped
            .into_iter()
            .chain(self.pushed_metrics.as_deref())
            .collect();
        let exports_spans = traces.iter().any(|traces| *traces != Self::PROCESS);
        let advice = (exports_spans && metrics == ["scrape"])
            .then_some("metrics are pushed if OTEL_METRICS_EXPORTER is otlp");
        tracing::info!(
            target: TARGET,
            traces = list(&traces),
            metrics = list(&metrics),
            logs = self.logs,
            advice,
            "telemetry_configured"
        );
    }
}

/// Warnings, each of them once.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Vec<EnvWarning>);

impl Extend<EnvWarning> for Warnings {
    fn extend<I: IntoIterator<Item = EnvWarning>>(&mut self, warnings: I) {
        for warning in warnings {
            if !self.0.contains(&warning) {
                self.0.push(warning);
            }
        }
    }
}
