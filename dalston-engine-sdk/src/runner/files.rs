//! The files of a task: request and inputs are downloaded, response and results are uploaded.

use std::path::Path;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::lease::Lease;
use crate::broker::{Claim, TaskMetadata};
use crate::context::OutputFile;
use crate::error::{TaskError, TaskErrorKind};
use crate::protocol::{ArtifactReference, RequestBinding, TaskRequestData, TaskResponseData};
use crate::stage::StageName;
use crate::store::{Seen, Store, StoreError, Written, key};
use crate::task::{Input, TaskRequest};
use crate::task_dir::TaskFiles;

/// `request.json` holds the answers of earlier stages. A day of speech has about 220,000 words, and
/// a word with its times takes about 120 bytes, in up to four answers.
const MAX_REQUEST_BYTES: usize = 128 * 1024 * 1024;
/// A larger document is read and written on a blocking thread: a megabyte takes about 10 ms, and
/// the runtime also renews leases and answers probes.
const LARGEST_JSON_ON_RUNTIME: usize = 256 * 1024;
/// The largest file that is written with one request, under a condition. A larger file is written
/// in parts, and completing them knows no condition.
const LARGEST_SINGLE_WRITE: u64 = 10 * 1024 * 1024;
/// How often a file is written while another process writes it, too.
const WRITE_ATTEMPTS: usize = 5;
/// How many inputs are downloaded at the same time.
const PARALLEL_INPUTS: usize = 4;

/// Reads `request.json`.
pub(super) async fn read_request(store: &Store, claim: &Claim) -> Result<TaskRequestData, TaskError> {
    let locator = store.locator(&key::task_request(&claim.job_id, &claim.task_id));
    let bytes = store
        .read(&locator, MAX_REQUEST_BYTES)
        .await
        .map_err(|error| storage_error(store, error))?;
    let is_large = bytes.len() > LARGEST_JSON_ON_RUNTIME;
    convert_json(is_large, move || TaskRequestData::from_slice(&bytes))
        .await?
        .map_err(|error| TaskError::permanent("invalid_request", error).context(locator))
}

/// Reads or writes a document, on a blocking thread if it is large.
async fn convert_json<T: Send + 'static>(
    is_large: bool,
    convert: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskError> {
    if !is_large {
        return Ok(convert());
    }
    tokio::task::spawn_blocking(convert)
        .await
        .map_err(|panic| TaskError::new(TaskErrorKind::Panic, "panic", panic).context("converting JSON"))
}

/// Downloads the inputs of a task to its directory.
pub(super) async fn fetch_inputs(
    store: &Store,
    stage: StageName,
    mut data: TaskRequestData,
    metadata: Option<&TaskMetadata>,
    files: &TaskFiles,
) -> Result<TaskRequest, TaskError> {
    if let Some(bindings) = metadata.and_then(|metadata| metadata.bindings.as_ref()) {
        data.request_bindings.clone_from(bindings);
    }
    if let Some(ids) = metadata.and_then(|metadata| metadata.resolved_artifact_ids.as_ref()) {
        data.resolved_artifact_ids.clone_from(ids);
    }
    let wanted = wanted_inputs(&data)?;
    if wanted.is_empty() {
        return Ok(TaskRequest::new(stage, data, Vec::new()));
    }
    // The first download makes this directory.
    let directory = &files.path()?.join("inputs");
    let fetches = wanted
        .into_iter()
        .enumerate()
        .map(|(number, (slot, artifact))| async move {
            let path = directory.join(file_name(number, &slot, &artifact));
            let path = store
                .fetch(&artifact.storage_locator, &path)
                .await
                .map_err(|error| storage_error(store, error))?;
            Ok::<_, TaskError>(Input::new(slot, path, artifact))
        });
    let inputs = stream::iter(fetches)
        .buffered(PARALLEL_INPUTS)
        .try_collect()
        .await?;
    Ok(TaskRequest::new(stage, data, inputs))
}

/// Stores the output files, then `response.json`, each only if the task is still ours.
pub(super) async fn upload(
    store: &Store,
    claim: &Claim,
    stage: &StageName,
    files: Vec<OutputFile>,
    response: TaskResponseData,
    lease: &Lease<'_>,
    removals: &TaskTracker,
) -> Result<Vec<ArtifactReference>, TaskError> {
    let mut artifacts = Vec::with_capacity(files.len());
    for file in files {
        lease.ensure_held().await?;
        artifacts.push(put_file(store, claim, stage, file, lease, removals).await?);
        fault_point!(ArtifactStored);
    }
    let response = response.artifacts(artifacts.iter().cloned());
    let key = key::task_response(&claim.job_id, &claim.task_id);
    lease.ensure_held().await?;
    let content = convert_json(is_large(&response.data), move || response.to_vec()).await?;
    write(store, &key, content.into(), lease).await?;
    fault_point!(ResponseStored);
    Ok(artifacts)
}

/// Whether the text of a value is long. The estimate costs little, because it ends at the limit.
fn is_large(value: &Value) -> bool {
    const SHORTEST: usize = 8;
    let mut left = LARGEST_JSON_ON_RUNTIME;
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let size = match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.len() * SHORTEST,
            Value::Object(values) => values.len() * SHORTEST,
            _ => 0,
        };
        let Some(rest) = left.checked_sub(size) else {
            return true;
        };
        left = rest;
        match value {
            Value::Array(values) => open.extend(values),
            Value::Object(values) => open.extend(values.values()),
            _ => {}
        }
    }
    false
}

async fn put_file(
    store: &Store,
    claim: &Claim,
    stage: &StageName,
    file: OutputFile,
    lease: &Lease<'_>,
    removals: &TaskTracker,
) -> Result<ArtifactReference, TaskError> {
    let OutputFile {
        name,
        path,
        kind,
        role,
        media_type,
        channel,
    } = file;
    let key = if kind == "transcript" && role.as_deref() == Some("final") {
        key::transcript(&claim.job_id)
    } else {
        let suffix = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(key::suffix);
        key::task_artifact(&claim.job_id, &claim.task_id, &name, suffix)
    };
    let failed = |error| storage_error(store, error);
    let stored = async {
        match read_whole(&path).await.map_err(failed)? {
            Some(content) => {
                let size = content.len() as u64;
                Ok((write(store, &key, content, lease).await?, size))
            }
            None => put_large(store, &path, &key, lease, removals).await,
        }
    };
    let (locator, size) = stored
        .await
        .map_err(|error| error.context(format_args!("the output file {name:?}")))?;
    let id = format!("{}:{name}", claim.task_id);
    let mut artifact = ArtifactReference::new(id, kind, locator)
        .size(size)
        .producer(&*claim.task_id, stage.to_string());
    artifact.role = role;
    artifact.media_type = media_type;
    artifact.channel = channel;
    Ok(artifact)
}

/// Stores a file that is too large for one request. It replaces another one only as [`write`] does.
async fn put_large(
    store: &Store,
    path: &Path,
    key: &str,
    lease: &Lease<'_>,
    removals: &TaskTracker,
) -> Result<(String, u64), TaskError> {
    let failed = |error| storage_error(store, error);
    let staged = store.stage(path, key, removals).await.map_err(failed)?;
    let mut seen = Seen::default();
    for _ in 0..WRITE_ATTEMPTS {
        match store.publish(&staged, key, &seen).await.map_err(failed)? {
            Written::Done(locator) => return Ok((locator, staged.size)),
            Written::Conflict(other) => seen = other,
        }
        lease.renew().await?;
    }
    let text = format!("{}: another process keeps writing it", store.locator(key));
    Err(TaskError::retryable("storage", text))
}

/// Writes a file. It replaces another one only if no peer that has the task by now can have written
/// that.
async fn write(store: &Store, key: &str, content: Bytes, lease: &Lease<'_>) -> Result<String, TaskError> {
    let mut seen = Seen::default();
    for _ in 0..WRITE_ATTEMPTS {
        match store
            .replace(key, content.clone(), &seen)
            .await
            .map_err(|error| storage_error(store, error))?
        {
            Written::Done(locator) => return Ok(locator),
            Written::Conflict(other) => seen = other,
        }
        // In this order: a file that a peer writes after it got the task differs from the seen one.
        lease.renew().await?;
    }
    let text = format!("{}: another process keeps writing it", store.locator(key));
    Err(TaskError::retryable("storage", text))
}

/// Reads a local file, unless it is too large for one request.
async fn read_whole(path: &Path) -> Result<Option<Bytes>, StoreError> {
    let read = async {
        if tokio::fs::metadata(path).await?.len() > LARGEST_SINGLE_WRITE {
            return Ok(None);
        }
        tokio::fs::read(path).await.map(|content| Some(content.into()))
    };
    read.await
        .map_err(|source| StoreError::file("reading", path, source))
}

/// The artifact of each slot: the slots of the bindings in their order, then any others.
fn wanted_inputs(data: &TaskRequestData) -> Result<Vec<(String, ArtifactReference)>, TaskError> {
    let missing = |problem: String| TaskError::permanent("missing_input", problem);
    let resolved = &data.resolved_artifact_ids;
    let bound = |slot: &String| data.request_bindings.iter().any(|binding| binding.slot == *slot);
    let slots = data
        .request_bindings
        .iter()
        .map(|binding: &RequestBinding| (&binding.slot, binding.selector.required));
    let others = resolved
        .keys()
        .filter(|slot| !bound(slot))
        .map(|slot| (slot, true));
    let mut wanted = Vec::new();
    for (slot, required) in slots.chain(others) {
        let Some(id) = resolved.get(slot) else {
            if required {
                return Err(missing(format!("the task's input {slot:?} has no artifact")));
            }
            continue;
        };
        let Some(artifact) = data.artifact_index.get(id) else {
            return Err(missing(format!(
                "the task's input {slot:?} is artifact {id:?}, which is not in its artifact index"
            )));
        };
        wanted.push((slot.clone(), artifact.clone()));
    }
    Ok(wanted)
}

/// A recognisable name without a path. The number keeps two inputs apart.
fn file_name(number: usize, slot: &str, artifact: &ArtifactReference) -> String {
    const LONGEST: usize = 80;
    let harmless = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    let stem: String = format!("{slot}_{}", artifact.artifact_id)
        .chars()
        .map(harmless)
        .take(LONGEST)
        .collect();
    match key::suffix(&artifact.storage_locator) {
        Some(suffix) => format!("{number}_{stem}.{suffix}"),
        None => format!("{number}_{stem}"),
    }
}

fn storage_error(store: &Store, error: StoreError) -> TaskError {
    let fault = error.worker_fault(store.bucket());
    let (kind, code) = match &error {
        StoreError::Locator { .. } => (TaskErrorKind::Permanent, "invalid_locator"),
        StoreError::NoBucket { .. } | StoreError::NotFound { .. } => (TaskErrorKind::Permanent, "not_found"),
        StoreError::TooLarge { .. } => (TaskErrorKind::Permanent, "too_large"),
        StoreError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            (TaskErrorKind::Permanent, "not_found")
        }
        StoreError::File { .. } => (TaskErrorKind::Retryable, "file"),
        StoreError::Storage { .. } => (TaskErrorKind::Retryable, "storage"),
    };
    let error = TaskError::new(kind, code, error);
    match fault {
        Some(fault) => error.with_fault(fault),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_inputs_have_no_path() {
        let artifact = ArtifactReference::new("T:../../x", "audio", "s3://b/jobs/J/a.b/prepared_audio.wav");
        assert_eq!(file_name(0, "audio", &artifact), "0_audio_T_______x.wav");
        let artifact = ArtifactReference::new("/etc/passwd\0", "audio", "s3://b/x.so/../evil");
        assert_eq!(file_name(1, "..", &artifact), "1_____etc_passwd_");
        let artifact = ArtifactReference::new("a".repeat(1000), "audio", "s3://b/x.averylongsuffix");
        assert!(file_name(2, "audio", &artifact).len() < 90);
    }
}
