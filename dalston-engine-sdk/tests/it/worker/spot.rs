//! A worker on EC2: what the registry shows of it, and what it does when its machine will be taken away.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use dalston_engine_sdk::protocol::Timestamp;
use dalston_telemetry::Env;
use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;
use testbed::{ImdsFault, TestImds};

use super::{Deployment, Worker, request};

const ACTION: &str = "meta-data/spot/instance-action";
const REBALANCE: &str = "meta-data/events/recommendations/rebalance";

/// Milliseconds, unless the test releases the engine.
const LONG: u64 = 600_000;

/// A machine of EC2 in the test.
struct Machine {
    imds: TestImds,
    cloud: Cloud,
}

impl Machine {
    async fn start() -> Self {
        let imds = TestImds::start().await;
        let env = Env::from_pairs([("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())]);
        let cloud = tokio::task::spawn_blocking(move || Cloud::detect(&env)).await;
        let cloud = cloud.unwrap().unwrap();
        assert!(cloud.metadata().is_some(), "{cloud:?}");
        Self { imds, cloud }
    }

    fn will(&self, action: &str, within: Duration) {
        let time = Timestamp::from(SystemTime::now() + within);
        self.imds.put(
            ACTION,
            json!({"action": action, "time": time.to_string()}).to_string(),
        );
    }

    fn looked_for(&self, path: &str) -> usize {
        let request = format!("GET /latest/{path}");
        self.imds
            .requests()
            .iter()
            .filter(|made| **made == request)
            .count()
    }
}

/// A worker that drains for so many seconds.
fn patient(seconds: &str) -> [(&str, &str); 1] {
    [("DALSTON_DRAIN_TIMEOUT_SECONDS", seconds)]
}

async fn at_work(deployment: &Deployment, worker: &Worker) {
    let begun = async || (worker.begun.load(Ordering::SeqCst) == 1).then_some(());
    deployment.until("the engine at work", begun).await;
}

/// The values of the attribute on the spans of this name.
fn interruptions(telemetry: &TestTelemetry, span: &str) -> Vec<Option<String>> {
    let spans = telemetry.spans();
    let named = spans.iter().filter(|found| found.name == span);
    named
        .map(|span| {
            span.attribute("dalston.spot_interruption")
                .map(ToString::to_string)
        })
        .collect()
}

fn notices(telemetry: &TestTelemetry) -> Vec<(String, bool)> {
    let lines = telemetry.logs();
    let notices = lines
        .iter()
        .filter(|line| line.event() == "spot_interruption_notice");
    notices
        .map(|line| {
            let action = line.field("action").and_then(|action| action.as_str());
            (
                action.unwrap_or_default().to_owned(),
                line.field("time").is_some(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_shows_a_worker_on_ec2_by_its_instance() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let worker = deployment.worker_on(machine.cloud.clone(), "a", &[], None);
    deployment
        .until("registration", async || deployment.status(&worker).await)
        .await;
    let record = format!("dalston:engine:instance:{}", worker.instance);
    let shown: Vec<String> = deployment
        .redis
        .send(&[
            "HMGET",
            &record,
            "node_id",
            "deploy_env",
            "aws_az",
            "aws_instance_type",
        ])
        .await;
    assert_eq!(shown, [TestImds::INSTANCE_ID, "aws", "eu-west-2a", "g5.xlarge"]);
    // What was known before the worker started is not asked for again.
    assert_eq!(machine.looked_for("dynamic/instance-identity/document"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruption_notice_starts_the_drain_and_shows_on_the_spans_in_flight() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let telemetry = TestTelemetry::new();
    // What goes wrong with a question is no reason to stop asking.
    machine.imds.fault(ACTION, ImdsFault::Status(500));
    let mut worker = deployment.worker_on(machine.cloud.clone(), "a", &patient("60"), Some(&telemetry));
    deployment
        .enqueue("long", request("long", json!({"takes_ms": LONG})))
        .await;
    at_work(&deployment, &worker).await;
    deployment
        .until("a first look", async || {
            (machine.looked_for(ACTION) > 0).then_some(())
        })
        .await;
    machine.will("terminate", Duration::from_secs(120));
    machine.imds.heal();
    machine.imds.forget_tokens();

    deployment
        .until("draining", async || {
            (deployment.status(&worker).await? == "draining").then_some(())
        })
        .await;
    deployment.enqueue("late", request("late", json!({}))).await;
    worker.release();
    (&mut worker.running).await.unwrap().unwrap();
    deployment.until_event("task.completed", "long").await;
    let late = |(_, payload): &(String, serde_json::Value)| payload["task_id"] == "late";
    assert!(
        !deployment.events().await.iter().any(late),
        "nothing new is begun"
    );

    assert_eq!(notices(&telemetry), [("terminate".to_owned(), true)]);
    let terminated = [Some("terminate".to_owned())];
    for span in ["engine.echo.process", "engine.process", "engine.upload_output"] {
        assert_eq!(interruptions(&telemetry, span), terminated, "{span}");
    }
    assert_eq!(
        interruptions(&telemetry, "engine.download_input"),
        [None],
        "it was over"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_would_outlast_the_machine_goes_to_a_peer() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let mut worker = deployment.worker_on(machine.cloud.clone(), "a", &patient("3600"), None);
    deployment
        .enqueue("long", request("long", json!({"takes_ms": LONG})))
        .await;
    at_work(&deployment, &worker).await;
    // Seen late: what is left is needed for leaving.
    machine.will("stop", Duration::from_secs(15));
    let ended = tokio::time::timeout(Duration::from_secs(60), &mut worker.running).await;
    ended.expect("an end long before the hour").unwrap().unwrap();

    let peer = deployment.worker("b", "5");
    peer.release();
    deployment.until_event("task.completed", "long").await;
    assert_eq!(deployment.response("long").unwrap().1["data"]["attempt"], 2);
    drop(peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_recommendation_starts_the_drain_unless_it_is_older_than_the_worker() {
    let deployment = Deployment::start().await;
    let (old, new) = (Machine::start().await, Machine::start().await);
    let telemetry = TestTelemetry::new();
    let notice = r#"{"noticeTime": "2026-11-21T14:02:00Z"}"#;
    old.imds.put(REBALANCE, notice);
    let ignoring = deployment.worker_on(old.cloud.clone(), "a", &[], None);
    let only = [("DALSTON_SPOT_DRAIN", "interruption")];
    let indifferent = deployment.worker_on(new.cloud.clone(), "b", &only, None);
    let mut heeding = deployment.worker_on(new.cloud.clone(), "c", &[], Some(&telemetry));
    deployment
        .until("a first look", async || {
            (new.looked_for(REBALANCE) > 0).then_some(())
        })
        .await;
    new.imds.put(REBALANCE, "<html>Please log in.</html>");
    deployment
        .until("a second look", async || {
            (new.looked_for(REBALANCE) > 1).then_some(())
        })
        .await;
    new.imds.put(REBALANCE, notice);

    (&mut heeding.running).await.unwrap().unwrap();
    assert_eq!(notices(&telemetry), [("rebalance".to_owned(), true)]);
    assert!(old.looked_for(REBALANCE) > 1);
    for worker in [&ignoring, &indifferent] {
        assert_eq!(deployment.status(worker).await.as_deref(), Some("idle"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_looks_for_notices_where_that_is_turned_off_or_the_service_was_not_found() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    machine.will("terminate", Duration::from_secs(120));
    let before = machine.imds.requests();
    let endpoint = machine.imds.url();
    let disabled = Env::from_pairs([
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    let unknown = Cloud::detect(&disabled).unwrap();
    let off = [("DALSTON_SPOT_DRAIN", "off")];
    let first = deployment.worker_on(machine.cloud.clone(), "a", &off, None);
    let second = deployment.worker_on(unknown, "b", &[], None);
    for worker in [&first, &second] {
        let idle = async || (deployment.status(worker).await? == "idle").then_some(());
        deployment.until("an idle worker", idle).await;
    }
    // The first look is the first thing that a worker does.
    deployment.enqueue("short", request("short", json!({}))).await;
    deployment.until_event("task.completed", "short").await;
    assert_eq!(machine.imds.requests(), before);
}
