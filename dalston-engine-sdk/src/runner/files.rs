//! The files of a task: its request and inputs come in, its response and results go out.

use std::path::Path;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::attempt::Attempt;
use crate::broker::{Claim, TaskMetadata};
use crate::context::OutputFile;
use crate::error::{TaskError, TaskErrorKind};
use crate::protocol::{ArtifactReference, RequestBinding, TaskRequestData, TaskResponseData};
use crate::stage::StageName;
use crate::store::{Seen, Store, StoreError, Written, key};
use crate::task::{Input, TaskRequest};
use crate::task_dir::TaskFiles;

/// `request.json` holds the answers of earlier stages; a day of speech with word times stays below this.
const MAX_REQUEST_BYTES: usize = 256 * 1024 * 1024;
/// What the storage takes in one request, and so takes or leaves as a whole. A larger file goes there in parts, of which the
/// last step knows no condition.
const LARGEST_IN_ONE: u64 = 10 * 1024 * 1024;
/// How often a file is written that somebody else writes at the same time.
const WRITES: usize = 5;
/// Inputs that are fetched at the same time.
const PARALLEL_INPUTS: usize = 4;

/// Reads `request.json`.
pub(super) async fn read_request(store: &Store, claim: &Claim) -> Result<TaskRequestData, TaskError> {
    let locator = store.locator(&key::task_request(&claim.job_id, &claim.task_id));
    let bytes = store
        .read(&locator, MAX_REQUEST_BYTES)
        .await
        .map_err(storage_error)?;
    TaskRequestData::from_slice(&bytes)
        .map_err(|error| TaskError::permanent("invalid_request", error).context(locator))
}

/// Brings the inputs of a task to its directory.
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
    // Not made yet: the first file that is written makes it.
    let directory = &files.path()?.join("inputs");
    let fetches = wanted
        .into_iter()
        .enumerate()
        .map(|(number, (slot, artifact))| async move {
            let path = directory.join(file_name(number, &slot, &artifact));
            let path = store
                .fetch(&artifact.storage_locator, &path)
                .await
                .map_err(storage_error)?;
            Ok::<_, TaskError>(Input::new(slot, path, artifact))
        });
    let inputs = stream::iter(fetches)
        .buffered(PARALLEL_INPUTS)
        .try_collect()
        .await?;
    Ok(TaskRequest::new(stage, data, inputs))
}

/// Stores what the engine left behind, then `response.json`, each only if the task is still ours.
pub(super) async fn upload(
    store: &Store,
    claim: &Claim,
    stage: &StageName,
    files: Vec<OutputFile>,
    response: TaskResponseData,
    attempt: &Attempt<'_>,
) -> Result<Vec<ArtifactReference>, TaskError> {
    let mut artifacts = Vec::with_capacity(files.len());
    for file in files {
        attempt.still_ours().await?;
        artifacts.push(Box::pin(put_file(store, claim, stage, file, attempt)).await?);
        fault_point!(ArtifactStored);
    }
    let response = response.artifacts(artifacts.iter().cloned());
    let key = key::task_response(&claim.job_id, &claim.task_id);
    attempt.still_ours().await?;
    write(store, &key, response.to_vec().into(), attempt).await?;
    fault_point!(ResponseStored);
    Ok(artifacts)
}

async fn put_file(
    store: &Store,
    claim: &Claim,
    stage: &StageName,
    file: OutputFile,
    attempt: &Attempt<'_>,
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
    let stored = async {
        match read_whole(&path).await.map_err(storage_error)? {
            Some(content) => {
                let size = content.len() as u64;
                Ok((write(store, &key, content, attempt).await?, size))
            }
            None => store.put(&path, &key).await.map_err(storage_error),
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

/// Writes a file, and over another one only if that can't be the work of a peer that has the task by now.
async fn write(store: &Store, key: &str, content: Bytes, attempt: &Attempt<'_>) -> Result<String, TaskError> {
    let mut seen = Seen::default();
    for _ in 0..WRITES {
        match store
            .replace(key, content.clone(), &seen)
            .await
            .map_err(storage_error)?
        {
            Written::Done(locator) => return Ok(locator),
            Written::Conflict(other) => seen = other,
        }
        // In this order: what a peer writes after it got the task is not what was seen.
        attempt.ask_whether_ours().await?;
    }
    let text = format!("{}: somebody else keeps writing it", store.locator(key));
    Err(TaskError::retryable("storage", text))
}

/// A file of this machine, unless it is too large for one request.
async fn read_whole(path: &Path) -> Result<Option<Bytes>, StoreError> {
    let read = async {
        if tokio::fs::metadata(path).await?.len() > LARGEST_IN_ONE {
            return Ok(None);
        }
        tokio::fs::read(path).await.map(|content| Some(content.into()))
    };
    read.await
        .map_err(|source| StoreError::file("reading", path, source))
}

/// Which artifact goes into which slot: the slots of the bindings in their order, then any others.
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
                "the task's input {slot:?} is artifact {id:?}, which its index does not have"
            )));
        };
        wanted.push((slot.clone(), artifact.clone()));
    }
    Ok(wanted)
}

/// A name that a person recognises and that leads nowhere else. The number keeps two inputs apart.
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

pub(super) fn storage_error(error: StoreError) -> TaskError {
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
    TaskError::new(kind, code, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_inputs_lead_nowhere_else() {
        let artifact = ArtifactReference::new("T:../../x", "audio", "s3://b/jobs/J/a.b/prepared_audio.wav");
        assert_eq!(file_name(0, "audio", &artifact), "0_audio_T_______x.wav");
        let artifact = ArtifactReference::new("/etc/passwd\0", "audio", "s3://b/x.so/../evil");
        assert_eq!(file_name(1, "..", &artifact), "1_____etc_passwd_");
        let artifact = ArtifactReference::new("a".repeat(1000), "audio", "s3://b/x.averylongsuffix");
        assert!(file_name(2, "audio", &artifact).len() < 90);
    }
}
