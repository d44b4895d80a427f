//! The registry record of a realtime worker, and the end of its sessions with the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::deployment::Deployment;
use super::tones::{RATE, Tones, audio};
use super::{Client, session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_has_all_fields_of_a_realtime_worker() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_MAX_SESSIONS", "3")];
    let worker = deployment.worker(Tones::default(), "record", &env, None).await;
    let mut record = deployment.record(&worker).await;
    let endpoint = format!("ws://{}:{}", record["hostname"], worker.port);
    for changing in [
        "last_heartbeat",
        "registered_at",
        "start_nonce",
        "hostname",
        "deploy_env",
    ] {
        assert!(
            record.remove(changing).is_some_and(|value| !value.is_empty()),
            "{changing}"
        );
    }
    let capabilities = record.remove("capabilities").unwrap();
    assert!(capabilities.contains(r#""engine_id":"tones""#), "{capabilities}");
    let expected: BTreeMap<_, _> = [
        ("instance", "tones-rt-record"),
        ("engine_id", "tones"),
        ("stage", "transcribe"),
        ("status", "ready"),
        ("interfaces", r#"["realtime"]"#),
        ("capacity", "3"),
        ("active_batch", "0"),
        ("active_realtime", "0"),
        ("endpoint", &endpoint),
        ("models_loaded", "[]"),
        ("loaded_model", ""),
        ("vocabulary_support", "null"),
        ("gpu_memory_used", "0GB"),
        ("gpu_memory_total", "0GB"),
        ("node_id", "node-7"),
        ("supports_word_timestamps", "true"),
        ("includes_diarization", "false"),
        ("execution_profile", "container"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    assert_eq!(record, expected);
    let instances = ["tones-record", "tones-rt-record"];
    assert_eq!(
        deployment.members("dalston:engine:engine_id:tones").await,
        instances
    );
    worker.finish().await;
    assert_eq!(
        deployment.members("dalston:engine:instances").await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_goes_on_in_a_drain_and_ends_with_its_end() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_DRAIN_TIMEOUT_SECONDS", "60")];
    let mut worker = deployment.worker(Tones::default(), "drain", &env, None).await;
    let mut client = session(worker.port, "interim_results=false").await;
    client.send_audio(&audio(RATE, &[(0.5, 3)])).await;
    worker.stop();
    deployment.until_status(&worker, "draining").await;
    let mut refused = Client::open(worker.port, "/session", &[]).await;
    assert_eq!(refused.next().await["code"], "no_capacity");
    refused.rest().await;
    assert_eq!(refused.closed, Some(1013));
    client.send_audio(&audio(RATE, &[(0.6, 0), (0.5, 4)])).await;
    let end = client.finish().await.pop().unwrap();
    assert_eq!(end["transcript"], "w3 w4");
    assert_eq!(client.closed, Some(1000));
    worker.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_session_goes_on_with_another_worker() {
    let deployment = Deployment::start().await;
    let env = [("DALSTON_DRAIN_TIMEOUT_SECONDS", "1")];
    let mut first = deployment.worker(Tones::default(), "first", &env, None).await;
    let second = deployment.worker(Tones::default(), "second", &env, None).await;
    let mut client = session(first.port, "session_id=sess_1&interim_results=false").await;
    client
        .send_audio(&audio(RATE, &[(2.0, 0), (0.5, 3), (0.6, 0)]))
        .await;
    client.until("transcript.final").await;
    first.stop();
    let messages = client.rest().await;
    let terminated = messages.last().unwrap();
    assert_eq!(terminated["type"], "session.terminated", "{messages:?}");
    assert_eq!(terminated["reason"], "worker_shutdown");
    assert_eq!(terminated["recovery_hint"]["action"], "reconnect");
    let offset = terminated["last_transcript_offset_ms"].as_u64().unwrap();
    assert!((2_400..2_600).contains(&offset), "{offset}");
    assert_eq!(client.closed, Some(1012));
    tokio::time::timeout(Duration::from_secs(60), first.ended())
        .await
        .unwrap();

    let path = "/session?resume_session_id=sess_1&interim_results=false";
    let mut client = Client::open(second.port, path, &[]).await;
    assert_eq!(client.next().await["resumed_from"], "sess_1");
    client.send_audio(&audio(RATE, &[(1.0, 0), (0.5, 4)])).await;
    let messages = client.finish().await;
    let last = messages
        .iter()
        .find(|message| message["type"] == "transcript.final")
        .unwrap();
    let start = last["start"].as_f64().unwrap() - offset as f64 / 1e3;
    assert!((0.9..1.1).contains(&start), "{last}");
    assert_eq!(messages.last().unwrap()["total_audio_seconds"], json!(1.5));
    second.finish().await;
}
