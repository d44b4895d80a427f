//! Limits of sessions: places, time, lag, and input.

use std::time::Duration;

use dalston_engine_sdk::testing::EngineHarness;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::deployment::Deployment;
use super::tones::{RATE, Tones, audio};
use super::{Client, of_type, session};
use crate::support::until;

const CHUNK: Duration = Duration::from_millis(100);
/// A message that is not taken in this time waits for something else than the processor.
const STUCK: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_worker_says_so_before_it_closes() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_MAX_SESSIONS", "1")];
    let worker = deployment.worker(Tones::default(), "full", &env, None).await;
    let mut first = session(worker.port, "").await;
    deployment.until_status(&worker, "busy").await;
    let mut second = Client::open(worker.port, "/session", &[]).await;
    let messages = second.rest().await;
    assert_eq!(messages[0]["code"], "no_capacity", "{messages:?}");
    assert_eq!(messages[0]["recoverable"], true);
    assert_eq!(second.closed, Some(1013));
    first.finish().await;
    deployment.until_status(&worker, "ready").await;
    let mut third = session(worker.port, "").await;
    third.finish().await;

    let rejected = r#"dalston_realtime_sessions_rejected_total{reason="no_capacity"}"#;
    assert_eq!(worker.metric(rejected).await, Some(1.0));
    let ended = r#"dalston_realtime_session_ends_total{reason="completed"}"#;
    let both = async || (worker.metric(ended).await == Some(2.0)).then_some(());
    until("both ends", both).await;
    let none = async || {
        let active = worker.metric("dalston_realtime_sessions_active").await;
        (active == Some(0.0)).then_some(())
    };
    until("no active session", none).await;
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_connections_give_their_places_back() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "dropped", &[], None).await;
    let active = async || worker.metric("dalston_realtime_sessions_active").await;
    for round in 0..30 {
        let mut client = session(worker.port, "").await;
        if round % 3 > 0 {
            client.send_audio(&audio(RATE, &[(0.7, 3)])).await;
        }
        if round % 3 > 1 {
            client.send(json!({"type": "end"})).await;
        }
        drop(client);
        until("a free place", async || {
            (active().await == Some(0.0)).then_some(())
        })
        .await;
    }
    worker.finish().await;
}

#[tokio::test(start_paused = true)]
async fn idle_session_ends_with_its_transcript() {
    let worker = EngineHarness::new(Tones::default()).start();
    let mut session = worker.session("interim_results=false");
    session.next().await;
    session.send_audio(&audio(RATE, &[(0.5, 3)])).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        session.send(json!({"type": "keepalive"})).await;
    }
    tokio::time::sleep(Duration::from_secs(59)).await;
    // The engine computes in real time.
    tokio::time::resume();
    let messages = session.rest().await;
    let kinds: Vec<_> = messages
        .iter()
        .map(|message| message["type"].as_str().unwrap())
        .collect();
    let expected = [
        "vad.speech_start",
        "error",
        "vad.speech_end",
        "transcript.final",
        "session.end",
    ];
    assert_eq!(kinds, expected, "{messages:?}");
    assert_eq!(messages[1]["code"], "session_timeout");
    assert_eq!(session.close_code(), Some(1000));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn session_ends_after_its_longest_time() {
    let harness = EngineHarness::new(Tones::default());
    let worker = harness
        .realtime(|config| config.max_session = Duration::from_secs(100))
        .start();
    let mut session = worker.session("");
    session.next().await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        session.send(json!({"type": "keepalive"})).await;
    }
    let messages = session.rest().await;
    assert_eq!(messages[0]["message"], "a session ends after 100 s");
    assert_eq!(messages[1]["type"], "session.end");
    worker.stop().await;
}

/// The number of sessions that ended for this reason.
fn ended(worker: &dalston_engine_sdk::testing::Worker, reason: &str) -> bool {
    let line = format!(r#"dalston_realtime_session_ends_total{{reason="{reason}"}} 1"#);
    worker.telemetry().metrics().encode().contains(&line)
}

#[tokio::test(start_paused = true)]
async fn client_without_a_sign_of_life_is_lost_after_40_s() {
    let worker = EngineHarness::new(Tones::default()).start();
    let begun = Instant::now();
    let (mut silent, mut answering) = (worker.session(""), worker.session(""));
    for session in [&mut silent, &mut answering] {
        session.next().await;
    }
    silent.ignore_pings();
    assert_eq!(silent.rest().await, Vec::<Value>::new());
    let seconds = begun.elapsed().as_secs_f64();
    assert!((40.0..41.0).contains(&seconds), "{seconds}");
    assert_eq!(silent.close_code(), None);
    assert!(ended(&worker, "disconnected"));
    // A session with answers lasts until it is idle for a minute.
    answering.rest().await;
    assert!((60.0..61.0).contains(&begun.elapsed().as_secs_f64()));
    assert!(ended(&worker, "idle"));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connection_lost_before_its_begin_counts_and_can_resume() {
    let worker = EngineHarness::new(Tones::default()).start();
    drop(worker.session("session_id=sess_1"));
    until("its end", async || ended(&worker, "disconnected").then_some(())).await;
    // The place is free, and the same holds for a session that goes on.
    let mut first = worker.session("session_id=sess_2&interim_results=false");
    first.next().await;
    first.send_audio(&audio(RATE, &[(0.5, 3), (1.0, 0)])).await;
    first.ignore_pings();
    tokio::time::resume();
    while first.next().await["type"] != "transcript.final" {}
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    // If it is kept by now, this client resumes it and vanishes.
    drop(worker.session("resume_session_id=sess_2"));
    let resumed = async || {
        let mut again = worker.session("resume_session_id=sess_2&interim_results=false");
        (again.next().await["resumed_from"] == "sess_2").then_some(())
    };
    until("a resumption", resumed).await;
    worker.stop().await;
}

/// Sends utterances as they are spoken, until the session is closed.
async fn speak(session: &mut dalston_engine_sdk::testing::RealtimeSession, seconds: u32) {
    let second = audio(RATE, &[(0.5, 3), (0.5, 0)]);
    for _ in 0..seconds {
        for chunk in second.chunks(1_600) {
            session.send_audio(chunk).await;
            tokio::time::sleep(CHUNK).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn session_that_lags_is_warned_and_then_terminated() {
    let (engine, gate) = Tones::gated();
    let worker = EngineHarness::new(engine).start();
    let mut session = worker.session("interim_results=false&session_id=sess_1");
    session.next().await;
    speak(&mut session, 10).await;
    let messages = session.rest().await;
    let warnings = of_type(&messages, "warning");
    assert!((2..=6).contains(&warnings.len()), "{warnings:?}");
    assert_eq!(warnings[0]["code"], "processing_lag");
    assert_eq!(warnings[0]["hard_threshold_seconds"], 5.0);
    let lag = warnings[0]["lag_seconds"].as_f64().unwrap();
    assert!((3.0..3.5).contains(&lag), "{lag}");
    let [error, terminated] = &messages[messages.len() - 2..] else {
        panic!("{messages:?}")
    };
    assert_eq!(error["code"], "lag_exceeded");
    assert_eq!(
        (&terminated["type"], &terminated["recoverable"]),
        (&json!("session.terminated"), &json!(true))
    );
    assert_eq!(terminated["last_transcript_offset_ms"], 0);
    assert_eq!(session.close_code(), Some(4010));

    // The client goes on where the transcript ends. The engine computes in real time.
    tokio::time::resume();
    drop(gate);
    let mut resumed = worker.session("resume_session_id=sess_1&interim_results=false");
    assert_eq!(resumed.next().await["resumed_from"], "sess_1");
    resumed.send_audio(&audio(RATE, &[(0.5, 4)])).await;
    assert_eq!(resumed.finish().await.last().unwrap()["transcript"], "w4");
    worker.stop().await;
}

#[tokio::test]
async fn early_audio_is_slowed_down_and_not_refused() {
    let (engine, gate) = Tones::gated();
    let harness = EngineHarness::new(engine);
    let worker = harness
        .realtime(|config| config.input = Duration::from_secs(5))
        .start();
    let mut session = worker.session("interim_results=false");
    session.next().await;
    let minute: Vec<(f64, u32)> = (0..60).flat_map(|_| [(0.5, 3), (0.5, 0)]).collect();
    let samples = audio(RATE, &minute);
    let mut sent = 0;
    for chunk in samples.chunks(1_600) {
        let sending = tokio::time::timeout(STUCK, session.send_audio(chunk));
        if sending.await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(
        sent < 600,
        "a minute of audio was taken while nothing was transcribed"
    );
    // The first utterance, the bound of 5 s, and the messages that wait outside.
    assert!((50..100).contains(&sent), "{sent} chunks");
    for _ in 0..60 {
        gate.send(()).unwrap();
    }
    drop(gate);
    for chunk in samples.chunks(1_600).skip(sent) {
        session.send_audio(chunk).await;
    }
    let messages = session.finish().await;
    assert_eq!(of_type(&messages, "error"), Vec::<&Value>::new());
    assert_eq!(of_type(&messages, "transcript.final").len(), 60);
    worker.stop().await;
}

#[tokio::test]
async fn flushes_that_wait_are_bounded() {
    let (engine, gate) = Tones::gated();
    let worker = EngineHarness::new(engine).start();
    let mut session = worker.session("interim_results=false");
    session.next().await;
    session.send_audio(&audio(RATE, &[(0.5, 3)])).await;
    let flush = json!({"type": "flush"});
    let mut sent = 0;
    while sent < 1_000 {
        let sending = tokio::time::timeout(STUCK, session.send(flush.clone()));
        if sending.await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(
        sent < 1_000,
        "1000 flushes were taken while nothing was transcribed"
    );
    assert!((64..100).contains(&sent), "{sent}");
    drop(gate);
    let messages = session.finish().await;
    // Each flush has its answer, and the last one may not have been sent.
    let finals = of_type(&messages, "transcript.final").len();
    assert!(
        (sent..=sent + 1).contains(&finals),
        "{finals} answers to {sent} flushes"
    );
    worker.stop().await;
}

#[tokio::test]
async fn batch_task_ends_while_sessions_speak() {
    let worker = EngineHarness::new(Tones::default())
        .audio(RATE, &audio(RATE, &[(0.5, 8)]))
        .start();
    let mut sessions: Vec<_> = (0..2).map(|_| worker.session("enable_vad=false")).collect();
    let speech = audio(RATE, &[(0.5, 3)]);
    for session in &mut sessions {
        session.next().await;
        for _ in 0..50 {
            session.send_audio(&speech).await;
            session.send(json!({"type": "flush"})).await;
        }
    }
    let report = worker.run(worker.task()).await;
    assert_eq!(report.output()["text"], "w8");
    for session in &mut sessions {
        let messages = session.finish().await;
        assert_eq!(of_type(&messages, "transcript.final").len(), 50);
    }
    worker.stop().await;
}
