//! A process of the platform: telemetry, the roles, and an orderly end.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use dalston_engine_sdk::store::Store;
use dalston_telemetry::audit::AuditLog;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::{Env, Telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::Config;
use crate::db::Db;
use crate::wire::Wire;
use crate::{gateway, orchestrator};

/// How long records of the audit may take to be written at the end.
const LAST_RECORDS: Duration = Duration::from_secs(5);

/// How long requests may take to end after a signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roles {
    gateway: bool,
    orchestrator: bool,
}

impl Roles {
    pub(crate) const ALL: Self = Self {
        gateway: true,
        orchestrator: true,
    };
    pub(crate) const GATEWAY: Self = Self {
        gateway: true,
        orchestrator: false,
    };
    pub(crate) const ORCHESTRATOR: Self = Self {
        gateway: false,
        orchestrator: true,
    };
}

/// What both roles need. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    pub(crate) db: Db,
    pub(crate) wire: Wire,
    pub(crate) store: Store,
    pub(crate) audit: AuditLog,
    pub(crate) metrics: Metrics,
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
        // First, because it chooses the process's provider of cryptography for TLS.
        let store = config.deployment.store()?;
        let platform = Platform {
            db: Db::open(&config.database)?,
            wire: Wire::new(&config.deployment.redis_url)?,
            store,
            audit: audit.clone(),
            metrics: telemetry.metrics().clone(),
        };
        serve(&config, &platform, roles).await
    });
    runtime.shutdown_background();
    audit.flush(LAST_RECORDS);
    telemetry.shutdown_blocking()?;
    ended
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
        let name = terminated().await?;
        info!(signal = name, "shutdown_signal_received");
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
