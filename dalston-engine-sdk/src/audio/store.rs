//! The storage of decoded samples: in memory, or in a temporary file if they are many.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Collects samples.
pub(super) struct Writer {
    kept: Vec<f32>,
    /// How many samples may stay in memory.
    most: usize,
    directory: PathBuf,
    spool: Option<File>,
    spooled: u64,
}

impl Writer {
    pub(super) fn new(most: usize, directory: &Path) -> Self {
        Self {
            kept: Vec::new(),
            most,
            directory: directory.to_owned(),
            spool: None,
            spooled: 0,
        }
    }

    /// Reserves memory for the expected samples, up to the limit.
    pub(super) fn expect(&mut self, samples: u64) {
        let room = usize::try_from(samples).unwrap_or(usize::MAX).min(self.most);
        self.kept.reserve_exact(room);
    }

    pub(super) fn push(&mut self, samples: &[f32]) -> io::Result<()> {
        if self.spool.is_none() && self.kept.len() + samples.len() <= self.most {
            self.kept.extend_from_slice(samples);
            return Ok(());
        }
        let spool = match &mut self.spool {
            Some(spool) => spool,
            None => {
                // A file without a name is removed with the process, even if it is killed.
                let spool = self.spool.insert(tempfile::tempfile_in(&self.directory)?);
                for piece in std::mem::take(&mut self.kept).chunks(SPOOL_PIECE) {
                    append(spool, piece)?;
                    self.spooled += piece.len() as u64;
                }
                spool
            }
        };
        for piece in samples.chunks(SPOOL_PIECE) {
            append(spool, piece)?;
            self.spooled += piece.len() as u64;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<Store> {
        match self.spool {
            None => Ok(Store::Memory(self.kept.into())),
            Some(spool) => {
                // Silence at the end was skipped, not written.
                spool.set_len(self.spooled * SAMPLE_BYTES)?;
                Ok(Store::Spooled {
                    file: Arc::new(Mutex::new(spool)),
                    samples: self.spooled,
                })
            }
        }
    }
}

/// Collected samples. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Store {
    Memory(Arc<[f32]>),
    Spooled { file: Arc<Mutex<File>>, samples: u64 },
}

impl Store {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(samples) => samples.len() as u64,
            Self::Spooled { samples, .. } => *samples,
        }
    }

    /// The samples of a range inside of the store.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Cow<'_, [f32]>> {
        let outside = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a range beyond the end of the samples",
            )
        };
        let (start, count) = (range.start, range.end.saturating_sub(range.start));
        match self {
            Self::Memory(samples) => {
                let range = usize::try_from(start).ok().zip(usize::try_from(range.end).ok());
                let part = range.and_then(|(start, end)| samples.get(start..end));
                part.map(Cow::Borrowed).ok_or_else(outside)
            }
            Self::Spooled { file, samples } => {
                if start + count > *samples {
                    return Err(outside());
                }
                // The position after a panic does not matter, because it is set here.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start * SAMPLE_BYTES))?;
                let mut part = Vec::with_capacity(usize::try_from(count).map_err(|_| outside())?);
                let mut bytes = [0; SPOOL_PIECE * SAMPLE_BYTES as usize];
                while (part.len() as u64) < count {
                    let piece = (count - part.len() as u64).min(SPOOL_PIECE as u64) as usize;
                    let bytes = &mut bytes[..piece * SAMPLE_BYTES as usize];
                    file.read_exact(bytes)?;
                    part.extend(
                        bytes
                            .as_chunks()
                            .0
                            .iter()
                            .map(|&sample| f32::from_le_bytes(sample)),
                    );
                }
                Ok(Cow::Owned(part))
            }
        }
    }
}

/// How many samples are converted at once.
const SPOOL_PIECE: usize = 16 * 1024;
const SAMPLE_BYTES: u64 = 4;

/// Writes samples at the end. Silence is skipped, so that file systems need no room for it.
fn append(spool: &mut File, samples: &[f32]) -> io::Result<()> {
    if samples.iter().all(|sample| sample.to_bits() == 0) {
        let bytes = samples.len() as i64 * SAMPLE_BYTES as i64;
        return spool.seek(SeekFrom::Current(bytes)).map(drop);
    }
    let mut bytes = Vec::with_capacity(samples.len() * SAMPLE_BYTES as usize);
    for sample in samples {
        bytes.extend_from_slice(&sample.to_le_bytes());
    }
    spool.write_all(&bytes)
}
