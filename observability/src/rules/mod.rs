//! Recording rules and alerts.

mod engines;
mod jobs;
mod platform;
mod queues;
mod realtime;
mod recording;

use std::fmt::Write as _;

use crate::settings::{GRAFANA, RUNBOOKS};
use crate::yaml::{HEAD, entry};

/// An alert.
#[derive(Debug)]
pub(crate) struct Alert {
    /// Also the heading of its section in the runbooks.
    pub(crate) name: &'static str,
    pub(crate) severity: Severity,
    pub(crate) component: Component,
    pub(crate) expr: String,
    /// How long the expression must hold.
    pub(crate) hold: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: String,
    /// The dashboard that shows the cause.
    pub(crate) board: &'static str,
    /// The label that selects on the dashboard: `engine_id`.
    pub(crate) variable: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Severity {
    /// The product fails now: page a person.
    Critical,
    /// It will fail or is slow: a ticket.
    Warning,
    Info,
    /// Always firing, for the check of the alerting path itself.
    None,
}

/// The part of the platform. Alertmanager groups and inhibits by it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Component {
    Queue,
    Engine,
    Jobs,
    Gateway,
    Storage,
    Realtime,
    Monitoring,
}

impl Severity {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::None => "none",
        }
    }
}

impl Component {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Engine => "engine",
            Self::Jobs => "jobs",
            Self::Gateway => "gateway",
            Self::Storage => "storage",
            Self::Realtime => "realtime",
            Self::Monitoring => "monitoring",
        }
    }
}

impl Alert {
    /// The annotations, with the templates of Prometheus.
    pub(crate) fn annotations(&self) -> [(&'static str, String); 4] {
        let variable = self.variable.map_or_else(String::new, |label| {
            format!("?var-{label}={{{{ $labels.{label} }}}}")
        });
        [
            ("summary", self.summary.to_owned()),
            ("description", self.description.clone()),
            ("runbook_url", format!("{RUNBOOKS}#{}", self.name.to_lowercase())),
            ("dashboard_url", format!("{GRAFANA}/d/{}{variable}", self.board)),
        ]
    }
}

/// All alerts, by group.
pub(crate) fn groups() -> [(&'static str, Vec<Alert>); 5] {
    [
        ("dalston-queues", queues::alerts()),
        ("dalston-engines", engines::alerts()),
        ("dalston-jobs", jobs::alerts()),
        ("dalston-realtime", realtime::alerts()),
        ("dalston-platform", platform::alerts()),
    ]
}

pub(crate) fn alerts_file() -> String {
    let mut out = format!("{HEAD}groups:\n");
    for (group, alerts) in groups() {
        let _ = writeln!(out, "  - name: {group}\n    rules:");
        for alert in alerts {
            let _ = writeln!(out, "      - alert: {}", alert.name);
            entry(&mut out, 8, "expr", &alert.expr);
            let _ = writeln!(out, "        for: {}", alert.hold);
            let _ = writeln!(
                out,
                "        labels:\n          severity: {}\n          component: {}",
                alert.severity.as_str(),
                alert.component.as_str()
            );
            let _ = writeln!(out, "        annotations:");
            for (name, text) in alert.annotations() {
                entry(&mut out, 10, name, &text);
            }
        }
    }
    out
}

pub(crate) fn recording_file() -> String {
    let mut out = format!("{HEAD}groups:\n");
    for group in recording::groups() {
        let _ = writeln!(out, "  - name: {}", group.name);
        if let Some(interval) = group.interval {
            let _ = writeln!(out, "    interval: {interval}");
        }
        let _ = writeln!(out, "    rules:");
        for (record, expr) in group.rules {
            let _ = writeln!(out, "      - record: {record}");
            entry(&mut out, 8, "expr", &expr);
        }
    }
    out
}
