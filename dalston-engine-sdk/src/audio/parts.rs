//! Parts of a file as one stream, for readers that don't skip what is between them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use symphonia::core::io::MediaSource;

/// Parts of a file, one behind the other.
#[derive(Debug)]
pub(super) struct Parts {
    file: File,
    /// Not empty, ascending.
    parts: Vec<Range<u64>>,
    position: u64,
}

impl Parts {
    pub(super) fn new(file: File, parts: impl IntoIterator<Item = Range<u64>>) -> Self {
        Self {
            file,
            parts: parts.into_iter().filter(|part| !part.is_empty()).collect(),
            position: 0,
        }
    }

    fn length(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }

    /// The position in the file, and the bytes from there to the end of the part.
    fn here(&self) -> Option<(u64, u64)> {
        let mut before = 0;
        self.parts.iter().find_map(|part| {
            let inside = self.position - before;
            before += part.end - part.start;
            (self.position < before).then(|| (part.start + inside, before - self.position))
        })
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((at, left)) = self.here() else {
            return Ok(0);
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.file.seek(SeekFrom::Start(at))?;
        let read = self.file.read(&mut buffer[..most])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Parts {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl MediaSource for Parts {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.length())
    }
}
