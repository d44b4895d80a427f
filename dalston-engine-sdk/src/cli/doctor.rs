//! `doctor`: what was found on this machine, what is missing, and what to do about it.

use std::io;
use std::path::Path;

use dalston_telemetry::Telemetry;
use dalston_telemetry::tracing::info_span;

use super::terminal::Style;
use crate::engine::{Check, CheckStatus};

/// Whether the engine could work: nothing is missing.
pub(super) fn can_work(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != CheckStatus::Missing)
}

/// The rows as a table, the advice below its row.
pub(super) fn table(checks: &[Check], style: Style) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let status = match check.status {
            CheckStatus::Ok => style.good("ok     "),
            CheckStatus::Warning => style.warning("warning"),
            CheckStatus::Missing => style.bad("missing"),
        };
        out.push_str(&format!("{status}  {:width$}  {}\n", check.name, check.detail));
        if let Some(advice) = &check.advice {
            out.push_str(&format!("{:7}  {:width$}  -> {advice}\n", "", ""));
        }
    }
    out
}

/// Whether tasks have a place for their files.
pub(super) fn temp_dir(root: &Path) -> Check {
    const NAME: &str = "temporary files";
    match tempfile::Builder::new()
        .prefix("dalston-doctor-")
        .tempfile_in(root)
    {
        Ok(_) => Check::ok(NAME, format!("{} can be written", root.display())),
        Err(error) => Check::missing(
            NAME,
            format!("{} can't be written: {}", root.display(), cause(&error)),
        )
        .advice("make it writable, or set TMPDIR to a directory that is"),
    }
}

/// Whether a collector takes our spans: one is sent. A warning at most, because an engine works without a collector.
pub(super) fn collector(telemetry: Telemetry) -> Check {
    const NAME: &str = "trace collector";
    let handle = telemetry.handle();
    if !handle.traces_enabled() {
        return Check::ok(NAME, "not asked for (OTEL_ENABLED is not true)");
    }
    info_span!("doctor").in_scope(|| {});
    match telemetry.shutdown_blocking() {
        Ok(()) if handle.export_stats().exported() > 0 => Check::ok(NAME, "has taken a span"),
        Ok(()) => Check::warning(NAME, "tracing is on, but no span was sent")
            .advice("look at OTEL_TRACES_SAMPLER and OTEL_TRACES_EXPORTER"),
        Err(error) => Check::warning(NAME, error.to_string()).advice(
            "start a collector, set OTEL_EXPORTER_OTLP_ENDPOINT to one that runs, or leave OTEL_ENABLED unset; tasks \
             are processed all the same",
        ),
    }
}

/// The system's words without Rust's `(os error 13)`.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_under_its_row() {
        let checks = [
            Check::ok("libtorch", "2.11.0, CPU only"),
            Check::warning("GPU", "none found").advice("the CPU is used"),
            Check::missing("model", "no directory was named").advice("give one with --model"),
        ];
        assert_eq!(
            table(&checks, Style::plain()),
            "ok       libtorch  2.11.0, CPU only\n\
             warning  GPU       none found\n                   -> the CPU is used\n\
             missing  model     no directory was named\n                   -> give one with --model\n"
        );
        assert!(can_work(&checks[..2]) && !can_work(&checks));
    }

    #[test]
    fn a_temporary_directory_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(temp_dir(dir.path()).status, CheckStatus::Ok);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let gone = dir.path().join("gone");
        let check = temp_dir(&gone);
        assert_eq!(check.status, CheckStatus::Missing);
        assert!(
            check
                .detail
                .starts_with(&format!("{} can't be written: no such file", gone.display())),
            "{check:?}"
        );
    }
}
