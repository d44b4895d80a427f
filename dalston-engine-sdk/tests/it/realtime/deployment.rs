//! A worker of a deployment with a real Redis.

use std::collections::BTreeMap;

use dalston_engine_sdk::worker::{self, WorkerError};
use dalston_engine_sdk::{DeploymentConfig, RunnerConfig};
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::tracing::Dispatch;
use dalston_telemetry::tracing::instrument::WithSubscriber;
use dalston_telemetry::{Env, TelemetryHandle};
use tempfile::TempDir;
use testbed::TestRedis;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::tones::Tones;
use crate::support::{free_port, get, until};

pub(crate) struct Deployment {
    pub(super) redis: TestRedis,
    storage: TempDir,
}

pub(crate) struct Worker {
    pub(crate) port: u16,
    http_port: u16,
    name: String,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Deployment {
    pub(crate) async fn start() -> Self {
        Self {
            redis: TestRedis::start().await,
            storage: TempDir::new().unwrap(),
        }
    }

    /// Starts a worker, and waits until it is ready for sessions.
    pub(crate) async fn worker(
        &self,
        engine: Tones,
        name: &str,
        more: &[(&str, &str)],
        telemetry: Option<&TestTelemetry>,
    ) -> Worker {
        let (port, http_port) = (free_port(), free_port());
        let ports = [port, http_port].map(|port| port.to_string());
        let redis = self.redis.url();
        let env = [
            ("REDIS_URL", &*redis),
            ("DALSTON_STORAGE_DIR", self.storage.path().to_str().unwrap()),
            ("DALSTON_WORKER_PORT", &ports[0]),
            ("DALSTON_METRICS_PORT", &ports[1]),
            ("DALSTON_WORKER_ID", name),
            ("DALSTON_DRAIN_TIMEOUT_SECONDS", "5"),
            ("DALSTON_HOST_HOSTNAME", "node-7"),
        ];
        let env = Env::from_pairs(env.iter().chain(more).copied());
        let config = RunnerConfig::from_env(&env).unwrap();
        let deployment = DeploymentConfig::from_env(&env).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let handle = telemetry.map_or_else(TelemetryHandle::disabled, TestTelemetry::handle);
        let dispatch = telemetry.map_or_else(Dispatch::none, |telemetry| telemetry.dispatch().clone());
        let run = worker::run(engine, config, deployment, handle, shutdown);
        let worker = Worker {
            port,
            http_port,
            name: name.to_owned(),
            stop: Some(stop),
            running: tokio::spawn(run.with_subscriber(dispatch)),
        };
        self.until_status(&worker, "ready").await;
        worker
    }

    /// The registry record of the realtime half of a worker.
    pub(crate) async fn record(&self, worker: &Worker) -> BTreeMap<String, String> {
        let key = format!("dalston:engine:instance:tones-rt-{}", worker.name);
        self.redis.send(&["HGETALL", &key]).await
    }

    pub(crate) async fn until_status(&self, worker: &Worker, status: &str) {
        let reached = async || {
            let record = self.record(worker).await;
            (record.get("status").map(String::as_str) == Some(status)).then_some(())
        };
        until(status, reached).await;
    }

    /// The members of a set of the registry.
    pub(crate) async fn members(&self, set: &str) -> Vec<String> {
        let mut members: Vec<String> = self.redis.send(&["SMEMBERS", set]).await;
        members.sort();
        members
    }
}

impl Worker {
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end of a worker that was stopped.
    pub(crate) async fn ended(self) {
        self.running.await.unwrap().unwrap();
    }

    pub(crate) async fn finish(mut self) {
        self.stop();
        self.ended().await;
    }

    /// The value of a metric of the batch half's HTTP server.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let response = get(self.http_port, "/metrics").await?;
        let line = response.body.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }
}
