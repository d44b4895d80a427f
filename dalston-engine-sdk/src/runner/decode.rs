//! Decoding the input audio of a task.

use std::sync::Arc;

use crate::audio::{AudioFormat, Decoder};
use crate::error::{TaskError, TaskErrorKind};
use crate::task::TaskRequest;
use crate::task_dir::TaskFiles;

/// Decodes the input audio of a task to `format` and puts it into the request.
pub(super) async fn decode(
    mut request: TaskRequest,
    format: Option<AudioFormat>,
    files: &TaskFiles,
) -> Result<TaskRequest, TaskError> {
    let input = request.input("audio").or_else(|| {
        request
            .inputs()
            .iter()
            .find(|input| input.artifact().kind == "audio")
    });
    let (Some(format), Some(input)) = (format, input) else {
        return Ok(request);
    };
    let path = input.path().to_owned();
    let decoder = Decoder::new(format)
        .temp_dir(files.path()?)
        .name(display_name(&input.artifact().storage_locator));
    // A thread can't be stopped from outside: this one stops by itself when the task is dropped.
    let wanted = Arc::new(());
    let still_wanted = Arc::downgrade(&wanted);
    let decoded =
        tokio::task::spawn_blocking(move || decoder.decode_while(&path, |_| still_wanted.strong_count() > 0))
            .await;
    drop(wanted);
    let audio = match decoded {
        Ok(decoded) => decoded?,
        Err(panic) => {
            return Err(TaskError::new(TaskErrorKind::Panic, "panic", panic).context("decoding the audio"));
        }
    };
    request.set_audio(audio);
    Ok(request)
}

/// The name of an input in an error: its path if it is a local file, else its locator. The copy in
/// the temporary directory would mean nothing to an operator.
fn display_name(locator: &str) -> String {
    let path = url::Url::parse(locator)
        .ok()
        .filter(|url| url.scheme() == "file")
        .and_then(|url| url.to_file_path().ok());
    path.map_or_else(|| locator.to_owned(), |path| path.display().to_string())
}
