//! A real Redis for one test.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dalston_engine_sdk::broker::RedisServer;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};
use tempfile::TempDir;

/// A server on a free port with a directory of its own. It ends with this value.
pub(crate) struct TestRedis {
    process: Child,
    port: u16,
    connection: MultiplexedConnection,
    _directory: TempDir,
}

impl TestRedis {
    pub(crate) async fn start() -> Self {
        // Another process may take a free port before the server does, so several are tried.
        for _ in 0..5 {
            if let Some(server) = Self::try_start().await {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    async fn try_start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut command = Command::new("redis-server");
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
            ])
            .arg(port.to_string());
        command
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut process = command
            .spawn()
            .expect("these tests need a Redis server: apt-get install redis-server, or cargo xtask test");
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let give_up = Instant::now() + Duration::from_secs(10);
        while Instant::now() < give_up && process.try_wait().unwrap().is_none() {
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            if let Ok(mut connection) = client.get_multiplexed_async_connection_with_config(&config).await
                && redis::cmd("PING")
                    .query_async::<()>(&mut connection)
                    .await
                    .is_ok()
            {
                return Some(Self {
                    process,
                    port,
                    connection,
                    _directory: directory,
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = process.kill();
        let _ = process.wait();
        None
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// As a worker process would connect to it.
    pub(crate) fn connect(&self) -> RedisServer {
        RedisServer::new(&self.url()).unwrap()
    }

    /// Sends a command, word by word.
    pub(crate) async fn send<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_send(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub(crate) async fn try_send<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection.clone()).await
    }

    pub(crate) async fn send_bytes<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection.clone()).await.unwrap()
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
