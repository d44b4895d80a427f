//! The realtime half of a worker: its port, and its record in the registry.

use std::sync::Arc;

use dalston_telemetry::TelemetryHandle;
use tracing::warn;

use super::{http, serve};
use crate::config::settings::DALSTON_WORKER_PORT;
use crate::config::{DeploymentConfig, RealtimeConfig};
use crate::engine::EngineInfo;
use crate::realtime::RealtimeServer;
use crate::redis::RedisServer;
use crate::registry::{self, Membership, Registry, RegistryRecord};
use crate::runner::Runner;

/// Connections beside those of sessions: health checks, and refused sessions.
const OTHER_CONNECTIONS: usize = 32;

/// The sessions of a worker, served and perhaps registered.
pub(super) struct Sessions {
    server: RealtimeServer,
    serving: http::Serving,
    membership: Option<Membership>,
}

impl Sessions {
    /// Serves sessions if the engine has them.
    pub(super) async fn start(
        runner: &Runner,
        info: &EngineInfo,
        deployment: &DeploymentConfig,
        telemetry: &TelemetryHandle,
        redis: &RedisServer,
    ) -> Option<Self> {
        if !info.realtime {
            return None;
        }
        let config = deployment.realtime.clone();
        let connections = config.max_sessions + OTHER_CONNECTIONS;
        let port = config.port;
        let server = RealtimeServer::new(runner, info, config, telemetry.clone(), Some(redis.clone()));
        let serving = serve(port, server.router(), connections, DALSTON_WORKER_PORT.name()).await;
        Some(Self {
            server,
            serving,
            membership: None,
        })
    }

    /// Registers the realtime half beside the batch half with this record.
    pub(super) async fn join(
        mut self,
        registry: &Arc<dyn Registry>,
        batch: &RegistryRecord,
        config: &RealtimeConfig,
    ) -> Self {
        let endpoint = config
            .endpoint
            .clone()
            .unwrap_or_else(|| format!("ws://{}:{}", batch.node.hostname, config.port));
        let mut record = batch.clone().realtime(endpoint);
        record.instance = self.server.instance();
        record.capacity = u32::try_from(config.max_sessions).unwrap_or(u32::MAX);
        let server = self.server.clone();
        let joined = registry::join(Arc::clone(registry), record, move || server.heartbeat());
        self.membership = Some(joined.await);
        self
    }

    /// Closes the port and leaves the registry. The sessions have ended with the drain.
    pub(super) async fn finish(self) {
        self.serving.finish().await;
        if let Some(membership) = self.membership
            && let Err(error) = membership.leave().await
        {
            warn!(%error, "engine_not_deregistered");
        }
    }
}
