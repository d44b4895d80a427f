//! Decoding, mixing and resampling of audio files.
//!
//! An engine declares its [`AudioFormat`], and the runner gives it [`Audio`] in that format. Input
//! formats are WAV (PCM, floating point, A-law, µ-law; also RF64), FLAC, MP3, OGG Vorbis and M4A
//! (AAC-LC, ALAC), with sample rates from 1 to 768 kHz and up to 64 channels. To add one, implement
//! `source::Source` and choose it in `open`.
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
//! **Memory is bounded.** Files are decoded piece by piece. Up to ten minutes of audio stay in
//! memory. Longer audio goes to a temporary file without a name, which the operating system removes
//! even if the process is killed. [`Audio::read`] reads it back in pieces.
//!
//! **Damaged files.** The readable part is decoded, and [`Audio::warnings`] names the problems: a
//! file that ends before the length in its header, or damaged packets, which become silence of the
//! same length so that later times stay right. A file without any audio and a header with
//! impossible values are an [`AudioError`].

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
