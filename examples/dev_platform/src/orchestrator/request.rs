//! `request.json` of a task.

use std::time::Duration;

use anyhow::{Context, Result};
use dalston_engine_sdk::protocol::{
    ArtifactReference, ArtifactSelector, RequestBinding, TaskRequestData, TaskResponseData,
};
use dalston_engine_sdk::stage::{Stage, StageName};
use dalston_engine_sdk::store::{Store, key};
use serde_json::{Value, json};

use crate::db::{Job, Task, TaskStatus};

/// The longest `response.json`: hours of words with times.
const MAX_RESPONSE: usize = 256 << 20;
/// The time of a task in relation to its audio.
const TIMEOUT_FACTOR: f64 = 3.0;

/// The answers of the completed tasks of a job, by stage.
pub(super) async fn responses(store: &Store, tasks: &[Task]) -> Result<Vec<(String, TaskResponseData)>> {
    let mut responses = Vec::new();
    for task in tasks.iter().filter(|task| task.status == TaskStatus::Completed) {
        let locator = store.locator(&key::task_response(&task.job_id, &task.id));
        let bytes = store.read(&locator, MAX_RESPONSE).await?;
        let response = TaskResponseData::from_slice(&bytes).with_context(|| locator.clone())?;
        responses.push((task.stage.clone(), response));
    }
    Ok(responses)
}

/// The request of a task whose dependencies have these answers.
///
/// Artifacts come from the answers and not from Redis, which may have lost them.
pub(super) fn request(
    job: &Job,
    task: &Task,
    responses: &[(String, TaskResponseData)],
) -> Result<TaskRequestData> {
    let stage: StageName = task.stage.parse()?;
    let mut request = TaskRequestData::new(&*task.id, &*job.id);
    request.config = task.config.clone();
    let source = job.source();
    let produced = responses
        .iter()
        .flat_map(|(_, response)| &response.produced_artifacts);
    let artifacts: Vec<ArtifactReference> = std::iter::once(source).chain(produced.cloned()).collect();
    let selector = match stage.stage() {
        Stage::Prepare => {
            let media = json!({"media": job.media});
            request.payload = media.as_object().cloned();
            ArtifactSelector::new("gateway", "audio").role("source")
        }
        _ => {
            let prepared = ArtifactSelector::new("prepare", "audio").role("prepared");
            prepared.channel(stage.channel().unwrap_or(0))
        }
    };
    let found = artifacts.iter().find(|artifact| selector.accepts(artifact));
    let found = found.with_context(|| format!("the job has no audio for the stage {}", task.stage))?;
    request
        .resolved_artifact_ids
        .insert("audio".to_owned(), found.artifact_id.clone());
    request
        .request_bindings
        .push(RequestBinding::new("audio", selector));
    for artifact in artifacts {
        request
            .artifact_index
            .insert(artifact.artifact_id.clone(), artifact);
    }
    for (stage, response) in responses
        .iter()
        .filter(|(stage, _)| task.depends_on.contains(stage))
    {
        request
            .previous_responses
            .insert(stage.clone(), response.data.clone());
        // Per-channel answers stand under both names.
        if let Ok(name) = stage.parse::<StageName>() {
            let plain = name.stage().as_str().to_owned();
            request.previous_responses.insert(plain, response.data.clone());
        }
    }
    Ok(request)
}

/// How long an attempt may take.
pub(super) fn timeout(job: &Job, least: Duration) -> Duration {
    let wanted = Duration::try_from_secs_f64(job.media.duration * TIMEOUT_FACTOR);
    wanted.unwrap_or(least).max(least)
}

/// The length of a job's audio as the stage `prepare` measured it.
pub(super) fn measured_audio(responses: &[(String, TaskResponseData)]) -> Option<Duration> {
    let (_, prepared) = responses.iter().find(|(stage, _)| stage == "prepare")?;
    let seconds = prepared
        .data
        .pointer("/source_media/duration")
        .and_then(Value::as_f64)?;
    Duration::try_from_secs_f64(seconds).ok()
}
