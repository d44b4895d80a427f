//! The models on the local disk: which are whole, who uses them, and how new ones get there.
//!
//! ```text
//! {cache}/openai--whisper-small/            one directory per model, as the platform's own engines have it
//!                               .complete         written last: the model is whole
//!                               .last_accessed    when it was used, in seconds since 1970
//!         .openai--whisper-small.partial/   a download, or what is left of one
//!         .openai--whisper-small.lock       locked by whoever downloads or removes the model
//!         .openai--whisper-small.used       locked by all who use it, together; by whoever removes it, alone
//! ```
//!
//! The kernel ends the locks of a process that dies, so nobody waits for the dead.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use super::error::ModelError;
use crate::model_id::ModelId;

pub(super) const COMPLETE: &str = ".complete";
pub(super) const LAST_ACCESSED: &str = ".last_accessed";
const LOCK: &str = "lock";
const USED: &str = "used";
/// How often somebody who waits for another process looks again.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// A file name may have 255 bytes; what is left is for the dot and the suffix.
const LONGEST_NAME: usize = 200;

/// The name of a model's directory: `/` becomes `--`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(String);

impl Name {
    /// Names come from tasks: they must not lead out of the cache, and no two of them to the same directory.
    pub(super) fn new(model: &ModelId) -> Result<Self, ModelError> {
        let plain = |part: &str| {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            !part.is_empty()
                && part.bytes().all(fine)
                && !part.starts_with(['.', '-'])
                && !part.ends_with('-')
                && !part.contains("--")
                && !part.contains("..")
        };
        let name = model.as_str().replace('/', "--");
        if name.len() > LONGEST_NAME || !model.as_str().split('/').all(plain) {
            return Err(ModelError::name(model));
        }
        Ok(Self(name))
    }

    /// What a directory in the cache is the model of. `None` if it is none of ours.
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

    /// The model, if it is here and whole. It stays as long as what comes back is kept.
    pub(super) fn hold(&self, name: &Name) -> Option<Held> {
        if !self.is_complete(name) {
            return None;
        }
        // A cache that can only be read can't be locked, and nobody removes anything from it.
        let lock = match self.open(name, USED) {
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Some(lock),
                // Somebody is removing it just now.
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(_)) => None,
            },
            Err(_) => None,
        };
        // Whoever had the lock before may have removed it.
        self.is_complete(name).then(|| Held::new(self.model(name), lock))
    }

    /// Waits until nobody else downloads or removes the model, and keeps all others from that. It may be here by then.
    pub(super) async fn claim(&self, name: &Name) -> Result<Claimed, ModelError> {
        let unusable = |error: io::Error| ModelError::disk(&self.root, &error);
        tokio::fs::create_dir_all(&self.root).await.map_err(unusable)?;
        let lock = self.open(name, LOCK).map_err(unusable)?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => sleep(LOCK_POLL).await,
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        if let Some(held) = self.hold(name) {
            return Ok(Claimed::Here(held));
        }
        let claim = Claim {
            cache: self.clone(),
            name: name.clone(),
            lock: Some(lock),
        };
        // What a process left that was killed may be large.
        let begun = tokio::task::spawn_blocking(move || claim.begin()).await;
        let begun = begun.unwrap_or_else(|error| Err(unusable(error.into())));
        begun.map(Claimed::Missing)
    }

    /// Keeps all others from the model, unless somebody uses it.
    pub(super) fn try_claim(&self, name: &Name) -> Option<Removal> {
        let lock = self.open(name, LOCK).ok()?;
        lock.try_lock().ok()?;
        let used = self.open(name, USED).ok()?;
        used.try_lock().ok()?;
        Some(Removal {
            cache: self.clone(),
            name: name.clone(),
            _locks: [used, lock],
        })
    }

    /// The models whose downloads did not end.
    pub(super) fn partials(&self) -> Vec<Name> {
        let name = |entry: fs::DirEntry| {
            let file = entry.file_name();
            let directory = file.to_str()?.strip_prefix('.')?.strip_suffix(".partial")?;
            Some(Name::of_directory(directory)?.0)
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(name).collect()
    }

    /// The models that are whole.
    pub(super) fn models(&self) -> Vec<(Name, ModelId)> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Name::of_directory(entry.file_name().to_str()?))
            .filter(|(name, _)| self.is_complete(name))
            .collect()
    }

    /// When the model was used last.
    pub(super) fn used_at(&self, name: &Name) -> SystemTime {
        let dir = self.model(name);
        let noted = fs::read_to_string(dir.join(LAST_ACCESSED)).ok();
        let noted = noted.and_then(|text| Duration::try_from_secs_f64(text.trim().parse().ok()?).ok());
        noted
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .or_else(|| fs::metadata(&dir).ok()?.modified().ok())
            .unwrap_or(UNIX_EPOCH)
    }

    /// Opens a lock of the model. These files stay: to remove one that somebody waits for would make two of it.
    fn open(&self, name: &Name, lock: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.open(self.root.join(format!(".{}.{lock}", name.0)))
    }
}

/// A model on this machine. It is not removed while this is alive.
#[derive(Debug)]
pub(crate) struct Held {
    path: PathBuf,
    _lock: Option<File>,
}

impl Held {
    fn new(path: PathBuf, lock: Option<File>) -> Self {
        touch(&path);
        Self { path, _lock: lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Held {
    /// Its idle time begins when it is given up, not when it was loaded.
    fn drop(&mut self) {
        touch(&self.path);
    }
}

/// A mark that can't be written only makes the model look older than it is.
fn touch(model: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = fs::write(model.join(LAST_ACCESSED), now.as_secs_f64().to_string());
}

/// What somebody has who wants to bring a model here.
#[derive(Debug)]
pub(super) enum Claimed {
    /// Somebody else has brought it.
    Here(Held),
    /// It has to be brought.
    Missing(Claim),
}

/// The right to bring a model here.
#[derive(Debug)]
pub(super) struct Claim {
    cache: Cache,
    name: Name,
    /// Given to whoever cleans up.
    lock: Option<File>,
}

impl Claim {
    /// The directory to download to.
    pub(super) fn directory(&self) -> PathBuf {
        self.cache.partial(&self.name)
    }

    fn begin(self) -> Result<Self, ModelError> {
        let (partial, target) = (self.directory(), self.cache.model(&self.name));
        let unusable = |error: io::Error| ModelError::disk(&partial, &error);
        if fs::symlink_metadata(&target).is_ok() {
            return Err(ModelError::in_the_way(&target));
        }
        // Left by a process that was killed.
        remove(&partial).map_err(unusable)?;
        fs::create_dir(&partial).map_err(unusable)?;
        Ok(self)
    }

    /// Declares the download whole, and puts it in its place.
    pub(super) fn finish(self) -> Result<Held, ModelError> {
        let (partial, target) = (self.directory(), self.cache.model(&self.name));
        let unusable = |error: io::Error| ModelError::disk(&target, &error);
        let marker = File::create(partial.join(COMPLETE)).map_err(unusable)?;
        marker.sync_all().map_err(unusable)?;
        fs::rename(&partial, &target).map_err(unusable)?;
        let held = self.cache.hold(&self.name);
        held.ok_or_else(|| ModelError::vanished(&target))
    }
}

impl Drop for Claim {
    /// A download that did not end leaves nothing behind. Its lock is kept until then.
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let partial = self.directory();
        let clean = move || {
            // What can't be removed now is removed by the next download, or at the next start.
            let _ = remove(&partial);
            drop(lock);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clean)),
            Err(_) => clean(),
        }
    }
}

/// The right to remove a model that nobody uses.
#[derive(Debug)]
pub(super) struct Removal {
    cache: Cache,
    name: Name,
    _locks: [File; 2],
}

impl Removal {
    /// Removes the model. It is out of its place at once, so nobody ever sees half of it.
    pub(super) fn remove(&self) -> io::Result<()> {
        let partial = self.cache.partial(&self.name);
        remove(&partial)?;
        fs::rename(self.cache.model(&self.name), &partial)?;
        remove(&partial)
    }

    /// Removes what is left of a download.
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
