//! Why a document of the platform could not be read.

use serde_json::Value;
use thiserror::Error;

use super::json::Wrong;

/// Why a document of the platform could not be read.
///
/// ```
/// use dalston_engine_sdk::protocol::TaskRequestData;
///
/// let error = TaskRequestData::from_slice(br#"{"task_id": 7, "job_id": "J"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "request.json: task_id is 7: expected a non-empty string");
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The document is not JSON.
    #[error("{document} is not valid JSON: {source}")]
    Syntax {
        /// The document, for example `request.json`.
        document: &'static str,
        /// The error of the JSON parser, with its position.
        source: serde_json::Error,
    },
    /// A key is missing, or its value is not accepted.
    #[error("{document}: {path} {problem}")]
    Field {
        /// The document, for example `request.json`.
        document: &'static str,
        /// The path of the key, for example `request_bindings[0].slot`.
        path: String,
        /// The value that was found, and the accepted ones.
        problem: String,
    },
}

/// Parses a document and reads its value.
pub(super) fn read<T>(
    document: &'static str,
    bytes: &[u8],
    read: impl FnOnce(Value) -> Result<T, Wrong>,
) -> Result<T, ProtocolError> {
    let value = serde_json::from_slice(bytes).map_err(|source| ProtocolError::Syntax { document, source })?;
    read(value).map_err(|Wrong { path, problem }| ProtocolError::Field {
        document,
        path,
        problem,
    })
}
