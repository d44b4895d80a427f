//! Models in the bucket of a deployment: `models/{model_id}/…`, complete if
//! `models/{model_id}/.complete` exists.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StorageError, GetOptions, GetRange, ObjectMeta};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::cache::{COMPLETE, LAST_ACCESSED};
use super::error::{Kind, ModelError};
use super::transfer::{check_count, check_size, create, local_path, retry, run_all, sync};
use crate::error::chain;
use crate::model_id::ModelId;
use crate::store::{Store, key};

/// A file is downloaded in parts of this size, because one connection does not use the whole
/// bandwidth.
const PART: u64 = 32 * 1024 * 1024;

/// A complete model in the bucket.
#[derive(Debug)]
pub(super) struct BucketModel {
    store: Store,
    locator: String,
    files: Vec<RemoteFile>,
}

#[derive(Debug)]
struct RemoteFile {
    object: ObjectMeta,
    /// Below the directory of the model.
    path: PathBuf,
}

pub(super) async fn find(store: &Store, model: &ModelId) -> Result<BucketModel, ModelError> {
    let prefix = key::model(model.as_str());
    let locator = store.locator(&format!("{prefix}/"));
    let root = ObjectPath::parse(&prefix).map_err(|error| failed(&locator, &error.into()))?;

    let mut complete = false;
    let mut files = Vec::new();
    let mut listing = store.objects().list(Some(&root));
    while let Some(object) = listing.next().await {
        let object = object.map_err(|error| match error {
            // The client refuses keys that can't become a path.
            StorageError::InvalidPath { .. } => {
                let text = format!("a key in {locator} can't be the name of a file: {error}");
                ModelError::new(Kind::Invalid, text)
            }
            error => failed(&locator, &error),
        })?;
        let below = object.location.as_ref().strip_prefix(root.as_ref());
        let below = below.and_then(|below| below.strip_prefix('/'));
        match below.unwrap_or_default() {
            // Some tools store the prefix as an empty object.
            "" | LAST_ACCESSED => {}
            COMPLETE => complete = true,
            below => {
                let path = local_path(below).ok_or_else(|| {
                    let text = format!("the key {below:?} in {locator} can't be the name of a file");
                    ModelError::new(Kind::Invalid, text)
                })?;
                files.push(RemoteFile { object, path });
            }
        }
        check_count(files.len(), &locator)?;
    }
    let (kind, text) = match (complete, files.is_empty()) {
        (true, false) => {
            return Ok(BucketModel {
                store: store.clone(),
                locator,
                files,
            });
        }
        (false, false) => (
            Kind::Incomplete,
            format!("{locator} has no {COMPLETE}: the upload has not finished, or was abandoned"),
        ),
        (true, true) => (Kind::NotFound, format!("there is only a {COMPLETE} at {locator}")),
        (false, true) => (Kind::NotFound, format!("there is no such model at {locator}")),
    };
    Err(ModelError::new(kind, text))
}

impl BucketModel {
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.object.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Downloads all files to a directory.
    pub(super) async fn download(&self, to: &Path) -> Result<(), ModelError> {
        let mut parts = Vec::new();
        for file in &self.files {
            create(&to.join(&file.path)).await?;
            let size = file.object.size;
            for n in 0..size.div_ceil(PART) {
                let range = n * PART..size.min((n * PART).saturating_add(PART));
                parts.push(retry(move || self.part(file, range.clone(), to)));
            }
        }
        run_all(parts).await?;
        for file in &self.files {
            sync(&to.join(&file.path)).await?;
        }
        Ok(())
    }

    async fn part(&self, file: &RemoteFile, range: Range<u64>, to: &Path) -> Result<(), ModelError> {
        let path = to.join(&file.path);
        let place = format!("{}{}", self.locator, file.path.display());
        let disk = |error| ModelError::disk(&path, &error);
        let changed = || {
            let text = format!("{place} was changed while it was downloaded");
            ModelError::new(Kind::Source, text)
        };
        let failed = |error: StorageError| match error {
            // The listing had the file, with this version.
            StorageError::Precondition { .. } | StorageError::NotFound { .. } => changed(),
            error => failed(&place, &error),
        };
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            // All parts must come from one version.
            if_match: file.object.e_tag.clone(),
            ..GetOptions::default()
        };
        let got = self.store.objects().get_opts(&file.object.location, options);
        let got = got.await.map_err(failed)?;
        // Not every server respects `If-Match`.
        if let (Some(now), Some(then)) = (&got.meta.e_tag, &file.object.e_tag)
            && now != then
        {
            return Err(changed());
        }
        let mut chunks = got.into_stream();
        let mut local = OpenOptions::new().write(true).open(&path).await.map_err(disk)?;
        local.seek(SeekFrom::Start(range.start)).await.map_err(disk)?;
        let expected = range.end - range.start;
        let mut bytes = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            bytes += chunk.len() as u64;
            if bytes > expected {
                break;
            }
            local.write_all(&chunk).await.map_err(disk)?;
        }
        local.flush().await.map_err(disk)?;
        check_size(bytes, expected, &place)
    }
}

fn failed(place: &str, error: &StorageError) -> ModelError {
    ModelError::new(Kind::Storage, format!("reading {place}: {}", chain(error)))
}
