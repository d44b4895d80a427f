//! The rights of the Redis user that the guide for operators creates.

use std::collections::BTreeMap;

use dalston_telemetry::testing::TestTelemetry;
use redis::AsyncCommands;
use serde_json::json;

use super::{Deployment, configs, request};
use crate::support::until;

const GUIDE: &str = include_str!("../../../docs/guides/operations.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_rights_are_sufficient() {
    let deployment = Deployment::start().await;
    let mut lines = GUIDE.lines();
    let line = lines.find(|line| line.starts_with("ACL SETUSER ")).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let () = deployment.redis.send(&words).await;
    let port = deployment.redis.port();
    let url = format!("redis://worker:secret@127.0.0.1:{port}");
    let client = redis::Client::open(&*url).unwrap();
    let mut user = client.get_multiplexed_async_connection().await.unwrap();
    user.get::<_, String>("another").await.unwrap_err();

    let telemetry = TestTelemetry::new();
    let (config, settings) = configs(&url, &deployment.s3.url(), "a", &[]);
    let mut worker = deployment.worker_traced(config, settings, Some(&telemetry));
    deployment
        .enqueue("T", request("T", json!({"output": "words"})))
        .await;
    deployment.until_event("task.completed", "T").await;
    // The rights of a whole life: a restored group, and the removal of the registry record.
    let destroy = ["XGROUP", "DESTROY", super::STREAM, "engines"];
    let () = deployment.redis.send(&destroy).await;
    deployment.enqueue("U", request("U", json!({}))).await;
    deployment.until_event("task.completed", "U").await;
    until("empty queue", async || {
        (deployment.pending().await == 0).then_some(())
    })
    .await;
    worker.finish().await;

    assert_eq!(deployment.events().await.len(), 4);
    let members: usize = deployment
        .redis
        .send(&["SCARD", "dalston:engine:instances"])
        .await;
    assert_eq!(members, 0);
    let denied: Vec<BTreeMap<String, redis::Value>> = deployment.redis.send(&["ACL", "LOG"]).await;
    let mut denied: Vec<String> = denied
        .iter()
        .map(|entry| redis::from_redis_value_ref(&entry["object"]).unwrap())
        .collect();
    // The client library tells its name where it may.
    denied.retain(|command| !command.starts_with("client"));
    assert_eq!(
        denied,
        ["get"],
        "the check of this test, and no command of the worker"
    );
}
