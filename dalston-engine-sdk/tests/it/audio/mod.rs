//! Decoding, resampling, and malformed files.

mod bad_input;
mod containers;
mod field;
mod formats;
mod long;
mod resampling;
#[cfg(feature = "testing")]
mod task;
mod wav;

use std::path::{Path, PathBuf};

use dalston_engine_sdk::audio::{Audio, AudioFormat, decode_file};

/// A speech sample of the Whisper example.
pub(crate) fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/faster_whisper/audio")
        .join(name)
}

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn decode(path: impl AsRef<Path>) -> Audio {
    decode_file(path, AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap()
}

fn samples(audio: &Audio) -> Vec<f32> {
    audio.read(..).unwrap().into_owned()
}

/// The samples of a 16-bit WAV file with the plain header of 44 bytes, read without the code under
/// test.
fn plain_samples(path: &Path) -> Vec<i16> {
    let bytes = std::fs::read(path).unwrap();
    bytes[44..]
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&sample| i16::from_le_bytes(sample))
        .collect()
}

/// The power of `signal` over the power of its difference from `other`, in decibels.
fn signal_to_noise(signal: &[f32], other: &[f32]) -> f64 {
    assert_eq!(signal.len(), other.len());
    let power: f64 = signal.iter().map(|s| f64::from(*s).powi(2)).sum();
    let noise: f64 = signal
        .iter()
        .zip(other)
        .map(|(s, o)| (f64::from(*s) - f64::from(*o)).powi(2))
        .sum();
    10.0 * (power / noise.max(1e-30)).log10()
}

/// The shift of `other` against `signal` with the highest correlation, up to `most` samples.
fn best_shift(signal: &[f32], other: &[f32], most: i64) -> i64 {
    let likeness = |shift: i64| -> f64 {
        let pairs = signal.iter().enumerate().filter_map(|(at, s)| {
            let at = usize::try_from(at as i64 + shift).ok()?;
            Some(f64::from(*s) * f64::from(*other.get(at)?))
        });
        pairs.sum()
    };
    (-most..=most)
        .max_by(|a, b| likeness(*a).total_cmp(&likeness(*b)))
        .unwrap()
}

/// Builds WAV files, also malformed ones.
#[derive(Clone)]
struct WavFile {
    tag: u16,
    channels: u16,
    sample_rate: u32,
    bits: u16,
    data: Vec<u8>,
    /// A length in the header that replaces the true one.
    declared: Option<u32>,
    /// Chunks between the format and the data.
    between: Vec<u8>,
}

impl WavFile {
    fn pcm16(sample_rate: u32, channels: u16, samples: &[i16]) -> Self {
        let data = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        Self {
            tag: 1,
            channels,
            sample_rate,
            bits: 16,
            data,
            declared: None,
            between: Vec::new(),
        }
    }

    fn float32(sample_rate: u32, channels: u16, samples: &[f32]) -> Self {
        let data = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        Self {
            tag: 3,
            channels,
            sample_rate,
            bits: 32,
            data,
            declared: None,
            between: Vec::new(),
        }
    }

    fn header(&self) -> Vec<u8> {
        let declared = self.declared.unwrap_or(self.data.len() as u32);
        let frame = u32::from(self.channels) * u32::from(self.bits / 8);
        let mut bytes = b"RIFF".to_vec();
        bytes.extend(
            (36 + self.between.len() as u32)
                .wrapping_add(declared)
                .to_le_bytes(),
        );
        bytes.extend(b"WAVEfmt ");
        bytes.extend(16_u32.to_le_bytes());
        bytes.extend(self.tag.to_le_bytes());
        bytes.extend(self.channels.to_le_bytes());
        bytes.extend(self.sample_rate.to_le_bytes());
        bytes.extend(self.sample_rate.wrapping_mul(frame).to_le_bytes());
        bytes.extend((frame as u16).to_le_bytes());
        bytes.extend(self.bits.to_le_bytes());
        bytes.extend(&self.between);
        bytes.extend(b"data");
        bytes.extend(declared.to_le_bytes());
        bytes
    }

    fn bytes(&self) -> Vec<u8> {
        [self.header(), self.data.clone()].concat()
    }

    fn write(&self, folder: &tempfile::TempDir) -> PathBuf {
        write(folder, "talk.wav", &self.bytes())
    }
}

fn write(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
