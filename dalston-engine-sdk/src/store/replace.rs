//! Conditional writes: [`Store::replace`] overwrites only the version of a file that its caller has
//! seen.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StorageError, ObjectMeta, ObjectStoreExt, PutMode, UpdateVersion};
use tokio::time::sleep;

use super::bucket::{Store, parse_key};
use super::error::StoreError;
use crate::error::chain;

/// How often a request is sent when its response is lost. The client retries only requests that are
/// idempotent, and a conditional write is not.
const TRIES: u32 = 4;

const BAD_REQUEST: &str = "status code: 400";
/// Codes of other errors that a storage also reports with status 400.
const OTHER_REFUSALS: [&str; 6] = [
    "BadDigest",
    "ExpiredToken",
    "IncompleteBody",
    "InvalidToken",
    // The request took too long to arrive.
    "RequestTimeout",
    "TokenRefreshRequired",
];

/// The version of a file that its writer has seen.
#[derive(Debug, Clone, Default)]
pub(crate) enum Seen {
    #[default]
    Nothing,
    Version(UpdateVersion),
    /// A file in a storage that does not tell versions apart.
    Unversioned,
}

impl Seen {
    fn of(found: &ObjectMeta) -> Self {
        match &found.e_tag {
            Some(tag) => Self::Version(UpdateVersion {
                e_tag: Some(tag.clone()),
                version: found.version.clone(),
            }),
            None => Self::Unversioned,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Written {
    /// The locator of the file.
    Done(String),
    /// The file has another version by now, and nothing was written.
    Conflict(Seen),
}

impl Store {
    /// Writes a small file, unless it has another version than the one that was seen.
    ///
    /// A storage without conditional writes always writes it.
    pub(crate) async fn replace(
        &self,
        key: &str,
        content: Bytes,
        seen: &Seen,
    ) -> Result<Written, StoreError> {
        let locator = self.locator(key);
        let object = parse_key(&locator, key)?;
        let mut mode = match seen {
            _ if !self.conditional_writes.load(Ordering::Relaxed) => PutMode::Overwrite,
            Seen::Nothing => PutMode::Create,
            Seen::Version(version) => PutMode::Update(version.clone()),
            Seen::Unversioned => PutMode::Overwrite,
        };
        let mut refused = false;
        let mut tries = 1;
        loop {
            let put = self
                .objects
                .put_opts(&object, content.clone().into(), mode.clone().into());
            let Err(error) = put.await else {
                if refused && self.refuses_conditions(&object, &content).await {
                    self.conditional_writes.store(false, Ordering::Relaxed);
                    tracing::warn!(bucket = %self.bucket, "storage_knows_no_conditions");
                }
                return Ok(Written::Done(locator));
            };
            match error {
                StorageError::AlreadyExists { .. } | StorageError::Precondition { .. } => {
                    return self.conflict(locator, &object, &content).await;
                }
                error if (is_lost(&error) || is_bad_request(&error)) && tries < TRIES => {
                    sleep(Duration::from_millis(50) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                error if mode != PutMode::Overwrite && may_refuse_condition(&error) => {
                    (mode, refused) = (PutMode::Overwrite, true);
                }
                error => return Err(StoreError::storage("writing", &locator, error)),
            }
        }
    }

    /// Whether the storage refuses conditions: one that knows them refuses to create the object
    /// again. A refusal of an earlier request may have had another reason.
    async fn refuses_conditions(&self, object: &ObjectPath, content: &Bytes) -> bool {
        let put = self
            .objects
            .put_opts(object, content.clone().into(), PutMode::Create.into());
        matches!(put.await, Err(error) if may_refuse_condition(&error))
    }

    /// The outcome of a write that was refused because the object exists. A write whose response
    /// was lost is sent again, and then the object is the own one.
    async fn conflict(
        &self,
        locator: String,
        object: &ObjectPath,
        content: &Bytes,
    ) -> Result<Written, StoreError> {
        let found = match self.objects.get(object).await {
            Ok(found) => found,
            Err(StorageError::NotFound { .. }) => return Ok(Written::Conflict(Seen::Nothing)),
            Err(error) => return Err(StoreError::storage("reading", &locator, error)),
        };
        let (seen, size) = (Seen::of(&found.meta), found.meta.size);
        // A body of another size is not read.
        if size == content.len() as u64 && found.bytes().await.is_ok_and(|found| found == *content) {
            return Ok(Written::Done(locator));
        }
        Ok(Written::Conflict(seen))
    }
}

/// Whether the connection ended before the response arrived.
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

/// Whether the storage or a proxy refused the request as it is. The next one may succeed, except
/// where the refusal is about the condition.
fn is_bad_request(error: &StorageError) -> bool {
    chain(error).contains(BAD_REQUEST)
}

/// Whether the storage may have refused the request because of its condition. The status stands
/// only in the text.
pub(super) fn may_refuse_condition(error: &StorageError) -> bool {
    match error {
        StorageError::NotImplemented { .. } => true,
        error => {
            let text = chain(error);
            let says = |word: &&str| text.contains(*word);
            [BAD_REQUEST, "status code: 501"].iter().any(says) && !OTHER_REFUSALS.iter().any(says)
        }
    }
}
