//! A real Prometheus server, and `promtool`.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::port::free_port;

/// Runs `promtool` with `input` on its standard input. `Err` contains its complaints.
///
/// # Panics
///
/// If there is no `promtool` on this machine.
pub fn promtool(arguments: &[&str], input: &str) -> Result<(), String> {
    check(
        Command::new("promtool").args(arguments),
        input,
        "promtool is needed: apt-get install prometheus",
    )
}

/// Reads an OpenMetrics text with the strict parser of Prometheus' client for Python. `Err`
/// contains its complaint.
///
/// # Panics
///
/// If there is no `/usr/bin/python3` on this machine.
pub fn parse_open_metrics(text: &str) -> Result<(), String> {
    const PARSE: &str = "import sys; from prometheus_client.openmetrics.parser import \
                         text_string_to_metric_families as parse; list(parse(sys.stdin.read()))";
    check(
        // Debian's Python, which has Debian's packages.
        Command::new("/usr/bin/python3").args(["-c", PARSE]),
        text,
        "Python is needed: apt-get install python3-prometheus-client",
    )
}

/// Runs a checker with `input` on its standard input.
fn check(command: &mut Command, input: &str, needed: &str) -> Result<(), String> {
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(needed);
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // promtool writes complaints to standard error and may still exit with 0.
    if output.status.success() && said.is_empty() {
        Ok(())
    } else {
        Err(format!("{}: {said}", output.status))
    }
}

/// A server that scrapes its jobs five times a second. It ends when this value is dropped.
#[derive(Debug)]
pub struct TestPrometheus {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl TestPrometheus {
    /// Starts a server that scrapes `/metrics` of these jobs, each a name and an address.
    ///
    /// # Panics
    ///
    /// If there is no `prometheus` on this machine, or if it does not start within a minute.
    #[must_use]
    pub fn start(jobs: &[(&str, SocketAddr)]) -> Self {
        let mut config = String::from("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n");
        config += &scrape_configs(jobs);
        Self::with_config(&config)
    }

    /// Starts a server with the text of a configuration.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn with_config(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config_file = directory.path().join("prometheus.yml");
        fs::write(&config_file, config).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config_file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .args(["--enable-feature=exemplar-storage", "--log.level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is needed: apt-get install prometheus");
        let this = Self {
            process,
            address,
            _directory: directory,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while this.ask("/-/ready").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "prometheus does not start");
            sleep(Duration::from_millis(50));
        }
        this
    }

    /// The address of the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queries `/api/v1` until `wanted` accepts the `data` of the answer.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub fn wait_for<T>(&self, path: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.ask(&format!("/api/v1/{path}"));
            let body = answer.map_or(Value::Null, |(_, body)| {
                serde_json::from_str(&body).unwrap_or_default()
            });
            if let Some(found) = wanted(&body["data"]) {
                return found;
            }
            assert!(Instant::now() < deadline, "{path}: {body}");
            sleep(Duration::from_millis(100));
        }
    }

    /// The samples of an instant query, none if it fails.
    #[must_use]
    pub fn query(&self, expr: &str) -> Vec<Value> {
        self.results(&format!("query?query={}", percent_encoded(expr)))
    }

    /// The series of a query over time, in seconds since 1970; none if it fails.
    #[must_use]
    pub fn query_range(&self, expr: &str, time: Range<f64>, step: f64) -> Vec<Value> {
        let (query, start, end) = (percent_encoded(expr), time.start, time.end);
        self.results(&format!(
            "query_range?query={query}&start={start}&end={end}&step={step}"
        ))
    }

    fn results(&self, path: &str) -> Vec<Value> {
        let answer = self.ask(&format!("/api/v1/{path}"));
        let answer: Value = answer
            .and_then(|(_, body)| serde_json::from_str(&body).ok())
            .unwrap_or_default();
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// Status and body, or `None` without an answer.
    fn ask(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        // HTTP/1.0 has no chunked answers.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02x}");
        encoded
    })
}

/// The section of a configuration that scrapes `/metrics` of these jobs.
#[must_use]
pub fn scrape_configs(jobs: &[(&str, SocketAddr)]) -> String {
    jobs.iter().fold(
        String::from("scrape_configs:\n"),
        |mut config, (name, address)| {
            let _ = writeln!(
                config,
                "  - {{job_name: \"{name}\", static_configs: [{{targets: [\"{address}\"]}}]}}"
            );
            config
        },
    )
}

impl Drop for TestPrometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
