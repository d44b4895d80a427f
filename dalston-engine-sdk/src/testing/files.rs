//! Input files of a test.

use std::path::PathBuf;
use std::sync::OnceLock;

use tempfile::TempDir;

/// Files that exist as long as the harness.
#[derive(Debug, Default)]
pub(super) struct Files {
    dir: OnceLock<TempDir>,
}

impl Files {
    #[track_caller]
    pub(super) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let made = self
            .dir
            .get_or_init(|| match TempDir::with_prefix("dalston-test-") {
                Ok(dir) => dir,
                Err(error) => panic!("no temporary directory for the test: {error}"),
            });
        let path = made.path().join(name);
        if let Err(error) = std::fs::write(&path, content) {
            panic!("{}: {error}", path.display());
        }
        path
    }
}

/// A WAV file with 32-bit floating point samples, which keeps them as they are.
pub(super) fn wav(sample_rate: u32, samples: &[f32]) -> Vec<u8> {
    let data = u32::try_from(samples.len() * 4).unwrap_or(u32::MAX);
    let mut file = Vec::with_capacity(44 + samples.len() * 4);
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&data.saturating_add(36).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt ");
    file.extend_from_slice(&16_u32.to_le_bytes());
    // Format 3 is IEEE floating point; then one channel.
    file.extend_from_slice(&3_u16.to_le_bytes());
    file.extend_from_slice(&1_u16.to_le_bytes());
    file.extend_from_slice(&sample_rate.to_le_bytes());
    file.extend_from_slice(&sample_rate.saturating_mul(4).to_le_bytes());
    file.extend_from_slice(&4_u16.to_le_bytes());
    file.extend_from_slice(&32_u16.to_le_bytes());
    file.extend_from_slice(b"data");
    file.extend_from_slice(&data.to_le_bytes());
    samples
        .iter()
        .for_each(|sample| file.extend_from_slice(&sample.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_a_wav_file_with_the_length_of_its_header() {
        let file = wav(16_000, &[0.0, 0.5, -1.0]);
        assert_eq!(file.len(), 44 + 12);
        assert_eq!(file.get(4..8), Some(&48_u32.to_le_bytes()[..]));
        assert_eq!(file.get(40..44), Some(&12_u32.to_le_bytes()[..]));
        assert_eq!(file.get(52..), Some(&(-1.0_f32).to_le_bytes()[..]));
    }
}
