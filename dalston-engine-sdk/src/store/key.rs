//! The names of the platform's bucket and of the files in it.

/// The name of the platform's bucket unless it is configured.
pub const DEFAULT_BUCKET: &str = "dalston-artifacts";

/// `jobs/{job_id}/tasks/{task_id}/request.json`: the request of a task.
#[must_use]
pub fn task_request(job_id: &str, task_id: &str) -> String {
    format!("jobs/{job_id}/tasks/{task_id}/request.json")
}

/// `jobs/{job_id}/tasks/{task_id}/response.json`: the response of a task.
#[must_use]
pub fn task_response(job_id: &str, task_id: &str) -> String {
    format!("jobs/{job_id}/tasks/{task_id}/response.json")
}

/// `jobs/{job_id}/tasks/{task_id}/{name}.{suffix}`: a file that a task produced. The default suffix
/// is `bin`.
#[must_use]
pub fn task_artifact(job_id: &str, task_id: &str, name: &str, suffix: Option<&str>) -> String {
    format!("jobs/{job_id}/tasks/{task_id}/{name}.{}", suffix.unwrap_or("bin"))
}

/// `jobs/{job_id}/transcript.json`: the final transcript of a job.
#[must_use]
pub fn transcript(job_id: &str) -> String {
    format!("jobs/{job_id}/transcript.json")
}

/// `models/{model_id}`: the prefix of the files of a model.
pub(crate) fn model(model_id: &str) -> String {
    format!("models/{model_id}")
}

/// Whether a name can be that of a bucket. It becomes part of a host name or a path, so it must not
/// hold anything else.
pub(crate) fn is_bucket_name(name: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    (3..=63).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && !name.contains("..")
}

/// Whether a name can be part of a key and of a file name without leading anywhere else.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=128).contains(&name.len()) && name.bytes().all(plain) && !name.bytes().all(|byte| byte == b'.')
}

/// The extension of a file name or a locator, if it is short and plain enough for a local file
/// name.
pub(crate) fn suffix(name: &str) -> Option<&str> {
    let file = name.rsplit('/').next()?;
    let (stem, suffix) = file.rsplit_once('.')?;
    let harmless = (1..=8).contains(&suffix.len()) && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (harmless && !stem.is_empty()).then_some(suffix)
}
