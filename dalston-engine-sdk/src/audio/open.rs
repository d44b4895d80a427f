//! Choosing the source of a file by its content.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use super::compressed::Compressed;
use super::detect::{Found, detect};
use super::error::AudioErrorKind;
use super::source::Source;
use super::wav::Wav;

/// Opens a file. Its content decides on the format; its name does not matter.
pub(super) fn open(path: &Path) -> Result<Box<dyn Source>, AudioErrorKind> {
    let mut file = File::open(path).map_err(AudioErrorKind::Unreadable)?;
    let metadata = file.metadata().map_err(AudioErrorKind::Unreadable)?;
    if metadata.is_dir() {
        return Err(AudioErrorKind::Directory);
    }
    if !metadata.is_file() {
        let message = "it is not a regular file";
        return Err(AudioErrorKind::Unreadable(io::Error::new(
            io::ErrorKind::InvalidInput,
            message,
        )));
    }
    if metadata.len() == 0 {
        return Err(AudioErrorKind::Empty);
    }
    match detect(&mut file, metadata.len())? {
        Found::Wav => {
            file.rewind().map_err(AudioErrorKind::Unreadable)?;
            Ok(Box::new(Wav::open(file, metadata.len())?))
        }
        Found::Container(container, start) => {
            let compressed = Compressed::open(file, container, start, metadata.len())?;
            Ok(Box::new(compressed))
        }
    }
}
