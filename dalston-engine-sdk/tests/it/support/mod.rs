//! What several test modules need.

#[cfg(feature = "redis")]
pub(crate) mod proxy;
#[cfg(feature = "redis")]
pub(crate) mod redis_server;
#[cfg(feature = "worker")]
pub(crate) mod s3_server;
