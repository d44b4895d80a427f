//! `run`: a worker of a live deployment, until a signal ends it.

use std::process::ExitCode;

use dalston_telemetry::Env;
use dalston_telemetry::cloud::Cloud;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::args::EngineArgs;
use super::{Failure, complain, telemetry};
use crate::config::{DeploymentConfig, RunnerConfig};
use crate::engine::Engine;
use crate::worker::{self, WorkerError};

/// What shells report for a process that ended by Ctrl-C or by `SIGTERM`.
const BY_SIGNAL: i32 = 128;

pub(super) fn run<E: Engine>(engine: E, args: &EngineArgs, env: &Env) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let usage = |error: dalston_telemetry::EnvError| Failure::Usage(error.to_string());
    let mut config = RunnerConfig::from_env(env).map_err(usage)?;
    args.apply(&mut config.options);
    let deployment = DeploymentConfig::from_env(env).map_err(usage)?;
    // Before telemetry, so that the first span and the first line know of it.
    let cloud = Cloud::detect(env).map_err(usage)?;
    let deployment = deployment.cloud(cloud.clone());
    let telemetry = telemetry(&info, env)
        .cloud(cloud)
        .install()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    // One thread, because what a task asks of it takes microseconds, and two would hand these to each other at every step: that costs
    // half as much again. What takes longer has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("runner")
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("starting the runtime: {error}")))?;
    let ended = runtime.block_on(async {
        let mut signals =
            Signals::new().map_err(|error| Failure::Failed(format!("waiting for signals: {error}")))?;
        let (stop, stopped) = oneshot::channel();
        // On its own: a drain that something else has started can be cut short by signals, too.
        tokio::spawn(async move {
            let name = signals.next().await.0;
            tracing::info!(signal = name, "shutdown_signal_received");
            let _ = stop.send(());
            let (name, number) = signals.next().await;
            tracing::warn!(signal = name, "second_shutdown_signal_received");
            std::process::exit(BY_SIGNAL + number);
        });
        let shutdown = async {
            let _ = stopped.await;
        };
        let handle = telemetry.handle();
        // Not on this thread, which would be a second one.
        let worker = tokio::spawn(worker::run(engine, config, deployment, handle, shutdown));
        worker
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
            .map_err(|error| match error {
                WorkerError::Run(_) => Failure::Failed(error.to_string()),
                _ => Failure::Usage(error.to_string()),
            })
    });
    // A thread that is stuck in a native call must not keep the process.
    runtime.shutdown_background();
    if let Err(error) = telemetry.shutdown_blocking() {
        complain(&error.to_string(), env);
    }
    ended.map(|()| ExitCode::SUCCESS)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.interrupt.recv() => ("SIGINT", 2),
        }
    }
}
