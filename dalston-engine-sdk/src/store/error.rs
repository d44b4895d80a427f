//! Why a file could not be read or written.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::error::chain;

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
    #[error("{action} {locator}: {}", chain(&**source))]
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
    pub(super) fn locator(locator: &str, problem: impl Into<String>) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

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
