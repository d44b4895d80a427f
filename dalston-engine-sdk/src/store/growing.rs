//! Files that are sent while they grow: [`GrowingFile`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{
    MultipartId, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, PutResult, Result,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::bucket::{Store, parse_key};
use super::error::StoreError;
use super::upload::remove_later;

/// The size of a part but for the last one. S3 takes 10,000 parts of at least 5 MiB.
pub(crate) const PART_BYTES: usize = 5 * 1024 * 1024;

/// A file that is sent in parts while it grows. The first part is sent last, so that it can hold
/// the length of the file.
///
/// Dropped before its end it is aborted, and there is no file.
pub(crate) struct GrowingFile {
    objects: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    locator: String,
    object: ObjectPath,
    /// `None` until the second part is there.
    upload: Option<MultipartId>,
    /// The parts after the first one.
    sent: Vec<PartId>,
    removals: TaskTracker,
}

impl Store {
    /// A file under this key. `removals` tracks the removal of its parts if it is given up.
    pub(crate) fn grow(&self, key: &str, removals: &TaskTracker) -> Result<GrowingFile, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let parts = match &self.parts {
            Some(parts) => Arc::clone(parts),
            None => Arc::new(SmallFiles(Arc::clone(&self.objects))),
        };
        Ok(GrowingFile {
            objects: Arc::clone(&self.objects),
            parts,
            locator,
            object,
            upload: None,
            sent: Vec::new(),
            removals: removals.clone(),
        })
    }
}

impl GrowingFile {
    /// Sends the next part after the first one.
    pub(crate) async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let sent = self.put_part(self.sent.len() + 1, part).await?;
        self.sent.push(sent);
        Ok(())
    }

    /// Sends the first part and ends the file. Returns its locator.
    pub(crate) async fn finish(mut self, first: Bytes) -> Result<String, StoreError> {
        if self.upload.is_none() {
            let put = self.objects.put(&self.object, first.into()).await;
            put.map_err(|source| self.failed(source))?;
            return Ok(std::mem::take(&mut self.locator));
        }
        let first = self.put_part(0, first).await?;
        let parts = std::iter::once(first).chain(self.sent.drain(..)).collect();
        if let Some(upload) = &self.upload {
            let completed = self.parts.complete_multipart(&self.object, upload, parts).await;
            completed.map_err(|source| self.failed(source))?;
        }
        self.upload = None;
        Ok(std::mem::take(&mut self.locator))
    }

    async fn put_part(&mut self, index: usize, part: Bytes) -> Result<PartId, StoreError> {
        let upload = match &self.upload {
            Some(upload) => upload,
            None => {
                let created = self.parts.create_multipart(&self.object).await;
                let created = created.map_err(|source| self.failed(source))?;
                self.upload.insert(created)
            }
        };
        let put = self.parts.put_part(&self.object, upload, index, part.into());
        put.await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: object_store::Error) -> StoreError {
        StoreError::storage("writing", &self.locator, source)
    }
}

impl Drop for GrowingFile {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else {
            return;
        };
        let (parts, object) = (Arc::clone(&self.parts), self.object.clone());
        remove_later(&self.removals, async move {
            if let Err(error) = parts.abort_multipart(&object, &upload).await {
                tracing::debug!(%error, "upload_not_aborted");
            }
        });
    }
}

impl fmt::Debug for GrowingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrowingFile")
            .field("locator", &self.locator)
            .field("sent", &self.sent.len())
            .finish_non_exhaustive()
    }
}

/// Parts for a storage that takes them in their order only: each one is a file until the end.
struct SmallFiles(Arc<dyn ObjectStore>);

impl SmallFiles {
    fn part(path: &ObjectPath, id: &MultipartId, index: usize) -> ObjectPath {
        Self::parts(path, id).join(format!("{index:05}"))
    }

    fn parts(path: &ObjectPath, id: &MultipartId) -> ObjectPath {
        ObjectPath::from(format!("{path}.parts")).join(&**id)
    }

    async fn join(
        &self,
        upload: &mut dyn MultipartUpload,
        path: &ObjectPath,
        id: &MultipartId,
        count: usize,
    ) -> Result<PutResult> {
        for index in 0..count {
            let part = self.0.get(&Self::part(path, id, index)).await?;
            upload.put_part(part.bytes().await?.into()).await?;
        }
        upload.complete().await
    }
}

#[async_trait]
impl MultipartStore for SmallFiles {
    async fn create_multipart(&self, _: &ObjectPath) -> Result<MultipartId> {
        Ok(Uuid::new_v4().simple().to_string())
    }

    async fn put_part(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let part = Self::part(path, id, part_idx);
        self.0.put(&part, data).await?;
        Ok(PartId {
            content_id: String::new(),
        })
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let mut upload = self.0.put_multipart(path).await?;
        let joined = self.join(&mut *upload, path, id, parts.len()).await;
        if joined.is_err() {
            upload.abort().await?;
        }
        self.abort_multipart(path, id).await?;
        joined
    }

    async fn abort_multipart(&self, path: &ObjectPath, id: &MultipartId) -> Result<()> {
        let prefix = Self::parts(path, id);
        let found: Vec<_> = self.0.list(Some(&prefix)).try_collect().await?;
        for part in found {
            self.0.delete(&part.location).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_part_is_sent_last_and_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        for store in [Store::memory(), Store::directory(directory.path()).unwrap()] {
            let removals = TaskTracker::new();
            let key = "sessions/S/audio.wav";
            let mut file = store.grow(key, &removals).unwrap();
            for part in ["two ", "three ", "four"] {
                file.send(part.into()).await.unwrap();
                assert!(store.read(&store.locator(key), 100).await.is_err());
            }
            let locator = file.finish("one ".into()).await.unwrap();
            assert_eq!(store.read(&locator, 100).await.unwrap(), "one two three four");

            let mut given_up = store.grow("sessions/T/audio.wav", &removals).unwrap();
            given_up.send("two ".into()).await.unwrap();
            drop(given_up);
            removals.close();
            removals.wait().await;
            let kept: Vec<_> = store.objects.list(None).try_collect().await.unwrap();
            let kept: Vec<_> = kept.iter().map(|file| file.location.as_ref()).collect();
            assert_eq!(kept, [key]);
        }
    }
}
