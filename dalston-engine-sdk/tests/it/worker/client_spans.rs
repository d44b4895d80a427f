//! Client spans of the requests to Redis and S3.

use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;

use super::{Deployment, configs, request};
use crate::support::until;

/// The names of the spans of a task with their parents, in the order of their ends.
async fn spans_of_a_task(value: &str) -> Vec<(String, String)> {
    let deployment = Deployment::start().await;
    let telemetry = TestTelemetry::new();
    let more = [("DALSTON_CLIENT_SPANS", value)];
    let (config, settings) = configs(&deployment.redis.url(), &deployment.s3.url(), "a", &more);
    let mut worker = deployment.worker_traced(config, settings, Some(&telemetry));
    deployment
        .enqueue("T", request("T", json!({"output": "words"})))
        .await;
    deployment.until_event("task.completed", "T").await;
    let ended = async || {
        let spans = telemetry.spans();
        spans
            .iter()
            .any(|span| span.name == "engine.echo.process")
            .then_some(())
    };
    until("span of the task", ended).await;
    worker.finish().await;
    let spans = telemetry.spans();
    let name = |id| {
        let parent = spans.iter().find(|span| Some(span.span_id) == id);
        parent.map_or_else(String::new, |span| span.name.to_string())
    };
    let pairs = spans
        .iter()
        .map(|span| (span.name.to_string(), name(span.parent_span_id)));
    pairs.collect()
}

fn has(spans: &[(String, String)], name: &str, parent: &str) -> bool {
    spans.iter().any(|span| span.0 == name && span.1 == parent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_task_have_client_spans_if_asked() {
    let spans = spans_of_a_task("all").await;
    assert!(has(&spans, "GET", "engine.download_input"), "{spans:?}");
    assert!(has(&spans, "PUT", "engine.upload_output"), "{spans:?}");
    assert!(has(&spans, "EVALSHA", "engine.echo.process"), "{spans:?}");
    let roots = spans.iter().filter(|(_, parent)| parent.is_empty());
    assert!(
        roots.clone().all(|(name, _)| name.starts_with("engine.")),
        "{:?}",
        roots.collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_task_have_no_client_spans_by_default() {
    let spans = spans_of_a_task("").await;
    assert!(
        spans.iter().all(|(name, _)| name.starts_with("engine.")),
        "{spans:?}"
    );
}
