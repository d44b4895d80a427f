//! Engines of the platform's own, on the SDK.

mod loudness;
mod mock;
mod prepare;
mod wav;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use dalston_engine_sdk::{DeploymentConfig, Engine, RunnerConfig, TaskContext, TaskError, worker};
use dalston_telemetry::services::service_name;
use dalston_telemetry::{Env, Telemetry};

use self::mock::Mock;
use self::prepare::Prepare;
use crate::service::{self, terminated};

/// The arguments of an engine. Everything else are variables of the SDK.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long the engine may be silent before others take its tasks over, in seconds. Only for
    /// tests: the platform counts on 60.
    #[arg(long, default_value_t = 60.0, hide = true)]
    lease: f64,
    /// How long a task takes at least, in milliseconds. Only for tests.
    #[arg(long, default_value_t = 0, hide = true)]
    delay: u64,
    /// Tasks wait while this file exists. Only for tests.
    #[arg(long, hide = true)]
    hold: Option<PathBuf>,
    /// Serves realtime sessions as well. Only of the engine for tests.
    #[arg(long)]
    realtime: bool,
    /// Loads a model and takes batches. Only of the engine for tests.
    #[arg(long, hide = true)]
    model: bool,
}

/// Keeps tasks waiting while a file exists, so that a test decides what happens meanwhile.
#[derive(Clone, Debug, Default)]
struct Hold(Option<PathBuf>);

impl Hold {
    fn wait(&self, cx: &TaskContext) -> Result<(), TaskError> {
        const INTERVAL: Duration = Duration::from_millis(10);
        while self.0.as_ref().is_some_and(|file| file.exists()) {
            cx.check_cancelled()?;
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }
}

/// Runs the engine of the stage `prepare` until `SIGTERM` or Ctrl-C.
pub(crate) fn run_prepare(arguments: &Arguments, env: &Env) -> Result<()> {
    run(Prepare::new(Hold(arguments.hold.clone())), arguments, env)
}

/// Runs the engine for tests until `SIGTERM` or Ctrl-C.
pub(crate) fn run_mock(arguments: &Arguments, env: &Env) -> Result<()> {
    match arguments.model {
        true => run(Mock::<mock::Model>::from(arguments), arguments, env),
        false => run(Mock::<()>::from(arguments), arguments, env),
    }
}

impl<M> From<&Arguments> for Mock<M> {
    fn from(arguments: &Arguments) -> Self {
        let (delay, hold) = (
            Duration::from_millis(arguments.delay),
            Hold(arguments.hold.clone()),
        );
        Self::new(delay, hold, arguments.realtime)
    }
}

/// Runs an engine until `SIGTERM` or Ctrl-C.
fn run<E: Engine>(engine: E, arguments: &Arguments, env: &Env) -> Result<()> {
    let config = RunnerConfig::from_env(env)?;
    let mut deployment = DeploymentConfig::from_env(env)?;
    deployment.lease = Duration::from_secs_f64(arguments.lease.clamp(0.1, 3600.0));
    let service = service_name::engine(&engine.info().id);
    let telemetry = Telemetry::builder(service).env(env.clone()).install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let signal = terminated();
        let shutdown = async {
            if let Ok(signal) = signal.await {
                tracing::info!(signal, "shutdown_signal_received");
            }
        };
        worker::run(engine, config, deployment, telemetry.handle(), shutdown).await
    });
    // A thread that is stuck must not block the exit.
    runtime.shutdown_background();
    service::end(telemetry);
    Ok(ended?)
}
