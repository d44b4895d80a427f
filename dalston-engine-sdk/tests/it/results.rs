//! The writes of results, and the files that they may replace.

use std::time::Duration;

use dalston_engine_sdk::broker::{Broker, EventContext, MemoryBroker, Outcome};
use dalston_engine_sdk::store::{S3Config, Store, key};
use dalston_engine_sdk::{OutputFile, TaskError};
use serde_json::json;
use testbed::{Fault, TestS3, Trouble};

use crate::leases::{AwkwardBroker, other_worker};
use crate::rig::{Closures, Rig, answer, job_of};

fn s3(server: &TestS3) -> Store {
    Store::s3(settings(server)).unwrap()
}

fn settings(server: &TestS3) -> S3Config {
    let mut settings = S3Config::default();
    settings.endpoint = Some(server.url());
    let keys = [
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY),
    ];
    settings.credentials = keys
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    settings
}

fn rig(store: Store) -> Rig {
    let mut rig = Rig::new();
    rig.store = store;
    rig
}

/// Writes a file `notes.txt` with the text "ours", and a response.
fn engine() -> Closures {
    engine_with("ours".to_owned())
}

fn engine_with(notes: String) -> Closures {
    Closures::new(move |_, cx| {
        let path = cx.temp_dir().join("notes.txt");
        std::fs::write(&path, &notes)?;
        cx.add_output_file(OutputFile::new("notes", "text", path))?;
        answer()
    })
}

/// A text that is too large for one request.
fn large() -> String {
    "ours".repeat(3 << 20)
}

fn notes(task: &str) -> String {
    key::task_artifact(&job_of(task), task, "notes", Some("txt"))
}

async fn read(store: &Store, key: &str) -> String {
    let bytes = store.read(&store.locator(key), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn delayed_file_does_not_replace_a_peers_result() {
    a_peers_result_stays("t1/notes.txt", 4).await;
}

#[tokio::test]
async fn delayed_response_does_not_replace_a_peers_result() {
    a_peers_result_stays("response.json", 4).await;
}

#[tokio::test]
async fn delayed_large_file_does_not_replace_a_peers_result() {
    // It is written to a key of its attempt, and then copied.
    a_peers_result_stays("t1/notes.txt", 12 << 20).await;
}

/// A peer ends a task while the first worker writes to a path. `size` is that of the file.
async fn a_peers_result_stays(late: &str, size: usize) {
    let server = TestS3::start();
    // The peer gets the task with its next read. The worker trusts its lease for half a minute.
    let mut rig = Rig::with_broker(MemoryBroker::with(Duration::from_millis(100), 100));
    rig.store = s3(&server);
    let broker = AwkwardBroker::new(&rig);
    let slow = Trouble::new(Fault::Delay(Duration::from_secs(4)))
        .path(late)
        .times(1);
    rig.submit("t1").await;
    server.trouble(slow);
    let before = server.requests();
    let act = async {
        // The request document, the notes unless they are delayed, and the delayed write.
        let sent = before + if late == "response.json" { 3 } else { 2 };
        while server.requests() < sent || size > 4 && staged(&server) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let peer = rig.broker.receive(&other_worker(), Duration::ZERO).await;
        let peer = peer.unwrap().unwrap().claim;
        let response = json!({"task_id": "t1", "data": "the successor's"});
        for (key, content) in [
            (notes("t1"), "the successor's".to_owned()),
            (key::task_response(&job_of("t1"), "t1"), response.to_string()),
        ] {
            server.put(&format!("{}/{key}", TestS3::BUCKET), content);
        }
        let done = Outcome::Completed {
            artifacts: Vec::new(),
        };
        let context = EventContext::default();
        let _ = rig.broker.finish(&peer, &done, &context).await.unwrap();
        // The worker ends once the delayed write was answered.
    };
    let builder = rig.runner(engine_with("ours".repeat(size / 4))).broker(broker);
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(staged(&server), 0, "{late}");
    assert_eq!(rig.response("t1").await, json!("the successor's"), "{late}");
    assert_eq!(read(&rig.store, &notes("t1")).await, "the successor's", "{late}");
    assert_eq!(rig.events(), ["t1 started", "t1 completed"], "{late}");
}

/// The number of files under keys of attempts.
fn staged(server: &TestS3) -> usize {
    let keys = server.keys(TestS3::BUCKET).into_iter();
    keys.filter(|key| key.contains("/attempts/")).count()
}

async fn until_upload_in_parts(server: &TestS3) {
    while server.open_uploads() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn cancelled_upload_of_a_large_file_leaves_no_parts() {
    let server = TestS3::start();
    let rig = rig(s3(&server));
    let slow = Fault::Delay(Duration::from_secs(4));
    server.trouble(Trouble::new(slow).method("PUT").path("/attempts/"));
    rig.submit("t1").await;
    let act = async {
        until_upload_in_parts(&server).await;
        rig.broker.cancel_job(&job_of("t1"));
        rig.broker.wait_for_outcome("t1").await
    };
    let (_, ended) = rig.run(rig.runner(engine_with(large())), act).await;
    ended.unwrap();
    assert_eq!((server.open_uploads(), staged(&server)), (0, 0));
}

#[tokio::test]
async fn refused_end_of_a_large_upload_fails_the_task() {
    let server = TestS3::start();
    let rig = rig(s3(&server));
    let slow = Fault::Delay(Duration::from_millis(500));
    server.trouble(Trouble::new(slow).method("PUT").path("/attempts/"));
    rig.submit("t1").await;
    let act = async {
        until_upload_in_parts(&server).await;
        let refusal = Fault::Answer {
            status: 400,
            code: "InvalidPart",
        };
        server.trouble(Trouble::new(refusal).method("POST").path("/attempts/"));
        rig.outcome("t1").await
    };
    let (outcome, _) = rig.run(rig.runner(engine_with(large())), act).await;
    let (code, text) = outcome.unwrap_err();
    assert_eq!(code, "storage", "{text}");
    assert!(text.contains("InvalidPart"), "{text}");
    assert_eq!((server.open_uploads(), staged(&server)), (0, 0));
}

#[tokio::test]
async fn lost_answer_to_the_end_of_a_large_upload_is_no_failure() {
    let server = TestS3::start();
    let rig = rig(s3(&server));
    let slow = Fault::Delay(Duration::from_millis(500));
    server.trouble(Trouble::new(slow).method("PUT").path("/attempts/"));
    rig.submit("t1").await;
    let act = async {
        until_upload_in_parts(&server).await;
        let lost = Trouble::new(Fault::LoseAnswer).method("POST").path("/attempts/");
        server.trouble(lost.times(1));
        rig.outcome("t1").await
    };
    let (outcome, _) = rig.run(rig.runner(engine_with(large())), act).await;
    outcome.unwrap();
    let key = format!("{}/{}", TestS3::BUCKET, notes("t1"));
    assert_eq!(server.get(&key).unwrap().content.len(), large().len());
    assert_eq!(staged(&server), 0);
}

#[tokio::test]
async fn large_results_of_an_earlier_attempt_are_replaced() {
    for (conditions, earlier) in [(true, true), (true, false), (false, true), (false, false)] {
        let server = TestS3::start();
        if !conditions {
            server.refuse_conditions();
        }
        for store in [s3(&server), Store::memory()] {
            let rig = rig(store);
            if earlier {
                rig.store
                    .write(&notes("t1"), "of an earlier attempt")
                    .await
                    .unwrap();
            }
            rig.submit("t1").await;
            let (outcome, _) = rig.run(rig.runner(engine_with(large())), rig.outcome("t1")).await;
            outcome.unwrap();
            let notes = rig
                .store
                .read(&rig.store.locator(&notes("t1")), 1 << 30)
                .await
                .unwrap();
            assert_eq!(notes, large(), "{:?}", rig.store);
        }
        let key = format!("{}/{}", TestS3::BUCKET, notes("t1"));
        assert_eq!(server.get(&key).unwrap().content.len(), large().len());
        assert_eq!(staged(&server), 0);
    }
}

#[tokio::test]
async fn output_file_keeps_its_suffix_and_no_document_is_replaced() {
    let rig = Rig::new();
    for (task, name, file, outcome) in [
        ("t1", "notes.txt", "a.txt", None),
        ("t2", "response", "a.json", Some("response.json")),
        ("t3", "request.json", "a", Some("request.json")),
    ] {
        rig.submit(task).await;
        let engine = Closures::new(move |_, cx| {
            let path = cx.temp_dir().join(file);
            std::fs::write(&path, "ours")?;
            cx.add_output_file(OutputFile::new(name, "text", path))?;
            answer()
        });
        let (ended, _) = rig.run(rig.runner(engine), rig.outcome(task)).await;
        match outcome {
            None => assert_eq!(read(&rig.store, &notes(task)).await, "ours"),
            Some(document) => {
                let (code, text) = ended.unwrap_err();
                assert_eq!(code, "invalid_artifact");
                let expected = format!(
                    "the output file {name:?} would replace {document} of the task: expected another name"
                );
                assert_eq!(text, expected);
            }
        }
    }
}

#[tokio::test]
async fn unrelated_bad_request_does_not_end_conditional_writes() {
    // The request is refused once, or as often as it is sent under its condition.
    for times in [1, 4] {
        let server = TestS3::start();
        let fault = Fault::Answer {
            status: 400,
            code: "BadRequest",
        };
        let of_the_first = Trouble::new(fault).method("PUT").path(&notes("t1")).times(times);
        server.trouble(of_the_first);
        // Beside the four: one to read the existing file, and one to replace it.
        assert_eq!(requests_to_replace_notes(&server).await, 6, "{times}");
    }
}

#[tokio::test]
async fn silent_storage_is_asked_again_within_the_budget() {
    let server = TestS3::start();
    server.put(&format!("{}/x", TestS3::BUCKET), "content");
    let mut settings = settings(&server);
    settings.attempt_timeout = Duration::from_secs(2);
    settings.retry_budget = Duration::from_secs(60);
    let store = Store::s3(settings).unwrap();
    server.trouble(Trouble::new(Fault::Hang).times(2));
    assert_eq!(read(&store, "x").await, "content");
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn error_of_a_task_shows_no_paths_of_the_worker() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, _| {
        Err(TaskError::permanent(
            "broken",
            "reading \"/models/x/vocab.json\": no such file",
        ))
    });
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    let expected = (
        "broken".to_owned(),
        "reading \"vocab.json\": no such file".to_owned(),
    );
    assert_eq!(outcome.unwrap_err(), expected);
    let lines = rig.telemetry.logs();
    let line = lines.iter().find(|line| line.event() == "task_failed").unwrap();
    let logged = line.field("error").unwrap().as_str().unwrap();
    assert!(logged.contains("/models/x/vocab.json"), "{logged}");
}

#[tokio::test]
async fn the_results_of_an_earlier_attempt_are_replaced() {
    let (server, temp) = (TestS3::start(), tempfile::tempdir().unwrap());
    for store in [
        s3(&server),
        Store::memory(),
        Store::directory(temp.path()).unwrap(),
    ] {
        let rig = rig(store);
        for key in [notes("t1"), key::task_response(&job_of("t1"), "t1")] {
            rig.store.write(&key, "of an earlier attempt").await.unwrap();
        }
        rig.submit("t1").await;
        let (outcome, _) = rig.run(rig.runner(engine()), rig.outcome("t1")).await;
        assert_eq!(outcome.unwrap(), json!({"text": "hello"}), "{:?}", rig.store);
        assert_eq!(read(&rig.store, &notes("t1")).await, "ours");
    }
}

#[tokio::test]
async fn a_store_without_conditional_writes_is_asked_only_once() {
    let server = TestS3::start();
    server.refuse_conditions();
    // Request, notes, response, and the read of the response by this test.
    assert_eq!(requests_to_replace_notes(&server).await, 4);
}

/// The number of requests of the second of two completed tasks. An earlier attempt of it left
/// notes.
async fn requests_to_replace_notes(server: &TestS3) -> u64 {
    let rig = rig(s3(server));
    rig.store
        .write(&notes("t2"), "of an earlier attempt")
        .await
        .unwrap();
    let act = async {
        rig.submit("t1").await;
        rig.outcome("t1").await.unwrap();
        rig.submit("t2").await;
        let before = server.requests();
        rig.outcome("t2").await.unwrap();
        server.requests() - before
    };
    let (requests, _) = rig.run(rig.runner(engine()), act).await;
    assert_eq!(read(&rig.store, &notes("t1")).await, "ours");
    assert_eq!(read(&rig.store, &notes("t2")).await, "ours");
    requests
}

#[tokio::test]
async fn a_write_without_a_reply_is_repeated() {
    for fault in [Fault::LoseAnswer, Fault::Cut] {
        let server = TestS3::start();
        let rig = rig(s3(&server));
        rig.submit("t1").await;
        for late in ["notes.txt", "response.json"] {
            server.trouble(Trouble::new(fault.clone()).method("PUT").path(late).times(1));
        }
        let (outcome, _) = rig.run(rig.runner(engine()), rig.outcome("t1")).await;
        outcome.unwrap();
        assert_eq!(read(&rig.store, &notes("t1")).await, "ours");
    }
}

#[tokio::test]
async fn written_file_without_a_reply_is_not_written_again() {
    let server = TestS3::start();
    let lost = Trouble::new(Fault::LoseAnswer)
        .method("PUT")
        .path("response.json");
    server.trouble(lost.times(1));
    let rig = rig(s3(&server));
    rig.submit("t1").await;
    let before = server.requests();
    let (outcome, _) = rig.run(rig.runner(engine()), rig.outcome("t1")).await;
    outcome.unwrap();
    // Request, notes, response, and the read of the response by this test. Beside these: the
    // repeated write, which is refused, and a read that finds the same content.
    assert_eq!(server.requests() - before, 6);
}

#[tokio::test]
async fn a_timed_out_write_is_repeated_under_its_condition() {
    let server = TestS3::start();
    let slow = Fault::Answer {
        status: 400,
        code: "RequestTimeout",
    };
    // Without the write of the earlier notes.
    let of_the_first = Trouble::new(slow).method("PUT").path(&notes("t1")).times(1);
    server.trouble(of_the_first);
    // Beside the four: one to read the existing file, and one to replace it.
    assert_eq!(requests_to_replace_notes(&server).await, 6);
}
