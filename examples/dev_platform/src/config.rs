//! The settings: those of the engines for Redis and the storage, and a few of the platform's own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dalston_engine_sdk::DeploymentConfig;
use dalston_telemetry::Env;
use dalston_telemetry::audit::AuditConfig;
use dalston_telemetry::queue_exporter::QueueExporterConfig;
use url::Url;

use crate::traces::Ports;

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
    /// What the page offers.
    pub(crate) page: PageConfig,
    /// Where audit records go. `DALSTON_AUDIT_…`.
    pub(crate) audit: AuditConfig,
    /// How often the queues are measured. `DALSTON_SCRAPE_INTERVAL`, default 15 s, and the other
    /// variables of the exporter.
    pub(crate) queues: QueueExporterConfig,
    /// How long an attempt of a task may take from the time when it is queued, unless three times
    /// its audio are longer. `DALSTON_DEFAULT_TASK_TIMEOUT_S`, default 3600.
    pub(crate) task_timeout: Duration,
    /// How long a job waits for the engines that it needs. `DALSTON_ENGINE_WAIT_TIMEOUT_SECONDS`,
    /// default 60.
    pub(crate) engine_wait: Duration,
    /// Where the gateway receives spans. `DALSTON_OTLP_HTTP_PORT`, default 4318, and
    /// `DALSTON_OTLP_GRPC_PORT`, default 4317; 0 is any free one, `off` is none.
    pub(crate) otlp_ports: Ports,
    /// The most realtime sessions of the gateway. `DALSTON_GATEWAY_MAX_SESSIONS`, default 100.
    pub(crate) max_sessions: usize,
    /// How long sessions may go on when the gateway ends. `DALSTON_SESSION_DRAIN_SECONDS`, default
    /// 10.
    pub(crate) session_drain: Duration,
    /// The memory of the traces that are kept. `DALSTON_TRACE_STORE_MB`, default 256.
    pub(crate) trace_bytes: usize,
}

/// The settings of the page.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageConfig {
    /// Whether the page only shows, and browsers can change nothing. `DALSTON_PAGE_READ_ONLY`,
    /// default false.
    pub(crate) is_read_only: bool,
    /// The Grafana with the boards, which the page links to. `DALSTON_GRAFANA_URL`, default none.
    pub(crate) grafana: Option<String>,
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
        let port = |name: &str, default: u16| {
            let port = number(name, u64::from(default))?;
            u16::try_from(port).with_context(|| format!("{name} is {port}: expected a port from 0 to 65535"))
        };
        let switch = |name: &str| match text(name).unwrap_or("false") {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            value => bail!("{name} is {value:?}: expected true or false"),
        };
        let optional_port = |name: &str, default: u16| match text(name) {
            Some("off") => Ok(None),
            _ => port(name, default).map(Some),
        };
        let trace_megabytes = number("DALSTON_TRACE_STORE_MB", 256)?;
        Ok(Self {
            deployment: DeploymentConfig::from_env(env)?,
            database: text("DALSTON_DATABASE").unwrap_or(".dalston/platform.db").into(),
            port: port("DALSTON_GATEWAY_PORT", 8000)?,
            api_key: text("DALSTON_API_KEY").map(str::to_owned),
            page: PageConfig {
                is_read_only: switch("DALSTON_PAGE_READ_ONLY")?,
                grafana: text("DALSTON_GRAFANA_URL").map(web_address).transpose()?,
            },
            audit: AuditConfig::from_env(env)?,
            queues: QueueExporterConfig::from_env(env)?,
            task_timeout: Duration::from_secs(number("DALSTON_DEFAULT_TASK_TIMEOUT_S", 3600)?),
            engine_wait: Duration::from_secs(number("DALSTON_ENGINE_WAIT_TIMEOUT_SECONDS", 60)?),
            otlp_ports: Ports {
                http: optional_port("DALSTON_OTLP_HTTP_PORT", 4318)?,
                grpc: optional_port("DALSTON_OTLP_GRPC_PORT", 4317)?,
            },
            max_sessions: usize::try_from(number("DALSTON_GATEWAY_MAX_SESSIONS", 100)?.min(10_000))?,
            session_drain: Duration::from_secs(number("DALSTON_SESSION_DRAIN_SECONDS", 10)?),
            trace_bytes: usize::try_from(trace_megabytes)?.saturating_mul(1_000_000),
        })
    }
}

/// Another scheme could be a script.
fn web_address(text: &str) -> Result<String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url.into()),
        _ => {
            bail!("DALSTON_GRAFANA_URL is {text:?}: expected an address that begins with http:// or https://")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_to_grafana_is_a_web_address() {
        let read = |url| Config::from_env(&Env::from_pairs([("DALSTON_GRAFANA_URL", url)]));
        let config = read("http://localhost:3001").unwrap();
        assert_eq!(config.page.grafana.as_deref(), Some("http://localhost:3001/"));
        for wrong in ["javascript:alert(1)", "localhost:3001"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.starts_with("DALSTON_GRAFANA_URL is "), "{error}");
        }
    }
}
