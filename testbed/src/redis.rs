//! A real Redis server.

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};
use tempfile::TempDir;

use crate::port::free_port;
use crate::tls::{Authority, Issued};

/// A server on a free port with its own directory. It ends when this value is dropped.
#[derive(Debug)]
pub struct TestRedis {
    setup: Setup,
    running: Mutex<Option<Running>>,
    _directory: TempDir,
}

#[derive(Debug)]
struct Running {
    process: Child,
    connection: MultiplexedConnection,
}

impl TestRedis {
    /// Starts a server without persistence and without a password.
    ///
    /// # Panics
    ///
    /// If there is no `redis-server` on this machine.
    pub async fn start() -> Self {
        Self::with().start().await
    }

    /// Builds a server with other options.
    #[must_use]
    pub fn with() -> RedisBuilder {
        RedisBuilder {
            fsync: None,
            tls: None,
            password: None,
            user: None,
        }
    }

    /// The port on 127.0.0.1; with TLS, the port for TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.setup.tls_port.unwrap_or(self.setup.port)
    }

    /// The id of the process, from which benchmarks read its processor time.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let running = self.running.lock().unwrap();
        running.as_ref().expect("this Redis is running").process.id()
    }

    /// The URL, with user and password if they are set: `redis://127.0.0.1:…`, or `rediss://…` with
    /// TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.setup.tls_port.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let login = self.setup.login();
        format!("{scheme}://{login}127.0.0.1:{}", self.port())
    }

    /// Kills the server, which loses data that is not on disk. Returns after the process has ended.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn kill(&self) {
        let mut running = self
            .running
            .lock()
            .unwrap()
            .take()
            .expect("this Redis is running");
        running.process.kill().unwrap();
        running.process.wait().unwrap();
    }

    /// Starts it again on the same port with the data on disk.
    ///
    /// # Panics
    ///
    /// If the server runs already, or does not start.
    pub async fn restart(&self) {
        assert!(
            self.running.lock().unwrap().is_none(),
            "this Redis is running already"
        );
        let running = self.setup.launch().await.expect("Redis starts again");
        *self.running.lock().unwrap() = Some(running);
    }

    /// Sends a command, word by word.
    ///
    /// # Panics
    ///
    /// If the server refuses it, or the answer has another type.
    pub async fn send<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_send(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Sends a command that the server may refuse.
    ///
    /// # Errors
    ///
    /// If the server refuses it, or the answer has another type.
    pub async fn try_send<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection()).await
    }

    /// Sends a command whose words are bytes.
    ///
    /// # Panics
    ///
    /// As [`send`](Self::send).
    pub async fn send_bytes<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection()).await.unwrap()
    }

    fn connection(&self) -> MultiplexedConnection {
        let running = self.running.lock().unwrap();
        running
            .as_ref()
            .expect("this Redis is running")
            .connection
            .clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The options of a [`TestRedis`].
#[derive(Debug)]
pub struct RedisBuilder {
    fsync: Option<Fsync>,
    tls: Option<Issued>,
    password: Option<String>,
    user: Option<(String, String)>,
}

/// The time at which a persistent Redis writes its data to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before it answers, so that no acknowledged write is lost.
    Always,
    /// Once a second.
    EverySecond,
}

impl RedisBuilder {
    /// Keeps its data over a restart, in an append-only file.
    #[must_use]
    pub fn append_only(mut self, fsync: Fsync) -> Self {
        self.fsync = Some(fsync);
        self
    }

    /// Uses TLS, with a certificate of this authority.
    #[must_use]
    pub fn tls(mut self, authority: &Authority) -> Self {
        self.tls = Some(authority.issue());
        self
    }

    /// Requires this password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Has a user of this name with all rights, which [`url`](TestRedis::url) contains.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Starts the server.
    ///
    /// # Panics
    ///
    /// If there is no `redis-server` on this machine, or it rejects an option.
    pub async fn start(self) -> TestRedis {
        let directory = tempfile::tempdir().unwrap();
        let tls_files = self.tls.map(|issued| issued.write_to(directory.path()));
        let mut arguments: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--dir"]
            .map(Into::into)
            .into();
        arguments.push(directory.path().display().to_string());
        arguments.extend(["--appendonly", if self.fsync.is_some() { "yes" } else { "no" }].map(Into::into));
        if let Some(fsync) = self.fsync {
            let when = match fsync {
                Fsync::Always => "always",
                Fsync::EverySecond => "everysec",
            };
            arguments.extend(["--appendfsync", when].map(Into::into));
        }
        if let Some((certificate, key)) = &tls_files {
            let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
            arguments.extend(["--tls-cert-file".to_owned(), certificate]);
            arguments.extend(["--tls-key-file".to_owned(), key]);
            arguments.extend(["--tls-auth-clients", "no"].map(Into::into));
        }
        if let Some(password) = &self.password {
            arguments.extend(["--requirepass".to_owned(), password.clone()]);
        }
        if let Some((name, password)) = &self.user {
            arguments.extend([
                "--user".to_owned(),
                name.clone(),
                "on".to_owned(),
                format!(">{password}"),
            ]);
            arguments.extend(["~*", "&*", "+@all"].map(Into::into));
        }
        let mut setup = Setup {
            arguments,
            port: 0,
            tls_port: None,
            password: self.password,
            user: self.user,
        };
        // Another process may take a free port before the server does, so several are tried.
        for _ in 0..5 {
            setup.port = free_port();
            setup.tls_port = tls_files.is_some().then(free_port);
            if let Some(running) = setup.launch().await {
                return TestRedis {
                    setup,
                    running: Mutex::new(Some(running)),
                    _directory: directory,
                };
            }
        }
        panic!("redis-server does not start on any of several free ports");
    }
}

/// The data to start a server, more than once.
#[derive(Debug)]
struct Setup {
    arguments: Vec<String>,
    port: u16,
    tls_port: Option<u16>,
    password: Option<String>,
    user: Option<(String, String)>,
}

impl Setup {
    /// The user information of the URL.
    fn login(&self) -> String {
        match (&self.user, &self.password) {
            (Some((name, password)), _) => format!("{name}:{password}@"),
            (None, Some(password)) => format!(":{password}@"),
            (None, None) => String::new(),
        }
    }

    async fn launch(&self) -> Option<Running> {
        let mut command = Command::new("redis-server");
        command
            .args(&self.arguments)
            .arg("--port")
            .arg(self.port.to_string());
        if let Some(port) = self.tls_port {
            command.arg("--tls-port").arg(port.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command
            .spawn()
            .expect("redis-server is needed: apt-get install redis-server");
        // The connection of the test itself needs no TLS.
        let url = format!("redis://{}127.0.0.1:{}", self.login(), self.port);
        let client = redis::Client::open(url).unwrap();
        let give_up = Instant::now() + Duration::from_secs(30);
        while Instant::now() < give_up && process.try_wait().unwrap().is_none() {
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            if let Ok(mut connection) = client.get_multiplexed_async_connection_with_config(&config).await
                && redis::cmd("PING")
                    .query_async::<()>(&mut connection)
                    .await
                    .is_ok()
            {
                return Some(Running { process, connection });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = process.kill();
        let _ = process.wait();
        None
    }
}
