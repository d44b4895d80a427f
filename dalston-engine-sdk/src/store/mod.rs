//! The files of tasks: [`Store`], a thin layer over [`object_store`].
//!
//! A locator names a file: `s3://bucket/key` for everything that the platform stores, and
//! `file:///path` for a file of this machine where that is allowed. A store in memory or in a local
//! directory takes the place of S3 under the same locators, so the code above it needs no second
//! path.

mod bucket;
mod error;
pub mod key;
mod replace;
#[cfg(feature = "s3")]
mod s3;
mod staged;
mod upload;

pub use self::bucket::Store;
pub use self::error::StoreError;
pub use self::key::DEFAULT_BUCKET;
pub(crate) use self::replace::{Seen, Written};

#[cfg(feature = "s3")]
pub use self::s3::S3Config;
