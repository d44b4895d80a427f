//! `doctor`: the state of this machine, with advice for missing parts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use console::Term;
#[cfg(feature = "worker")]
use dalston_telemetry::settings::REDIS_URL;
use dalston_telemetry::tracing::info_span;
use dalston_telemetry::{Env, Telemetry};
#[cfg(feature = "worker")]
use uuid::Uuid;

use super::args::EngineArgs;
use super::failure::{FAILED, Failure, print};
use super::setup;
use super::terminal::Style;
#[cfg(feature = "worker")]
use crate::config::DeploymentConfig;
use crate::config::RunnerConfig;
#[cfg(feature = "worker")]
use crate::config::settings::{
    AWS_CREDENTIALS, DALSTON_S3_BUCKET, DALSTON_S3_ENDPOINT_URL, DALSTON_S3_REGION,
};
use crate::engine::{Check, CheckStatus, Engine};
use crate::load::LoadContext;
use crate::probe;
#[cfg(feature = "worker")]
use crate::redis::RedisServer;

/// The limit for the export of a span to the collector.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn doctor<E: Engine>(engine: &E, args: &EngineArgs, env: &Env) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let mut checks = vec![Check::ok("engine", format!("{} {}", info.id, info.version))];
    let mut config = RunnerConfig::default();
    match RunnerConfig::from_env(env) {
        Ok(read) => config = read,
        Err(error) => checks.push(invalid(&error)),
    }
    args.apply(&mut config.engine);
    checks.push(probe::temp_dir(&config.temp_root));
    #[cfg(feature = "worker")]
    checks.extend(deployment(env)?);
    let telemetry = setup::quiet_telemetry(&info, env).shutdown_timeout(COLLECTOR_TIMEOUT);
    checks.push(match telemetry.install() {
        Ok(telemetry) => collector(telemetry),
        Err(error) => invalid(&error),
    });
    let runtime = setup::runtime(1)?;
    let cx = LoadContext::new(config.engine).with_runtime(runtime.handle().clone());
    // The engine's own checks may panic on a broken machine.
    match catch_unwind(AssertUnwindSafe(|| engine.check(&cx))) {
        Ok(own) => checks.extend(own),
        Err(_) => checks.push(Check::missing(
            "engine",
            "its own checks panicked; the panic is shown above",
        )),
    }
    // A request of a check may still wait for its server.
    runtime.shutdown_background();
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

/// Probes the deployment that the environment names, as a worker does before its first read. None
/// is named without `REDIS_URL` and without a variable of the storage.
#[cfg(feature = "worker")]
fn deployment(env: &Env) -> Result<Vec<Check>, Failure> {
    let named = REDIS_URL.is_set(env)
        || DALSTON_S3_BUCKET.is_set(env)
        || DALSTON_S3_REGION.is_set(env)
        || DALSTON_S3_ENDPOINT_URL.is_set(env)
        || AWS_CREDENTIALS.is_set(env);
    if !named {
        return Ok(Vec::new());
    }
    let config = match DeploymentConfig::from_env(env) {
        Ok(config) => config,
        Err(error) => return Ok(vec![invalid(&error)]),
    };
    let runtime = setup::runtime(1)?;
    let checks = runtime.block_on(async {
        let redis = async {
            match RedisServer::new(&config.redis_url) {
                Ok(server) => {
                    let redis = probe::redis(&server).await;
                    let clock = probe::clock(&server).await;
                    [Some(redis), clock]
                }
                Err(error) => [Some(invalid(&error)), None],
            }
        };
        let storage = async {
            match config.store() {
                Ok(store) => {
                    let name = format!("doctor-{}", Uuid::new_v4().simple());
                    probe::storage(&store, &name).await
                }
                Err(error) => invalid(&error),
            }
        };
        let checks = tokio::join!(redis, storage, probe::port(config.http_port));
        let redis = checks.0.into_iter().flatten();
        redis.chain([checks.1, checks.2]).collect()
    });
    runtime.shutdown_background();
    Ok(checks)
}

fn invalid(error: &dyn std::error::Error) -> Check {
    Check::missing("environment", error.to_string()).advice("correct or unset the variable")
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
}
