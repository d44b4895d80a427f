//! A real Redis.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};
use tempfile::TempDir;

/// A server on a free port with a directory of its own. It ends with this value.
#[derive(Debug)]
pub struct TestRedis {
    process: Child,
    port: u16,
    connection: MultiplexedConnection,
    _directory: TempDir,
}

impl TestRedis {
    /// Starts one that keeps nothing on disk.
    ///
    /// # Panics
    ///
    /// If there is no `redis-server` on this machine.
    pub async fn start() -> Self {
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

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends a command, word by word.
    ///
    /// # Panics
    ///
    /// If the server refuses it, or answers with something else than expected.
    pub async fn send<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_send(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Sends a command that the server may refuse.
    ///
    /// # Errors
    ///
    /// If it does, or answers with something else than expected.
    pub async fn try_send<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection.clone()).await
    }

    /// Sends a command whose words need not be text.
    ///
    /// # Panics
    ///
    /// As [`send`](Self::send).
    pub async fn send_bytes<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
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
