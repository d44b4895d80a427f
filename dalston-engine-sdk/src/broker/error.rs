//! Why a broker did not do what it was asked to.

use std::error::Error;

/// A broker could not do what it was asked to.
///
/// The text is complete without the source: `finishing task 7 of my-asr on Redis at localhost:6379:
/// connection refused`.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct BrokerError {
    operation: String,
    source: Box<dyn Error + Send + Sync>,
}

impl BrokerError {
    /// `operation` says what was tried, and where: `finishing task 7 of my-asr on Redis at
    /// localhost:6379`.
    pub fn new(operation: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
