//! Why a metadata service gave no answer.

/// A metadata service gave no proper answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The connection was refused or not accepted in time.
    #[error("cannot connect to the metadata service: {0}")]
    NoConnection(String),
    /// There was no complete answer in time.
    #[error("the metadata service gave no answer within 2 s")]
    Timeout,
    /// The status of the answer is neither success nor "not found".
    #[error("the metadata service answered with status {0}")]
    Status(u16),
    /// The connection broke, the answer was too long, or it was not HTTP.
    #[error("cannot read the answer of the metadata service: {0}")]
    Broken(String),
    /// The answer is not one of a metadata service, but the page of a captive portal, for example.
    #[error("the answer is not one of a metadata service")]
    InvalidAnswer,
}
