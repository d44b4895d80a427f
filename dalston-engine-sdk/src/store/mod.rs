//! The files of tasks: [`Store`], a thin layer over [`object_store`].
//!
//! A locator names a file: `s3://bucket/key` for everything that the platform stores, and
//! `file:///path` for a file of this machine where that is allowed. A store in memory or in a local
//! directory takes the place of S3 under the same locators, so the code above it needs no second
//! path.
//!
//! # Results of a process that was stopped
//!
//! The platform fixes the keys of a result, so a process that was stopped could overwrite the
//! result of a peer. After half a lease without an answer the worker asks before each file, and
//! each write is conditional on the version that it saw. A file above 10 MiB is uploaded in parts
//! to a key of the attempt and then copied under a condition. Two gaps remain: a copy over an
//! existing file has no condition, only a lease that was just renewed, and a storage may ignore
//! `If-None-Match` and `If-Match`.

mod bucket;
mod error;
#[cfg(feature = "realtime")]
mod growing;
pub mod key;
mod replace;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod spans;
mod staged;
mod upload;

pub use self::bucket::Store;
pub use self::error::StoreError;
#[cfg(feature = "realtime")]
pub(crate) use self::growing::{GrowingFile, PART_BYTES};
pub use self::key::DEFAULT_BUCKET;
pub(crate) use self::replace::{Seen, Written};

#[cfg(feature = "s3")]
pub use self::s3::S3Config;
