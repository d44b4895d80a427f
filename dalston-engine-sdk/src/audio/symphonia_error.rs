//! The errors and panics of Symphonia.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use symphonia::core::errors::Error;

use super::error::AudioErrorKind;

pub(super) fn classify(error: Error) -> AudioErrorKind {
    match error {
        Error::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            AudioErrorKind::TruncatedHeader
        }
        Error::IoError(error) if is_system_error(&error) => AudioErrorKind::Unreadable(error),
        Error::IoError(error) => AudioErrorKind::Damaged(error.to_string()),
        Error::Unsupported(what) => {
            AudioErrorKind::UnsupportedCodec(format!("something unsupported ({what})"))
        }
        Error::DecodeError(what) | Error::LimitError(what) => AudioErrorKind::Damaged(what.to_owned()),
        error => AudioErrorKind::Damaged(error.to_string()),
    }
}

/// Whether the read failed, and not the parser: Symphonia has one kind of error for both.
pub(super) fn is_system_error(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

/// Turns a panic of a decoder over a malformed file into an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, AudioErrorKind> {
    // The state after a panic belongs to the file, and is not used after the error.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| AudioErrorKind::Damaged("its decoder panicked".to_owned()))
}
