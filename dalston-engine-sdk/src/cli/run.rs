//! `run`: a worker of a live deployment, until a signal.

use std::process::ExitCode;
use std::time::Duration;

use dalston_telemetry::Env;
use dalston_telemetry::cloud::Cloud;
use tokio::sync::oneshot;

use super::args::EngineArgs;
use super::failure::Failure;
use super::setup;
use super::signals::Signals;
use super::terminal::complain_at_exit;
use crate::config::{DeploymentConfig, RunnerConfig};
use crate::engine::Engine;
use crate::worker::{self, WorkerError};

/// How long an output that is not read can delay the end after a second signal.
const LAST_LINES: Duration = Duration::from_millis(250);

pub(super) fn run<E: Engine>(engine: E, args: &EngineArgs, env: &Env) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let mut config = RunnerConfig::from_env(env)?;
    args.apply(&mut config.engine);
    let deployment = DeploymentConfig::from_env(env)?;
    // Before telemetry, so that the first span and the first log line have the identity of the
    // machine.
    let cloud = Cloud::detect(env)?;
    let deployment = deployment.cloud(cloud.clone());
    let telemetry = setup::telemetry(&info, env)
        .cloud(cloud)
        .install()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    // The work of the runner takes microseconds per task; a second thread would cost half as much
    // again for passing it between threads. Longer work has threads of its own.
    let runtime = setup::runtime(1)?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new().map_err(Failure::of_signals)?;
        let (stop, stopped) = oneshot::channel();
        let flushed_at_exit = telemetry.handle();
        // A task of its own, so that two signals also end a drain with another cause.
        tokio::spawn(async move {
            let signal = signals.next().await;
            tracing::info!(signal = signal.name, "shutdown_signal_received");
            let _ = stop.send(());
            let signal = signals.next().await;
            tracing::warn!(signal = signal.name, "second_shutdown_signal_received");
            // `exit` loses the log lines that wait.
            let _ = flushed_at_exit.flush(LAST_LINES);
            std::process::exit(signal.exit_status().into());
        });
        let shutdown = async {
            let _ = stopped.await;
        };
        let handle = telemetry.handle();
        // On the runtime's thread; this one only waits.
        let worker = tokio::spawn(worker::run(engine, config, deployment, handle, shutdown));
        worker
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
            .map_err(|error| match error {
                WorkerError::Run(_) => Failure::Failed(error.to_string()),
                _ => Failure::Usage(error.to_string()),
            })
    });
    // A thread that is stuck in a native call must not block the exit.
    runtime.shutdown_background();
    if let Err(error) = telemetry.shutdown_blocking() {
        complain_at_exit(&error.to_string(), env);
    }
    ended.map(|()| ExitCode::SUCCESS)
}
