//! Choosing the source of a file by its content.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use super::compressed::Compressed;
use super::error::AudioErrorKind;
use super::source::{Source, read_up_to};
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
    let mut start = [0; 12];
    let length = read_up_to(&mut file, &mut start).map_err(AudioErrorKind::Unreadable)?;
    file.rewind().map_err(AudioErrorKind::Unreadable)?;
    if Wav::is_start_of(&start[..length]) {
        Ok(Box::new(Wav::open(file, metadata.len())?))
    } else {
        Ok(Box::new(Compressed::open(file)?))
    }
}
