//! Conditional writes of large files: [`Store::stage`] and [`Store::publish`].
//!
//! A large file is uploaded in parts, and the client of S3 completes such an upload without a
//! condition. So the file is written to a key that no other attempt uses, and a copy within the
//! storage, which has a condition, brings it to its own key. S3 copies up to 5 GiB in one request.

use std::path::Path;
use std::sync::atomic::Ordering;

use object_store::path::Path as ObjectPath;
use object_store::{CopyMode, CopyOptions, Error as StorageError, ObjectStoreExt};
use uuid::Uuid;

use super::bucket::{Store, parse_key};
use super::error::StoreError;
use super::replace::{Seen, Written, may_refuse_condition};

/// A file under a key of this attempt.
#[derive(Debug)]
pub(crate) struct Staged {
    object: ObjectPath,
    pub(crate) size: u64,
}

impl Store {
    /// Stores a file of this machine beside `key`, under a key of this attempt.
    pub(crate) async fn stage(&self, from: &Path, key: &str) -> Result<Staged, StoreError> {
        let (directory, file) = key.rsplit_once('/').unwrap_or(("", key));
        // The suffix stays, because it decides the content type.
        let staged = format!("{directory}/attempts/{}/{file}", Uuid::new_v4());
        let staged = staged.trim_start_matches('/');
        let (locator, size) = self.put(from, staged).await?;
        Ok(Staged {
            object: parse_key(&locator, staged)?,
            size,
        })
    }

    /// Copies a staged file to `key`: without `seen`, unless there is a file already.
    ///
    /// There is no condition for the copy over an existing file. So its caller makes sure of its
    /// lease first. The same holds for a storage without conditions, which looks like one with a
    /// file.
    pub(crate) async fn publish(
        &self,
        staged: &Staged,
        key: &str,
        seen: &Seen,
    ) -> Result<Written, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let creates = matches!(seen, Seen::Nothing);
        if creates && !self.conditional_writes.load(Ordering::Relaxed) {
            return Ok(Written::Conflict(Seen::Unversioned));
        }
        let mode = match creates {
            true => CopyMode::Create,
            false => CopyMode::Overwrite,
        };
        let options = CopyOptions::new().with_mode(mode);
        match self.objects.copy_opts(&staged.object, &object, options).await {
            Ok(()) => {
                self.discard(staged).await;
                Ok(Written::Done(locator))
            }
            // A copy whose response was lost reports that its upload is not found.
            Err(
                StorageError::AlreadyExists { .. }
                | StorageError::Precondition { .. }
                | StorageError::NotFound { .. },
            ) if creates => Ok(Written::Conflict(Seen::Unversioned)),
            Err(error) if creates && may_refuse_condition(&error) => Ok(Written::Conflict(Seen::Unversioned)),
            Err(error) => Err(StoreError::storage("writing", &locator, error)),
        }
    }

    /// Removes a staged file. Without the right to delete it stays until its job is removed.
    pub(crate) async fn discard(&self, staged: &Staged) {
        if let Err(error) = self.objects.delete(&staged.object).await {
            tracing::debug!(object = %staged.object, %error, "staged_file_not_removed");
        }
    }
}
