//! What several test modules need.

#[cfg(feature = "worker")]
pub(crate) mod s3_server;
