//! The settings: those of the engines for Redis and the storage, and a few of the platform's own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use dalston_engine_sdk::DeploymentConfig;
use dalston_telemetry::Env;
use dalston_telemetry::audit::AuditConfig;

/// The only tenant.
pub(crate) const TENANT: &str = "default";

/// The settings of the platform.
#[derive(Debug)]
pub(crate) struct Config {
    /// Redis and the storage, by the variables of the engines.
    pub(crate) deployment: DeploymentConfig,
    /// The database. `DALSTON_DATABASE`, default `.dalston/platform.db`.
    pub(crate) database: PathBuf,
    /// The port of the gateway on all addresses; 0 is any free one. `DALSTON_GATEWAY_PORT`, default
    /// 8000.
    pub(crate) port: u16,
    /// The key that clients must send as a bearer token. `DALSTON_API_KEY`, default none.
    pub(crate) api_key: Option<String>,
    /// Where audit records go. `DALSTON_AUDIT_…`.
    pub(crate) audit: AuditConfig,
    /// How long an attempt of a task may take from the time when it is queued, unless three times
    /// its audio are longer. `DALSTON_DEFAULT_TASK_TIMEOUT_S`, default 3600.
    pub(crate) task_timeout: Duration,
    /// How long a job waits for the engines that it needs. `DALSTON_ENGINE_WAIT_TIMEOUT_SECONDS`,
    /// default 60.
    pub(crate) engine_wait: Duration,
}

impl Config {
    pub(crate) fn from_env(env: &Env) -> Result<Self> {
        let text = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let number = |name: &str, default: u64| match text(name) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .with_context(|| format!("{name} is {value:?}: expected a whole number")),
        };
        let port = number("DALSTON_GATEWAY_PORT", 8000)?;
        Ok(Self {
            deployment: DeploymentConfig::from_env(env)?,
            database: text("DALSTON_DATABASE").unwrap_or(".dalston/platform.db").into(),
            port: u16::try_from(port).with_context(|| {
                format!("DALSTON_GATEWAY_PORT is {port}: expected a port from 0 to 65535")
            })?,
            api_key: text("DALSTON_API_KEY").map(str::to_owned),
            audit: AuditConfig::from_env(env)?,
            task_timeout: Duration::from_secs(number("DALSTON_DEFAULT_TASK_TIMEOUT_S", 3600)?),
            engine_wait: Duration::from_secs(number("DALSTON_ENGINE_WAIT_TIMEOUT_SECONDS", 60)?),
        })
    }
}
