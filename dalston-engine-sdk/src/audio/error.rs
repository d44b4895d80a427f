//! The errors of audio files: [`AudioError`].

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::format::{HIGHEST_SAMPLE_RATE, LOWEST_SAMPLE_RATE, MAX_CHANNELS};
use crate::error::TaskErrorKind;

/// The error of a file that can't be decoded. Its message is one line with the name of the file and
/// the problem.
///
/// ```
/// use dalston_engine_sdk::audio::{AudioErrorKind, AudioFormat, decode_file};
///
/// let error = decode_file("no/such/file.wav", AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap_err();
/// assert!(error.to_string().starts_with("no/such/file.wav can't be read: "));
/// assert!(matches!(error.kind(), AudioErrorKind::Unreadable(_)));
/// ```
#[derive(Debug)]
pub struct AudioError {
    file: String,
    kind: AudioErrorKind,
}

impl AudioError {
    pub(super) fn new(file: impl Into<String>, kind: AudioErrorKind) -> Self {
        Self {
            file: file.into(),
            kind,
        }
    }

    /// The name of the file, as it was given.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The problem.
    #[must_use]
    pub fn kind(&self) -> &AudioErrorKind {
        &self.kind
    }

    /// The code of a [`TaskError`](crate::TaskError) for it: `unreadable_audio`, `audio_too_long`,
    /// `audio_spool` or `cancelled`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// Whether the file is the cause, so that another attempt does not help.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.kind.task_error_kind() == TaskErrorKind::Permanent
    }
}

impl fmt::Display for AudioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file, self.kind)
    }
}

impl std::error::Error for AudioError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // It identifies the error also inside an `anyhow::Error`, which does not give the error
        // that it was made from.
        Some(&self.kind)
    }
}

/// The problem of an audio file. The messages follow the name of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioErrorKind {
    /// The operating system can't read it.
    #[error("can't be read: {0}")]
    Unreadable(#[source] io::Error),
    /// It is a directory.
    #[error("is a directory: expected an audio file")]
    Directory,
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// Its format is unknown.
    #[error("is not an audio file of a known format: expected {FORMATS}")]
    NotAudio,
    /// It has no sound, and is for example a web page.
    #[error("is {0}, not an audio file: expected {FORMATS}")]
    NoMedia(&'static str),
    /// It is for example an AMR recording.
    #[error("is {0}, which can't be decoded: convert it, for example with ffmpeg -i INPUT OUTPUT.flac")]
    UnsupportedFormat(&'static str),
    /// It has no audio, only for example pictures.
    #[error("has no audio track")]
    NoTrack,
    /// The container is known, but not the codec.
    #[error(
        "holds {0}, which can't be decoded: expected PCM, FLAC, MP3, Vorbis, Opus, ALAC, or AAC-LC and HE-AAC with \
         up to 2 channels; convert it, for example with ffmpeg -i INPUT -ac 1 OUTPUT.flac"
    )]
    UnsupportedCodec(String),
    /// It ends before the audio begins.
    #[error("ends inside its header")]
    TruncatedHeader,
    /// Its header or its data are contradictory.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// The sample rate is out of range.
    #[error("has a sample rate of {0} Hz: expected {LOWEST_SAMPLE_RATE} to {HIGHEST_SAMPLE_RATE}")]
    SampleRate(u32),
    /// The number of channels is out of range.
    #[error("has {0} channels: expected 1 to {MAX_CHANNELS}")]
    Channels(usize),
    /// A sample is not a number, infinite or larger than any sound.
    #[error("has a sample of {value} at {at:.3} s: expected numbers from -1 to 1")]
    ImpossibleSample {
        /// The sample.
        value: f32,
        /// Seconds from the start.
        at: f64,
    },
    /// It is longer than allowed.
    #[error("is longer than the allowed {}", Hours(*.0))]
    TooLong(Duration),
    /// The header declares audio, but there is none.
    #[error("has no audio in it")]
    NoSamples,
    /// Writing long audio to a temporary file failed.
    #[error("can't be decoded to a temporary file: {0}")]
    Spool(#[source] io::Error),
    /// The caller cancelled it.
    #[error("was not decoded to the end because the task was cancelled")]
    Cancelled,
}

impl AudioErrorKind {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "audio_too_long",
            Self::Spool(_) => "audio_spool",
            Self::Cancelled => "cancelled",
            _ => "unreadable_audio",
        }
    }

    /// The kind of a task's error with this cause.
    pub(crate) fn task_error_kind(&self) -> TaskErrorKind {
        match self {
            Self::Cancelled => TaskErrorKind::Cancelled,
            Self::Spool(_) => TaskErrorKind::Retryable,
            Self::Unreadable(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                    TaskErrorKind::Permanent
                }
                // Such as too many open files, which may pass.
                _ => TaskErrorKind::Retryable,
            },
            _ => TaskErrorKind::Permanent,
        }
    }
}

const FORMATS: &str = "WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, WebM or Matroska";

struct Hours(Duration);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds >= 3600.0 {
            write!(f, "{} hours", seconds / 3600.0)
        } else {
            write!(f, "{seconds} seconds")
        }
    }
}

/// The name of a file without control characters.
pub(super) fn one_line(path: &Path) -> String {
    path.display()
        .to_string()
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}
