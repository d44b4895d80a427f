//! Telemetry and runtime of a command.

use dalston_telemetry::services::service_name;
use dalston_telemetry::tracing::level_filters::LevelFilter;
use dalston_telemetry::{Env, LogWriter, Telemetry, TelemetryBuilder};
use tokio::runtime::{Builder, Runtime};

use super::failure::Failure;
use crate::config::settings::DALSTON_ENGINE_ID;
use crate::engine::EngineInfo;

pub(super) fn telemetry(info: &EngineInfo, env: &Env) -> TelemetryBuilder {
    // A wrong value is reported with the rest of the configuration.
    let engine_id = DALSTON_ENGINE_ID.read(env).ok().flatten();
    let engine_id = engine_id.as_deref().unwrap_or(&info.id);
    Telemetry::builder(service_name::engine(engine_id))
        .version(&info.version)
        .env(env.clone())
}

/// Telemetry of an interactive command: errors are printed as one line, and logs are off unless
/// `RUST_LOG` or another variable turns them on.
pub(super) fn quiet_telemetry(info: &EngineInfo, env: &Env) -> TelemetryBuilder {
    telemetry(info, env)
        .log_writer(LogWriter::stderr())
        .default_log_level(LevelFilter::OFF)
}

/// A runtime with this many threads for the runner.
pub(super) fn runtime(threads: usize) -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("runner")
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("starting the runtime: {error}")))
}
