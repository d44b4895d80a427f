//! A worker on EC2: its registry record, and its reaction to interruption notices.

use std::time::{Duration, SystemTime};

use dalston_engine_sdk::protocol::Timestamp;
use dalston_telemetry::Env;
use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;
use testbed::{ImdsFault, TestImds};

use super::{Deployment, request};
use crate::support::until;

const ACTION: &str = "meta-data/spot/instance-action";
const REBALANCE: &str = "meta-data/events/recommendations/rebalance";

/// Milliseconds, unless the test releases the engine.
const LONG: u64 = 600_000;

/// An EC2 instance with its metadata service.
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

    fn announce(&self, action: &str, within: Duration) {
        let time = Timestamp::from(SystemTime::now() + within);
        self.imds.put(
            ACTION,
            json!({"action": action, "time": time.to_string()}).to_string(),
        );
    }

    /// The number of requests for this path.
    fn requests(&self, path: &str) -> usize {
        let request = format!("GET /latest/{path}");
        self.imds
            .requests()
            .iter()
            .filter(|made| **made == request)
            .count()
    }
}

fn drain_timeout(seconds: &str) -> [(&str, &str); 1] {
    [("DALSTON_DRAIN_TIMEOUT_SECONDS", seconds)]
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
async fn registry_record_has_the_ec2_instance() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let worker = deployment.worker_on(machine.cloud.clone(), "a", &[], None);
    deployment.until_registered(&worker).await;
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
    // The identity that was read before the worker started is not read again.
    assert_eq!(machine.requests("dynamic/instance-identity/document"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interruption_notice_drains_and_marks_spans_in_flight() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let telemetry = TestTelemetry::new();
    // The worker continues to poll after an error.
    machine.imds.fault(ACTION, ImdsFault::Status(500));
    let mut worker = deployment.worker_on(machine.cloud.clone(), "a", &drain_timeout("60"), Some(&telemetry));
    deployment
        .enqueue("long", request("long", json!({"takes_ms": LONG})))
        .await;
    worker.until_busy().await;
    until("first request", async || {
        (machine.requests(ACTION) > 0).then_some(())
    })
    .await;
    machine.announce("terminate", Duration::from_secs(120));
    machine.imds.heal();
    machine.imds.forget_tokens();

    deployment.until_draining(&worker).await;
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
        "it had ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_longer_than_the_notice_goes_to_a_peer() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    let mut worker = deployment.worker_on(machine.cloud.clone(), "a", &drain_timeout("3600"), None);
    deployment
        .enqueue("long", request("long", json!({"takes_ms": LONG})))
        .await;
    worker.until_busy().await;
    // The notice comes late: the remaining time is needed for the shutdown.
    machine.announce("stop", Duration::from_secs(15));
    let ended = tokio::time::timeout(Duration::from_secs(60), &mut worker.running).await;
    ended.expect("an end long before the hour").unwrap().unwrap();

    let peer = deployment.worker("b", "5");
    peer.release();
    deployment.until_event("task.completed", "long").await;
    assert_eq!(deployment.response("long").unwrap().1["data"]["attempt"], 2);
    drop(peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_new_rebalance_recommendation_starts_the_drain() {
    let deployment = Deployment::start().await;
    let (old, new) = (Machine::start().await, Machine::start().await);
    let telemetry = TestTelemetry::new();
    let notice = r#"{"noticeTime": "2026-11-21T14:02:00Z"}"#;
    old.imds.put(REBALANCE, notice);
    let with_old_notice = deployment.worker_on(old.cloud.clone(), "a", &[], None);
    let only = [("DALSTON_SPOT_DRAIN", "interruption")];
    let interruptions_only = deployment.worker_on(new.cloud.clone(), "b", &only, None);
    let mut draining = deployment.worker_on(new.cloud.clone(), "c", &[], Some(&telemetry));
    until("first request", async || {
        (new.requests(REBALANCE) > 0).then_some(())
    })
    .await;
    new.imds.put(REBALANCE, "<html>Please log in.</html>");
    until("second request", async || {
        (new.requests(REBALANCE) > 1).then_some(())
    })
    .await;
    new.imds.put(REBALANCE, notice);

    (&mut draining.running).await.unwrap().unwrap();
    assert_eq!(notices(&telemetry), [("rebalance".to_owned(), true)]);
    until("second look at the old notice", async || {
        (old.requests(REBALANCE) > 1).then_some(())
    })
    .await;
    for worker in [&with_old_notice, &interruptions_only] {
        let idle = async || (deployment.status(worker).await? == "idle").then_some(());
        until("idle worker", idle).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disabled_or_absent_metadata_service_is_not_polled() {
    let deployment = Deployment::start().await;
    let machine = Machine::start().await;
    machine.announce("terminate", Duration::from_secs(120));
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
        until("idle worker", idle).await;
    }
    // A worker polls before it takes a task.
    deployment.enqueue("short", request("short", json!({}))).await;
    deployment.until_event("task.completed", "short").await;
    assert_eq!(machine.imds.requests(), before);
}
