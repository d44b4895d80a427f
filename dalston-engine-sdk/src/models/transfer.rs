//! The steps of a download that all sources share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::fs::{self, File};
use tokio::time::sleep;

use super::error::{Kind, ModelError};

/// How many files, or parts of files, are downloaded at the same time.
const PARALLEL: usize = 8;
/// How often a file, or a part of a file, is tried.
const TRIES: u32 = 3;
/// A model has a few files; a listing with more is a mistake.
const MAX_FILES: usize = 10_000;

/// Runs downloads of files or parts of files, a few at a time.
pub(super) async fn run_all<F>(downloads: Vec<F>) -> Result<(), ModelError>
where
    F: Future<Output = Result<(), ModelError>>,
{
    stream::iter(downloads)
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// Runs a download again if its source fails.
pub(super) async fn retry<F>(mut download: impl FnMut() -> F) -> Result<(), ModelError>
where
    F: Future<Output = Result<(), ModelError>>,
{
    let mut tries = 1;
    loop {
        match download().await {
            Err(error) if matches!(error.kind(), Kind::Source | Kind::Storage) && tries < TRIES => {
                sleep(Duration::from_millis(250) * 2_u32.pow(tries)).await;
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Creates an empty file and its directory. An existing file is an error: two names in a source may
/// differ only in a way that the file system ignores.
pub(super) async fn create(path: &Path) -> Result<(), ModelError> {
    let create = async {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await?;
        }
        File::create_new(path).await.map(drop)
    };
    create.await.map_err(|error| ModelError::disk(path, &error))
}

/// Makes a file durable: after a power loss, a model that is marked as complete must be complete.
pub(super) async fn sync(path: &Path) -> Result<(), ModelError> {
    let sync = async { File::open(path).await?.sync_all().await };
    sync.await.map_err(|error| ModelError::disk(path, &error))
}

pub(super) fn check_count(files: usize, place: &str) -> Result<(), ModelError> {
    if files > MAX_FILES {
        let text = format!("{place} has more than {MAX_FILES} files");
        return Err(ModelError::new(Kind::Invalid, text));
    }
    Ok(())
}

pub(super) fn check_size(bytes: u64, expected: u64, place: &str) -> Result<(), ModelError> {
    if bytes != expected {
        let text = format!("{place} came with {bytes} bytes where {expected} were announced");
        return Err(ModelError::new(Kind::Source, text));
    }
    Ok(())
}

/// The path of a file below the directory of its model. `None` if it would lead anywhere else.
pub(super) fn local_path(key: &str) -> Option<PathBuf> {
    const LONGEST: usize = 1024;
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':'])
            && !part.contains(char::is_control)
    };
    let valid = key.len() <= LONGEST && key.split('/').all(plain);
    valid.then(|| key.split('/').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_that_leads_out_of_the_model_has_no_path() {
        for key in [
            "",
            "..",
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            "a/",
            ".",
            "c:\\x",
            "a\0b",
            "a\nb",
        ] {
            assert_eq!(local_path(key), None, "{key:?}");
        }
        assert_eq!(local_path("a/b..c/.d e"), Some(PathBuf::from("a/b..c/.d e")));
    }
}
