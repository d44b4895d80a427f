//! [`RotatingFile`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is renamed to `NAME.1` when it is full. `NAME.1` becomes `NAME.2` and so on, and the
/// last one is removed.
pub(super) struct RotatingFile {
    path: PathBuf,
    max_bytes: u64,
    keep: usize,
    file: File,
    length: u64,
    /// Whether the file ends in the middle of a record, because the disk was full.
    is_torn: bool,
}

impl RotatingFile {
    /// Opens the file, or creates it for this user only. Records are appended.
    pub(super) fn open(path: &Path, max_bytes: u64, keep: usize) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self {
            length: file.metadata()?.len(),
            path: path.to_owned(),
            max_bytes,
            keep,
            file,
            is_torn: false,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            let from = self.numbered(number);
            if from.exists() {
                fs::rename(&from, self.numbered(number + 1))?;
            }
        }
        match self.keep {
            0 => fs::remove_file(&self.path)?,
            _ => fs::rename(&self.path, self.numbered(1))?,
        }
        self.file = open(&self.path)?;
        self.length = 0;
        self.is_torn = false;
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(self.path.as_os_str());
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Write for RotatingFile {
    /// Writes a whole record.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let full = self.length > 0 && self.length + record.len() as u64 > self.max_bytes;
        // A file that can't be renamed grows: a record that is too many is better than a lost one.
        let rotated = if full { self.rotate() } else { Ok(()) };
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.is_torn = false;
            self.length += 1;
        }
        if let Err(error) = self.file.write_all(record) {
            self.is_torn = true;
            return Err(error);
        }
        self.length += record.len() as u64;
        if let Err(error) = rotated {
            tracing::warn!(path = %self.path.display(), %error, "audit_file_not_rotated");
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_file_is_renamed_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = RotatingFile::open(&path, 10, 2).unwrap();
        for record in [
            "aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "eeee\n", "ffff\n", "gggg\n",
        ] {
            file.write_all(record.as_bytes()).unwrap();
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(text("audit.jsonl"), "gggg\n");
        assert_eq!(text("audit.jsonl.1"), "eeee\nffff\n");
        assert_eq!(text("audit.jsonl.2"), "cccc\ndddd\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

        drop(file);
        let mut again = RotatingFile::open(&path, 10, 2).unwrap();
        again.write_all(b"hhhh\n").unwrap();
        assert_eq!(text("audit.jsonl"), "gggg\nhhhh\n");
    }

    #[test]
    fn file_that_can_not_be_renamed_keeps_all_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = RotatingFile::open(&path, 6, 1).unwrap();
        // A directory of the name that the full file should get.
        fs::create_dir(dir.path().join("audit.jsonl.1")).unwrap();
        for record in ["aaaa\n", "bbbb\n"] {
            file.write_all(record.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "aaaa\nbbbb\n");
    }
}
