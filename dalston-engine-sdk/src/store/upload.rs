//! Files of this machine to the bucket: [`Store::put`].

use std::future::Future;
use std::io;
use std::path::Path;

use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::bucket::{Store, parse_key};
use super::error::StoreError;

/// The size of one part of an upload, and of the largest file that is sent as one request. S3 takes
/// 10,000 parts of at least 5 MiB.
const PART_BYTES: usize = 10 * 1024 * 1024;
/// How many parts are sent at the same time.
const PARALLEL_PARTS: usize = 4;

impl Store {
    /// Stores a file of this machine under a key; returns its locator and its size in bytes.
    ///
    /// The file is sent part by part, so memory does not grow with its size.
    ///
    /// # Errors
    ///
    /// If the file can't be read, the key is invalid, or the storage fails.
    pub async fn put(&self, from: &Path, key: &str) -> Result<(String, u64), StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let size = self.send(from, &locator, &object, &TaskTracker::new()).await?;
        Ok((locator, size))
    }

    /// Stores a file of this machine; returns its size in bytes. `removals` tracks the removal of
    /// the parts of an upload that ends early.
    pub(super) async fn send(
        &self,
        from: &Path,
        locator: &str,
        object: &ObjectPath,
        removals: &TaskTracker,
    ) -> Result<u64, StoreError> {
        let unreadable = |source| StoreError::file("reading", from, source);
        let failed = |source| StoreError::storage("writing", locator, source);
        let mut file = File::open(from).await.map_err(unreadable)?;
        let mut part = read_part(&mut file).await.map_err(unreadable)?;
        let mut size = part.len() as u64;
        if part.len() < PART_BYTES {
            let put = self.objects.put(object, part.into()).await;
            return put.map(|_| size).map_err(failed);
        }
        let upload = self.objects.put_multipart(object).await.map_err(failed)?;
        let mut upload = Upload {
            upload: Some(upload),
            removals: removals.clone(),
        };
        let mut sent = FuturesUnordered::new();
        while !part.is_empty() {
            if sent.len() == PARALLEL_PARTS {
                sent.try_next().await.map_err(failed)?;
            }
            sent.push(upload.parts().put_part(part.into()));
            part = read_part(&mut file).await.map_err(unreadable)?;
            size += part.len() as u64;
        }
        while sent.try_next().await.map_err(failed)?.is_some() {}
        upload.parts().complete().await.map_err(failed)?;
        upload.upload = None;
        Ok(size)
    }
}

/// An upload in parts. Dropped before its end it is aborted: its parts would stay in the bucket,
/// invisible but billed.
struct Upload {
    upload: Option<Box<dyn MultipartUpload>>,
    removals: TaskTracker,
}

impl Upload {
    fn parts(&mut self) -> &mut dyn MultipartUpload {
        &mut **self
            .upload
            .as_mut()
            .expect("present until the upload is complete")
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        remove_later(&self.removals, async move {
            if let Err(error) = upload.abort().await {
                tracing::debug!(%error, "upload_not_aborted");
            }
        });
    }
}

/// Runs `removal` on a task of its own: the future of a task that was lost is dropped.
pub(super) fn remove_later(removals: &TaskTracker, removal: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        removals.spawn_on(removal, &runtime);
    }
}

/// Reads a whole part, or the rest of the file.
async fn read_part(file: &mut File) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok(part)
}
