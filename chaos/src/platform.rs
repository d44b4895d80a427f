//! The servers of the engines, and a connection to Redis that survives restarts.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisResult};
use testbed::{Fsync, Proxy, TestRedis, TestS3};
use tokio::time::{Instant, sleep};

/// The longest time without Redis before the test fails.
const REDIS_TIMEOUT: Duration = Duration::from_secs(60);

/// Redis behind a proxy with faults, and storage.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) redis: TestRedis,
    /// Between the engines and Redis.
    pub(crate) proxy: Proxy,
    pub(crate) s3: TestS3,
    client: Client,
    connection: ConnectionManager,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        // Redis must not lose acknowledged writes: engines cannot recover a lost queue entry.
        let redis = TestRedis::with().append_only(Fsync::Always).start().await;
        let proxy = Proxy::to(redis.port()).await;
        let client = Client::open(redis.url()).expect("the URL is valid");
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(2)
            .set_max_delay(Duration::from_millis(200));
        let connection =
            ConnectionManager::new_lazy_with_config(client.clone(), config).expect("the URL is valid");
        Self {
            redis,
            proxy,
            s3: TestS3::start(),
            client,
            connection,
        }
    }

    /// The URL of Redis for the engines.
    pub(crate) fn proxy_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.proxy.port())
    }

    /// Sends an idempotent command until it is answered.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let deadline = Instant::now() + REDIS_TIMEOUT;
        loop {
            match self.try_ask(words).await {
                Ok(answer) => return answer,
                Err(error) if Instant::now() > deadline => panic!("{words:?}: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(crate) async fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection.clone()).await
    }

    /// A connection for blocking reads.
    pub(crate) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}
