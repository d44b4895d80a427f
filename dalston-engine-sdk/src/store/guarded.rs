//! Writing where another process may write, too: a file replaces only what its writer has seen there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StorageError, ObjectStoreExt, PutMode, UpdateVersion};
use tokio::time::sleep;

use super::{Store, StoreError, parse_key};
use crate::error::chain;

/// How often a request is sent whose answer gets lost. The client below tries again by itself only where it makes no difference
/// whether the first one was done.
const TRIES: u32 = 4;

/// What a storage may have against a request besides its condition, and answers with 400, too.
const OTHER_REFUSALS: [&str; 6] = [
    CUT_OFF,
    "BadDigest",
    "ExpiredToken",
    "IncompleteBody",
    "InvalidToken",
    "TokenRefreshRequired",
];
/// The request took too long to arrive.
const CUT_OFF: &str = "RequestTimeout";

/// What was at a key when its writer looked.
#[derive(Debug, Clone, Default)]
pub(crate) enum Seen {
    #[default]
    Nothing,
    Version(UpdateVersion),
    /// A storage that does not tell versions apart.
    Something,
}

#[derive(Debug)]
pub(crate) enum Written {
    /// At this locator.
    Done(String),
    /// Something else is there by now, and nothing was written.
    Not(Seen),
}

impl Store {
    /// Writes a small file, unless something else is there than what was seen.
    ///
    /// A storage that knows no conditions just writes it.
    pub(crate) async fn replace(
        &self,
        key: &str,
        content: Bytes,
        seen: &Seen,
    ) -> Result<Written, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let mut mode = match seen {
            _ if !self.conditions.load(Ordering::Relaxed) => PutMode::Overwrite,
            Seen::Nothing => PutMode::Create,
            Seen::Version(version) => PutMode::Update(version.clone()),
            Seen::Something => PutMode::Overwrite,
        };
        let mut refused = false;
        let mut tries = 1;
        loop {
            let put = self
                .objects
                .put_opts(&object, content.clone().into(), mode.clone().into());
            let Err(error) = put.await else {
                if refused {
                    self.conditions.store(false, Ordering::Relaxed);
                    tracing::warn!(bucket = %self.bucket, "storage_knows_no_conditions");
                }
                return Ok(Written::Done(locator));
            };
            match error {
                StorageError::AlreadyExists { .. } | StorageError::Precondition { .. } => {
                    return self.look(&locator, &object).await.map(Written::Not);
                }
                // If it was done after all, the next one finds it there.
                error if (is_lost(&error) || is_cut_off(&error)) && tries < TRIES => {
                    sleep(Duration::from_millis(50) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                error if mode != PutMode::Overwrite && is_refused(&error) => {
                    (mode, refused) = (PutMode::Overwrite, true);
                }
                error => return Err(StoreError::storage(&locator, error)),
            }
        }
    }

    async fn look(&self, locator: &str, object: &ObjectPath) -> Result<Seen, StoreError> {
        match self.objects.head(object).await {
            Ok(found) if found.e_tag.is_some() => Ok(Seen::Version(UpdateVersion {
                e_tag: found.e_tag,
                version: found.version,
            })),
            Ok(_) => Ok(Seen::Something),
            Err(StorageError::NotFound { .. }) => Ok(Seen::Nothing),
            Err(error) => Err(StoreError::storage(locator, error)),
        }
    }
}

/// Whether the connection ended before there was an answer.
#[cfg(feature = "s3")]
fn is_lost(error: &StorageError) -> bool {
    use object_store::client::{HttpError, HttpErrorKind};
    use std::error::Error;

    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return matches!(error.kind(), HttpErrorKind::Timeout | HttpErrorKind::Interrupted);
        }
        cause = error.source();
    }
    false
}

#[cfg(not(feature = "s3"))]
fn is_lost(_: &StorageError) -> bool {
    false
}

fn is_cut_off(error: &StorageError) -> bool {
    chain(error).contains(CUT_OFF)
}

/// Whether the storage may have stumbled over the condition. Only the text of the answer has its status.
fn is_refused(error: &StorageError) -> bool {
    match error {
        StorageError::NotImplemented { .. } => true,
        error => {
            let text = chain(error);
            let says = |word: &&str| text.contains(*word);
            ["status code: 400", "status code: 501"].iter().any(says) && !OTHER_REFUSALS.iter().any(says)
        }
    }
}
