//! The models on the local disk: which are complete, which are in use, and how new ones get there.
//!
//! ```text
//! {cache}/openai--whisper-small/           a model, as in the platform's own engines
//!                               .complete        written last: the model is complete
//!                               .last_accessed   time of the last use, in seconds since 1970
//!         .openai--whisper-small.partial/  a download, or the rest of one
//!         .openai--whisper-small.lock      locked for a download or a removal
//!         .openai--whisper-small.used      locked shared by users, exclusively for a removal
//! ```
//!
//! The kernel releases the locks of a process that dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;
use tracing::warn;

use super::error::{Kind, ModelError};
use crate::model_id::ModelId;

pub(super) const COMPLETE: &str = ".complete";
pub(super) const LAST_ACCESSED: &str = ".last_accessed";
const LOCK: &str = "lock";
const USED: &str = "used";
/// How often a process that waits for another one tries the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);
/// A file name may have 255 bytes; the rest is for the dot and the suffix.
const LONGEST_NAME: usize = 200;

/// The name of a model's directory: `/` becomes `--`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(String);

impl Name {
    /// Names come from tasks. They must not lead out of the cache, and two of them must not share a
    /// directory.
    pub(super) fn new(model: &ModelId) -> Result<Self, ModelError> {
        let plain = |part: &str| {
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            !part.is_empty()
                && part.bytes().all(valid)
                && !part.starts_with(['.', '-'])
                && !part.ends_with('-')
                && !part.contains("--")
                && !part.contains("..")
        };
        let name = model.as_str().replace('/', "--");
        if name.len() > LONGEST_NAME || !model.as_str().split('/').all(plain) {
            let text = "there is no such directory, and the name is not valid in a storage: expected letters, \
                        digits, single dashes, dots and underscores, separated by slashes";
            return Err(ModelError::new(Kind::NotFound, text));
        }
        Ok(Self(name))
    }

    /// The model of a directory in the cache. `None` if the directory has no model.
    pub(super) fn of_directory(directory: &str) -> Option<(Self, ModelId)> {
        let model = ModelId::from(directory.replace("--", "/"));
        let name = Self::new(&model).ok()?;
        Some((name, model))
    }
}

/// A directory of models.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn model(&self, name: &Name) -> PathBuf {
        self.root.join(&name.0)
    }

    fn partial(&self, name: &Name) -> PathBuf {
        self.root.join(format!(".{}.partial", name.0))
    }

    fn is_complete(&self, name: &Name) -> bool {
        let real = |path: &Path, wanted: fn(&fs::Metadata) -> bool| {
            fs::symlink_metadata(path).is_ok_and(|metadata| wanted(&metadata))
        };
        let dir = self.model(name);
        real(&dir, fs::Metadata::is_dir) && real(&dir.join(COMPLETE), fs::Metadata::is_file)
    }

    /// The model, if it is complete.
    pub(super) fn open(&self, name: &Name) -> Option<LocalModel> {
        if !self.is_complete(name) {
            return None;
        }
        // A read-only cache can't be locked, and no process removes anything from it.
        let lock = match self.lock_file(name, USED) {
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Some(lock),
                // Another process is removing the model.
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(error)) => {
                    self.warn_of_locks(&error);
                    None
                }
            },
            Err(_) => None,
        };
        // The previous owner of the lock may have removed the model.
        self.is_complete(name)
            .then(|| LocalModel::new(self.model(name), lock))
    }

    /// Waits until no other process downloads or removes the model, and excludes all others from
    /// that.
    pub(super) async fn reserve(&self, name: &Name) -> Result<Reserved, ModelError> {
        let unusable = |error: io::Error| ModelError::disk(&self.root, &error);
        tokio::fs::create_dir_all(&self.root).await.map_err(unusable)?;
        let lock = self.lock_file(name, LOCK).map_err(unusable)?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => sleep(LOCK_INTERVAL).await,
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        if let Some(model) = self.open(name) {
            return Ok(Reserved::Present(model));
        }
        let reservation = Reservation {
            cache: self.clone(),
            name: name.clone(),
            lock: Some(lock),
        };
        // The rest of an earlier download may be large.
        let begun = tokio::task::spawn_blocking(move || reservation.begin()).await;
        let begun = begun.unwrap_or_else(|error| Err(unusable(error.into())));
        begun.map(Reserved::Missing)
    }

    /// Excludes all others from the model, unless it is in use.
    pub(super) fn lock_for_removal(&self, name: &Name) -> Option<Removal> {
        let lock = self.lock_file(name, LOCK).ok()?;
        lock.try_lock().ok()?;
        let used = self.lock_file(name, USED).ok()?;
        // Users hold it shared. Where that does not work, a model in use has no lock.
        match used.try_lock_shared() {
            Ok(()) => used.try_lock().ok()?,
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(error)) => {
                self.warn_of_locks(&error);
                return None;
            }
        }
        Some(Removal {
            cache: self.clone(),
            name: name.clone(),
            _locks: [used, lock],
        })
    }

    /// The models with an unfinished download.
    pub(super) fn partials(&self) -> Vec<Name> {
        let name = |entry: fs::DirEntry| {
            let file = entry.file_name();
            let directory = file.to_str()?.strip_prefix('.')?.strip_suffix(".partial")?;
            Some(Name::of_directory(directory)?.0)
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(name).collect()
    }

    /// The models that are complete.
    pub(super) fn models(&self) -> Vec<(Name, ModelId)> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Name::of_directory(entry.file_name().to_str()?))
            .filter(|(name, _)| self.is_complete(name))
            .collect()
    }

    /// The time of the last use of the model.
    pub(super) fn used_at(&self, name: &Name) -> SystemTime {
        let dir = self.model(name);
        let noted = fs::read_to_string(dir.join(LAST_ACCESSED)).ok();
        let noted = noted.and_then(|text| Duration::try_from_secs_f64(text.trim().parse().ok()?).ok());
        noted
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .or_else(|| fs::metadata(&dir).ok()?.modified().ok())
            .unwrap_or(UNIX_EPOCH)
    }

    fn warn_of_locks(&self, error: &io::Error) {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            let advice =
                "mount the file system with locks, or use a local directory: until then no model is removed";
            warn!(cache = %self.root.display(), %error, advice, "model_locks_not_supported");
        });
    }

    /// Opens a lock file of the model, for reading and writing: on NFS version 4 a shared lock
    /// needs the one and an exclusive lock the other. Lock files are never removed: a process that
    /// waits for a removed one would not exclude the owner of its successor.
    fn lock_file(&self, name: &Name, lock: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        options.open(self.root.join(format!(".{}.{lock}", name.0)))
    }
}

/// A model on this machine. It is not removed while this value exists.
#[derive(Debug)]
pub(crate) struct LocalModel {
    path: PathBuf,
    _lock: Option<File>,
}

impl LocalModel {
    fn new(path: PathBuf, lock: Option<File>) -> Self {
        touch(&path);
        Self { path, _lock: lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalModel {
    /// The idle time of the model begins at the end of its use.
    fn drop(&mut self) {
        touch(&self.path);
    }
}

/// Notes the time of use. Without it the model only looks older than it is.
fn touch(model: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = fs::write(model.join(LAST_ACCESSED), now.as_secs_f64().to_string());
}

/// The result of [`Cache::reserve`].
#[derive(Debug)]
pub(super) enum Reserved {
    /// Another process has downloaded the model.
    Present(LocalModel),
    /// The model has to be downloaded.
    Missing(Reservation),
}

/// The exclusive right to download a model.
#[derive(Debug)]
pub(super) struct Reservation {
    cache: Cache,
    name: Name,
    /// `None` while it is dropped.
    lock: Option<File>,
}

impl Reservation {
    /// The directory to download to.
    pub(super) fn directory(&self) -> PathBuf {
        self.cache.partial(&self.name)
    }

    fn begin(self) -> Result<Self, ModelError> {
        let (partial, target) = (self.directory(), self.cache.model(&self.name));
        let unusable = |error: io::Error| ModelError::disk(&partial, &error);
        if fs::symlink_metadata(&target).is_ok() {
            let text = format!(
                "{}: it is in the way of a download, and not a complete model: remove it, or add a file {COMPLETE}",
                target.display()
            );
            return Err(ModelError::new(Kind::Disk, text));
        }
        // A process that was killed may have left it.
        remove(&partial).map_err(unusable)?;
        fs::create_dir(&partial).map_err(unusable)?;
        Ok(self)
    }

    /// Marks the download as complete and moves it to its place.
    pub(super) fn finish(self) -> Result<LocalModel, ModelError> {
        let (partial, target) = (self.directory(), self.cache.model(&self.name));
        let unusable = |error: io::Error| ModelError::disk(&target, &error);
        let marker = File::create(partial.join(COMPLETE)).map_err(unusable)?;
        marker.sync_all().map_err(unusable)?;
        fs::rename(&partial, &target).map_err(unusable)?;
        self.cache.open(&self.name).ok_or_else(|| {
            let text = format!("{}: another process has removed it", target.display());
            ModelError::new(Kind::Disk, text)
        })
    }
}

impl Drop for Reservation {
    /// Removes an unfinished download before it releases the lock.
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let partial = self.directory();
        let clean = move || {
            // A rest is removed by the next download, or at the next start.
            let _ = remove(&partial);
            drop(lock);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clean)),
            Err(_) => clean(),
        }
    }
}

/// The exclusive right to remove a model that is not in use.
#[derive(Debug)]
pub(super) struct Removal {
    cache: Cache,
    name: Name,
    _locks: [File; 2],
}

impl Removal {
    /// Removes the model. It leaves its place at once, so no process sees half of it.
    pub(super) fn remove(&self) -> io::Result<()> {
        let partial = self.cache.partial(&self.name);
        remove(&partial)?;
        fs::rename(self.cache.model(&self.name), &partial)?;
        remove(&partial)
    }

    /// Removes an unfinished download.
    pub(super) fn remove_partial(&self) -> io::Result<()> {
        remove(&self.cache.partial(&self.name))
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lock_files_are_open_for_reading() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned());
        let name = Name::new(&ModelId::from("a/b")).unwrap();
        for lock in [LOCK, USED] {
            let mut file = cache.lock_file(&name, lock).unwrap();
            // The error of NFS is the one of a read: EBADF.
            assert_eq!(file.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn a_model_in_use_is_not_locked_for_removal() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned());
        let name = Name::new(&ModelId::from("a/b")).unwrap();
        fs::create_dir(cache.model(&name)).unwrap();
        fs::write(cache.model(&name).join(COMPLETE), "").unwrap();
        let users = [(); 2].map(|()| cache.open(&name).unwrap());
        assert!(cache.lock_for_removal(&name).is_none());
        drop(users);
        let removal = cache.lock_for_removal(&name).unwrap();
        assert!(cache.open(&name).is_none(), "it is being removed");
        drop(removal);
        assert!(cache.open(&name).is_some());
    }
}
