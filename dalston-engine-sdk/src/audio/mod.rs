//! Decoding, mixing and resampling of audio files.
//!
//! An engine declares its [`AudioFormat`], and the runner gives it [`Audio`] in that format. The
//! sample rate may be 1 to 768 kHz, with up to 64 channels.
//!
//! | Container | Codecs |
//! | --- | --- |
//! | WAV, RF64 | PCM, floating point, A-law, µ-law |
//! | AIFF, CAF | PCM, floating point, A-law, µ-law; in CAF also ALAC |
//! | FLAC | FLAC |
//! | MP3 | MP3, also of joined files with different rates and channels, and behind large tags |
//! | ADTS | AAC |
//! | Ogg | Vorbis, Opus, FLAC |
//! | M4A, MP4, MOV | AAC, ALAC, Opus, FLAC, MP3, PCM |
//! | WebM, Matroska | Opus, Vorbis, FLAC, AAC, ALAC, MP3, PCM |
//!
//! AAC is AAC-LC with one or two channels. Of HE-AAC the core is decoded, which has half the sample
//! rate and all of the speech. Of several tracks the one is decoded that the file plays by default.
//! The content of a file decides on its format and not its name. A file in any other format is
//! refused by its name, for example an MPEG transport stream or an AMR recording.
//!
//! Opus is decoded by the crate `opus-decoder`, which is written in Rust and needs no C compiler.
//! Compared with libopus on 35 files (6 to 320 kbit/s, frames of 2.5 to 60 ms, mono and stereo), no
//! sample differs by more than 0.00003, or 0.04 where the encoder left silence out. Version 0.1.1
//! shifts a number too far on purpose, as libopus does, and so stops with an error in a build that
//! checks for overflow. A debug build therefore needs this in its `Cargo.toml`:
//!
//! ```toml
//! [profile.dev.package.opus-decoder]
//! overflow-checks = false
//! ```
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
//!
//! **Channels** are mixed to their mean. Where they cancel each other, because one has the opposite
//! phase, the loudest one is used instead, and a warning says so.

mod aac;
mod clip;
mod compressed;
mod decoder;
mod detect;
mod error;
mod format;
mod matroska;
mod mix;
mod movie;
mod mpeg;
mod ogg;
mod open;
mod opus;
mod parts;
mod reader;
mod resample;
mod source;
mod store;
mod symphonia_error;
mod track;
mod trim;
mod voice;
mod wav;

pub use clip::{Audio, Windows};
pub use decoder::{AudioInfo, Decoder, decode_file, probe};
pub use error::{AudioError, AudioErrorKind};
pub use format::AudioFormat;
#[cfg(feature = "realtime")]
pub(crate) use resample::Resampler;
pub use voice::{Earshot, SpeechFinder, VadOptions, VoiceDetector};
#[cfg(feature = "realtime")]
pub(crate) use wav::{Encoding, convert};
