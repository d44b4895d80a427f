//! A process of the platform: telemetry, the roles, and an orderly end.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use dalston_telemetry::audit::AuditLog;
use dalston_telemetry::queue_exporter::QueueExporter;
use dalston_telemetry::{Env, Telemetry, TelemetryHandle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::Config;
use crate::db::Db;
use crate::platform::Platform;
use crate::traces::{TraceStore, receive};
use crate::wire::Wire;
use crate::{gateway, orchestrator, print_error};

/// How long records of the audit may take to be written at the end.
const LAST_RECORDS: Duration = Duration::from_secs(5);

/// How long requests may take to end after a signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// The service name of a process with all roles.
pub(crate) const ALL_IN_ONE: &str = "dalston-dev-platform";

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roles {
    gateway: bool,
    orchestrator: bool,
    queues: bool,
}

impl Roles {
    pub(crate) const ALL: Self = Self {
        gateway: true,
        orchestrator: true,
        queues: true,
    };
    pub(crate) const GATEWAY: Self = Self {
        gateway: true,
        orchestrator: false,
        queues: false,
    };
    pub(crate) const ORCHESTRATOR: Self = Self {
        gateway: false,
        orchestrator: true,
        queues: false,
    };
    pub(crate) const QUEUE_EXPORTER: Self = Self {
        gateway: false,
        orchestrator: false,
        queues: true,
    };
}

/// Runs until `SIGTERM` or Ctrl-C.
pub(crate) fn run(service: &str, env: &Env, roles: Roles) -> Result<()> {
    let config = Config::from_env(env)?;
    let telemetry = Telemetry::builder(service)
        .env(env.clone())
        .version(env!("CARGO_PKG_VERSION"))
        .install()?;
    let audit = AuditLog::open(service, config.audit.clone(), telemetry.metrics())
        .context("opening the audit log")?;
    // The gateway has a route for them.
    let _metrics = match roles.gateway {
        true => None,
        false => telemetry
            .serve_metrics(("0.0.0.0", config.deployment.http_port))
            .with_context(|| format!("listening on port {}", config.deployment.http_port))?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let queues = config.queues.clone();
        let exporter = roles
            .queues
            .then(|| QueueExporter::spawn(queues, telemetry.metrics()));
        let ended = match roles.gateway || roles.orchestrator {
            true => run_jobs(&config, &audit, telemetry.handle(), roles).await,
            false => terminated().await.map(report),
        };
        if let Some(exporter) = exporter {
            exporter.shutdown().await;
        }
        ended
    });
    audit.flush(LAST_RECORDS);
    end(telemetry);
    // Not before, because this process may be the collector of its own spans.
    runtime.shutdown_background();
    ended
}

/// Ends telemetry. Spans that could not be sent are no failure of the process.
pub(crate) fn end(telemetry: Telemetry) {
    if let Err(error) = telemetry.shutdown_blocking() {
        print_error(&error.to_string());
    }
}

async fn run_jobs(config: &Config, audit: &AuditLog, telemetry: TelemetryHandle, roles: Roles) -> Result<()> {
    // First, because it chooses the process's provider of cryptography for TLS.
    let store = config.deployment.store()?;
    let platform = Platform {
        db: Db::open(&config.database)?,
        wire: Wire::new(&config.deployment.redis_url)?,
        store,
        audit: audit.clone(),
        telemetry,
        traces: TraceStore::new(config.trace_bytes),
        page: config.page.clone(),
    };
    if roles.gateway {
        receive(config.otlp_ports, &platform.traces).await;
    }
    serve(config, &platform, roles).await
}

async fn serve(config: &Config, platform: &Platform, roles: Roles) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let shutdown = move || {
        let mut stopped = stopped.clone();
        async move {
            // An error means that the sender is gone, which is an end, too.
            let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
        }
    };
    let gateway = async {
        match roles.gateway {
            true => gateway::serve(config, platform.clone(), shutdown()).await,
            false => Ok(()),
        }
    };
    let orchestrator = async {
        match roles.orchestrator {
            true => orchestrator::run(config, platform.clone(), shutdown()).await,
            false => Ok(()),
        }
    };
    let signals = async {
        report(terminated().await?);
        let _ = stop.send(true);
        sleep(DRAIN_TIMEOUT).await;
        warn!("shutdown_took_too_long");
        Ok(())
    };
    tokio::select! {
        ended = async { tokio::try_join!(gateway, orchestrator) } => ended.map(drop),
        late = signals => late,
    }
}

fn report(signal: &str) {
    info!(signal, "shutdown_signal_received");
}

/// Waits for `SIGTERM` or Ctrl-C.
pub(crate) fn terminated() -> impl Future<Output = Result<&'static str>> {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    async {
        let (mut terminate, mut interrupt) = signals.context("waiting for signals")?;
        tokio::select! {
            _ = terminate.recv() => Ok("SIGTERM"),
            _ = interrupt.recv() => Ok("SIGINT"),
        }
    }
}
