//! A recording from the standard input: [`StandardInput`].

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::cli::failure::Failure;

/// The name of the standard input among files.
const NAME: &str = "-";

/// Whether the file is the standard input. A file of that name is `./-`.
pub(super) fn is_named_by(file: &Path) -> bool {
    file.as_os_str() == NAME
}

/// A copy of the standard input, because audio is read at several positions. It is removed with
/// this value.
#[derive(Debug)]
pub(super) struct StandardInput(TempPath);

impl StandardInput {
    /// Copies the standard input to a file in `directory`, if one of the files is `-`.
    pub(super) fn read(files: &[PathBuf], directory: &Path) -> Result<Option<Self>, Failure> {
        match files.iter().filter(|file| is_named_by(file)).count() {
            0 => return Ok(None),
            1 => {}
            _ => {
                return Err(Failure::Usage(
                    "- is given twice: the standard input can be read once".to_owned(),
                ));
            }
        }
        let input = io::stdin();
        if input.is_terminal() {
            let text = "- is the standard input, which is a terminal: redirect a recording to it";
            return Err(Failure::Usage(text.to_owned()));
        }
        let copied = Self::copy(input.lock(), directory);
        let copied = copied.map_err(|error| {
            let directory = directory.display();
            Failure::Failed(format!("copying the standard input to {directory}: {error}"))
        });
        copied.map(Some)
    }

    fn copy(mut input: impl Read, directory: &Path) -> io::Result<Self> {
        let copy = tempfile::Builder::new()
            .prefix("dalston_stdin_")
            .tempfile_in(directory)?
            .into_temp_path();
        io::copy(&mut input, &mut File::create(&copy)?)?;
        Ok(Self(copy))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_of_standard_input_lasts_as_long_as_its_value() {
        let directory = tempfile::tempdir().unwrap();
        let input = StandardInput::copy(&b"RIFF"[..], directory.path()).unwrap();
        assert_eq!(std::fs::read(input.path()).unwrap(), b"RIFF");
        drop(input);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_bare_dash_is_the_standard_input() {
        assert!(is_named_by(Path::new("-")));
        assert!(!is_named_by(Path::new("./-")) && !is_named_by(Path::new("--")));
    }
}
