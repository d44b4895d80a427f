//! The files of one bucket: [`Store`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
#[cfg(feature = "realtime")]
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use url::Url;

use super::error::StoreError;
use super::key::DEFAULT_BUCKET;
#[cfg(feature = "s3")]
use super::s3::{self, OtherBuckets, S3Config};

/// The files of one bucket. Cheap to clone.
///
/// ```
/// use dalston_engine_sdk::store::Store;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = Store::memory();
/// let locator = store.write("jobs/J/audio/original.wav", "RIFF").await?;
/// assert_eq!(locator, "s3://dalston-artifacts/jobs/J/audio/original.wav");
/// assert_eq!(store.read(&locator, 1024).await?, "RIFF");
/// # Ok::<(), dalston_engine_sdk::store::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Store {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) bucket: Arc<str>,
    /// Whether the storage supports conditional writes. `true` until it refuses one.
    pub(super) conditional_writes: Arc<AtomicBool>,
    local_files: bool,
    /// The same objects in parts that may be sent in any order, if the storage takes such.
    #[cfg(feature = "realtime")]
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
    /// One file of this machine, with its own locator.
    file: Option<Arc<(String, PathBuf)>>,
    #[cfg(feature = "s3")]
    others: Option<Arc<OtherBuckets>>,
}

impl Store {
    /// The files that `objects` holds, under the name of this bucket.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, bucket: impl Into<Arc<str>>) -> Self {
        Self {
            objects,
            bucket: bucket.into(),
            conditional_writes: Arc::new(AtomicBool::new(true)),
            local_files: false,
            #[cfg(feature = "realtime")]
            parts: None,
            file: None,
            #[cfg(feature = "s3")]
            others: None,
        }
    }

    /// An empty store in memory.
    #[must_use]
    pub fn memory() -> Self {
        let objects = Arc::new(InMemory::new());
        Self {
            #[cfg(feature = "realtime")]
            parts: Some(objects.clone()),
            ..Self::new(objects, DEFAULT_BUCKET)
        }
    }

    /// A store in a directory of this machine. The directory is created if it does not exist.
    ///
    /// # Errors
    ///
    /// If the directory can't be created or read.
    pub fn directory(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = root.as_ref();
        std::fs::create_dir_all(root).map_err(|source| StoreError::file("creating", root, source))?;
        let objects = LocalFileSystem::new_with_prefix(root)
            .map_err(|source| StoreError::storage("opening", &root.display().to_string(), source))?;
        Ok(Self::new(Arc::new(objects), DEFAULT_BUCKET))
    }

    /// A store on S3. It writes to the bucket of `settings` and also follows locators into other
    /// buckets.
    ///
    /// Nothing is sent yet. There is one client per bucket, which keeps its connections and
    /// credentials.
    ///
    /// # Errors
    ///
    /// If the bucket has an invalid name, or the client can't be built from the settings.
    #[cfg(feature = "s3")]
    pub fn s3(settings: S3Config) -> Result<Self, StoreError> {
        crate::tls::use_ring();
        let objects = s3::open(&settings, &settings.bucket, &format!("s3://{}", settings.bucket))?;
        Ok(Self {
            #[cfg(feature = "realtime")]
            parts: Some(objects.clone()),
            others: Some(Arc::new(OtherBuckets::new(settings.clone()))),
            ..Self::new(objects, settings.bucket)
        })
    }

    /// Lets tasks name files of this machine as `file:///path`. Only for workers that take tasks
    /// from their own user.
    #[must_use]
    pub fn with_local_files(mut self) -> Self {
        self.local_files = true;
        self
    }

    /// Adds one file of this machine with the locator `name`.
    pub(crate) fn with_file(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.file = Some(Arc::new((name.into(), path.into())));
        self
    }

    /// The locator of a key in this bucket.
    #[must_use]
    pub fn locator(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// Reads a small file of up to `limit` bytes.
    ///
    /// # Errors
    ///
    /// If there is no such file, it is larger, or the storage fails.
    pub async fn read(&self, locator: &str, limit: usize) -> Result<Bytes, StoreError> {
        let too_large = || StoreError::TooLarge {
            locator: locator.to_owned(),
            limit,
        };
        match self.resolve(locator)? {
            Location::Local(path) => {
                let fail = |source| StoreError::file("reading", &path, source);
                let size = tokio::fs::metadata(&path).await.map_err(fail)?.len();
                if size > limit as u64 {
                    return Err(too_large());
                }
                tokio::fs::read(&path).await.map(Bytes::from).map_err(fail)
            }
            Location::Object(objects, object) => {
                let fail = |source| StoreError::storage("reading", locator, source);
                let found = objects.get(&object).await.map_err(fail)?;
                if found.meta.size > limit as u64 {
                    return Err(too_large());
                }
                let mut bytes = BytesMut::with_capacity(found.meta.size as usize);
                let mut chunks = found.into_stream();
                while let Some(chunk) = chunks.next().await {
                    let chunk = chunk.map_err(fail)?;
                    if bytes.len() + chunk.len() > limit {
                        return Err(too_large());
                    }
                    bytes.extend_from_slice(&chunk);
                }
                Ok(bytes.freeze())
            }
        }
    }

    /// Writes a small file and returns its locator.
    ///
    /// # Errors
    ///
    /// If the key is invalid, or the storage fails.
    pub async fn write(&self, key: &str, content: impl Into<Bytes>) -> Result<String, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let put = self.objects.put(&object, content.into().into()).await;
        put.map_err(|source| StoreError::storage("writing", &locator, source))?;
        Ok(locator)
    }

    /// Copies a file to `to` on this machine and returns its path. A file that is local already
    /// stays where it is.
    ///
    /// The directory of `to` is created if it does not exist; the directory above it must exist.
    /// The file is copied chunk by chunk, so memory does not grow with its size.
    ///
    /// # Errors
    ///
    /// If there is no such file, or the storage or the local disk fails.
    pub async fn fetch(&self, locator: &str, to: &Path) -> Result<PathBuf, StoreError> {
        self.fetch_up_to(locator, to, usize::MAX).await
    }

    /// As [`fetch`](Self::fetch), unless the file has more than `limit` bytes.
    pub(crate) async fn fetch_up_to(
        &self,
        locator: &str,
        to: &Path,
        limit: usize,
    ) -> Result<PathBuf, StoreError> {
        let too_large = || StoreError::TooLarge {
            locator: locator.to_owned(),
            limit,
        };
        let (objects, object) = match self.resolve(locator)? {
            Location::Object(objects, object) => (objects, object),
            Location::Local(path) => {
                let fail = |source| StoreError::file("reading", &path, source);
                // Opened here, so that the error of an unreadable file names it.
                let opened = File::open(&path).await.map_err(fail)?;
                if opened.metadata().await.map_err(fail)?.is_dir() {
                    return Err(fail(std::io::ErrorKind::IsADirectory.into()));
                }
                return Ok(path);
            }
        };
        let disk = |source| StoreError::file("writing", to, source);
        let fail = |source| StoreError::storage("reading", locator, source);
        let found = objects.get(&object).await.map_err(fail)?;
        let mut room = limit as u64;
        if found.meta.size > room {
            return Err(too_large());
        }
        let mut chunks = found.into_stream();
        let mut file = create(to.to_owned()).await.map_err(disk)?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(fail)?;
            room = room.checked_sub(chunk.len() as u64).ok_or_else(too_large)?;
            file.write_all(&chunk).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        Ok(to.to_owned())
    }

    /// Removes all files whose keys begin with `prefix` and a slash.
    ///
    /// # Errors
    ///
    /// If the prefix is no key, or the storage fails. Some of the files may be gone then.
    pub async fn remove_below(&self, prefix: &str) -> Result<(), StoreError> {
        let locator = self.locator(prefix);
        let prefix = parse_key(&locator, prefix)?;
        let failed = |source| StoreError::storage("removing", &locator, source);
        let found = self.objects.list(Some(&prefix));
        let keys = found.map_ok(|object| object.location).boxed();
        let mut removed = self.objects.delete_stream(keys);
        while let Some(result) = removed.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Whether the user of the worker names files of this machine.
    pub(crate) fn has_local_files(&self) -> bool {
        self.local_files
    }

    /// The name of the bucket.
    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The objects of this bucket.
    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    fn resolve(&self, locator: &str) -> Result<Location, StoreError> {
        let wrong = |problem: &str| StoreError::locator(locator, problem);
        if let Some(file) = &self.file
            && file.0 == locator
        {
            return Ok(Location::Local(file.1.clone()));
        }
        if let Some(rest) = locator.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').ok_or_else(|| wrong("it has no key"))?;
            let objects = self.objects_of(bucket, locator)?;
            return parse_key(locator, key).map(|object| Location::Object(objects, object));
        }
        if locator.starts_with("file:") {
            if !self.local_files {
                return Err(wrong("this worker does not read files of its own machine"));
            }
            let url = Url::parse(locator).map_err(|error| wrong(&error.to_string()))?;
            let path = url
                .to_file_path()
                .map_err(|()| wrong("it is not an absolute path"))?;
            return Ok(Location::Local(path));
        }
        Err(wrong("expected s3://bucket/key"))
    }

    fn objects_of(&self, bucket: &str, locator: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if bucket == &*self.bucket {
            return Ok(Arc::clone(&self.objects));
        }
        #[cfg(feature = "s3")]
        if let Some(others) = &self.others {
            return others.open(bucket, locator);
        }
        let problem = format!("this worker reaches only the bucket {:?}", self.bucket);
        Err(StoreError::locator(locator, problem))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("bucket", &self.bucket)
            .field("local_files", &self.local_files)
            .finish_non_exhaustive()
    }
}

/// The location that a locator names.
enum Location {
    Object(Arc<dyn ObjectStore>, ObjectPath),
    Local(PathBuf),
}

/// Creates a file, and the last directory of its path.
///
/// The directories above are gone if the task has ended meanwhile, and nothing would remove them
/// again.
async fn create(path: PathBuf) -> std::io::Result<File> {
    let created = tokio::task::spawn_blocking(move || {
        match path.parent() {
            Some(parent) if parent != Path::new("") => match std::fs::create_dir(parent) {
                Err(_) if parent.is_dir() => {}
                created => created?,
            },
            _ => {}
        }
        std::fs::File::create(path)
    });
    created.await.map_err(std::io::Error::other)?.map(File::from_std)
}

pub(super) fn parse_key(locator: &str, key: &str) -> Result<ObjectPath, StoreError> {
    if key.is_empty() {
        return Err(StoreError::locator(locator, "it has no key"));
    }
    // `parse` drops a slash at either end, and the path would then name another object.
    ObjectPath::parse(key)
        .ok()
        .filter(|object| object.as_ref() == key)
        .ok_or_else(|| {
            let problem = "no part of its key may be empty, a dot or two dots, or hold control characters";
            StoreError::locator(locator, problem)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn late_file_does_not_recreate_directory_of_ended_task() {
        let store = Store::memory();
        let locator = store.write("input", "x").await.unwrap();
        let task = tempfile::tempdir().unwrap();
        let root = task.path().to_owned();
        store.fetch(&locator, &root.join("inputs/first")).await.unwrap();
        store.fetch(&locator, &root.join("inputs/second")).await.unwrap();
        drop(task);
        let late = store.fetch(&locator, &root.join("inputs/late")).await;
        assert!(matches!(late, Err(StoreError::File { .. })), "{late:?}");
        assert!(!root.exists());
    }

    #[tokio::test]
    async fn only_files_below_the_prefix_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for store in [Store::memory(), Store::directory(directory.path()).unwrap()] {
            for key in ["jobs/J/a.json", "jobs/J/tasks/T/b.json", "jobs/JK/c.json"] {
                store.write(key, "x").await.unwrap();
            }
            store.remove_below("jobs/J").await.unwrap();
            store.remove_below("jobs/J").await.unwrap();
            let read = async |key| store.read(&store.locator(key), 10).await.is_ok();
            assert!(!read("jobs/J/a.json").await && !read("jobs/J/tasks/T/b.json").await);
            assert!(read("jobs/JK/c.json").await);
        }
    }
}
