//! The worker as a process of a deployment.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::{TestRedis, free_port};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// A worker with the shipped model, and the servers that it needs.
pub(crate) struct Worker {
    /// That of its sessions.
    pub(crate) port: u16,
    process: Child,
    _redis: TestRedis,
    _storage: TempDir,
}

impl Worker {
    /// Starts it with these variables, and waits until its model is loaded.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let (redis, storage) = (TestRedis::start().await, TempDir::new().unwrap());
        let port = free_port();
        let process = Command::new(env!("CARGO_BIN_EXE_faster_whisper"))
            .arg("run")
            .env("REDIS_URL", redis.url())
            .env("DALSTON_STORAGE_DIR", storage.path())
            .env("DALSTON_WORKER_PORT", port.to_string())
            .env("DALSTON_METRICS_PORT", "0")
            .env("DALSTON_DEVICE", "cpu")
            .env("DALSTON_MODEL_PRELOAD", "true")
            .env("DALSTON_MAX_SESSIONS", "64")
            // As in support::load.
            .env("OMP_NUM_THREADS", "1")
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let worker = Self {
            port,
            process,
            _redis: redis,
            _storage: storage,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < deadline, "the worker does not listen");
            sleep(Duration::from_millis(50)).await;
        }
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
