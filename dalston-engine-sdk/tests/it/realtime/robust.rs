//! Clients that disappear, that send anything, and that read nothing; and services that are away.

use std::process::Command;
use std::time::Duration;

use dalston_engine_sdk::testing::EngineHarness;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::deployment::Deployment;
use super::tones::{RATE, Tones, audio};
use super::{Client, of_type, session};
use crate::support::until;

const CHILD: &str = "DALSTON_TEST_DROPPED_SESSIONS";

#[test]
fn thousand_dropped_sessions_leave_nothing() {
    if std::env::var_os(CHILD).is_some() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(drop_a_thousand());
    }
    // Memory and threads are those of a process.
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "realtime::robust::thousand_dropped_sessions_leave_nothing",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
}

async fn drop_a_thousand() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_MAX_SESSIONS", "64")];
    let worker = deployment.worker(Tones::default(), "thousand", &env, None).await;
    let free = async || {
        let active = worker.metric("dalston_realtime_sessions_active").await;
        (active == Some(0.0)).then_some(())
    };
    drop_sessions(worker.port, 100).await;
    until("no session", free).await;
    let before = (process("Threads:"), process("VmRSS:"));
    drop_sessions(worker.port, 1_000).await;
    until("no session", free).await;
    deployment.until_status(&worker, "ready").await;
    let counted = async || (deployment.record(&worker).await["active_realtime"] == "0").then_some(());
    until("a record without sessions", counted).await;
    // Threads for blocking work end after some seconds.
    let settled = async || (process("Threads:") <= before.0 + 2).then_some(());
    until("the threads of before", settled).await;
    let grown = process("VmRSS:").saturating_sub(before.1);
    assert!(grown < 24 * 1024, "{grown} KiB more after 1000 sessions");

    let mut client = session(worker.port, "").await;
    client.send_audio(&audio(RATE, &[(0.5, 3)])).await;
    assert_eq!(client.finish().await.last().unwrap()["transcript"], "w3");
    worker.finish().await;
}

/// Opens sessions, 16 at the same time, and drops each one at another point of the protocol.
async fn drop_sessions(port: u16, count: usize) {
    let mut running = JoinSet::new();
    for number in 0..count {
        if running.len() == 16 {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(drop_at(port, number % 10));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

async fn drop_at(port: u16, point: usize) {
    if point < 2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if point == 1 {
            stream
                .write_all(b"GET /session HTTP/1.1\r\nUpgrade: webs")
                .await
                .unwrap();
        }
        return;
    }
    let mut client = Client::open(port, "/session?store_audio=no&store_transcript=no", &[]).await;
    if point == 2 {
        return;
    }
    let begin = client.next().await;
    assert_eq!(begin["type"], "session.begin", "{begin}");
    match point {
        3 => {}
        4 => client.send_text("{").await,
        _ => client.send_audio(&audio(RATE, &[(0.7, 3)])).await,
    }
    match point {
        6 => client.send(json!({"type": "flush"})).await,
        7 => {
            client.send(json!({"type": "flush"})).await;
            client.until("transcript.final").await;
        }
        8 => client.send(json!({"type": "end"})).await,
        9 => {
            client.finish().await;
        }
        _ => {}
    }
}

/// A number of `/proc/self/status`.
fn process(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A small generator of pseudo-random numbers, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }

    /// A message of a client, with something changed.
    fn text(&mut self) -> String {
        let types = ["config", "flush", "commit", "clear", "keepalive", "dance", ""];
        let values = [
            json!(null),
            json!(-1),
            json!(0.5),
            json!(1e300),
            json!(true),
            json!("0.5"),
            json!([[]]),
            json!({"type": "end"}),
            json!("\u{0}\u{1F399}"),
        ];
        let keys = [
            "language",
            "vad_threshold",
            "min_silence_duration_ms",
            "prefix_padding_ms",
            "other",
        ];
        let mut message = json!({"type": types[self.below(types.len())]});
        for _ in 0..self.below(3) {
            message[keys[self.below(keys.len())]] = values[self.below(values.len())].clone();
        }
        let mut text = message.to_string();
        match self.below(4) {
            0 => text.truncate(self.below(text.len())),
            1 => text = text.replace(':', [" ", "::", "[", "\\"][self.below(4)]),
            _ => {}
        }
        text
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(5_000);
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

#[tokio::test]
async fn anything_may_be_sent_and_a_session_still_ends() {
    let worker = EngineHarness::new(Tones::default()).start();
    let queries = [
        "",
        "encoding=pcm_f32le&channels=2&sample_rate=44100",
        "encoding=mulaw&sample_rate=8000&enable_vad=false",
        "encoding=alaw&sample_rate=48000&max_utterance_duration=1&min_silence_duration_ms=50",
    ];
    for seed in 0..24 {
        let mut random = Random(seed);
        let query = queries[seed as usize % queries.len()];
        let mut session = worker.session(&format!("word_timestamps=1&{query}"));
        for _ in 0..40 {
            match random.below(3) {
                0 => session.send_text(random.text()).await,
                _ => session.send_bytes(random.bytes()).await,
            }
        }
        let messages = session.finish().await;
        assert_eq!(
            messages.last().unwrap()["type"],
            "session.end",
            "{seed}: {messages:?}"
        );
        assert_eq!(session.close_code(), Some(1000), "{seed}");
        for error in of_type(&messages, "error") {
            let is_known = ["invalid_message", "invalid_audio"]
                .iter()
                .any(|code| error["code"] == *code);
            assert!(is_known && error["recoverable"] == true, "{seed}: {error}");
        }
        let count = |kind: &str| of_type(&messages, kind).len();
        assert_eq!(count("vad.speech_start"), count("vad.speech_end"), "{seed}");
        let mut last = 0.0;
        for message in of_type(&messages, "transcript.final") {
            let [start, end] = ["start", "end"].map(|key| message[key].as_f64().unwrap());
            assert!(
                last <= start + 0.001 && start <= end,
                "{seed}: {message} after {last}"
            );
            last = end;
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_nothing_slows_no_other() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "slow", &[], None).await;
    let mut slow = session(worker.port, "").await;
    // Each message has an answer, so the worker stops reading when the answers fill the connection.
    let text = format!(r#"{{"type":"{}"}}"#, "x".repeat(10_000));
    let flood = async {
        loop {
            slow.send_text(&text).await;
        }
    };
    let stuck = tokio::time::timeout(Duration::from_millis(500), flood).await;
    assert!(stuck.is_err());
    let speak = async {
        let mut client = session(worker.port, "interim_results=false").await;
        for word in 2..10 {
            client.send_audio(&audio(RATE, &[(0.4, word), (0.6, 0)])).await;
            client.until("transcript.final").await;
        }
        client.finish().await.pop().unwrap()
    };
    let end = tokio::time::timeout(Duration::from_secs(60), speak)
        .await
        .unwrap();
    assert_eq!(end["transcript"], "w2 w3 w4 w5 w6 w7 w8 w9");
    drop(slow);
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_goes_on_while_redis_is_away() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "redis", &[], None).await;
    let mut client = session(worker.port, "interim_results=false&session_id=before").await;
    client.send_audio(&audio(RATE, &[(0.4, 2), (0.6, 0)])).await;
    client.until("transcript.final").await;
    deployment.redis.kill();
    for word in 3..6 {
        client.send_audio(&audio(RATE, &[(0.4, word), (0.6, 0)])).await;
        let messages = client.until("transcript.final").await;
        assert_eq!(of_type(&messages, "error"), Vec::<&Value>::new());
    }
    // Others can begin, also one that asks Redis where it goes on.
    drop(client);
    let path = "/session?resume_session_id=before&interim_results=false";
    let resumed = async || {
        let mut client = Client::open(worker.port, path, &[]).await;
        let begin = client.next().await;
        (begin["resumed_from"] == "before").then_some(client)
    };
    let mut client = until("a resumed session", resumed).await;
    client.send_audio(&audio(RATE, &[(0.4, 7)])).await;
    assert_eq!(client.finish().await.last().unwrap()["transcript"], "w7");
    deployment.redis.restart().await;
    deployment.until_status(&worker, "ready").await;
    worker.finish().await;
}
