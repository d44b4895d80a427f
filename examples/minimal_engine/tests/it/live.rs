//! The binary as a worker of a deployment.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::collector::{Collector, Protocol};
use testbed::{Authority, Fault, TestRedis, TestS3, Trouble};

use crate::pages::DEPLOYMENT;
use crate::{Engine, Guard, PATIENCE, finish, signal};

const JOB: &str = "0d4c2b1a-9f8e-4d7c-b6a5-443322110000";

/// A running worker and its output so far.
struct Worker {
    process: Guard,
    written: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Worker {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let written = Arc::<Mutex<String>>::default();
        let read = |from: Box<dyn Read + Send>| {
            let written = Arc::clone(&written);
            thread::spawn(move || {
                for line in BufReader::new(from).lines() {
                    let mut written = written.lock().unwrap();
                    written.push_str(&line.unwrap());
                    written.push('\n');
                }
            })
        };
        let readers = vec![
            read(Box::new(process.stdout.take().unwrap())),
            read(Box::new(process.stderr.take().unwrap())),
        ];
        Self {
            process: Guard(process),
            written,
            readers,
        }
    }

    fn written(&self) -> String {
        self.written.lock().unwrap().clone()
    }

    /// The first line about an event.
    fn line(&self, event: &str) -> Option<Value> {
        let lines = self.written();
        let mut lines = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["event"] == event)
    }

    async fn until_line(&self, event: &str) -> Value {
        until(event, async || self.line(event)).await
    }

    /// The exit status and the whole output.
    async fn end(mut self) -> (Option<i32>, String) {
        let status = until("end of the process", async || self.process.0.try_wait().unwrap()).await;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status.code(), self.written())
    }
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn command(engine: &Engine, redis: &str, s3: &TestS3) -> Command {
    of_deployment(engine.command("run"), redis, s3)
}

fn of_deployment(mut command: Command, redis: &str, s3: &TestS3) -> Command {
    command
        .env("REDIS_URL", redis)
        .env("DALSTON_S3_ENDPOINT_URL", s3.url())
        .env("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY)
        .env("DALSTON_METRICS_PORT", "0");
    command
}

async fn enqueue(redis: &TestRedis, s3: &TestS3, task: &str) {
    let artifact =
        json!({"artifact_id": "P:text", "kind": "text", "storage_locator": "s3://uploads/notes.txt"});
    let request = json!({"task_id": task, "job_id": JOB, "resolved_artifact_ids": {"input": "P:text"},
        "artifact_index": {"P:text": artifact}, "config": {}});
    let place = format!("{}/jobs/{JOB}/tasks/{task}/request.json", TestS3::BUCKET);
    s3.put("uploads/notes.txt", "one two three");
    s3.put(&place, request.to_string());
    let key = format!("dalston:task:{task}");
    let () = redis.send(&["HSET", &key, "job_id", JOB, "stage", "count"]).await;
    let message = [
        "XADD",
        "dalston:stream:word-counter",
        "*",
        "task_id",
        task,
        "job_id",
        JOB,
    ];
    let () = redis.send(&message).await;
}

async fn until_event(redis: &TestRedis, kind: &str, task: &str) -> Value {
    let find = async || {
        let range = ["XRANGE", "dalston:events:stream", "-", "+"];
        let entries: Vec<(String, BTreeMap<String, String>)> = redis.send(&range).await;
        let events = entries.into_iter().map(|(_, fields)| {
            (
                fields["type"].clone(),
                fields["payload"].parse::<Value>().unwrap(),
            )
        });
        let mut found = events.filter(|(k, payload)| k == kind && payload["task_id"] == task);
        found.next().map(|(_, payload)| payload)
    };
    until(&format!("{kind} of {task}"), find).await
}

/// All keys and values of Redis.
async fn everything_in(redis: &TestRedis) -> String {
    let mut all = String::new();
    let keys: Vec<String> = redis.send(&["KEYS", "*"]).await;
    for key in keys {
        let kind: String = redis.send(&["TYPE", &key]).await;
        let read: Vec<&str> = match &*kind {
            "hash" => vec!["HGETALL", &key],
            "set" => vec!["SMEMBERS", &key],
            "stream" => vec!["XRANGE", &key, "-", "+"],
            "string" => vec!["GET", &key],
            other => panic!("{key} is a {other}"),
        };
        let value: String = format!("{:?}", redis.send::<testbed::RedisValue>(&read).await);
        all.push_str(&format!("{key}: {value}\n"));
    }
    all
}

fn get(address: &str, path: &str) -> String {
    let port = address.rsplit(':').next().unwrap();
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_over_tls_completes_and_leaks_no_secret() {
    const PASSWORD: &str = "redis-hunter2";
    let authority = Authority::new();
    let redis = TestRedis::with()
        .tls(&authority)
        .password("default-hunter2")
        .user("engine", PASSWORD);
    let redis = redis.start().await;
    let s3 = TestS3::start_tls(&authority);
    assert!(redis.url().starts_with("rediss://engine:redis-hunter2@") && s3.url().starts_with("https://"));
    let collector = Collector::start(Protocol::Http);
    let engine = Engine::new();
    let secure = |redis: &str| {
        let mut command = command(&engine, redis, &s3);
        command
            .env("SSL_CERT_FILE", authority.file())
            .env("RUST_LOG", "trace")
            .envs(collector.env());
        command
    };

    let worker = Worker::start(secure(&redis.url()));
    let listening = worker.until_line("http_server_listening").await;
    enqueue(&redis, &s3, "good").await;
    until_event(&redis, "task.completed", "good").await;
    s3.trouble(Trouble::new(Fault::ACCESS_DENIED).path("denied"));
    enqueue(&redis, &s3, "denied").await;
    let line = worker.until_line("task_released_after_local_failure").await;
    assert!(line["error"].as_str().unwrap().contains("AccessDenied"), "{line}");
    let address = listening["address"].as_str().unwrap();
    let mut output = ["/health", "/metrics", "/v1/capabilities"]
        .map(|path| get(address, path))
        .concat();
    output += &everything_in(&redis).await;
    signal(worker.process.0.id(), "TERM");
    let (status, written) = worker.end().await;
    assert_eq!(status, Some(0), "{written}");
    output += &written;
    let spans = collector.rest();
    let names: Vec<String> = spans
        .iter()
        .flat_map(testbed::collector::Received::span_names)
        .collect();
    assert!(
        names.contains(&"engine.word-counter.process".to_owned()),
        "{names:?}"
    );
    output += &format!("{spans:?}");

    // Errors about wrong passwords do not contain them.
    let wrong = redis.url().replace(PASSWORD, "wrong-hunter2");
    let mut locked_out = secure(&wrong);
    locked_out.env("AWS_SECRET_ACCESS_KEY", "wrong-hunter2");
    let locked_out = Worker::start(locked_out);
    let line = locked_out.until_line("worker_takes_no_tasks").await;
    assert!(
        line["reason"].as_str().unwrap().contains("authentication failed"),
        "{line}"
    );
    signal(locked_out.process.0.id(), "TERM");
    output += &locked_out.end().await.1;

    for secret in [PASSWORD, "hunter2", TestS3::SECRET_ACCESS_KEY] {
        let leaks: Vec<&str> = output.lines().filter(|line| line.contains(secret)).collect();
        assert!(leaks.is_empty(), "{secret}: {leaks:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_check_of_the_guide_passes_while_the_worker_lives() {
    let (_, command_line) = DEPLOYMENT.split_once("    CMD [\"bash\"").unwrap();
    let command_line = command_line.lines().next().unwrap();
    let command_line: Vec<String> = serde_json::from_str(&format!("[\"bash\"{command_line}")).unwrap();
    let check = |port: &str| {
        let mut bash = Command::new(&command_line[0]);
        bash.args(command_line[1..].iter().map(|part| part.replace("9100", port)));
        tokio::task::block_in_place(|| finish(&mut bash)).status
    };
    // Without Redis the worker is unhealthy, but a new process would not help.
    let s3 = TestS3::start();
    let engine = Engine::new();
    let worker = Worker::start(command(&engine, "redis://127.0.0.1:1", &s3));
    let listening = worker.until_line("http_server_listening").await;
    let port = listening["address"].as_str().unwrap().rsplit(':').next().unwrap();
    assert_eq!(check(port), Some(0));
    signal(worker.process.0.id(), "TERM");
    worker.end().await;
    assert_eq!(check(port), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_probes_the_deployment_that_it_is_given() {
    let (redis, s3) = (TestRedis::start().await, TestS3::start());
    let engine = Engine::new();
    let doctor = |redis: &str| {
        let mut command = of_deployment(engine.command("doctor"), redis, &s3);
        tokio::task::block_in_place(|| finish(&mut command))
    };
    let sound = doctor(&redis.url());
    assert_eq!(sound.status, Some(0), "{}", sound.stdout);
    for row in [
        "ok       redis",
        "ok       clock",
        "ok       storage",
        "ok       port",
    ] {
        assert!(sound.stdout.contains(row), "{}", sound.stdout);
    }
    let mut with_wrong_clock = of_deployment(engine.command("doctor"), &redis.url(), &s3);
    with_wrong_clock.envs(testbed::clock_ahead(-62));
    let late = tokio::task::block_in_place(|| finish(&mut with_wrong_clock));
    assert_eq!(late.status, Some(0), "{}", late.stdout);
    assert!(late.stdout.contains("warning  clock"), "{}", late.stdout);
    assert!(
        late.stdout.contains(" s behind that of Redis at 127.0.0.1:"),
        "{}",
        late.stdout
    );
    assert_eq!(s3.keys(TestS3::BUCKET), [] as [&str; 0]);

    s3.trouble(Trouble::new(Fault::ACCESS_DENIED));
    let broken = doctor("redis://127.0.0.1:1");
    assert_eq!(broken.status, Some(1), "{}", broken.stdout);
    for part in [
        "missing  redis",
        "missing  storage",
        "AccessDenied",
        "-> start Redis",
    ] {
        assert!(broken.stdout.contains(part), "{}", broken.stdout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_ends_a_draining_worker() {
    let (redis, s3) = (TestRedis::start().await, TestS3::start());
    let engine = Engine::new();
    let worker = Worker::start(command(&engine, &redis.url(), &s3));
    // The probe before the first read: write, read, delete.
    until("probe", async || (s3.requests() >= 3).then_some(())).await;
    // The upload hangs, so the task lasts until the end of the drain.
    s3.trouble(Trouble::new(Fault::Hang).method("PUT"));
    enqueue(&redis, &s3, "stuck").await;
    until("upload", async || (s3.requests() >= 6).then_some(())).await;
    signal(worker.process.0.id(), "TERM");
    worker.until_line("shutdown_signal_received").await;
    signal(worker.process.0.id(), "TERM");
    let begun = Instant::now();
    let (status, written) = worker.end().await;
    assert_eq!(status, Some(143), "{written}");
    assert!(written.contains("second_shutdown_signal_received"), "{written}");
    // Without a second signal the drain takes 25 s.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_is_not_read_stops_neither_work_nor_sigterm() {
    let (redis, s3) = (TestRedis::start().await, TestS3::start());
    let engine = Engine::new();
    let port = testbed::free_port().to_string();
    let (mut output, mut full) = std::io::pipe().unwrap();
    // The capacity of a pipe. No line of the worker fits until something is read.
    full.write_all(&[b'\n'; 64 * 1024]).unwrap();
    let mut worker = command(&engine, &redis.url(), &s3);
    worker.env("DALSTON_METRICS_PORT", &port).stdout(full);
    let mut process = Guard(worker.spawn().unwrap());
    // Else the parent keeps the pipe open.
    drop(worker);

    enqueue(&redis, &s3, "good").await;
    until_event(&redis, "task.completed", "good").await;
    get(&port, "/health");
    signal(process.0.id(), "TERM");
    let registered = ["SCARD", "dalston:engine:instances"];
    let unregistered = async || (redis.send::<usize>(&registered).await == 0).then_some(());
    until("end of the registration", unregistered).await;

    let mut written = String::new();
    output.read_to_string(&mut written).unwrap();
    let last: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "engine_loop_stopped", "{written}");
    let status = until("end of the process", async || process.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}
