//! Models in the bucket of a deployment: `models/{model_id}/…`, whole when `models/{model_id}/.complete` is there.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use object_store::path::Path as ObjectPath;
use object_store::{Error as StorageError, GetOptions, GetRange, ObjectMeta};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::sleep;

use super::cache::{COMPLETE, LAST_ACCESSED};
use super::error::{Kind, ModelError};
use super::{FILES_AT_ONCE, MOST_FILES, sync};
use crate::error::chain;
use crate::model_id::ModelId;
use crate::store::{Store, key};

/// One connection alone does not fill the line of a server.
const PIECE: u64 = 32 * 1024 * 1024;
/// How often a piece is tried that the storage cut off. The client below has tried each request several times by then.
const PIECE_TRIES: u32 = 3;

/// A whole model in the bucket.
#[derive(Debug)]
pub(super) struct Found {
    locator: String,
    files: Vec<RemoteFile>,
}

#[derive(Debug)]
struct RemoteFile {
    object: ObjectMeta,
    /// Where it goes, below the model's directory.
    path: PathBuf,
}

/// Looks the model up.
pub(super) async fn find(store: &Store, model: &ModelId) -> Result<Found, ModelError> {
    let prefix = key::model(model.as_str());
    let locator = store.locator(&format!("{prefix}/"));
    let failed = |error: &StorageError| source_failed(model, &locator, error);
    let root = ObjectPath::parse(&prefix).map_err(|error| failed(&error.into()))?;

    let mut complete = false;
    let mut files = Vec::new();
    let mut listing = store.objects().list(Some(&root));
    while let Some(object) = listing.next().await {
        let object = object.map_err(|error| match error {
            // The client refuses keys that no path can be made of.
            StorageError::InvalidPath { .. } => {
                let text = format!(
                    "model {model:?}: a key in {locator} can't be the name of a file: {error}",
                    model = model.as_str()
                );
                ModelError::new(Kind::Invalid, text)
            }
            error => failed(&error),
        })?;
        let below = object.location.as_ref().strip_prefix(root.as_ref());
        let below = below.and_then(|below| below.strip_prefix('/'));
        match below.unwrap_or_default() {
            // The prefix itself, which some tools store as an empty object.
            "" | LAST_ACCESSED => {}
            COMPLETE => complete = true,
            below => {
                let path = local_path(below).ok_or_else(|| {
                    let text = format!(
                        "model {model:?}: the key {key:?} in {locator} can't be the name of a file",
                        model = model.as_str(),
                        key = below
                    );
                    ModelError::new(Kind::Invalid, text)
                })?;
                files.push(RemoteFile { object, path });
            }
        }
        if files.len() > MOST_FILES {
            return Err(ModelError::too_many_files(model, &locator));
        }
    }
    let problem = match (complete, files.is_empty()) {
        (true, false) => return Ok(Found { locator, files }),
        (false, false) => {
            let text = format!(
                "model {model:?}: {locator} has no {COMPLETE}: it is still being uploaded, or that was given up",
                model = model.as_str()
            );
            return Err(ModelError::new(Kind::Incomplete, text));
        }
        (true, true) => "there is nothing but a mark at",
        (false, true) => "there is no such model at",
    };
    let text = format!("model {model:?}: {problem} {locator}", model = model.as_str());
    Err(ModelError::new(Kind::NotFound, text))
}

impl Found {
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.object.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Brings all files to a directory.
    pub(super) async fn download(&self, store: &Store, model: &ModelId, to: &Path) -> Result<(), ModelError> {
        for file in &self.files {
            let path = to.join(&file.path);
            let unusable = |error| ModelError::disk(&path, &error);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).await.map_err(unusable)?;
            }
            // Not over one that is there: two keys may differ only where this file system sees no difference.
            File::create_new(&path).await.map_err(unusable)?;
        }
        let mut pieces = Vec::new();
        for file in &self.files {
            let size = file.object.size;
            for n in 0..size.div_ceil(PIECE) {
                let range = n * PIECE..size.min((n * PIECE).saturating_add(PIECE));
                pieces.push(self.piece(store, model, file, range, to));
            }
        }
        let mut fetched = stream::iter(pieces).buffer_unordered(FILES_AT_ONCE);
        while let Some(piece) = fetched.next().await {
            piece?;
        }
        for file in &self.files {
            sync(&to.join(&file.path)).await?;
        }
        Ok(())
    }

    async fn piece(
        &self,
        store: &Store,
        model: &ModelId,
        file: &RemoteFile,
        range: Range<u64>,
        to: &Path,
    ) -> Result<(), ModelError> {
        let mut tries = 1;
        loop {
            match self.try_piece(store, model, file, &range, to).await {
                Err(error) if error.kind() == Kind::Source && tries < PIECE_TRIES => {
                    sleep(Duration::from_millis(250) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    async fn try_piece(
        &self,
        store: &Store,
        model: &ModelId,
        file: &RemoteFile,
        range: &Range<u64>,
        to: &Path,
    ) -> Result<(), ModelError> {
        let path = to.join(&file.path);
        let disk = |error| ModelError::disk(&path, &error);
        let key = file.path.display();
        let failed = |error: &StorageError| file_failed(model, &format!("{}{key}", self.locator), error);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            // Pieces of two versions would make neither.
            if_match: file.object.e_tag.clone(),
            ..GetOptions::default()
        };
        let got = store.objects().get_opts(&file.object.location, options).await;
        let got = got.map_err(|error| failed(&error))?;
        // Not every server minds `If-Match`.
        if let (Some(now), Some(then)) = (&got.meta.e_tag, &file.object.e_tag)
            && now != then
        {
            return Err(changed(model, &format!("{}{key}", self.locator)));
        }
        let mut chunks = got.into_stream();
        let mut local = OpenOptions::new().write(true).open(&path).await.map_err(disk)?;
        local.seek(SeekFrom::Start(range.start)).await.map_err(disk)?;
        let wanted = range.end - range.start;
        let mut bytes = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| failed(&error))?;
            bytes += chunk.len() as u64;
            if bytes > wanted {
                break;
            }
            local.write_all(&chunk).await.map_err(disk)?;
        }
        local.flush().await.map_err(disk)?;
        if bytes != wanted {
            let text = format!(
                "model {model:?}: {locator}{key} came with {bytes} bytes where {wanted} were announced",
                model = model.as_str(),
                locator = self.locator,
            );
            return Err(ModelError::new(Kind::Source, text));
        }
        Ok(())
    }
}

fn source_failed(model: &ModelId, place: &str, error: &StorageError) -> ModelError {
    let text = format!("model {:?}: {place}: {}", model.as_str(), chain(error));
    ModelError::new(Kind::Source, text)
}

/// The file was there a moment ago, in this form.
fn file_failed(model: &ModelId, place: &str, error: &StorageError) -> ModelError {
    match error {
        StorageError::Precondition { .. } | StorageError::NotFound { .. } => changed(model, place),
        error => source_failed(model, place, error),
    }
}

fn changed(model: &ModelId, place: &str) -> ModelError {
    let text = format!(
        "model {:?}: {place} was changed while it was downloaded",
        model.as_str()
    );
    ModelError::new(Kind::Source, text)
}

/// The path of a file below the directory of its model. `None` if it leads anywhere else.
pub(super) fn local_path(key: &str) -> Option<PathBuf> {
    const LONGEST: usize = 1024;
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':'])
            && !part.contains(char::is_control)
    };
    let fine = key.len() <= LONGEST && key.split('/').all(plain);
    fine.then(|| key.split('/').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_leads_out_of_the_model_has_no_path() {
        for key in [
            "",
            "..",
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            "a/",
            ".",
            "c:\\x",
            "a\0b",
            "a\nb",
        ] {
            assert_eq!(local_path(key), None, "{key:?}");
        }
        assert_eq!(local_path("a/b..c/.d e"), Some(PathBuf::from("a/b..c/.d e")));
    }
}
