//! Where the files of tasks are: [`Store`], a thin face over [`object_store`].
//!
//! Files are named by locators: `s3://bucket/key` for everything that the platform stores, and `file:///path` for files of
//! this machine where that is allowed. A store of memory or of local files stands in for S3 under the same locators, so
//! that nothing above it knows the difference.

mod guarded;
pub mod key;
#[cfg(feature = "s3")]
mod s3;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use thiserror::Error;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use url::Url;

use crate::error::chain;

pub(crate) use self::guarded::{Seen, Written};
#[cfg(feature = "s3")]
pub use self::s3::S3Settings;

/// The name of the platform's bucket unless someone says otherwise.
pub const DEFAULT_BUCKET: &str = "dalston-artifacts";

/// Files of up to so many bytes are in memory as a whole before they are written.
const AT_ONCE: u64 = 1024 * 1024;

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
    objects: Arc<dyn ObjectStore>,
    bucket: Arc<str>,
    /// Whether the storage can be told to write only over what we know of, as far as we know.
    conditions: Arc<AtomicBool>,
    local_files: bool,
    /// One file of this machine, under a locator of its own.
    file: Option<Arc<(String, PathBuf)>>,
    /// Where locators of other buckets lead, if anywhere.
    #[cfg(feature = "s3")]
    others: Option<Arc<s3::OtherBuckets>>,
}

impl Store {
    /// The files that `objects` holds, under the name of this bucket.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, bucket: impl Into<Arc<str>>) -> Self {
        Self {
            objects,
            bucket: bucket.into(),
            conditions: Arc::new(AtomicBool::new(true)),
            local_files: false,
            file: None,
            #[cfg(feature = "s3")]
            others: None,
        }
    }

    /// An empty store in memory.
    #[must_use]
    pub fn memory() -> Self {
        Self::new(Arc::new(InMemory::new()), DEFAULT_BUCKET)
    }

    /// A store in a directory of this machine, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// If the directory can't be made or read.
    pub fn directory(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = root.as_ref();
        let name = || root.display().to_string();
        std::fs::create_dir_all(root).map_err(|source| StoreError::File { path: name(), source })?;
        let objects = LocalFileSystem::new_with_prefix(root).map_err(|source| StoreError::Storage {
            locator: name(),
            source: source.into(),
        })?;
        Ok(Self::new(Arc::new(objects), DEFAULT_BUCKET))
    }

    /// Lets tasks name files of this machine as `file:///path`. Only for workers that take tasks from their own user.
    #[must_use]
    pub fn with_local_files(mut self) -> Self {
        self.local_files = true;
        self
    }

    /// Adds one file of this machine under a name that stands for it wherever a locator may.
    pub(crate) fn with_file(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.file = Some(Arc::new((name.into(), path.into())));
        self
    }

    /// The locator of a key in this bucket.
    #[must_use]
    pub fn locator(&self, key: &str) -> String {
        ["s3://", &*self.bucket, "/", key].concat()
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
            Place::Local(path) => {
                let fail = |source| StoreError::File {
                    path: path.display().to_string(),
                    source,
                };
                let size = tokio::fs::metadata(&path).await.map_err(fail)?.len();
                if size > limit as u64 {
                    return Err(too_large());
                }
                tokio::fs::read(&path).await.map(Bytes::from).map_err(fail)
            }
            Place::Object(objects, object) => {
                let fail = |source| StoreError::storage(locator, source);
                let found = objects.get(&object).await.map_err(fail)?;
                if found.meta.size > limit as u64 {
                    return Err(too_large());
                }
                let mut chunks = found.into_stream();
                let first = chunks.next().await.transpose().map_err(fail)?.unwrap_or_default();
                if first.len() > limit {
                    return Err(too_large());
                }
                let Some(second) = chunks.next().await else {
                    return Ok(first);
                };
                let mut bytes = BytesMut::from(first);
                let mut chunks = futures_util::stream::iter([second]).chain(chunks);
                while let Some(chunk) = chunks.next().await {
                    bytes.extend_from_slice(&chunk.map_err(fail)?);
                    if bytes.len() > limit {
                        return Err(too_large());
                    }
                }
                Ok(bytes.freeze())
            }
        }
    }

    /// Writes a small file and returns its locator.
    ///
    /// # Errors
    ///
    /// If the key is not one, or the storage fails.
    pub async fn write(&self, key: &str, content: impl Into<Bytes>) -> Result<String, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let put = self.objects.put(&object, content.into().into()).await;
        put.map_err(|source| StoreError::storage(&locator, source))?;
        Ok(locator)
    }

    /// Brings a file to this machine and returns where it is: at `to`, or where it was if it is a local file already.
    ///
    /// The directory of `to` is made if it is not there; the one above it has to be. A large file is copied piece by piece, so memory does not grow with its
    /// size.
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
            Place::Object(objects, object) => (objects, object),
            Place::Local(path) => {
                let fail = |source| StoreError::File {
                    path: path.display().to_string(),
                    source,
                };
                // Open it, so that what can't be read is reported here, with its name.
                let opened = File::open(&path).await.map_err(fail)?;
                if opened.metadata().await.map_err(fail)?.is_dir() {
                    return Err(fail(std::io::ErrorKind::IsADirectory.into()));
                }
                return Ok(path);
            }
        };
        let disk = |source| StoreError::File {
            path: to.display().to_string(),
            source,
        };
        let found = objects
            .get(&object)
            .await
            .map_err(|source| StoreError::storage(locator, source))?;
        let mut room = limit as u64;
        if found.meta.size > room {
            return Err(too_large());
        }
        if found.meta.size <= AT_ONCE {
            let content = found.bytes().await;
            let content = content.map_err(|source| StoreError::storage(locator, source))?;
            if content.len() as u64 > room {
                return Err(too_large());
            }
            let path = to.to_owned();
            // One visit to a thread that may block, rather than one for every step.
            let written = tokio::task::spawn_blocking(move || {
                make_parent(&path)?;
                std::fs::write(&path, content)
            });
            let written = written.await.map_err(std::io::Error::other);
            written.and_then(|written| written).map_err(disk)?;
            return Ok(to.to_owned());
        }
        let mut chunks = found.into_stream();
        let path = to.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            make_parent(&path)?;
            std::fs::File::create(&path)
        });
        let made = made.await.map_err(std::io::Error::other);
        let file = made.and_then(|made| made).map_err(disk)?;
        let mut file = File::from_std(file);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|source| StoreError::storage(locator, source))?;
            room = room.checked_sub(chunk.len() as u64).ok_or_else(too_large)?;
            file.write_all(&chunk).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        Ok(to.to_owned())
    }

    /// Stores a file of this machine under a key; returns its locator and its size in bytes.
    ///
    /// It is copied piece by piece, so memory does not grow with its size.
    ///
    /// # Errors
    ///
    /// If the file can't be read, the key is not one, or the storage fails.
    pub async fn put(&self, from: &Path, key: &str) -> Result<(String, u64), StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let disk = |source| StoreError::File {
            path: from.display().to_string(),
            source,
        };
        let mut file = File::open(from).await.map_err(disk)?;
        let mut writer = BufWriter::new(Arc::clone(&self.objects), object);
        let copied = async {
            let size = tokio::io::copy(&mut file, &mut writer).await?;
            writer.shutdown().await?;
            Ok::<_, std::io::Error>(size)
        };
        match copied.await {
            Ok(size) => Ok((locator, size)),
            Err(source) => {
                // Parts that were sent already would stay in the bucket, invisible and paid for.
                let _ = writer.abort().await;
                Err(StoreError::Storage {
                    locator,
                    source: source.into(),
                })
            }
        }
    }

    /// The objects of this bucket themselves.
    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    fn objects_of(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, Option<StoreError>> {
        if bucket == &*self.bucket {
            return Ok(Arc::clone(&self.objects));
        }
        #[cfg(feature = "s3")]
        if let Some(others) = &self.others {
            return others.get(bucket).map_err(Some);
        }
        Err(None)
    }

    fn resolve(&self, locator: &str) -> Result<Place, StoreError> {
        let wrong = |problem: String| StoreError::Locator {
            locator: locator.to_owned(),
            problem,
        };
        if let Some(file) = &self.file
            && file.0 == locator
        {
            return Ok(Place::Local(file.1.clone()));
        }
        if let Some(rest) = locator.strip_prefix("s3://") {
            let (bucket, key) = rest
                .split_once('/')
                .ok_or_else(|| wrong("it has no key".to_owned()))?;
            let objects = self.objects_of(bucket).map_err(|problem| match problem {
                // It knows only of the bucket.
                Some(StoreError::Locator { problem, .. }) => wrong(problem),
                Some(error) => error,
                None => wrong(format!("this worker only reaches the bucket {:?}", self.bucket)),
            })?;
            return parse_key(locator, key).map(|object| Place::Object(objects, object));
        }
        if locator.starts_with("file:") {
            if !self.local_files {
                return Err(wrong(
                    "this worker does not read files of its own machine".to_owned(),
                ));
            }
            let url = Url::parse(locator).map_err(|error| wrong(error.to_string()))?;
            let path = url
                .to_file_path()
                .map_err(|()| wrong("it is not an absolute path".to_owned()))?;
            return Ok(Place::Local(path));
        }
        Err(wrong("expected s3://bucket/key".to_owned()))
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

enum Place {
    Object(Arc<dyn ObjectStore>, ObjectPath),
    Local(PathBuf),
}

/// Only the last directory: those above are gone when the task has ended meanwhile, and nobody would remove them again.
fn make_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => match std::fs::create_dir(parent) {
            Err(_) if parent.is_dir() => Ok(()),
            made => made,
        },
        _ => Ok(()),
    }
}

fn parse_key(locator: &str, key: &str) -> Result<ObjectPath, StoreError> {
    let wrong = |problem: String| StoreError::Locator {
        locator: locator.to_owned(),
        problem,
    };
    if key.is_empty() {
        return Err(wrong("it has no key".to_owned()));
    }
    // `parse` drops a slash at either end, which would lead to another object.
    ObjectPath::parse(key)
        .ok()
        .filter(|object| object.as_ref() == key)
        .ok_or_else(|| {
            wrong("no part of its key may be empty, a dot or two dots, or hold control characters".to_owned())
        })
}

/// Why a file could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It names nothing that this store could reach.
    #[error("the locator {locator:?} can't be used: {problem}")]
    Locator {
        /// The locator.
        locator: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such bucket.
    #[error("{locator}: there is no such bucket")]
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
    /// It is larger than what is sensible for its purpose.
    #[error("{locator}: it has more than {limit} bytes")]
    TooLarge {
        /// The locator.
        locator: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file of this machine could not be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: String,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The storage failed.
    #[error("{locator}")]
    Storage {
        /// The locator.
        locator: String,
        /// What the storage says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    fn storage(locator: &str, source: object_store::Error) -> Self {
        match source {
            // Only the text of the answer tells the two apart.
            object_store::Error::NotFound { source, .. } if chain(&*source).contains("NoSuchBucket") => {
                Self::NoBucket {
                    locator: locator.to_owned(),
                }
            }
            object_store::Error::NotFound { .. } => Self::NotFound {
                locator: locator.to_owned(),
            },
            other => Self::Storage {
                locator: locator.to_owned(),
                source: other.into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_comes_after_its_task_has_ended_does_not_bring_the_directory_back() {
        let store = Store::memory();
        let small = store.write("small", "x").await.unwrap();
        let large = store.write("large", vec![0; 2 * 1024 * 1024]).await.unwrap();
        let task = tempfile::tempdir().unwrap();
        let root = task.path().to_owned();
        for (name, locator) in [("small", &small), ("large", &large)] {
            store
                .fetch(locator, &root.join("inputs").join(name))
                .await
                .unwrap();
        }
        drop(task);
        for locator in [&small, &large] {
            let late = store.fetch(locator, &root.join("inputs/late")).await;
            assert!(matches!(late, Err(StoreError::File { .. })), "{late:?}");
        }
        assert!(!root.exists());
    }
}
