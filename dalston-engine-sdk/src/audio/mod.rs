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
mod format;
mod mix;
mod open;
mod resample;
mod source;
mod store;
mod trim;
mod wav;

pub use clip::{Audio, Windows};
pub use decoder::{AudioInfo, Decoder, decode_file, probe};
pub use error::{AudioError, AudioErrorKind};
pub use format::AudioFormat;
