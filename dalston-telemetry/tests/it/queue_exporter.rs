//! The queue exporter against a real Redis.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use dalston_telemetry::metrics::{Metrics, MetricsServer, MetricsSnapshot, TextFormat};
use dalston_telemetry::queue_exporter::{QueueExporter, QueueExporterConfig};
use testbed::{Authority, Fsync, Proxy, TestRedis, promtool};

const PATIENCE: Duration = Duration::from_secs(60);

/// An exporter with the shortest interval.
struct Running {
    metrics: Metrics,
    exporter: QueueExporter,
}

impl Running {
    fn start(url: &str) -> Self {
        Self::with(url, |_| {})
    }

    fn with(url: &str, change: impl FnOnce(&mut QueueExporterConfig)) -> Self {
        let mut config = QueueExporterConfig::new(url).unwrap();
        config.interval = Duration::from_millis(20);
        change(&mut config);
        let metrics = Metrics::new();
        let exporter = QueueExporter::spawn(config, &metrics);
        Self { metrics, exporter }
    }

    /// Waits until the metrics meet the condition.
    async fn until<T>(&self, wanted: impl Fn(&MetricsSnapshot) -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = wanted(&self.metrics.snapshot()) {
                return found;
            }
            assert!(Instant::now() < give_up, "{}", self.metrics.encode());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_depth(&self, engine_id: &str, depth: Option<f64>) {
        self.until(|now| (depth_of(now, engine_id) == depth).then_some(()))
            .await;
    }

    async fn until_connected(&self, connected: bool) {
        let wanted = Some(f64::from(u8::from(connected)));
        self.until(|now| (now.value("dalston_redis_connected", &[]) == wanted).then_some(()))
            .await;
    }
}

fn depth_of(now: &MetricsSnapshot, engine_id: &str) -> Option<f64> {
    now.value("dalston_queue_depth", &[("engine_id", engine_id)])
}

fn value(now: &MetricsSnapshot, name: &str, engine_id: &str) -> f64 {
    now.value(name, &[("engine_id", engine_id)]).unwrap()
}

fn stream(engine_id: &str) -> String {
    format!("dalston:stream:{engine_id}")
}

/// Queues tasks like the orchestrator, that many seconds ago. Returns the ids of their entries.
async fn queue(redis: &TestRedis, engine_id: &str, tasks: usize, seconds_ago: i64) -> Vec<String> {
    let enqueued = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds_ago);
    let key = stream(engine_id);
    let mut ids = Vec::new();
    for number in 0..tasks {
        let task = format!("task-{number}");
        let words = ["XADD", &key, "*", "task_id", &task, "job_id", "job"];
        let times = [
            "enqueued_at",
            &enqueued.to_string(),
            "timeout_at",
            "2099-01-01T00:00:00+00:00",
        ];
        ids.push(redis.send(&[&words[..], &times[..]].concat()).await);
    }
    ids
}

/// Queues many tasks.
async fn queue_many(redis: &TestRedis, engine_id: &str, tasks: usize) {
    let script = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'task_id', i) end";
    let _: () = redis
        .send(&["EVAL", script, "1", &stream(engine_id), &tasks.to_string()])
        .await;
}

async fn make_group(redis: &TestRedis, engine_id: &str, group: &str) {
    let _: () = redis
        .send(&["XGROUP", "CREATE", &stream(engine_id), group, "0", "MKSTREAM"])
        .await;
}

/// Delivers tasks to an engine.
async fn deliver(redis: &TestRedis, engine_id: &str, group: &str, tasks: usize) {
    let words = ["XREADGROUP", "GROUP", group, "one", "COUNT", &tasks.to_string()];
    let _: redis::Value = redis
        .send(&[&words[..], &["STREAMS", &stream(engine_id), ">"]].concat())
        .await;
}

/// The lag that Redis reports.
async fn lag(redis: &TestRedis, engine_id: &str) -> Option<u64> {
    let groups: Vec<std::collections::HashMap<String, redis::Value>> =
        redis.send(&["XINFO", "GROUPS", &stream(engine_id)]).await;
    redis::from_redis_value(groups[0]["lag"].clone()).unwrap()
}

#[tokio::test]
async fn depth_pending_and_age_of_a_queue_are_exposed() {
    let redis = TestRedis::start().await;
    make_group(&redis, "asr", "engines").await;
    queue(&redis, "asr", 2, 7200).await;
    queue(&redis, "asr", 3, 3600).await;
    deliver(&redis, "asr", "engines", 2).await;
    let _: () = redis
        .send(&["XADD", "dalston:events:dlq", "*", "error", "x"])
        .await;
    let _: () = redis
        .send(&["XADD", "dalston:events:stream", "*", "type", "x"])
        .await;
    let running = Running::start(&redis.url());
    running.until_depth("asr", Some(3.0)).await;
    let now = running.metrics.snapshot();
    assert_eq!(value(&now, "dalston_queue_pending", "asr"), 2.0);
    let age = value(&now, "dalston_queue_oldest_task_age_seconds", "asr");
    assert!((3600.0..7000.0).contains(&age), "{age}");
    assert_eq!(now.value("dalston_redis_connected", &[]), Some(1.0));
    assert_eq!(now.value("dalston_events_dead_letters", &[]), Some(1.0));
    assert_eq!(now.value("dalston_queues_left_out", &[]), Some(0.0));
    // The streams of events and of dead letters are no queues.
    assert_eq!(
        now.iter()
            .filter(|(series, _)| series.starts_with("dalston_queue_depth"))
            .count(),
        1
    );

    deliver(&redis, "asr", "engines", 3).await;
    running.until_depth("asr", Some(0.0)).await;
    let now = running.metrics.snapshot();
    assert_eq!(value(&now, "dalston_queue_oldest_task_age_seconds", "asr"), 0.0);
    assert_eq!(value(&now, "dalston_queue_pending", "asr"), 5.0);

    let text = running.metrics.encode_as(TextFormat::Prometheus);
    promtool(&["check", "metrics"], &text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
    running.exporter.shutdown().await;
    assert_eq!(running.metrics.snapshot().iter().count(), 0);
}

#[tokio::test]
async fn removed_tasks_do_not_count_as_waiting() {
    let redis = TestRedis::start().await;
    let running = Running::start(&redis.url());
    make_group(&redis, "asr", "engines").await;
    queue(&redis, "asr", 1, 50).await;
    deliver(&redis, "asr", "engines", 1).await;
    let ids = queue(&redis, "asr", 4, 40).await;
    let _: u64 = redis.send(&["XDEL", &stream("asr"), &ids[1]]).await;
    assert_eq!(lag(&redis, "asr").await, None);
    running.until_depth("asr", Some(3.0)).await;
    // The oldest is removed, too.
    let _: u64 = redis.send(&["XDEL", &stream("asr"), &ids[0]]).await;
    running.until_depth("asr", Some(2.0)).await;
    // Tasks that were not delivered are trimmed, and Redis still counts them.
    make_group(&redis, "trimmed", "engines").await;
    queue(&redis, "trimmed", 310, 40).await;
    deliver(&redis, "trimmed", "engines", 10).await;
    let _: u64 = redis.send(&["XTRIM", &stream("trimmed"), "MAXLEN", "150"]).await;
    assert_eq!(lag(&redis, "trimmed").await, Some(300));
    running.until_depth("trimmed", Some(150.0)).await;
    // No task is left.
    for id in &ids[2..] {
        let _: u64 = redis.send(&["XDEL", &stream("asr"), id]).await;
    }
    running.until_depth("asr", Some(0.0)).await;
}

#[tokio::test]
async fn a_long_queue_has_the_lag_of_redis_if_possible() {
    let redis = TestRedis::start().await;
    let running = Running::start(&redis.url());
    let setid = async |engine_id: &str, read: &str| {
        let key = stream(engine_id);
        let first = redis
            .send::<Vec<redis::Value>>(&["XRANGE", &key, "-", "+", "COUNT", "1"])
            .await;
        let (id, _): (String, redis::Value) = redis::from_redis_value(first[0].clone()).unwrap();
        let _: () = redis
            .send(&["XGROUP", "SETID", &key, "engines", &id, "ENTRIESREAD", read])
            .await;
    };
    make_group(&redis, "believed", "engines").await;
    queue_many(&redis, "believed", 12_000).await;
    running.until_depth("believed", Some(12_000.0)).await;

    // The group of a server that was a replica does not know how many entries were read.
    make_group(&redis, "forgetful", "engines").await;
    queue_many(&redis, "forgetful", 50).await;
    setid("forgetful", "-1").await;
    running.until_depth("forgetful", Some(49.0)).await;

    make_group(&redis, "counted", "engines").await;
    queue_many(&redis, "counted", 2_500).await;
    let _: () = redis
        .send(&["XGROUP", "SETID", &stream("counted"), "engines", "0-1"])
        .await;
    assert_eq!(lag(&redis, "counted").await, Some(2_500));
    setid("counted", "1").await;
    running.until_depth("counted", Some(2_499.0)).await;
    let ids: Vec<(String, redis::Value)> = redis
        .send(&["XRANGE", &stream("counted"), "-", "+", "COUNT", "9"])
        .await;
    let _: u64 = redis.send(&["XDEL", &stream("counted"), &ids[8].0]).await;
    assert_eq!(lag(&redis, "counted").await, None);
    running.until_depth("counted", Some(2_498.0)).await;

    // The largest count.
    let ids: Vec<(String, redis::Value)> = redis
        .send(&["XRANGE", &stream("believed"), "-", "+", "COUNT", "9"])
        .await;
    let _: u64 = redis.send(&["XDEL", &stream("believed"), &ids[8].0]).await;
    setid("believed", "1").await;
    assert_eq!(lag(&redis, "believed").await, None);
    running.until_depth("believed", Some(10_000.0)).await;
}

#[tokio::test]
async fn only_the_consumer_group_of_engines_counts() {
    let redis = TestRedis::start().await;
    let running = Running::start(&redis.url());
    make_group(&redis, "asr", "audit").await;
    make_group(&redis, "asr", "engines").await;
    make_group(&redis, "asr", "zeal").await;
    queue(&redis, "asr", 5, 10).await;
    deliver(&redis, "asr", "audit", 5).await;
    deliver(&redis, "asr", "engines", 1).await;
    running.until_depth("asr", Some(4.0)).await;
    assert_eq!(
        value(&running.metrics.snapshot(), "dalston_queue_pending", "asr"),
        1.0
    );
    // No engine has read this queue, so all tasks wait.
    queue(&redis, "early", 3, 10).await;
    running.until_depth("early", Some(3.0)).await;
}

#[tokio::test]
async fn queues_of_unknown_engines_appear_and_disappear() {
    let redis = TestRedis::start().await;
    let running = Running::start(&redis.url());
    running.until_connected(true).await;
    // An unknown engine, with tasks without a time and with ids that are no times.
    let key = stream("acme.third-party_v2");
    let _: () = redis.send(&["XADD", &key, "1000-1", "payload", "?"]).await;
    running.until_depth("acme.third-party_v2", Some(1.0)).await;
    let age = value(
        &running.metrics.snapshot(),
        "dalston_queue_oldest_task_age_seconds",
        "acme.third-party_v2",
    );
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!((since_1970.as_secs_f64() - age).abs() < 300.0, "{age}");
    // A time in the future, by a clock that is fast.
    queue(&redis, "ahead", 1, -3600).await;
    running.until_depth("ahead", Some(1.0)).await;
    let age = value(
        &running.metrics.snapshot(),
        "dalston_queue_oldest_task_age_seconds",
        "ahead",
    );
    assert_eq!(age, 0.0);
    // A key that is no stream, and a name that can't be a label.
    let _: () = redis.send(&["SET", &stream("text"), "x"]).await;
    let _: () = redis
        .send_bytes(&[b"XADD", b"dalston:stream:\xff\n", b"*", b"a", b"b"])
        .await;
    let _: u64 = redis.send(&["DEL", &key]).await;
    running.until_depth("acme.third-party_v2", None).await;
    // The key gets another type between two polls.
    let _: () = redis.send(&["SET", &stream("ahead"), "x"]).await;
    running.until_depth("ahead", None).await;
    let now = running.metrics.snapshot();
    assert_eq!(now.value("dalston_redis_connected", &[]), Some(1.0));
    assert_eq!(
        now.iter()
            .filter(|(series, _)| series.starts_with("dalston_queue_"))
            .count(),
        0
    );
}

#[tokio::test]
async fn without_redis_the_last_values_stay_for_a_while() {
    let redis = TestRedis::with().append_only(Fsync::Always).start().await;
    queue(&redis, "asr", 3, 10).await;
    let running = Running::with(&redis.url(), |config| config.keep = Duration::from_secs(3600));
    let forgetful = Running::with(&redis.url(), |config| config.keep = Duration::from_millis(200));
    running.until_depth("asr", Some(3.0)).await;
    forgetful.until_depth("asr", Some(3.0)).await;
    redis.kill();
    running.until_connected(false).await;
    forgetful.until_depth("asr", None).await;
    assert_eq!(depth_of(&running.metrics.snapshot(), "asr"), Some(3.0));
    let gone = forgetful.metrics.snapshot();
    assert_eq!(
        gone.iter().collect::<Vec<_>>(),
        [("dalston_redis_connected", 0.0)]
    );
    redis.restart().await;
    running.until_connected(true).await;
    forgetful.until_depth("asr", Some(3.0)).await;
    deliver_all(&redis, "asr").await;
    running.until_depth("asr", Some(0.0)).await;
}

async fn deliver_all(redis: &TestRedis, engine_id: &str) {
    make_group(redis, engine_id, "engines").await;
    deliver(redis, engine_id, "engines", 100).await;
}

#[tokio::test]
async fn the_exporter_connects_anew_for_each_poll() {
    let (old, new) = (TestRedis::start().await, TestRedis::start().await);
    queue(&old, "asr", 1, 10).await;
    queue(&new, "asr", 2, 10).await;
    let proxy = Proxy::to(old.port()).await;
    proxy.refuse(true);
    let running = Running::start(&format!("redis://127.0.0.1:{}", proxy.port()));
    running.until_connected(false).await;
    proxy.refuse(false);
    running.until_depth("asr", Some(1.0)).await;
    // A connection to a server that has lost its role can stay open.
    proxy.lead_to(new.port());
    running.until_depth("asr", Some(2.0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_does_not_wait_for_a_hanging_redis() {
    let redis = TestRedis::start().await;
    queue(&redis, "asr", 3, 10).await;
    let proxy = Proxy::to(redis.port()).await;
    let running = Running::start(&format!("redis://127.0.0.1:{}", proxy.port()));
    running.until_depth("asr", Some(3.0)).await;
    let server = MetricsServer::start("127.0.0.1:0", running.metrics.clone()).unwrap();
    proxy.stall(true);
    let address = server.address();
    let scrape = async move || {
        tokio::task::spawn_blocking(move || get(address, "/metrics"))
            .await
            .unwrap()
    };
    // Until the exporter gives up, and longer.
    let mut last = String::new();
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    while !last.contains("dalston_redis_connected 0\n") {
        let asked = Instant::now();
        last = scrape().await;
        longest = longest.max(asked.elapsed());
        assert!(
            last.contains("dalston_queue_depth{engine_id=\"asr\"} 3\n"),
            "{last}"
        );
        assert!(begun.elapsed() < PATIENCE, "{last}");
    }
    // A scrape that waits for Redis would take as long as the poll.
    assert!(
        longest * 2 < begun.elapsed(),
        "{longest:?} of {:?}",
        begun.elapsed()
    );
    // The shutdown does not wait either.
    let Running { metrics, exporter } = running;
    tokio::time::timeout(PATIENCE, exporter.shutdown()).await.unwrap();
    assert_eq!(metrics.snapshot().iter().count(), 0);
}

#[tokio::test]
async fn a_thousand_queues_take_few_round_trips() {
    let redis = TestRedis::start().await;
    let script = "for i = 1, 1000 do for j = 1, 3 do redis.call('XADD', KEYS[1] .. i, '*', 'a', 'b') end end";
    let _: () = redis.send(&["EVAL", script, "1", &stream("asr-")]).await;
    // One poll only.
    let running = Running::with(&redis.url(), |config| config.interval = Duration::from_secs(3600));
    let reads = async || {
        let info: String = redis.send(&["INFO", "stats"]).await;
        let reads = info
            .lines()
            .find_map(|line| line.strip_prefix("total_reads_processed:"));
        reads.unwrap().parse::<u64>().unwrap()
    };
    let before = reads().await;
    running.until_depth("asr-1000", Some(3.0)).await;
    // Commands that are sent together can arrive in several reads.
    let reads = reads().await - before;
    assert!(reads < 200, "{reads}");
    let now = running.metrics.snapshot();
    assert_eq!(now.sum("dalston_queue_depth", &[]), 3000.0);
    let info: String = redis.send(&["INFO", "commandstats"]).await;
    for (command, calls) in [("xinfo|groups", 1000), ("xrange", 1000)] {
        assert!(
            info.contains(&format!("cmdstat_{command}:calls={calls},")),
            "{info}"
        );
    }
    println!("1000 queues: {reads} reads of the server");
}

#[tokio::test]
async fn queues_beyond_the_limit_are_left_out_and_counted() {
    let redis = TestRedis::start().await;
    for number in 0..3 {
        queue(&redis, &format!("asr-{number}"), 1, 10).await;
    }
    let running = Running::with(&redis.url(), |config| config.max_queues = 3);
    running
        .until(|now| (now.sum("dalston_queue_depth", &[]) == 3.0).then_some(()))
        .await;
    for number in 3..8 {
        queue(&redis, &format!("asr-{number}"), 1, 10).await;
    }
    let left_out = |wanted| {
        move |now: &MetricsSnapshot| (now.value("dalston_queues_left_out", &[]) == Some(wanted)).then_some(())
    };
    running.until(left_out(5.0)).await;
    assert_eq!(depth_of(&running.metrics.snapshot(), "asr-2"), Some(1.0));
    // A removed queue makes room for another one.
    let _: u64 = redis.send(&["DEL", &stream("asr-2")]).await;
    running.until(left_out(4.0)).await;
    assert_eq!(running.metrics.snapshot().sum("dalston_queue_depth", &[]), 3.0);
}

#[tokio::test]
async fn queues_among_many_keys_are_found_in_several_polls() {
    let redis = TestRedis::start().await;
    let script = "for i = 1, 400000 do redis.call('SET', KEYS[1] .. i, '') end";
    let _: () = redis.send(&["EVAL", script, "1", "dalston:job:"]).await;
    for number in 0..20 {
        queue(&redis, &format!("asr-{number}"), 1, 10).await;
    }
    let running = Running::start(&redis.url());
    running
        .until(|now| (now.sum("dalston_queue_depth", &[]) == 20.0).then_some(()))
        .await;
}

#[tokio::test]
async fn a_user_with_read_permission_is_enough() {
    let redis = TestRedis::start().await;
    queue(&redis, "asr", 3, 10).await;
    let user = |name, rights: &[&str]| {
        let words = [&["ACL", "SETUSER", name, "on", ">hunter2"], rights].concat();
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let rights = [
        "+@connection",
        "+scan",
        "+xinfo",
        "+xlen",
        "+xrange",
        "%R~dalston:*",
    ];
    let all_but_one: Vec<&str> = rights.into_iter().filter(|right| *right != "+xrange").collect();
    for words in [
        user("reader", &rights),
        user("blind", &all_but_one),
        user("without_rights", &["+@connection", "%R~dalston:*"]),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let _: () = redis.send(&words).await;
    }
    let url = |name: &str| format!("redis://{name}:hunter2@127.0.0.1:{}", redis.port());
    let reader = Running::start(&url("reader"));
    reader.until_depth("asr", Some(3.0)).await;
    let without_rights = Running::start(&url("without_rights"));
    without_rights.until_connected(false).await;
    let blind = Running::start(&url("blind"));
    blind.until_connected(false).await;
    assert_eq!(depth_of(&blind.metrics.snapshot(), "asr"), None);
}

#[tokio::test]
async fn values_stay_between_polls_with_a_long_interval() {
    let redis = TestRedis::start().await;
    queue(&redis, "asr", 3, 10).await;
    let running = Running::with(&redis.url(), |config| {
        config.interval = Duration::from_secs(3600);
        config.keep = Duration::from_millis(1);
    });
    running.until_depth("asr", Some(3.0)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(depth_of(&running.metrics.snapshot(), "asr"), Some(3.0));
}

/// The program with its log lines.
struct Program {
    process: Child,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
}

impl Program {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_dalston-queue-exporter"))
            .env_clear()
            .envs(variables.iter().copied())
            .env("DALSTON_METRICS_PORT", "0")
            .env("DALSTON_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdout: BufReader::new(process.stdout.take().unwrap()),
            stderr: process.stderr.take().unwrap(),
            process,
        }
    }

    /// Reads log lines up to one of this event.
    fn line(&mut self, event: &str, output: &mut String) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "{event}: {output}");
            output.push_str(&line);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["event"] == event {
                return line;
            }
        }
    }

    /// The exit status and the rest of the output.
    fn end(mut self) -> (Option<i32>, String) {
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).unwrap();
        self.stderr.read_to_string(&mut output).unwrap();
        (self.process.wait().unwrap().code(), output)
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_uses_tls_hides_the_password_and_shuts_down() {
    let authority = Authority::new();
    let redis = TestRedis::with()
        .tls(&authority)
        .password("hunter2")
        .start()
        .await;
    queue(&redis, "asr", 3, 10).await;
    let trusted = authority.file().display().to_string();
    let variables = [
        ("REDIS_URL", &*redis.url()),
        ("SSL_CERT_FILE", &*trusted),
        ("DALSTON_SCRAPE_INTERVAL", "1"),
    ];
    assert!(variables[0].1.starts_with("rediss://:hunter2@"), "{variables:?}");
    let mut program = Program::start(&variables);
    let mut output = String::new();
    let line = program.line("http_server_listening", &mut output);
    let port = line["address"]
        .as_str()
        .unwrap()
        .rsplit_once(':')
        .unwrap()
        .1
        .parse()
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(
        program.line("redis_connected", &mut output)["queues"],
        1,
        "{output}"
    );
    let scraped = get(address, "/metrics");
    assert!(
        scraped.contains("dalston_queue_depth{engine_id=\"asr\"} 3\n"),
        "{scraped}"
    );
    assert!(
        scraped.contains("dalston_build_info{service=\"dalston-queue-exporter\""),
        "{scraped}"
    );
    assert!(get(address, "/health").ends_with(r#"{"status":"healthy","redis":"connected"}"#));

    redis.kill();
    program.line("redis_unreachable", &mut output);
    let health = get(address, "/health");
    assert!(
        health.starts_with("HTTP/1.1 200 ") && health.contains(r#""redis":"unreachable""#),
        "{health}"
    );
    assert!(get(address, "/metrics").contains("dalston_redis_connected 0\n"));

    let pid = program.process.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let (status, rest) = program.end();
    output.push_str(&rest);
    assert_eq!(status, Some(0), "{output}");
    assert!(
        output.contains("shutdown_signal_received") && !output.contains("hunter2"),
        "{output}"
    );
}

#[test]
fn the_program_names_wrong_variables_without_secrets() {
    for (name, value, problem) in [
        (
            "REDIS_URL",
            "http://:hunter2@cache",
            "REDIS_URL is not valid (the value is not shown)",
        ),
        (
            "DALSTON_SCRAPE_INTERVAL",
            "often",
            r#"DALSTON_SCRAPE_INTERVAL is "often""#,
        ),
        ("METRICS_ENABLED", "false", "METRICS_ENABLED is false"),
    ] {
        let (status, output) = Program::start(&[(name, value)]).end();
        assert_eq!(status, Some(2), "{output}");
        assert!(
            output.contains(problem) && !output.contains("hunter2"),
            "{output}"
        );
    }
}
