//! The servers of the engines, and a connection to Redis that survives restarts.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisResult};
use testbed::{Fsync, Proxy, TestRedis, TestS3};
use tokio::time::{Instant, sleep};

use crate::engine::{self, MODELS, WEIGHTS};

/// The longest time without Redis before the test fails.
const REDIS_TIMEOUT: Duration = Duration::from_secs(60);

/// Redis behind a proxy with faults, and storage.
#[derive(Debug)]
pub(crate) struct Platform {
    redis: Mutex<Arc<TestRedis>>,
    /// Between the engines and Redis.
    pub(crate) proxy: Proxy,
    /// Between the orchestrator and Redis, without faults: it leads to the Redis of the moment.
    direct: Proxy,
    pub(crate) s3: TestS3,
    client: Client,
    connection: ConnectionManager,
}

/// A storage with the models.
fn storage() -> TestS3 {
    let s3 = TestS3::start();
    for model in (0..MODELS).map(engine::model_id) {
        let place = |file: &str| format!("{}/models/{model}/{file}", TestS3::BUCKET);
        s3.put(&place(WEIGHTS), engine::weights_of(&model));
        s3.put(&place(".complete"), "");
    }
    s3
}

/// A reason for which Redis refuses writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `OOM`
    OutOfMemory,
    /// `MISCONF`
    FailedSave,
    /// `NOREPLICAS`
    FewReplicas,
}

impl Refusal {
    fn settings(self, on: bool) -> [&'static str; 2] {
        match (self, on) {
            (Self::OutOfMemory, true) => ["maxmemory", "1"],
            (Self::OutOfMemory, false) => ["maxmemory", "0"],
            (Self::FailedSave, true) => ["save", "86400 1000000"],
            (Self::FailedSave, false) => ["save", ""],
            (Self::FewReplicas, true) => ["min-replicas-to-write", "1"],
            (Self::FewReplicas, false) => ["min-replicas-to-write", "0"],
        }
    }
}

impl Platform {
    pub(crate) async fn start() -> Self {
        // Redis must not lose acknowledged writes: engines cannot recover a lost queue entry.
        let redis = TestRedis::with().append_only(Fsync::Always).start().await;
        let (proxy, direct) = (Proxy::to(redis.port()).await, Proxy::to(redis.port()).await);
        let url = format!("redis://127.0.0.1:{}", direct.port());
        let client = Client::open(url).expect("the URL is valid");
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(2)
            .set_max_delay(Duration::from_millis(200));
        let connection =
            ConnectionManager::new_lazy_with_config(client.clone(), config).expect("the URL is valid");
        Self {
            redis: Mutex::new(Arc::new(redis)),
            proxy,
            direct,
            s3: storage(),
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

    /// The Redis of the moment.
    pub(crate) fn redis(&self) -> Arc<TestRedis> {
        Arc::clone(&self.redis.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a replica the Redis of all clients. It lacks the writes of the last `lost`.
    pub(crate) async fn fail_over(&self, lost: Duration) {
        let (old, new) = (
            self.redis(),
            TestRedis::with().append_only(Fsync::Always).start().await,
        );
        let () = new
            .send(&["REPLICAOF", "127.0.0.1", &old.port().to_string()])
            .await;
        let deadline = Instant::now() + REDIS_TIMEOUT;
        loop {
            let status: String = new.send(&["INFO", "replication"]).await;
            if status.contains("master_link_status:up") {
                break;
            }
            assert!(Instant::now() < deadline, "the replica is not ready: {status}");
            sleep(Duration::from_millis(20)).await;
        }
        sleep(lost).await;
        let () = new.send(&["REPLICAOF", "NO", "ONE"]).await;
        sleep(lost).await;
        for proxy in [&self.proxy, &self.direct] {
            proxy.lead_to(new.port());
        }
        *self.redis.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        old.kill();
    }

    /// Makes Redis refuse writes.
    pub(crate) async fn refuse_writes(&self, refusal: Refusal) {
        if refusal == Refusal::FailedSave {
            self.fail_a_save().await;
        }
        self.configure(refusal.settings(true)).await;
    }

    /// Ends the refusal. A restart also ends it.
    pub(crate) async fn take_writes(&self, refusal: Refusal) {
        self.configure(refusal.settings(false)).await;
    }

    async fn configure(&self, [name, value]: [&str; 2]) {
        let () = self.ask(&["CONFIG", "SET", name, value]).await;
    }

    /// A save fails if its file can't be replaced.
    async fn fail_a_save(&self) {
        let directory: Vec<String> = self.ask(&["CONFIG", "GET", "dir"]).await;
        let file = Path::new(&directory[1]).join("dump.rdb");
        fs::create_dir_all(file).expect("the directory of Redis can be written");
        let _: RedisResult<String> = self.try_ask(&["BGSAVE"]).await;
        let deadline = Instant::now() + REDIS_TIMEOUT;
        loop {
            let status: String = self.ask(&["INFO", "persistence"]).await;
            if status.contains("rdb_last_bgsave_status:err") {
                return;
            }
            assert!(Instant::now() < deadline, "the save did not fail: {status}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection for published messages.
    pub(crate) async fn subscription(&self) -> RedisResult<PubSub> {
        self.client.get_async_pubsub().await
    }

    /// A connection for blocking reads.
    pub(crate) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}
