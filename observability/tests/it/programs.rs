//! The configuration files in the programs that read them, as far as they run here.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{free_port, promtool};

use crate::files::{STACK, list, read, text, workspace};
use crate::rules::alerts;
use crate::stack::Stack;

const PROFILES: [(&str, &[&str]); 4] = [
    (
        "",
        &[
            "engine-whisper",
            "engine-prepare",
            "gateway",
            "orchestrator",
            "redis",
            "storage",
        ],
    ),
    ("tracing", &["jaeger"]),
    ("collector", &["otel-collector"]),
    (
        "monitoring",
        &[
            "alertmanager",
            "cadvisor",
            "grafana",
            "prometheus",
            "queue-exporter",
        ],
    ),
];

fn stack() -> PathBuf {
    workspace().join(STACK)
}

/// A program of the Python environment that `cargo xtask setup --compose` makes.
fn python_program(name: &str) -> Command {
    let path = workspace().join(".tools/compose/bin").join(name);
    assert!(
        path.exists(),
        "{} is needed: cargo xtask setup --compose",
        path.display()
    );
    let mut command = Command::new(path);
    command.current_dir(stack());
    command
}

fn output(command: &mut Command) -> (bool, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn compose_file_follows_the_schema() {
    const VALIDATE: &str = "import json, sys, yaml, jsonschema
schema = json.load(open(sys.argv[1]))
compose = yaml.safe_load(open('docker-compose.yml'))
jsonschema.validate(compose, schema)
compose['services']['redis']['imagee'] = 'x'
try:
    jsonschema.validate(compose, schema)
    sys.exit('the schema accepts everything')
except jsonschema.ValidationError:
    pass";
    let schema = workspace().join("observability/schema/compose-spec.json");
    let (ok, said) = output(python_program("python").args(["-c", VALIDATE]).arg(schema));
    assert!(ok, "{said}");
}

#[test]
fn compose_file_resolves_for_each_profile() {
    let directory = tempfile::tempdir().unwrap();
    // podman-compose asks for the version of podman and does not use it for this.
    let podman = directory.path().join("podman");
    fs::write(&podman, "#!/bin/sh\necho podman version 5.0.0\n").unwrap();
    fs::set_permissions(&podman, fs::Permissions::from_mode(0o755)).unwrap();
    let env = directory.path().join("env");
    let filled: String = read(&format!("{STACK}/.env.example"))
        .lines()
        .filter(|line| !line.starts_with("COMPOSE_PROFILES"))
        .map(|line| match line.strip_suffix('=') {
            Some(name) => format!("{name}=value\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(&env, filled).unwrap();
    let compose = || {
        let mut compose = python_program("podman-compose");
        compose
            .arg("--podman-path")
            .arg(&podman)
            .env_remove("COMPOSE_PROFILES");
        compose
    };
    for (profile, wanted) in PROFILES {
        let mut command = compose();
        command.arg("--env-file").arg(&env);
        if !profile.is_empty() {
            command.args(["--profile", profile]);
        }
        let (ok, said) = output(command.arg("config"));
        assert!(ok, "{profile}: {said}");
        for service in wanted {
            assert!(
                said.contains(&format!("\n  {service}:\n")),
                "{profile}: no {service}"
            );
        }
        assert_eq!(said.contains("\n  jaeger:\n"), profile == "tracing", "{profile}");
    }
    let (ok, said) = output(compose().arg("config"));
    assert!(!ok && said.contains("set it in .env"), "without secrets: {said}");
}

#[test]
fn promtool_accepts_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let rules = stack().join("prometheus/rules");
    let config = read(&format!("{STACK}/prometheus/prometheus.yml"))
        .replace("/etc/prometheus/rules", rules.to_str().unwrap());
    let path = directory.path().join("prometheus.yml");
    fs::write(&path, config).unwrap();
    let said = promtool(&["check", "config", path.to_str().unwrap()], "").unwrap_err();
    let found = format!("{} rules found", alerts().len());
    assert!(
        said.starts_with("exit status: 0") && said.contains(&found),
        "{said}"
    );
}

#[test]
fn amtool_routes_each_alert_by_its_severity() {
    let config = stack().join("alertmanager/alertmanager.yml");
    let config = config.to_str().unwrap();
    let needed = "amtool is needed: apt-get install prometheus-alertmanager";
    let check = Command::new("amtool")
        .args(["check-config", config])
        .output()
        .expect(needed);
    assert!(check.status.success(), "{check:?}");
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let severity = text(&alert["labels"]["severity"]);
        let receiver = match (name, severity) {
            ("Watchdog", _) => "heartbeat",
            (_, "critical") => "page",
            (_, "warning") => "ticket",
            (_, "info") => "nothing",
            other => panic!("{other:?}"),
        };
        let (ok, said) = output(
            Command::new("amtool")
                .args(["config", "routes", "test", "--config.file", config])
                .arg(format!("--verify.receivers={receiver}"))
                .args([format!("alertname={name}"), format!("severity={severity}")]),
        );
        assert!(ok, "{name}: {said}");
    }
}

/// Alertmanager with the command of the stack.
struct Alertmanager {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Alertmanager {
    fn start(receiver: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let command = list(&Stack::load().service("alertmanager")["command"]);
        // `$$` is a dollar sign in a Compose file.
        let command = text(&command[0])
            .trim_end()
            .replace("$$", "$")
            .replace(
                "/etc/alertmanager",
                stack().join("alertmanager").to_str().unwrap(),
            )
            .replace(" /alertmanager", &format!(" {}", directory.path().display()))
            .replace("=/alertmanager", &format!("={}", directory.path().display()))
            .replace("exec alertmanager", "exec prometheus-alertmanager");
        let process = Command::new("sh")
            .args(["-c", &format!("{command} --web.listen-address={address}")])
            .env("ALERT_WEBHOOK_URL", receiver)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self {
            process,
            address,
            _directory: directory,
        };
        until("alertmanager", || this.ask("GET", "/api/v2/status", "").map(drop));
        this
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ")
            .then(|| serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// The names of the alerts that are silenced by others.
    fn inhibited(&self) -> Vec<String> {
        let found = self.ask("GET", "/api/v2/alerts", "").unwrap();
        let mut names: Vec<String> = found
            .as_array()
            .unwrap()
            .iter()
            .filter(|alert| alert["status"]["state"] == "suppressed")
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Raises alerts with the labels of the rules.
    fn raise(&self, names: &[&str]) {
        let rules = alerts();
        let labels = names.iter().map(|name| {
            let rule = rules.iter().find(|rule| rule["alert"] == **name).unwrap();
            json!({"labels": {
                "alertname": name,
                "severity": text(&rule["labels"]["severity"]),
                "component": text(&rule["labels"]["component"]),
            }})
        });
        let body = Value::from(labels.collect::<Vec<_>>()).to_string();
        self.ask("POST", "/api/v2/alerts", &body).unwrap();
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in time");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn redis_and_the_exporter_silence_alerts_about_queues() {
    for source in ["RedisDown", "QueueMetricsAbsent"] {
        let alertmanager = Alertmanager::start("http://127.0.0.1:1");
        let queues = ["DeadLettersPresent", "QueueDepthHigh", "QueueNotServed"];
        alertmanager.raise(&[&queues[..], &["EngineErrorRateHigh"]].concat());
        assert_eq!(alertmanager.inhibited(), [""; 0]);
        alertmanager.raise(&[source]);
        until("silence", || (alertmanager.inhibited() == queues).then_some(()));
    }
}

#[test]
fn watchdog_reaches_the_address_of_the_variable() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let alertmanager = Alertmanager::start(&format!("http://{}", listener.local_addr().unwrap()));
    // At once, without the wait for further alerts of its group.
    alertmanager.raise(&["Watchdog"]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut request = [0; 512];
    let length = stream.read(&mut request).unwrap();
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    assert!(request.starts_with("POST /heartbeat HTTP/1.1"), "{request}");
}
