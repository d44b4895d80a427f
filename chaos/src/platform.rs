//! The servers around the engines, and a connection to Redis that outlives its restarts.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisResult};
use testbed::{Fsync, Proxy, TestRedis, TestS3};
use tokio::time::{Instant, sleep};

/// How long Redis may be away before that is an error of ours.
const PATIENCE: Duration = Duration::from_secs(60);

/// Redis, behind a network that can fail, and storage.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) redis: TestRedis,
    /// Between the engines and Redis.
    pub(crate) cable: Proxy,
    pub(crate) s3: TestS3,
    client: Client,
    connection: ConnectionManager,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        // What it answered is on disk: a queue that forgets tasks is no matter of the engines.
        let redis = TestRedis::with().append_only(Fsync::Always).start().await;
        let cable = Proxy::to(redis.port()).await;
        let client = Client::open(redis.url()).expect("the URL of a Redis");
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(2)
            .set_max_delay(Duration::from_millis(200));
        let connection =
            ConnectionManager::new_lazy_with_config(client.clone(), config).expect("the URL of a Redis");
        Self {
            redis,
            cable,
            s3: TestS3::start(),
            client,
            connection,
        }
    }

    /// Where the engines find Redis.
    pub(crate) fn cable_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.cable.port())
    }

    /// Sends a command that does no harm if it is sent twice, until it is answered.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.try_ask(words).await {
                Ok(answer) => return answer,
                Err(error) if Instant::now() > give_up => panic!("{words:?}: {error}"),
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

    /// A connection for reads that block.
    pub(crate) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}
