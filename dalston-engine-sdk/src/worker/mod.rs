//! A process that joins a live deployment: [`run`].
//!
#![doc = include_str!("../../docs/guides/operations.md")]

mod http;
mod spot;

use std::error::Error;
use std::future::{Future, pending, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::TelemetryHandle;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{info, warn};

pub use self::http::Health;
use crate::config::{DeploymentConfig, RunnerConfig, SpotDrain};
use crate::engine::Engine;
use crate::error::{BuildError, RunError};
use crate::models::ModelStorage;
use crate::protocol::{Heartbeat, InstanceStatus, RegistryRecord};
use crate::redis::{InvalidRedisUrl, RedisBroker, RedisRegistry, RedisServer};
use crate::registry::{self, Registry};
use crate::runner::{Runner, RunnerPhase, RunnerStatus};
use crate::store::{Store, StoreError};

/// Registers the engine with a deployment and works for it until `shutdown` is done, and then drains.
///
/// On EC2 ([`DeploymentConfig::cloud`]), a notice that the spot instance will be interrupted starts the same drain.
///
/// The HTTP server and the registry entry stay until the last task is finished or handed back: until then the platform must
/// not take the tasks for abandoned. A Redis server that can't be reached is waited for.
///
/// A port for the HTTP server that is taken is a warning, as with the platform's other engines, and is tried again every 5 s:
/// most likely a predecessor still finishes its tasks. Until then its answers are somebody else's, which the `instance` in
/// `/health` shows.
///
/// # Errors
///
/// If the settings make no sense, or the runner can't go on.
pub async fn run<E: Engine>(
    engine: E,
    config: RunnerConfig,
    deployment: DeploymentConfig,
    telemetry: TelemetryHandle,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let server = RedisServer::new(&deployment.redis_url)?;
    let store = Store::s3(deployment.s3.clone())?;
    let models = ModelStorage::new(deployment.models.clone(), store.clone());
    let slots = u32::try_from(config.slots).unwrap_or(u32::MAX);
    let mut capabilities = engine.info().capabilities();
    let runner = Runner::builder(engine)
        .config(config)
        .broker(RedisBroker::with_lease(server.clone(), deployment.lease))
        .store(store)
        .model_storage(models.clone())
        .telemetry(telemetry.clone())
        .build()?;
    capabilities.engine_id = runner.engine_id().to_owned();
    capabilities.max_concurrency = Some(slots);
    let status = runner.status();

    let app = http::Server::new(
        &runner,
        capabilities.clone(),
        server.clone(),
        telemetry,
        &deployment,
    );
    let serving = listen(deployment.http_port, app).await;
    let record = RegistryRecord::new(runner.instance(), capabilities, slots, deployment.node);
    let registry: Arc<dyn Registry> = Arc::new(RedisRegistry::new(server).with_lifetime(deployment.lease));
    let membership = registry::join(registry, record, move || heartbeat(&status, &models, slots)).await;

    let interruption = runner.interruption();
    let watch_spot = async {
        match (deployment.cloud.metadata(), deployment.spot_drain) {
            (Some(metadata), heed @ (SpotDrain::All | SpotDrain::Interruption)) => {
                spot::watch(metadata, heed, &interruption).await
            }
            _ => pending().await,
        }
    };
    let ended = tokio::select! {
        ended = runner.run_until(shutdown) => ended,
        never = watch_spot => match never {},
    };
    serving.finish().await;
    // Last of all: a consumer without a record counts as dead, and its tasks as free.
    if let Err(error) = membership.leave().await {
        warn!(%error, "engine_not_deregistered");
    }
    Ok(ended?)
}

/// Why a worker did not start or did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// `REDIS_URL` is not a URL.
    #[error(transparent)]
    Redis(#[from] InvalidRedisUrl),
    /// The settings of the storage make no sense.
    #[error("the settings of the storage make no sense: {0}")]
    Store(#[from] StoreError),
    /// Engine and settings make no worker.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The runner can't go on.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Tasks that are read ahead, or whose result is being stored, take no capacity: the platform would see a worker with less
/// than none, or keep work away from a thread that is free.
fn heartbeat(status: &RunnerStatus, models: &ModelStorage, capacity: u32) -> Heartbeat {
    let active = u32::try_from(status.unprocessed_tasks()).unwrap_or(u32::MAX);
    let what = match status.phase() {
        RunnerPhase::Starting | RunnerPhase::Running if models.is_downloading() => {
            InstanceStatus::Downloading
        }
        RunnerPhase::Starting => InstanceStatus::Loading,
        RunnerPhase::Running if status.active_tasks() > 0 => InstanceStatus::Processing,
        RunnerPhase::Running => InstanceStatus::Idle,
        RunnerPhase::Draining | RunnerPhase::Stopped => InstanceStatus::Draining,
    };
    let mut heartbeat = Heartbeat::new(what, active.min(capacity));
    heartbeat.loaded_model = status.model().map(|model| model.to_string());
    // Both come later than the registration: a driver may take seconds for its first answer.
    heartbeat.gpu_memory_used_mib = status.gpu_memory().map(|memory| memory.used >> 20);
    heartbeat.gpu_memory_total_mib = status.gpu_memory().map(|memory| memory.total >> 20);
    heartbeat
}

/// How long to leave a port alone that is taken, most likely by a predecessor that finishes its last tasks.
const PORT_PAUSE: Duration = Duration::from_secs(5);

/// A worker without its HTTP server does its work, so a port that is taken is no reason to stop. It is tried again.
async fn listen(port: u16, app: http::Server) -> http::Serving {
    match bind(port).await {
        Ok(listener) => http::Serving::start(ready(listener), app),
        Err(error) => {
            let error: &dyn Error = &error;
            warn!(
                port,
                error, "http_server_not_started: free the port, or set DALSTON_METRICS_PORT to another one"
            );
            http::Serving::start(bind_later(port), app)
        }
    }
}

async fn bind(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    info!(address = %listener.local_addr()?, "http_server_listening");
    Ok(listener)
}

async fn bind_later(port: u16) -> TcpListener {
    loop {
        sleep(PORT_PAUSE).await;
        if let Ok(listener) = bind(port).await {
            return listener;
        }
    }
}
