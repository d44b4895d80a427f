//! Audio files as an engine wants them: decoded, mixed down and resampled.
//!
//! An engine declares the [`AudioFormat`] it works on, and the runner hands it [`Audio`] in that format, whatever the file
//! was. WAV (PCM, floating point, A-law, µ-law; also RF64), FLAC, MP3, OGG Vorbis and M4A (AAC-LC, ALAC) are read, with any
//! sample rate from 1 to 768 kHz and up to 64 channels.
//!
//! ```no_run
//! use dalston_engine_sdk::audio::{AudioFormat, decode_file};
//!
//! let audio = decode_file("meeting.m4a", AudioFormat::MONO_16K, &std::env::temp_dir())?;
//! println!("{:.1} s", audio.duration().as_secs_f64());
//! for second in audio.windows(16_000) {
//!     let samples = second?;
//!     // …
//! }
//! # Ok::<(), dalston_engine_sdk::audio::AudioError>(())
//! ```
//!
//! **Memory is bounded.** Files are decoded piece by piece. Up to ten minutes of audio stay in memory; longer audio goes to
//! a temporary file without a name, which the operating system removes even if the process is killed, and is read back in
//! the pieces that are asked for.
//!
//! **Damaged files.** What can be decoded is decoded, and [`Audio::warnings`] says what was wrong: a file that ends before
//! its header says, or damaged packets, which become silence of the same length so that later times stay right. A file
//! without any audio is an [`AudioError`], and so is a header that makes no sense.

mod clip;
mod compressed;
mod decoder;
mod edit_list;
mod error;
mod mix;
mod resample;
mod source;
mod store;
mod trim;
mod wav;

pub use clip::{Audio, Windows};
pub use decoder::{AudioInfo, Decoder, decode_file, probe};
pub use error::{AudioError, AudioErrorKind};

/// The sample rate and the number of channels that an engine works on.
///
/// ```
/// use dalston_engine_sdk::audio::AudioFormat;
///
/// assert_eq!(AudioFormat::MONO_16K, AudioFormat::new(16_000, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AudioFormat {
    /// Samples per second and channel.
    pub sample_rate: u32,
    /// 1 for the mean of all channels. With more, a file that has as many is taken as it is; of any other file the mean of
    /// all channels is given on each.
    pub channels: u16,
}

impl AudioFormat {
    /// 16 kHz, one channel: what speech models want.
    pub const MONO_16K: Self = Self::new(16_000, 1);

    /// A format. Where it is used, values that no audio has are brought to the nearest: 1 to 768 kHz, 1 to 64 channels.
    #[must_use]
    pub const fn new(sample_rate: u32, channels: u16) -> Self {
        Self {
            sample_rate,
            channels,
        }
    }

    /// The format with values that can be worked with.
    fn sane(self) -> Self {
        let channels = usize::from(self.channels).clamp(1, MOST_CHANNELS);
        Self {
            sample_rate: self.sample_rate.clamp(LOWEST_SAMPLE_RATE, HIGHEST_SAMPLE_RATE),
            channels: u16::try_from(channels).unwrap_or(1),
        }
    }
}

/// Below any recording of sound.
const LOWEST_SAMPLE_RATE: u32 = 1_000;
/// The highest that converters offer.
const HIGHEST_SAMPLE_RATE: u32 = 768_000;
/// The widest mixing desks and ambisonics stay below.
const MOST_CHANNELS: usize = 64;
