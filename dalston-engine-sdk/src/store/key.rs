//! The names of the platform's bucket and of the files in it.

/// The name of the platform's bucket unless it is configured.
pub const DEFAULT_BUCKET: &str = "dalston-artifacts";

/// `jobs/{job_id}/audio/original.{suffix}`: the recording that a client uploaded. The suffix is
/// that of its file name, or `bin`.
#[must_use]
pub fn source_audio(job_id: &str, file_name: &str) -> String {
    let suffix = suffix(file_name).unwrap_or("bin");
    format!("jobs/{job_id}/audio/original.{}", suffix.to_ascii_lowercase())
}

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
/// is `bin`. A name that has the suffix already, or any where none is given, is kept.
#[must_use]
pub fn task_artifact(job_id: &str, task_id: &str, name: &str, suffix: Option<&str>) -> String {
    format!("jobs/{job_id}/tasks/{task_id}/{}", artifact_file(name, suffix))
}

/// The last part of the key of a file that a task produced.
pub(crate) fn artifact_file(name: &str, suffix_of_file: Option<&str>) -> String {
    match (suffix(name), suffix_of_file) {
        (Some(own), Some(given)) if own.eq_ignore_ascii_case(given) => name.to_owned(),
        (Some(_), None) => name.to_owned(),
        (_, given) => format!("{name}.{}", given.unwrap_or("bin")),
    }
}

/// Whether a file of a task's directory is one of the documents that the platform reads.
pub(crate) fn is_task_document(file: &str) -> bool {
    ["request.json", "response.json"]
        .iter()
        .any(|document| file.eq_ignore_ascii_case(document))
}

/// `jobs/{job_id}/transcript.json`: the final transcript of a job.
#[must_use]
pub fn transcript(job_id: &str) -> String {
    format!("jobs/{job_id}/transcript.json")
}

/// `sessions/{session_id}/audio.wav`: the audio of a realtime session.
#[must_use]
pub fn session_audio(session_id: &str) -> String {
    format!("sessions/{session_id}/audio.wav")
}

/// `sessions/{session_id}/transcript.json`: the transcript of a realtime session.
#[must_use]
pub fn session_transcript(session_id: &str) -> String {
    format!("sessions/{session_id}/transcript.json")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffix_of_an_artifact_is_not_doubled() {
        for (name, suffix, file) in [
            ("notes", Some("txt"), "notes.txt"),
            ("notes.txt", Some("txt"), "notes.txt"),
            ("Notes.TXT", Some("txt"), "Notes.TXT"),
            ("notes.v2", Some("txt"), "notes.v2.txt"),
            ("notes.txt", None, "notes.txt"),
            ("notes", None, "notes.bin"),
        ] {
            assert_eq!(artifact_file(name, suffix), file);
        }
    }
}
