//! The connection to a Redis server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisResult};

/// How long a connection may take to come up, and a command on the shared connection to be answered.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A Redis server: one shared connection for commands, made when the first one is sent and again when it is lost.
///
/// Cheap to clone. `Debug` shows the address and never a password.
#[derive(Clone)]
pub struct RedisServer {
    client: Client,
    shared: ConnectionManager,
    address: Arc<str>,
}

impl RedisServer {
    /// A server by its URL: `redis://[[user]:password@]host[:port][/database]`, `rediss://…` for TLS, or `unix:///path`.
    ///
    /// Nothing is sent yet, so an absent server is not noticed here.
    ///
    /// ```
    /// use dalston_engine_sdk::broker::RedisServer;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let server = RedisServer::new("redis://:secret@localhost:6379")?;
    /// assert_eq!(server.address(), "localhost:6379");
    /// # Ok::<(), dalston_engine_sdk::broker::InvalidRedisUrl>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// If the URL is not one.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(url: &str) -> Result<Self, InvalidRedisUrl> {
        let invalid = |error: redis::RedisError| InvalidRedisUrl {
            problem: error.to_string(),
        };
        let connection = url.into_connection_info().map_err(invalid)?;
        if matches!(connection.addr(), ConnectionAddr::TcpTls { .. }) {
            crate::tls::use_ring();
        }
        let address = connection.addr().to_string().into();
        let client = Client::open(connection).map_err(invalid)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_secs(1))
            .set_number_of_retries(2);
        let shared = ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(invalid)?;
        Ok(Self {
            client,
            shared,
            address,
        })
    }

    /// Where it is: host and port, or the path of its socket.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    ///
    /// If it does not answer within 5 s.
    pub async fn ping(&self) -> Result<(), super::BrokerError> {
        let answer: RedisResult<()> = redis::cmd("PING").query_async(&mut self.shared()).await;
        answer.map_err(|source| {
            super::BrokerError::new(
                format!("asking Redis at {} for a sign of life", self.address),
                source,
            )
        })
    }

    /// The connection for everything that is answered at once.
    pub(crate) fn shared(&self) -> ConnectionManager {
        self.shared.clone()
    }

    /// A new connection for reads that block: on the shared one every other command would wait behind them, and its
    /// time-out would end them.
    pub(super) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(None);
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A text that is not the URL of a Redis server. The text is not shown, because it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("the Redis URL is not valid: {problem}; expected redis://, rediss:// or unix:// and a host or path")]
pub struct InvalidRedisUrl {
    problem: String,
}
