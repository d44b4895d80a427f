//! WAV files of 16-bit samples.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes one channel.
#[derive(Debug)]
pub(super) struct WavWriter {
    file: BufWriter<File>,
    sample_rate: u32,
    samples: u32,
}

impl WavWriter {
    pub(super) fn create(path: &Path, sample_rate: u32) -> io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::new(File::create(path)?),
            sample_rate,
            samples: 0,
        };
        writer.write_header()?;
        Ok(writer)
    }

    /// Adds a sample of -1 to 1.
    pub(super) fn push(&mut self, sample: f32) -> io::Result<()> {
        let sample = (sample.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i16;
        self.file.write_all(&sample.to_le_bytes())?;
        self.samples = self.samples.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }

    /// Completes the header, which has the length.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.write_header()?;
        self.file.flush()
    }

    fn write_header(&mut self) -> io::Result<()> {
        let bytes = self.samples.saturating_mul(2);
        let rate = self.sample_rate;
        self.file.write_all(b"RIFF")?;
        self.file.write_all(&bytes.saturating_add(36).to_le_bytes())?;
        self.file.write_all(b"WAVEfmt ")?;
        self.file.write_all(&16_u32.to_le_bytes())?;
        // PCM, one channel.
        self.file.write_all(&[1, 0, 1, 0])?;
        self.file.write_all(&rate.to_le_bytes())?;
        self.file.write_all(&rate.saturating_mul(2).to_le_bytes())?;
        // Two bytes a frame, 16 bits a sample.
        self.file.write_all(&[2, 0, 16, 0])?;
        self.file.write_all(b"data")?;
        self.file.write_all(&bytes.to_le_bytes())
    }
}
