//! The connection to a Redis server.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(feature = "worker")]
use std::time::{Instant, SystemTime};

use dalston_telemetry::ParseError;
use dalston_telemetry::settings::REDIS_URL;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, RedisResult, Value,
};
use tokio::time::timeout;
use tracing::{Instrument, Span, warn};

use crate::broker::BrokerError;
use crate::spans::{redis_answered, redis_command};

/// How long a connection may take to come up, and a command to be answered.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After how many time-outs in a row a connection counts as dead.
const TIMEOUTS_OF_DEAD_CONNECTION: u32 = 2;
/// How long a connection may be quiet before the kernel asks the other host for a sign of life, and
/// the time between two such questions.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long sent data and questions may stay without a sign of life before the kernel ends the
/// connection.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// A Redis server, with one shared connection for commands.
///
/// The connection is made for the first command, and again when it is lost, when the server takes
/// no more writes, and when two commands in a row were not answered within the
/// [timeout](Self::with_timeout). So the client follows a fail-over within 30 s, if the name in the
/// URL leads to the new primary, also when the old host disappears without closing its connections.
///
/// Cheap to clone. `Debug` shows the address and never a password.
#[derive(Clone)]
pub struct RedisServer {
    client: Client,
    timeout: Duration,
    current: Arc<Mutex<Current>>,
    address: Arc<str>,
    client_spans: bool,
}

/// The connection that commands use.
#[derive(Clone)]
struct Current {
    connection: ConnectionManager,
    /// How many commands in a row were not answered in time. Its address identifies the connection.
    timeouts: Arc<AtomicU32>,
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
        let connection = parse(url)?;
        if matches!(connection.addr(), ConnectionAddr::TcpTls { .. }) {
            crate::tls::use_ring();
        }
        let address = connection.addr().to_string().into();
        let client = Client::open(connection.set_tcp_settings(tcp_settings())).map_err(invalid)?;
        let current = Current::new(client.clone(), TIMEOUT).map_err(invalid)?;
        Ok(Self {
            client,
            timeout: TIMEOUT,
            current: Arc::new(Mutex::new(current)),
            address,
            client_spans: false,
        })
    }

    /// Sets whether each command within a traced task has a client span. Blocking reads have none.
    /// Default: no.
    #[must_use]
    pub fn with_client_spans(self, on: bool) -> Self {
        Self {
            client_spans: on,
            ..self
        }
    }

    /// Sets how long a connection may take to come up, and a command to be answered. Default: 5 s.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        let current = Current::new(self.client.clone(), timeout);
        let current = current.unwrap_or_else(|_| self.current().clone());
        Self {
            timeout,
            current: Arc::new(Mutex::new(current)),
            ..self
        }
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
    /// If it does not answer within the [timeout](Self::with_timeout).
    pub async fn ping(&self) -> Result<(), BrokerError> {
        let answer: RedisResult<()> = redis::cmd("PING").query_async(&mut self.shared()).await;
        answer.map_err(|source| {
            BrokerError::new(
                format!("asking Redis at {} for a sign of life", self.address),
                source,
            )
        })
    }

    /// How far the clock of this machine is ahead of the server's, in seconds. It is wrong by at
    /// most half of the time that the answer takes.
    #[cfg(feature = "worker")]
    pub(crate) async fn clock_difference(&self) -> Result<f64, BrokerError> {
        let (asked_at, began) = (SystemTime::now(), Instant::now());
        let answer = redis::cmd("TIME").query_async(&mut self.shared()).await;
        let (seconds, micros): (u64, u64) = answer.map_err(|source| {
            BrokerError::new(format!("asking Redis at {} for its time", self.address), source)
        })?;
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros);
        let ours = asked_at + began.elapsed() / 2;
        Ok(match ours.duration_since(theirs) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        })
    }

    /// The connection for commands that the server answers at once.
    pub(crate) fn shared(&self) -> SharedConnection {
        SharedConnection {
            current: self.current().clone(),
            server: self.clone(),
        }
    }

    /// How long a command may take to be answered.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Counts a command that was not answered in time on another connection to this server.
    pub(super) fn timed_out(&self) {
        let current = self.current().clone();
        self.count_timeout(&current);
    }

    fn count_timeout(&self, current: &Current) {
        let timeouts = current.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        if timeouts == TIMEOUTS_OF_DEAD_CONNECTION {
            warn!(address = self.address(), timeouts, "redis_connection_replaced");
            self.leave(current);
        }
    }

    /// Makes the next command connect again, to the host that the name stands for by then, unless
    /// the connection was left already.
    fn leave(&self, left: &Current) {
        let mut current = self.current();
        if Arc::ptr_eq(&current.timeouts, &left.timeouts)
            && let Ok(fresh) = Current::new(self.client.clone(), self.timeout)
        {
            *current = fresh;
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection for blocking reads: on the shared one, other commands would wait behind
    /// them, and its time-out would end them.
    pub(super) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None);
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

impl Current {
    fn new(client: Client, timeout: Duration) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_secs(1))
            .set_number_of_retries(2);
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)?,
            timeouts: Arc::default(),
        })
    }
}

/// Reads the URL of a server.
pub(crate) fn parse(url: &str) -> Result<ConnectionInfo, ParseError> {
    url.into_connection_info().map_err(invalid)
}

fn invalid(error: RedisError) -> ParseError {
    let expected = format!("{} ({error})", REDIS_URL.accepted());
    ParseError::secret("the Redis URL", expected)
}

/// For connections that stay open and idle while their other end is gone.
fn tcp_settings() -> TcpSettings {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TCP_USER_TIMEOUT);
    settings
}

/// The current shared connection.
///
/// A server that lost its role to another one need not close its connections, and the connections
/// to a host that lost its power do not end. Neither would ever work again, so this leaves them
/// when the server refuses a write or is silent.
pub(crate) struct SharedConnection {
    current: Current,
    server: RedisServer,
}

impl SharedConnection {
    /// Counts time-outs in a row.
    fn note<T>(&self, reply: RedisResult<T>) -> RedisResult<T> {
        match &reply {
            Err(error) if error.is_timeout() => self.server.count_timeout(&self.current),
            _ => self.current.timeouts.store(0, Ordering::Relaxed),
        }
        reply
    }

    /// The span of a command, or of a pipeline, if there is to be one.
    fn span(&self, command: Option<Arg<&[u8]>>) -> Span {
        if !self.server.client_spans || Span::current().is_disabled() {
            return Span::none();
        }
        let name = match command {
            Some(Arg::Simple(name)) => String::from_utf8_lossy(name).to_ascii_uppercase(),
            _ => "PIPELINE".to_owned(),
        };
        redis_command(name, &self.server.address)
    }

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
            self.server.leave(&self.current);
        }
    }
}

/// Includes the time in which the connection is made: callers name the server in their errors, and
/// their own time limits do not.
async fn answered_in_time<T>(server: &RedisServer, call: RedisFuture<'_, T>) -> RedisResult<T> {
    timeout(server.timeout, call).await.unwrap_or_else(|_| {
        let text = format!("no answer within {:?}", server.timeout);
        Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
    })
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let span = self.span(command.args_iter().next());
            let call = self.current.connection.req_packed_command(command);
            let reply = answered_in_time(&self.server, call)
                .instrument(span.clone())
                .await;
            redis_answered(&span, &reply);
            let reply = self.note(reply)?;
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
            let span = self.span(None);
            let call = self
                .current
                .connection
                .req_packed_commands(pipeline, offset, count);
            let replies = answered_in_time(&self.server, call)
                .instrument(span.clone())
                .await;
            redis_answered(&span, &replies);
            let replies = self.note(replies)?;
            self.check(&replies);
            Ok(replies)
        })
    }

    fn get_db(&self) -> i64 {
        self.current.connection.get_db()
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
