//! Models that are not on this machine: [`ModelStorage`] downloads them from the storage of the
//! deployment, or from the Hugging Face hub, to a cache on the local disk.
//!
//! An engine only calls [`LoadContext::model_dir`](crate::LoadContext::model_dir), which then takes
//! longer.

mod bucket;
mod cache;
mod download;
mod error;
mod evict;
#[cfg(feature = "worker")]
mod hub;
mod storage;
mod transfer;

pub(crate) use self::cache::LocalModel;
pub(crate) use self::download::LoadStop;
pub use self::storage::ModelStorage;
pub use crate::config::{ModelConfig, ModelSource};
