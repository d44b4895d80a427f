//! The boards and the configuration of `examples/observability-stack` with a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use testbed::{TestPrometheus, WebSocketClient, scrape_configs};
use tokio::time::{Instant, sleep};

use crate::client::{Worker, open, open_session, speech};
use crate::fixture::Fixture;
use crate::pictures::Picture;
use crate::rig::{Rig, free_port, stereo};

/// The only panels whose data come from the fixture, by board: they need hardware or services that
/// the test does not have.
const FROM_FIXTURE: [(&str, &[&str]); 6] = [
    ("dalston-overview", &["GPU utilization"]),
    (
        "audio-orchestrator-overview",
        &[
            "CPU utilization",
            "Memory utilization",
            "Webhooks",
            "Webhook duration",
        ],
    ),
    (
        "dalston-engine-performance",
        &[
            "GPU utilization",
            "GPU memory",
            "GPU temperature",
            "GPU power",
            "GPU memory in use",
        ],
    ),
    ("dalston-cost", &["Power", "Energy per audio hour"]),
    (
        "audio-pipeline",
        &["Audio quality metrics", "Wake detection performance"],
    ),
    (
        "service-details",
        &[
            "Label values folded",
            "Container CPU",
            "Container memory",
            "Webhook receivers",
        ],
    ),
];

/// What must happen beside the panels' data: failures and rejections, of jobs and of sessions.
const HAPPENED: [&str; 5] = [
    r#"dalston:engine_task_failures:ratio_rate10m{engine_id="mock-asr"} > 0"#,
    r#"dalston_realtime_session_ends_total{job="engine-mock",reason="completed"} > 0"#,
    r#"dalston_realtime_sessions_rejected_total{job="engine-mock",reason="invalid_request"} > 0"#,
    r#"dalston_realtime_sessions_active{job="engine-mock"} > 0"#,
    r#"dalston_session_router_sessions_total{job="gateway",status="error"} > 0"#,
];

/// The longest wait for the data of all panels.
const PATIENCE: Duration = Duration::from_secs(240);

/// A query of a panel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Query {
    board: String,
    panel: String,
    expr: String,
}

impl Query {
    /// With values in place of the variables. `jobs` is a regular expression.
    fn of_jobs(&self, jobs: &str) -> String {
        self.expr
            .replace("$__rate_interval", "30s")
            .replace("$price", "1")
            .replace("$job", jobs)
            .replace("$instance", ".+")
            .replace("$engine_id", ".+")
    }

    fn is_from_fixture(&self) -> bool {
        let mut boards = FROM_FIXTURE.iter();
        boards.any(|(board, panels)| *board == self.board && panels.contains(&&*self.panel))
    }
}

fn stack() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../observability-stack")
}

/// The boards by their ids.
fn boards() -> BTreeMap<String, Value> {
    let entries = fs::read_dir(stack().join("grafana/dashboards")).unwrap();
    let boards = entries.map(|entry| {
        let board: Value = serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        (board["uid"].as_str().unwrap().to_owned(), board)
    });
    boards.collect()
}

/// The queries of all boards to Prometheus.
fn queries() -> BTreeSet<Query> {
    let mut queries = BTreeSet::new();
    for (uid, board) in boards() {
        let panels = board["panels"].as_array().unwrap().iter();
        for panel in panels.filter(|panel| panel["datasource"]["type"] == "prometheus") {
            for target in panel["targets"].as_array().unwrap() {
                queries.insert(Query {
                    board: uid.clone(),
                    panel: panel["title"].as_str().unwrap().to_owned(),
                    expr: target["expr"].as_str().unwrap().to_owned(),
                });
            }
        }
    }
    queries
}

/// A configuration with the rules of the stack, evaluated each second.
pub(crate) fn config_with_rules(directory: &Path, jobs: &[(&str, SocketAddr)]) -> String {
    let mut files = Vec::new();
    for name in ["recording.yml", "alerts.yml"] {
        let rules = fs::read_to_string(stack().join("prometheus/rules").join(name)).unwrap();
        let path = directory.join(name);
        fs::write(&path, rules.replace("interval: 2m", "interval: 1s")).unwrap();
        files.push(format!("\"{}\"", path.display()));
    }
    format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}}\nrule_files: [{}]\n{}",
        files.join(", "),
        scrape_configs(jobs)
    )
}

/// Whether a sample is a number.
fn is_number(sample: &Value) -> bool {
    let value = sample["value"][1]
        .as_str()
        .and_then(|value| value.parse::<f64>().ok());
    value.is_some_and(|value| !value.is_nan())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_data_while_jobs_run() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    let engine = free_port();
    rig.variables = vec![
        ("DALSTON_METRICS_PORT", engine.to_string()),
        ("DALSTON_MAX_SESSIONS", "4".to_owned()),
    ];
    rig.run("mock-engine", &["--delay", "300", "--realtime", "--model"]);
    rig.variables.clear();
    rig.variables.push(("DALSTON_SCRAPE_INTERVAL", "1".to_owned()));
    rig.run("queue-exporter", &[]);
    let fixture = Fixture::start();
    rig.is_ready(2).await;
    rig.has_places(4).await;
    let directory = tempfile::tempdir().unwrap();
    let prometheus = TestPrometheus::with_config(&config_with_rules(
        directory.path(),
        &[
            ("gateway", rig.metrics_of("gateway")),
            ("orchestrator", rig.metrics_of("orchestrator")),
            ("engine-prepare", rig.metrics_of("prepare")),
            ("engine-mock", (Ipv4Addr::LOCALHOST, engine).into()),
            ("queue-exporter", rig.metrics_of("queue-exporter")),
            ("fixture", fixture.server.address()),
        ],
    ));
    // The first load of the model is a cold start, which Prometheus must see happen.
    prometheus.wait_for("query?query=up%7Bjob%3D%22engine-mock%22%7D", |data| {
        (data["result"][0]["value"][1] == "1").then_some(())
    });
    let all = queries();
    assert!(all.len() > 150, "{}", all.len());
    let mut missing = all.clone();
    missing.extend(HAPPENED.map(|expr| Query {
        board: String::new(),
        panel: "what the test does".to_owned(),
        expr: expr.to_owned(),
    }));
    let recording = stereo(2);
    // A load for a transcript that is dropped meanwhile would not be counted.
    let first: Value = rig.submit(&recording, &[]).await.json().await.unwrap();
    rig.job_with(first["id"].as_str().unwrap(), "completed").await;
    let mut sessions = Sessions::start(&rig).await;
    let began = Instant::now();
    while !missing.is_empty() {
        assert!(began.elapsed() < PATIENCE, "no data: {missing:#?}");
        // One that succeeds, with two channels, and one that fails.
        for fields in [&[][..], &[("prompt", "fail")]] {
            let response = rig.submit(&recording, fields).await;
            assert!(response.status().is_success(), "{}", response.status());
        }
        tokio::join!(sessions.second(&rig), sleep(Duration::from_secs(1)));
        // A board must show the real programs where they have the data.
        missing.retain(|query| {
            let jobs = match query.is_from_fixture() {
                true => ".+",
                false => "gateway|orchestrator|engine-.+|queue-exporter",
            };
            !prometheus.query(&query.of_jobs(jobs)).iter().any(is_number)
        });
    }
    let wanted = std::env::var("BOARDS_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    while began.elapsed() < Duration::from_secs(wanted) {
        for _ in 0..3 {
            rig.submit(&recording, &[("speaker_detection", "per_channel")])
                .await;
        }
        rig.submit(&recording, &[("prompt", "fail")]).await;
        tokio::join!(sessions.second(&rig), sleep(Duration::from_secs(1)));
    }
    draw(&prometheus, began.elapsed());
    let listed: usize = FROM_FIXTURE.iter().map(|(_, panels)| panels.len()).sum();
    let used: BTreeSet<_> = all
        .iter()
        .filter(|query| query.is_from_fixture())
        .map(|query| (&query.board, &query.panel))
        .collect();
    assert_eq!(used.len(), listed, "a listed panel does not exist");
}

/// Realtime sessions beside the jobs.
struct Sessions {
    /// A session as long as the test, whose audio arrives as it is spoken.
    long: WebSocketClient,
    /// A worker that fails.
    failing: Worker,
    speech: Vec<u8>,
    sent: usize,
}

impl Sessions {
    async fn start(rig: &Rig) -> Self {
        let (long, _) = open_session(rig, "").await;
        Self {
            long,
            failing: Worker::register(&rig.redis, "failing-rt-1", &[]).await,
            speech: speech("en_long_75s"),
            sent: 0,
        }
    }

    /// A second of the long session, and a session of each other kind: one that succeeds with audio
    /// of another rate, one with an utterance that fails, one whose worker fails, and one that is
    /// rejected.
    async fn second(&mut self, rig: &Rig) {
        for _ in 0..10 {
            let chunk = &self.speech[self.sent % self.speech.len()..][..3_200];
            assert!(self.long.send_bytes(chunk.to_vec()).await);
            self.sent += 3_200;
        }
        for query in ["sample_rate=8000", "prompt=fail"] {
            let (mut client, _) = open_session(rig, &format!("model=mock-asr&{query}")).await;
            assert!(client.send_bytes(speech("en_one")).await);
            client.finish().await;
        }
        // Without a heartbeat it gets no further session.
        self.failing.heartbeat(&rig.redis, &[("status", "ready")]).await;
        let opening = open(rig, "model=scripted", &[]);
        let (mut client, session) = tokio::join!(opening, self.failing.begin());
        drop(session);
        let messages = client.rest().await;
        assert_eq!(messages[1]["code"], "internal_error", "{messages:?}");
        let mut rejected = open(rig, "model=mock-asr&channels=9", &[]).await;
        let messages = rejected.rest().await;
        assert_eq!(messages[0]["code"], "invalid_message", "{messages:?}");
    }
}

/// Draws all boards into `boards` of the directory of build results.
fn draw(prometheus: &TestPrometheus, period: Duration) {
    let end = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let time = end - period.as_secs_f64()..end;
    let step = (period.as_secs_f64() / 60.0).max(0.5);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../boards");
    fs::create_dir_all(&directory).unwrap();
    for (uid, board) in boards() {
        let picture = Picture {
            board: &board,
            time: time.clone(),
        };
        let lines = |expr: &str, legend: &str| {
            let query = Query {
                board: String::new(),
                panel: String::new(),
                expr: expr.to_owned(),
            };
            let series = prometheus.query_range(&query.of_jobs(".+"), time.clone(), step);
            series.iter().map(|series| line(series, legend)).collect()
        };
        picture
            .draw(&directory.join(format!("{uid}.svg")), lines)
            .unwrap();
    }
}

/// The points of a series, and its legend with the values of its labels.
fn line(series: &Value, legend: &str) -> (String, Vec<(f64, f64)>) {
    let labels = series["metric"].as_object().into_iter().flatten();
    let values = |label: &Value| label.as_str().unwrap_or_default().to_owned();
    let name = match legend {
        "" => labels
            .map(|(_, value)| values(value))
            .collect::<Vec<_>>()
            .join(" "),
        legend => labels.fold(legend.to_owned(), |name, (label, value)| {
            name.replace(&format!("{{{{{label}}}}}"), &values(value))
        }),
    };
    // A label without a value is empty.
    let words = name.split(' ').filter(|word| !word.starts_with("{{"));
    let name = words.collect::<Vec<_>>().join(" ");
    let points = series["values"].as_array().into_iter().flatten();
    let points = points.filter_map(|point| {
        let value: f64 = point[1].as_str()?.parse().ok()?;
        Some((point[0].as_f64()?, value))
    });
    (name, points.filter(|(_, value)| value.is_finite()).collect())
}

/// Serves the metrics of the gateway as the collector would after a push, and those of a program
/// that only pushes.
fn pushed(gateway: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let scraped = scrape(gateway);
            let lines = scraped
                .lines()
                .filter(|line| line.starts_with("dalston_gateway_requests_total{"));
            let labelled = |job: &str| -> String {
                let labels = format!("job=\"dalston/{job}\",instance=\"pushed\",");
                let with = |line: &str| line.replacen('{', &format!("{{{labels}"), 1) + "\n";
                lines
                    .clone()
                    .map(|line| with(line.split(" # ").next().unwrap()))
                    .collect()
            };
            let body = labelled("dalston-gateway") + &labelled("laptop");
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n{body}"
            );
        }
    });
    address
}

pub(crate) fn scrape(address: SocketAddr) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_also_pushes_is_counted_once() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    let gateway = rig.metrics_of("gateway");
    rig.until("answer", async || {
        let answer = rig.request(reqwest::Method::GET, "/v1/engines").send().await;
        answer.ok().map(drop)
    })
    .await;
    for _ in 0..6 {
        let _ = rig.get("/v1/engines").await;
    }
    let collector = pushed(gateway);
    let config = fs::read_to_string(stack().join("prometheus/prometheus.yml")).unwrap();
    let config = config
        .replace("gateway:8000", &gateway.to_string())
        .replace("otel-collector:8889", &collector.to_string())
        .replace(
            "scrape_interval: 15s",
            "scrape_interval: 300ms\n  scrape_timeout: 300ms",
        )
        .replace("/etc/prometheus/rules/*.yml", "/nonexistent/*.yml")
        .replace("alertmanager:9093", "127.0.0.1:1");
    let prometheus = TestPrometheus::with_config(&config);
    let engines =
        "dalston_gateway_requests_total%7Bendpoint%3D%22%2Fv1%2Fengines%22%2Cstatus_code%3D%22200%22%7D";
    let totals = prometheus.wait_for(&format!("query?query={engines}"), |data| {
        let samples = data["result"].as_array()?.iter();
        let totals: BTreeMap<String, String> = samples
            .map(|sample| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&sample["metric"]["job"]), text(&sample["value"][1]))
            })
            .collect();
        (totals.len() >= 2).then_some(totals)
    });
    let expected = [("dalston/laptop", "7"), ("gateway", "7")];
    assert_eq!(
        totals,
        expected
            .map(|(job, total)| (job.to_owned(), total.to_owned()))
            .into()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn first_failure_of_a_route_is_an_increase() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    let prometheus = TestPrometheus::start(&[("gateway", rig.metrics_of("gateway"))]);
    let total =
        r#"dalston_gateway_requests_total{endpoint="/v1/audio/transcriptions/{id}",status_code="404"}"#;
    let value = |expr: &str| {
        let samples = prometheus.query(expr);
        samples
            .first()
            .map(|sample| sample["value"][1].as_str().unwrap().to_owned())
    };
    rig.until("scrape", async || (value(total)? == "0").then_some(()))
        .await;
    let missing = rig.request(reqwest::Method::GET, "/v1/audio/transcriptions/none");
    assert_eq!(missing.send().await.unwrap().status(), 404);
    let increase = format!("increase({total}[1m]) > 0");
    rig.until("increase", async || value(&increase).map(drop)).await;
}
