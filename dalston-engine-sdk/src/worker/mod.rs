//! A process that joins a live deployment: [`run`].
//!
#![doc = include_str!("../../docs/guides/operations.md")]

mod http;
#[cfg(feature = "realtime")]
mod realtime;
mod spot;

use std::future::{Future, pending, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dalston_telemetry::settings::DALSTON_METRICS_PORT;
use dalston_telemetry::{ParseError, TelemetryHandle};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::clock::ClockDifference;
use crate::config::{DeploymentConfig, RunnerConfig, SpotDrain};
use crate::engine::Engine;
use crate::error::{BuildError, RunError};
use crate::models::ModelStorage;
use crate::probe;
use crate::protocol::{Heartbeat, InstanceStatus, RegistryRecord};
use crate::redis::{RedisBroker, RedisRegistry, RedisServer, Starting, random_suffix};
use crate::registry::{self, Registry};
use crate::runner::{Runner, RunnerPhase, RunnerStatus, instance_name};
use crate::store::StoreError;

/// Registers the engine with a deployment and processes tasks until `shutdown` completes. Then it
/// drains.
///
/// On EC2 ([`DeploymentConfig::cloud`]), a notice that the spot instance will be interrupted also
/// starts the drain.
///
/// The HTTP server and the registry entry stay until the last task is finished or released: until
/// then the platform must not count the tasks as abandoned.
///
/// Before the first read the worker probes the temporary directory, Redis and the storage. It is
/// registered while they fail, and it takes no tasks.
///
/// A name that the configuration gives is checked first: see `DALSTON_WORKER_ID` in the guide
/// above.
///
/// If the port of the HTTP server is taken, the worker logs a warning, as the platform's other
/// engines do, and tries again every 5 s. Usually a predecessor still finishes its tasks and
/// answers on the port; the `instance` in `/health` shows it.
///
/// Unless the program has chosen one before, ring becomes the process's provider of cryptography
/// for TLS.
///
/// # Errors
///
/// If the configuration is invalid, the probes fail for 10 minutes, or the runner can't go on.
pub async fn run<E: Engine>(
    engine: E,
    mut config: RunnerConfig,
    deployment: DeploymentConfig,
    telemetry: TelemetryHandle,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    crate::tls::use_ring();
    tokio::pin!(shutdown);
    let server = RedisServer::new(&deployment.redis_url)
        .map_err(WorkerError::Redis)?
        .with_client_spans(deployment.client_spans.redis());
    let start_nonce = random_suffix();
    if config.instance_suffix.is_some() {
        let starting = Starting {
            server: &server,
            start_nonce: &start_nonce,
            hostname: &deployment.node.hostname,
            lifetime: deployment.lease,
        };
        let engine_id = config.engine_id.clone().unwrap_or_else(|| engine.info().id);
        let instance = instance_name(&engine_id, &config);
        let reserved = tokio::select! {
            reserved = starting.reserve(&instance) => reserved,
            () = &mut shutdown => return Ok(()),
        };
        if !reserved {
            config.instance_suffix = None;
        }
    }
    let store = deployment.store()?;
    let models = ModelStorage::new(deployment.models.clone(), store.clone());
    let slots = u32::try_from(config.slots).unwrap_or(u32::MAX);
    let info = engine.info();
    let mut capabilities = info.capabilities();
    let (probed_server, probed_store) = (server.clone(), store.clone());
    let temp_root = config.temp_root.clone();
    let probe = move |instance: &str| {
        let (server, store) = (probed_server.clone(), probed_store.clone());
        let (root, instance) = (temp_root.clone(), instance.to_owned());
        async move {
            let probes = tokio::join!(
                probe::temp_dir_async(&root),
                probe::redis(&server),
                probe::storage(&store, &instance)
            );
            vec![probes.0, probes.1, probes.2]
        }
    };
    let runner = Runner::builder(engine)
        .config(config)
        .broker(RedisBroker::with_lease(server.clone(), deployment.lease))
        .store(store)
        .model_storage(models.clone())
        .telemetry(telemetry.clone())
        .probe(probe)
        .build()?;
    capabilities.engine_id = runner.engine_id().to_owned();
    capabilities.max_concurrency = Some(slots);
    let status = runner.status();

    #[cfg(feature = "realtime")]
    let sessions = realtime::Sessions::start(&runner, &info, &deployment, &telemetry, &server).await;

    let clock = ClockDifference::unknown();
    let state = http::ServerState::new(
        &runner,
        capabilities.clone(),
        info.options,
        server.clone(),
        clock.clone(),
        telemetry,
        &deployment,
    );
    let serving = listen(deployment.http_port, state).await;
    let mut record = RegistryRecord::new(runner.instance(), capabilities, slots, deployment.node);
    record.start_nonce = start_nonce;
    let registry: Arc<dyn Registry> =
        Arc::new(RedisRegistry::new(server.clone()).with_lifetime(deployment.lease));
    #[cfg(feature = "realtime")]
    let sessions = match sessions {
        Some(sessions) => Some(sessions.join(&registry, &record, &deployment.realtime).await),
        None => None,
    };
    let membership = registry::join(registry, record, move || heartbeat(&status, &models, slots)).await;

    let interruption = runner.interruption();
    let watch_spot = async {
        match (deployment.cloud.metadata(), deployment.spot_drain) {
            (Some(metadata), mode @ (SpotDrain::All | SpotDrain::Interruption)) => {
                spot::watch(metadata, mode, &interruption).await
            }
            _ => pending().await,
        }
    };
    let ended = tokio::select! {
        ended = runner.run_until(shutdown) => ended,
        never = watch_spot => match never {},
        never = clock.watch(&server) => match never {},
    };
    serving.finish().await;
    #[cfg(feature = "realtime")]
    if let Some(sessions) = sessions {
        sessions.finish().await;
    }
    // Last, because the tasks of a consumer without a record count as abandoned.
    if let Err(error) = membership.leave().await {
        warn!(%error, "engine_not_deregistered");
    }
    Ok(ended?)
}

/// Why a worker did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// `REDIS_URL` is not a URL.
    #[error(transparent)]
    Redis(ParseError),
    /// The configuration of the storage is invalid.
    #[error("the configuration of the storage is invalid: {0}")]
    Store(#[from] StoreError),
    /// The engine or its configuration is invalid.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The runner can't go on.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The heartbeat for the registry.
///
/// Tasks that are prefetched or whose results are uploaded take no capacity. Counting them would
/// give a negative free capacity, or keep work away from a free thread.
fn heartbeat(status: &RunnerStatus, models: &ModelStorage, capacity: u32) -> Heartbeat {
    let active = u32::try_from(status.unprocessed_tasks()).unwrap_or(u32::MAX);
    let state = match status.phase() {
        RunnerPhase::Starting | RunnerPhase::Running if models.is_downloading() => {
            InstanceStatus::Downloading
        }
        RunnerPhase::Starting | RunnerPhase::Running if status.problem().is_some() => InstanceStatus::Loading,
        RunnerPhase::Starting => InstanceStatus::Loading,
        RunnerPhase::Running if status.active_tasks() > 0 => InstanceStatus::Processing,
        RunnerPhase::Running => InstanceStatus::Idle,
        RunnerPhase::Draining | RunnerPhase::Stopped => InstanceStatus::Draining,
    };
    let mut heartbeat = Heartbeat::new(state, active.min(capacity));
    heartbeat.loaded_model = status.model().map(|model| model.to_string());
    heartbeat.gpu_memory_used_mib = status.gpu_memory().map(|memory| memory.used >> 20);
    heartbeat.gpu_memory_total_mib = status.gpu_memory().map(|memory| memory.total >> 20);
    heartbeat
}

/// The pause between two attempts to bind a port that is taken.
const BIND_INTERVAL: Duration = Duration::from_secs(5);

/// Starts the HTTP server. The worker also works without it, so a port that is taken is no reason
/// to stop.
async fn listen(port: u16, state: http::ServerState) -> http::Serving {
    let max_requests = state.max_requests();
    let router = http::router(state);
    serve(port, router, max_requests, DALSTON_METRICS_PORT.name()).await
}

/// Serves these routes on a port, as soon as it is free.
async fn serve(port: u16, router: Router, max_requests: usize, variable: &'static str) -> http::Serving {
    match bind(port, variable).await {
        Ok(listener) => http::Serving::start(ready(listener), router, max_requests),
        Err(error) => {
            let advice = format!("free the port, or set {variable} to another one");
            warn!(port, %error, advice, "http_server_not_started");
            http::Serving::start(bind_later(port, variable), router, max_requests)
        }
    }
}

/// `variable` sets the port: it tells the servers of a worker apart in the log.
async fn bind(port: u16, variable: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    info!(address = %listener.local_addr()?, variable, "http_server_listening");
    Ok(listener)
}

async fn bind_later(port: u16, variable: &'static str) -> TcpListener {
    loop {
        sleep(BIND_INTERVAL).await;
        if let Ok(listener) = bind(port, variable).await {
            return listener;
        }
    }
}
