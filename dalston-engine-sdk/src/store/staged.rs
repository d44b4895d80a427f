//! Conditional writes of large files: [`Store::stage`] and [`Store::publish`].
//!
//! A large file is uploaded in parts, and the client of S3 completes such an upload without a
//! condition. So the file is written to a key that no other attempt uses, and a copy within the
//! storage, which has a condition, brings it to its own key. S3 copies up to 5 GiB in one request.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use object_store::path::Path as ObjectPath;
use object_store::{CopyMode, CopyOptions, Error as StorageError, ObjectStore, ObjectStoreExt};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::bucket::{Store, parse_key};
use super::error::StoreError;
use super::replace::{Seen, Written, may_refuse_condition};
use super::upload::remove_later;

/// A file under a key of this attempt. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    objects: Arc<dyn ObjectStore>,
    object: ObjectPath,
    removals: TaskTracker,
    pub(crate) size: u64,
}

impl Store {
    /// Stores a file of this machine beside `key`, under a key of this attempt. `removals` tracks
    /// its removal.
    pub(crate) async fn stage(
        &self,
        from: &Path,
        key: &str,
        removals: &TaskTracker,
    ) -> Result<Staged, StoreError> {
        let (directory, file) = key.rsplit_once('/').unwrap_or(("", key));
        // The suffix stays, because it decides the content type.
        let staged = format!("{directory}/attempts/{}/{file}", Uuid::new_v4());
        let staged = staged.trim_start_matches('/');
        let locator = self.locator(staged);
        let mut staged = Staged {
            objects: Arc::clone(&self.objects),
            object: parse_key(&locator, staged)?,
            removals: removals.clone(),
            size: 0,
        };
        staged.size = match self.send(from, &locator, &staged.object, removals).await {
            // The end of an upload whose response was lost is sent again, and reports that the
            // upload is not found.
            Err(error @ StoreError::NotFound { .. }) => match self.objects.head(&staged.object).await {
                // No other upload writes this key, and an unfinished one leaves nothing there.
                Ok(found) => found.size,
                Err(_) => return Err(error),
            },
            sent => sent?,
        };
        Ok(staged)
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
            Ok(()) => Ok(Written::Done(locator)),
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
}

impl Drop for Staged {
    fn drop(&mut self) {
        let (objects, object) = (Arc::clone(&self.objects), self.object.clone());
        remove_later(&self.removals, async move {
            // Without the right to delete it stays until its job is removed.
            if let Err(error) = objects.delete(&object).await {
                tracing::debug!(%object, %error, "staged_file_not_removed");
            }
        });
    }
}
