//! The times of a transcript: [`TimestampGranularity`] and [`AlignmentMethod`].

use serde::{Deserialize, Serialize};

/// The finest pieces of a transcript that have times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimestampGranularity {
    /// No times.
    None,
    /// Segments have times.
    #[default]
    Segment,
    /// Words have times, too.
    Word,
    /// Characters have times, too.
    Character,
    /// Phonemes have times, too.
    Phoneme,
}

impl TimestampGranularity {
    pub(super) const NAMES: &'static [&'static str] = &["none", "segment", "word", "character", "phoneme"];

    /// The name in the documents of the platform.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Segment => "segment",
            Self::Word => "word",
            Self::Character => "character",
            Self::Phoneme => "phoneme",
        }
    }
}

/// The method that found times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AlignmentMethod {
    /// From the attention of an encoder-decoder model.
    Attention,
    /// From a CTC model.
    Ctc,
    /// From an RNN transducer.
    Rnnt,
    /// From a token-and-duration transducer.
    Tdt,
    /// By a wav2vec model on phonemes.
    #[serde(rename = "phoneme_wav2vec")]
    PhonemeWav2vec,
    /// By an MMS model on phonemes.
    PhonemeMms,
    /// By the Montreal Forced Aligner.
    Mfa,
    /// By a weighted finite-state transducer.
    Wfst,
    /// Unknown, or another method.
    #[default]
    #[serde(other)]
    Unknown,
}

impl AlignmentMethod {
    pub(super) const NAMES: &'static [&'static str] = &[
        "attention",
        "ctc",
        "rnnt",
        "tdt",
        "phoneme_wav2vec",
        "phoneme_mms",
        "mfa",
        "wfst",
        "unknown",
    ];
}
