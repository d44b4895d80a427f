//! `doctor`: the state of this machine, with advice for missing parts.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use console::Term;
use dalston_telemetry::tracing::info_span;
use dalston_telemetry::{Env, Telemetry};

use super::args::EngineArgs;
use super::failure::{FAILED, Failure, print};
use super::setup;
use super::terminal::Style;
use crate::config::RunnerConfig;
use crate::engine::{Check, CheckStatus, Engine};
use crate::load::LoadContext;

/// The limit for the export of a span to the collector.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn doctor<E: Engine>(engine: &E, args: &EngineArgs, env: &Env) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let invalid =
        |error: String| Check::missing("environment", error).advice("correct or unset the variable");
    let mut checks = vec![Check::ok("engine", format!("{} {}", info.id, info.version))];
    let mut config = RunnerConfig::default();
    match RunnerConfig::from_env(env) {
        Ok(read) => config = read,
        Err(error) => checks.push(invalid(error.to_string())),
    }
    args.apply(&mut config.engine);
    checks.push(temp_dir(&config.temp_root));
    let telemetry = setup::quiet_telemetry(&info, env).shutdown_timeout(COLLECTOR_TIMEOUT);
    checks.push(match telemetry.install() {
        Ok(telemetry) => collector(telemetry),
        Err(error) => invalid(error.to_string()),
    });
    let cx = LoadContext::new(config.engine);
    // The engine's own checks may panic on a broken machine.
    match catch_unwind(AssertUnwindSafe(|| engine.check(&cx))) {
        Ok(own) => checks.extend(own),
        Err(_) => checks.push(Check::missing(
            "engine",
            "its own checks panicked; the panic is shown above",
        )),
    }
    print(&table(&checks, Style::of(&Term::stdout(), env)))?;
    Ok(match can_work(&checks) {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(FAILED),
    })
}

/// Whether nothing is missing.
fn can_work(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != CheckStatus::Missing)
}

/// The checks as a table, each with its advice on a second line.
fn table(checks: &[Check], style: Style) -> String {
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

/// Checks the directory for temporary files.
fn temp_dir(root: &Path) -> Check {
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

/// Checks that a collector accepts a span. A failure is only a warning, because an engine works
/// without a collector.
fn collector(telemetry: Telemetry) -> Check {
    const NAME: &str = "trace collector";
    let handle = telemetry.handle();
    if !handle.traces_enabled() {
        return Check::ok(NAME, "not used (OTEL_ENABLED is not true)");
    }
    info_span!("doctor").in_scope(|| {});
    match telemetry.shutdown_blocking() {
        Ok(()) if handle.export_stats().exported() > 0 => Check::ok(NAME, "has accepted a span"),
        Ok(()) => Check::warning(NAME, "tracing is on, but no span was sent")
            .advice("look at OTEL_TRACES_SAMPLER and OTEL_TRACES_EXPORTER"),
        Err(error) => Check::warning(NAME, error.to_string()).advice(
            "start a collector, set OTEL_EXPORTER_OTLP_ENDPOINT to a running one, or leave OTEL_ENABLED unset; tasks \
             are processed in any case",
        ),
    }
}

/// The message of the operating system, without Rust's `(os error 13)`.
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
    fn advice_follows_its_check() {
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
    fn temporary_directory_must_exist() {
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
