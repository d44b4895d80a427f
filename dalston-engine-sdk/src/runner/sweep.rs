//! Removing the directories of tasks whose process was killed.

use std::convert::Infallible;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

/// Prefixes of the directories of tasks from the queue and of requests over HTTP. Engines in other
/// languages use the same.
pub(super) const TASK: &str = "dalston_task_";
pub(super) const HTTP: &str = "dalston_http_";
/// How often stale directories are removed.
const PERIOD: Duration = Duration::from_secs(3600);
/// How many entries one sweep looks at, and how many it removes.
const MAX_SEEN: usize = 100_000;
const MAX_REMOVED: usize = 1_000;
/// The times of files come from a coarser clock and may lie a little before the moment at which
/// they were made.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// Removes directories of tasks that nothing was added to for `age`, now and every hour.
///
/// Directories that were made since this call stay, however short the age: no task of this worker
/// loses its files.
pub(super) async fn purge_periodically(root: PathBuf, age: Duration) -> Infallible {
    let begun = before_now(CLOCK_SLACK);
    loop {
        let root_ = root.clone();
        let sweep = move || sweep(&root_, before_now(age).min(begun));
        match tokio::task::spawn_blocking(sweep).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(removed)) => tracing::info!(removed, root = %root.display(), "stale_temp_dirs_purged"),
            Ok(Err(error)) => {
                tracing::warn!(error = %error, root = %root.display(), "stale_temp_dirs_not_purged");
            }
        }
        sleep(PERIOD).await;
    }
}

fn before_now(age: Duration) -> SystemTime {
    SystemTime::now()
        .checked_sub(age)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn sweep(root: &Path, before: SystemTime) -> io::Result<usize> {
    let stale = fs::read_dir(root)?
        .take(MAX_SEEN)
        .filter_map(Result::ok)
        .filter(|entry| is_stale(entry, before));
    // A single failure is no error: the directory belongs to another user, or a peer was faster.
    let removed = stale.filter(|entry| fs::remove_dir_all(entry.path()).is_ok());
    Ok(removed.take(MAX_REMOVED).count())
}

fn is_stale(entry: &DirEntry, before: SystemTime) -> bool {
    let name = entry.file_name();
    let begins_with = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    if !begins_with(TASK) && !begins_with(HTTP) {
        return false;
    }
    // This is the metadata of a link itself, which is no directory.
    let Ok(metadata) = entry.metadata() else {
        return false;
    };
    metadata.is_dir() && metadata.modified().is_ok_and(|modified| modified < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_removes_a_thousand_and_the_next_one_the_rest() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..1_003 {
            fs::create_dir(root.path().join(format!("{TASK}{number}"))).unwrap();
        }
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(sweep(root.path(), later).unwrap(), 1_000);
        assert_eq!(sweep(root.path(), later).unwrap(), 3);
        assert_eq!(sweep(root.path(), later).unwrap(), 0);
    }

    #[test]
    fn an_unreadable_directory_is_an_error() {
        assert!(sweep(Path::new("/no/such/directory"), SystemTime::now()).is_err());
    }
}
