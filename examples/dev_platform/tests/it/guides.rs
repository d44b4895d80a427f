//! The commands of the guides in `docs`, with the platform, its engines and a Prometheus.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::TestPrometheus;
use testbed::pages::{PageCommand, PageShell, commands};

use crate::boards::config_with_rules;
use crate::rig::free_port;

/// The start of a command that is run once for all guides, as their platform.
const START: &str = "cargo run -q -p dev_platform -- ";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Its commands are run by the tests of the engine that it explains.
const OF_AN_ENGINE: &str = "engine-developer-guide.md";

/// The guides and their commands.
fn guides() -> Vec<(PathBuf, Vec<PageCommand>)> {
    let mut guides = Vec::new();
    for directory in ["docs", "docs/operations"] {
        for entry in fs::read_dir(workspace().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") && !path.ends_with(OF_AN_ENGINE) {
                let commands = commands(&fs::read_to_string(&path).unwrap());
                guides.push((path, commands));
            }
        }
    }
    guides.sort_by(|(left, _), (right, _)| left.cmp(right));
    guides
}

/// The platform as a guide starts it. It ends when this value is dropped.
struct Demo {
    process: Child,
    port: u16,
}

impl Demo {
    /// Starts it in a directory, and compares its output with the one that the guide shows.
    fn start(command: &PageCommand, directory: &Path) -> Self {
        let port = free_port();
        let mut process = Command::new(env!("CARGO_BIN_EXE_dev_platform"))
            .args(command.text.strip_prefix(START).unwrap().split_whitespace())
            .current_dir(directory)
            .env("DALSTON_GATEWAY_PORT", port.to_string())
            .env("DALSTON_OTLP_GRPC_PORT", free_port().to_string())
            .env("DALSTON_OTLP_HTTP_PORT", "off")
            .env_remove("OTEL_ENABLED")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let demo = Self { process, port };
        let mut printed = String::new();
        for line in output.by_ref().map_while(Result::ok) {
            let is_last = line.starts_with("Ctrl-C");
            printed += &(line.replace(&port.to_string(), "8000") + "\n");
            if is_last {
                break;
            }
        }
        let compared = command.compare(&printed);
        assert!(compared.is_ok(), "line {}: {compared:?}\n{printed}", command.line);
        // Nothing reads the rest, which is short.
        demo
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let id = self.process.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
        let _ = self.process.wait();
    }
}

/// The address of the metrics of an engine, from its log.
fn metrics_of(log: &Path) -> SocketAddr {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(log).unwrap();
        let lines = text.lines().filter_map(|line| line.parse::<Value>().ok());
        let mut listening = lines.filter(|line| line["event"] == "http_server_listening");
        // The other port is that of realtime sessions.
        if let Some(line) = listening.find(|line| line["variable"] == "DALSTON_METRICS_PORT") {
            let address: SocketAddr = line["address"].as_str().unwrap().parse().unwrap();
            return ([127, 0, 0, 1], address.port()).into();
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn guides_show_commands_that_work() {
    let guides = guides();
    let mut all = guides.iter().flat_map(|(_, commands)| commands);
    let start = all.find(|command| command.text.starts_with(START)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    symlink(workspace().join("examples"), directory.path().join("examples")).unwrap();
    let demo = Demo::start(start, directory.path());
    let log = |name: &str| directory.path().join(".dalston").join(name);
    let prometheus = TestPrometheus::with_config(&config_with_rules(
        directory.path(),
        &[
            ("gateway", ([127, 0, 0, 1], demo.port).into()),
            ("engine-prepare", metrics_of(&log("prepare.log"))),
            ("engine-mock", metrics_of(&log("engine.log"))),
        ],
    ));
    let ports = [
        ("localhost:8000", format!("localhost:{}", demo.port)),
        ("localhost:9090", prometheus.address().to_string()),
    ];
    let mut count = 0;
    for (path, commands) in &guides {
        let mut shell = PageShell::start(directory.path(), &ports);
        for command in commands.iter().filter(|command| !command.text.starts_with(START)) {
            shell.check(command, &path.display().to_string());
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
