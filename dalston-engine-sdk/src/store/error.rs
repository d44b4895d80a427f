//! Why a file could not be read or written.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::error::{WorkerFault, chain};

/// Why a file could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The locator names nothing that this store can reach.
    #[error("the locator {locator:?} can't be used: {problem}")]
    Locator {
        /// The locator.
        locator: String,
        /// The problem with it.
        problem: String,
    },
    /// There is no such bucket.
    #[error("{locator}: there is no such bucket; create it, or correct its name")]
    NoBucket {
        /// The locator.
        locator: String,
    },
    /// There is nothing at this locator.
    #[error("{locator}: there is no such object")]
    NotFound {
        /// The locator.
        locator: String,
    },
    /// The file is larger than its reader accepts.
    #[error("{locator}: it has more than {limit} bytes")]
    TooLarge {
        /// The locator.
        locator: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file of this machine could not be read or written.
    #[error("{action} {path}: {source}")]
    File {
        /// The action that failed: `reading`, `writing` or `creating`.
        action: &'static str,
        /// The file.
        path: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The storage failed.
    #[error("{action} {locator}: {}{}", chain(&**source), advice(&**source))]
    Storage {
        /// The action that failed: `reading`, `writing` or `opening`.
        action: &'static str,
        /// The locator.
        locator: String,
        /// The error of the storage's client.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(crate) fn locator(locator: &str, problem: impl Into<String>) -> Self {
        Self::Locator {
            locator: locator.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.display().to_string(),
            source,
        }
    }

    /// The dependency of this worker that caused the error, if the files of the deployment
    /// are in `bucket`. `None` if the task caused it.
    ///
    /// Every task needs that bucket. Other buckets are named by single tasks, and a file that the
    /// engine did not write is missed on every worker.
    pub(crate) fn worker_fault(&self, bucket: &str) -> Option<WorkerFault> {
        let is_ours = |locator: &str| {
            let rest = locator
                .strip_prefix("s3://")
                .and_then(|rest| rest.strip_prefix(bucket));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self {
            Self::Locator { .. } | Self::NotFound { .. } | Self::TooLarge { .. } => None,
            Self::File { action, source, .. } => {
                let missing = *action == "reading" && source.kind() == io::ErrorKind::NotFound;
                (!missing).then_some(WorkerFault::Disk)
            }
            Self::NoBucket { locator } | Self::Storage { locator, .. } => {
                is_ours(locator).then_some(WorkerFault::Storage)
            }
        }
    }

    pub(super) fn storage(action: &'static str, locator: &str, source: object_store::Error) -> Self {
        let locator = locator.to_owned();
        match source {
            // Only the text of the response differs.
            object_store::Error::NotFound { source, .. } if chain(&*source).contains("NoSuchBucket") => {
                Self::NoBucket { locator }
            }
            object_store::Error::NotFound { .. } => Self::NotFound { locator },
            other => Self::Storage {
                action,
                locator,
                source: other.into(),
            },
        }
    }
}

/// The variables for keys, if the storage refused access, or the client looked for keys in vain.
/// The client reports both as text only.
fn advice(source: &(dyn std::error::Error + 'static)) -> &'static str {
    const REFUSED: [&str; 3] = ["status code: 401", "status code: 403", "AccessDenied"];
    // The client asks the machine for keys if no variable names any.
    const NO_KEYS: [&str; 2] = ["169.254.169.254", "/latest/"];
    let text = chain(source);
    let says = |word: &&str| text.contains(*word);
    if NO_KEYS.iter().any(says) {
        "; there are no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod, the container or \
         the instance a role"
    } else if REFUSED.iter().any(says) {
        "; check the keys and their rights: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of the pod, \
         the container or the instance"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_about_keys_names_their_variables() {
        let error = |text: &str| StoreError::Storage {
            action: "reading",
            locator: "s3://b/k".to_owned(),
            source: text.into(),
        };
        for text in [
            "Server returned non-2xx status code: 403 Forbidden: AccessDenied",
            "Error performing PUT http://169.254.169.254/latest/api/token in 5s",
        ] {
            let shown = error(text).to_string();
            assert!(
                shown.contains("AWS_ACCESS_KEY_ID") && shown.contains("AWS_SECRET_ACCESS_KEY"),
                "{shown}"
            );
        }
        let other = error("Server returned non-2xx status code: 500").to_string();
        assert!(!other.contains("AWS_"), "{other}");
    }

    #[test]
    fn own_bucket_and_disk_are_the_workers_fault() {
        let refused = |locator: &str| StoreError::Storage {
            action: "reading",
            locator: locator.to_owned(),
            source: "403 AccessDenied".into(),
        };
        let no_bucket = |locator: &str| StoreError::NoBucket {
            locator: locator.to_owned(),
        };
        let missing = StoreError::NotFound {
            locator: "s3://ours/k".to_owned(),
        };
        let file = |action, kind: io::ErrorKind| StoreError::file(action, Path::new("/tmp/x"), kind.into());
        let (storage, disk) = (Some(WorkerFault::Storage), Some(WorkerFault::Disk));
        for (error, expected) in [
            (refused("s3://ours/k"), storage),
            (refused("s3://ours"), storage),
            (refused("s3://ours-too/k"), None),
            (no_bucket("s3://ours/k"), storage),
            (no_bucket("s3://theirs/k"), None),
            (missing, None),
            (file("writing", io::ErrorKind::NotFound), disk),
            (file("writing", io::ErrorKind::StorageFull), disk),
            (file("reading", io::ErrorKind::NotFound), None),
        ] {
            assert_eq!(error.worker_fault("ours"), expected, "{error}");
        }
    }

    #[test]
    fn message_is_complete_without_its_sources() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = StoreError::file("writing", Path::new("/tmp/x"), denied);
        assert_eq!(error.to_string(), "writing /tmp/x: permission denied");
        assert_eq!(chain(&error), error.to_string());

        let source = object_store::Error::Generic {
            store: "S3",
            source: "the connection was reset".into(),
        };
        let error = StoreError::storage("reading", "s3://b/k", source);
        assert_eq!(
            error.to_string(),
            "reading s3://b/k: Generic S3 error: the connection was reset"
        );
        assert_eq!(chain(&error), error.to_string());
    }
}
