//! Why a model could not be brought here.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::TaskError;
use crate::model_id::ModelId;

/// Why a model could not be brought here. All that wait for the same download get the same one.
#[derive(Debug, Clone)]
pub(crate) struct ModelError {
    kind: Kind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No source has it.
    NotFound,
    /// It is there, but not as it should be.
    Invalid,
    /// Somebody is still uploading it, or stopped in the middle.
    Incomplete,
    /// The source fails.
    Source,
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

    pub(super) fn name(model: &ModelId) -> Self {
        let text = format!(
            "model {:?}: there is no such directory, and that can't be the name of a model in a storage: expected letters, digits, single dashes, dots and underscores, with slashes between",
            model.as_str()
        );
        Self::new(Kind::NotFound, text)
    }

    pub(super) fn too_many_files(model: &ModelId, place: &str) -> Self {
        let text = format!(
            "model {:?}: {place} has more than {} files",
            model.as_str(),
            super::MOST_FILES
        );
        Self::new(Kind::Invalid, text)
    }

    pub(super) fn disk(path: &Path, error: &io::Error) -> Self {
        let path = path.display();
        if error.kind() == io::ErrorKind::StorageFull {
            return Self::new(
                Kind::Full,
                format!(
                    "{path}: the disk is full: free some of it, or set DALSTON_MODEL_CACHE_DIR or DALSTON_MODEL_CACHE_MAX_GB"
                ),
            );
        }
        let text = format!("{path}: {error}: set DALSTON_MODEL_CACHE_DIR to a directory that can be written");
        Self::new(Kind::Disk, text)
    }

    pub(super) fn no_room(model: &ModelId, root: &Path, bytes: u64, free: u64) -> Self {
        let text = format!(
            "model {model:?}: it has {bytes} bytes, and {root} has room for {free}: free some of it, or set DALSTON_MODEL_CACHE_DIR or DALSTON_MODEL_CACHE_MAX_GB",
            model = model.as_str(),
            root = root.display()
        );
        Self::new(Kind::Full, text)
    }

    /// No source has it. There is hope if one of them may have it later.
    pub(super) fn all(model: &ModelId, mut problems: Vec<Self>) -> Self {
        if problems.len() == 1
            && let Some(only) = problems.pop()
        {
            return only;
        }
        let kind = problems
            .iter()
            .map(Self::kind)
            .find(|kind| *kind != Kind::NotFound);
        let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
        let text = match texts.is_empty() {
            true => format!("model {:?}: there is no source to look for it", model.as_str()),
            false => texts.join("; "),
        };
        Self::new(kind.unwrap_or(Kind::NotFound), text)
    }

    pub(super) fn in_the_way(target: &Path) -> Self {
        let text = format!(
            "{}: it is in the way of a download, and not a whole model itself: remove it, or complete it with a file .complete",
            target.display()
        );
        Self::new(Kind::Disk, text)
    }

    pub(super) fn vanished(target: &Path) -> Self {
        Self::new(
            Kind::Disk,
            format!("{}: another process has removed it", target.display()),
        )
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether another source may do better.
    pub(super) fn concerns_source(&self) -> bool {
        !matches!(self.kind, Kind::Full | Kind::Disk)
    }

    pub(super) fn into_task_error(self) -> TaskError {
        match self.kind {
            Kind::NotFound => TaskError::permanent("model_not_found", self.text),
            Kind::Invalid => TaskError::permanent("invalid_model", self.text),
            Kind::Incomplete => TaskError::retryable("model_incomplete", self.text),
            Kind::Source => TaskError::retryable("model_download_failed", self.text),
            Kind::Full => TaskError::retryable("disk_full", self.text),
            Kind::Disk => TaskError::retryable("model_cache_unusable", self.text),
        }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
