//! The connection to a Redis server.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dalston_telemetry::ParseError;
use dalston_telemetry::settings::REDIS_URL;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisError,
    RedisFuture, RedisResult, Value,
};

use crate::broker::BrokerError;

/// How long a connection may take to come up, and a command on the shared connection to be
/// answered.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A Redis server, with one shared connection for commands.
///
/// The connection is made for the first command, and again when it is lost or the server takes no
/// more writes. So the client follows a fail-over, if the name in the URL leads to the new primary.
///
/// Cheap to clone. `Debug` shows the address and never a password.
#[derive(Clone)]
pub struct RedisServer {
    client: Client,
    shared: Arc<Mutex<ConnectionManager>>,
    address: Arc<str>,
}

impl RedisServer {
    /// A server by its URL: `redis://[[user]:password@]host[:port][/database]`, `rediss://…` for
    /// TLS, or `unix:///path`.
    ///
    /// This sends nothing, so it does not notice an absent server.
    ///
    /// ```
    /// use dalston_engine_sdk::redis::RedisServer;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let server = RedisServer::new("redis://:secret@localhost:6379")?;
    /// assert_eq!(server.address(), "localhost:6379");
    /// # Ok::<(), dalston_engine_sdk::ParseError>(())
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
    pub fn new(url: &str) -> Result<Self, ParseError> {
        let invalid = |error: redis::RedisError| {
            let expected = format!("{} ({error})", REDIS_URL.accepted());
            ParseError::secret("the Redis URL", expected)
        };
        let connection = url.into_connection_info().map_err(invalid)?;
        if matches!(connection.addr(), ConnectionAddr::TcpTls { .. }) {
            crate::tls::use_ring();
        }
        let address = connection.addr().to_string().into();
        let client = Client::open(connection).map_err(invalid)?;
        let shared = manager(client.clone()).map_err(invalid)?;
        Ok(Self {
            client,
            shared: Arc::new(Mutex::new(shared)),
            address,
        })
    }

    /// Where it is: host and port, or the path of its socket.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks the server for a sign of life (`PING`).
    ///
    /// # Errors
    ///
    /// If it does not answer within 5 s.
    pub async fn ping(&self) -> Result<(), BrokerError> {
        let answer: RedisResult<()> = redis::cmd("PING").query_async(&mut self.shared()).await;
        answer.map_err(|source| {
            BrokerError::new(
                format!("asking Redis at {} for a sign of life", self.address),
                source,
            )
        })
    }

    /// The connection for commands that the server answers at once.
    pub(crate) fn shared(&self) -> SharedConnection {
        let current = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        SharedConnection {
            connection: current.clone(),
            server: self.clone(),
        }
    }

    /// Makes the next command connect again, to the host that the name stands for by then.
    fn leave(&self) {
        if let Ok(fresh) = manager(self.client.clone()) {
            *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }

    /// A new connection for blocking reads: on the shared one, other commands would wait behind
    /// them, and its time-out would end them.
    pub(super) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(None);
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

fn manager(client: Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT))
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_secs(1))
        .set_number_of_retries(2);
    ConnectionManager::new_lazy_with_config(client, config)
}

/// The current shared connection. A server that lost its role to another one need not close its
/// connections, and they would never work again, so this leaves them when the server refuses a
/// write.
pub(crate) struct SharedConnection {
    connection: ConnectionManager,
    server: RedisServer,
}

impl SharedConnection {
    /// Leaves the connection if the server says that it gave up its role.
    fn check(&self, replies: &[Value]) {
        let role_lost = replies.iter().any(|reply| match reply {
            Value::ServerError(error) => {
                let error = RedisError::from(error.clone());
                ["READONLY", "NOREPLICAS", "MASTERDOWN"]
                    .into_iter()
                    .any(|code| has_code(&error, code))
            }
            _ => false,
        });
        if role_lost {
            self.server.leave();
        }
    }
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let reply = self.connection.req_packed_command(command).await?;
            self.check(std::slice::from_ref(&reply));
            Ok(reply)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let replies = self
                .connection
                .req_packed_commands(pipeline, offset, count)
                .await?;
            self.check(&replies);
            Ok(replies)
        })
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Whether an error of the server has this code. An error inside a script has it as its first word
/// since Redis 7; before, it is further inside: `Error running script (call to f_1f):
/// @user_script:7: -READONLY You can't write`.
pub(super) fn has_code(error: &RedisError, code: &str) -> bool {
    error.code() == Some(code)
        || error.code().is_some() && {
            let text = error.to_string();
            text.contains("@user_script")
                && text
                    .split_whitespace()
                    .any(|word| word.strip_prefix('-') == Some(code))
        }
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    #[test]
    fn code_is_found_behind_the_prefix_of_older_servers() {
        for (line, code, found) in [
            (
                "READONLY You can't write against a read only replica.",
                "READONLY",
                true,
            ),
            (
                "READONLY You can't write against a read only replica.",
                "OOM",
                false,
            ),
            (
                "ERR Error running script (call to f_1f): @user_script:7: @user_script: 7: -READONLY You can't write",
                "READONLY",
                true,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "OOM",
                true,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                "NOREPLICAS",
                true,
            ),
            (
                "ERR user_script:7: attempt to index a nil value",
                "READONLY",
                false,
            ),
            (
                "WRONGTYPE the key -READONLY holds the wrong kind of value",
                "READONLY",
                false,
            ),
        ] {
            let reply = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            let Value::ServerError(error) = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(has_code(&error.into(), code), found, "{line}");
        }
    }
}
