//! Why a model could not be downloaded.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::{TaskError, WorkerFault};
use crate::model_id::ModelId;

/// Why a model could not be downloaded. All threads that wait for a download get the same error.
///
/// The text does not name the model; [`into_task_error`](Self::into_task_error) does.
#[derive(Debug, Clone)]
pub(super) struct ModelError {
    kind: Kind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The source does not have the model.
    NotFound,
    /// The model in the source is invalid.
    Invalid,
    /// The upload to the source has not finished, or was abandoned.
    Incomplete,
    /// The source fails.
    Source,
    /// The storage of the deployment fails, which every worker needs.
    Storage,
    /// The disk is full.
    Full,
    /// The cache can't be used.
    Disk,
}

impl ModelError {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    pub(super) fn disk(path: &Path, error: &io::Error) -> Self {
        let path = path.display();
        if error.kind() == io::ErrorKind::StorageFull {
            let text = format!(
                "writing {path}: the disk is full: free some of it, or set DALSTON_MODEL_CACHE_DIR or \
                 DALSTON_MODEL_CACHE_MAX_GB"
            );
            return Self::new(Kind::Full, text);
        }
        let text = format!(
            "writing {path}: {error}: set DALSTON_MODEL_CACHE_DIR to a directory that can be written"
        );
        Self::new(Kind::Disk, text)
    }

    /// The error for several sources. It is permanent only if no source may have the model later.
    pub(super) fn all(problems: &[Self]) -> Self {
        if problems.is_empty() {
            return Self::new(
                Kind::NotFound,
                "there is no source for it: set DALSTON_MODEL_SOURCE",
            );
        }
        let mut kinds = problems.iter().map(Self::kind);
        let kind = kinds.find(|kind| *kind != Kind::NotFound);
        let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
        Self::new(kind.unwrap_or(Kind::NotFound), texts.join("; "))
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether another source may help.
    pub(super) fn concerns_source(&self) -> bool {
        !matches!(self.kind, Kind::Full | Kind::Disk)
    }

    pub(super) fn into_task_error(self, model: &ModelId) -> TaskError {
        let text = format!("model {:?}: {}", model.as_str(), self.text);
        match self.kind {
            Kind::NotFound => TaskError::permanent("model_not_found", text),
            Kind::Invalid => TaskError::permanent("invalid_model", text),
            Kind::Incomplete => TaskError::retryable("model_incomplete", text),
            Kind::Source => TaskError::retryable("model_download_failed", text),
            Kind::Storage => {
                TaskError::retryable("model_download_failed", text).with_fault(WorkerFault::Storage)
            }
            Kind::Full => TaskError::retryable("disk_full", text),
            Kind::Disk => TaskError::retryable("model_cache_unusable", text),
        }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
