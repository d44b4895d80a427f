//! The configuration of the queue exporter.

use std::fmt;
use std::time::Duration;

use redis::{Client, ConnectionAddr, IntoConnectionInfo};

use crate::env::{Env, EnvError};
use crate::parse_error::ParseError;
use crate::settings::REDIS_URL;
use crate::settings::queue_exporter::{DALSTON_EVENTS_DLQ_STREAM, DALSTON_SCRAPE_INTERVAL};

/// The configuration of the queue exporter.
///
/// | Field | Variable | Default |
/// |---|---|---|
/// | Redis server | `REDIS_URL` | `redis://localhost:6379` |
/// | `interval` | `DALSTON_SCRAPE_INTERVAL` | 15 s |
/// | `dead_letters` | `DALSTON_EVENTS_DLQ_STREAM` | `dalston:events:dlq` |
/// | `max_queues` | – | 1000 |
/// | `keep` | – | 60 s |
///
/// `Debug` shows no password.
#[derive(Clone)]
#[non_exhaustive]
pub struct QueueExporterConfig {
    pub(super) client: Client,
    /// The pause between two polls.
    pub interval: Duration,
    /// The stream of dead letters.
    pub dead_letters: String,
    /// The largest number of queues with series. Queues that were found first keep them, and the
    /// number of the others is a metric.
    pub max_queues: usize,
    /// How long the last values stay while Redis can't be read, from the poll that failed.
    pub keep: Duration,
}

impl QueueExporterConfig {
    /// The defaults for the server at this URL: `redis://[[user]:password@]host[:port][/database]`,
    /// `rediss://…` for TLS with the certificates of the system, or `unix:///path`. Sentinels and
    /// clusters are not supported.
    ///
    /// # Errors
    ///
    /// If the URL is not one.
    pub fn new(redis_url: &str) -> Result<Self, ParseError> {
        let invalid = |_| ParseError::secret("the Redis URL", REDIS_URL.accepted());
        let connection = redis_url.into_connection_info().map_err(invalid)?;
        if matches!(connection.addr(), ConnectionAddr::TcpTls { .. }) {
            // The client panics if the process has no provider. An error means that it has one.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Self {
            client: Client::open(connection).map_err(invalid)?,
            interval: DALSTON_SCRAPE_INTERVAL.default_value(),
            dead_letters: DALSTON_EVENTS_DLQ_STREAM.default_value(),
            max_queues: 1000,
            keep: Duration::from_secs(60),
        })
    }

    /// Reads the configuration from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a wrong value. The error names the variable, the accepted values, and the
    /// value unless that may be a secret.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let (name, url) = (REDIS_URL.name(), REDIS_URL.read_or_default(env)?);
        let mut config = Self::new(&url).map_err(|_| REDIS_URL.error(name, &url))?;
        config.interval = DALSTON_SCRAPE_INTERVAL.read_or_default(env)?;
        config.dead_letters = DALSTON_EVENTS_DLQ_STREAM.read_or_default(env)?;
        Ok(config)
    }

    /// The address of Redis: host and port, or the path of its socket.
    #[must_use]
    pub fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}

impl fmt::Debug for QueueExporterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueExporterConfig")
            .field("redis", &self.address())
            .field("interval", &self.interval)
            .field("dead_letters", &self.dead_letters)
            .field("max_queues", &self.max_queues)
            .field("keep", &self.keep)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_read_from_the_environment() {
        let config = QueueExporterConfig::from_env(&Env::default()).unwrap();
        let shown = (config.address(), config.interval, config.dead_letters.as_str());
        assert_eq!(
            shown,
            (
                "localhost:6379".into(),
                Duration::from_secs(15),
                "dalston:events:dlq"
            )
        );
        let config = QueueExporterConfig::from_env(&Env::from_pairs([
            ("REDIS_URL", "rediss://reader:hunter2@cache:7000/3"),
            ("DALSTON_SCRAPE_INTERVAL", "2.5"),
            ("DALSTON_EVENTS_DLQ_STREAM", "mine:dlq"),
        ]));
        let config = config.unwrap();
        let shown = (config.address(), config.interval, config.dead_letters.as_str());
        assert_eq!(
            shown,
            ("cache:7000".into(), Duration::from_millis(2500), "mine:dlq")
        );
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }

    #[test]
    fn errors_name_wrong_values_but_not_urls() {
        let error = |name, value| {
            let env = Env::from_pairs([(name, value)]);
            QueueExporterConfig::from_env(&env).unwrap_err().to_string()
        };
        assert_eq!(
            error("DALSTON_SCRAPE_INTERVAL", "0"),
            r#"DALSTON_SCRAPE_INTERVAL is "0": expected a number of seconds from 1 to 3600"#
        );
        assert_eq!(
            error("REDIS_URL", "http://:hunter2@cache"),
            "REDIS_URL is not valid (the value is not shown): expected redis://, rediss:// or unix:// and a host or path"
        );
        let error = QueueExporterConfig::new("redis://:hunter2@:x/").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
