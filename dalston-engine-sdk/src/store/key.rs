//! Where the platform keeps what, inside its bucket.

use crate::context::is_plain_name;

/// `jobs/{job_id}/tasks/{task_id}/request.json`: what a task is asked to do.
#[must_use]
pub fn task_request(job_id: &str, task_id: &str) -> String {
    ["jobs/", job_id, "/tasks/", task_id, "/request.json"].concat()
}

/// `jobs/{job_id}/tasks/{task_id}/response.json`: what a task answered.
#[must_use]
pub fn task_response(job_id: &str, task_id: &str) -> String {
    ["jobs/", job_id, "/tasks/", task_id, "/response.json"].concat()
}

/// `jobs/{job_id}/tasks/{task_id}/{name}{suffix}`: a file that a task produced. Without a suffix of its own it gets `.bin`.
#[must_use]
pub fn task_artifact(job_id: &str, task_id: &str, name: &str, suffix: Option<&str>) -> String {
    format!("jobs/{job_id}/tasks/{task_id}/{name}.{}", suffix.unwrap_or("bin"))
}

/// `jobs/{job_id}/transcript.json`: the final transcript of a job.
#[must_use]
pub fn transcript(job_id: &str) -> String {
    format!("jobs/{job_id}/transcript.json")
}

/// `models/{model_id}`: below it are the files of a model.
pub(crate) fn model(model_id: &str) -> String {
    format!("models/{model_id}")
}

/// Whether an id that came from outside may become a part of a key.
pub(crate) fn is_safe_id(id: &str) -> bool {
    is_plain_name(id)
}

/// The extension of a file name or a locator, if it is a harmless one.
pub(crate) fn suffix(name: &str) -> Option<&str> {
    let file = name.rsplit('/').next()?;
    let (stem, suffix) = file.rsplit_once('.')?;
    let harmless = (1..=8).contains(&suffix.len()) && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (harmless && !stem.is_empty()).then_some(suffix)
}
