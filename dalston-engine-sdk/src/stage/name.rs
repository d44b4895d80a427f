//! Names of stages: [`Stage`] (`transcribe`) and [`StageName`] (`transcribe_ch0`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use dalston_telemetry::ParseError;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A step of a job, such as `transcribe`.
///
/// The known stages have variants. The list is open: any other well-formed name is a stage, too.
///
/// ```
/// use dalston_engine_sdk::stage::Stage;
///
/// assert_eq!("pii_detect".parse(), Ok(Stage::PiiDetect));
/// assert_eq!("summarise".parse::<Stage>()?.as_str(), "summarise");
/// # Ok::<(), dalston_engine_sdk::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// `prepare`: the upload becomes audio that the other stages can read.
    Prepare,
    /// `transcribe`: audio becomes a [`Transcript`](super::Transcript).
    Transcribe,
    /// `align`: the words of a transcript get times.
    Align,
    /// `diarize`: the speakers get times.
    Diarize,
    /// `pii_detect`: personal data is found in a transcript.
    PiiDetect,
    /// `audio_redact`: personal data is removed from the audio.
    AudioRedact,
    /// Any other stage. Made by [`Stage::other`] and by parsing, never for one of the names above.
    Other(OtherStage),
}

impl Stage {
    /// The stage of this name, which may also be one of the known stages.
    ///
    /// # Errors
    ///
    /// If `name` is empty, longer than 64 characters, or has other characters than `a`–`z`,
    /// `0`–`9`, `_` and `-`.
    pub fn other(name: &str) -> Result<Self, ParseError> {
        name.parse()
    }

    /// The name in the documents of the platform.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Prepare => "prepare",
            Self::Transcribe => "transcribe",
            Self::Align => "align",
            Self::Diarize => "diarize",
            Self::PiiDetect => "pii_detect",
            Self::AudioRedact => "audio_redact",
            Self::Other(name) => &name.0,
        }
    }
}

impl FromStr for Stage {
    type Err = ParseError;

    fn from_str(name: &str) -> Result<Self, ParseError> {
        Ok(match name {
            "prepare" => Self::Prepare,
            "transcribe" => Self::Transcribe,
            "align" => Self::Align,
            "diarize" => Self::Diarize,
            "pii_detect" => Self::PiiDetect,
            "audio_redact" => Self::AudioRedact,
            other if is_well_formed(other) => Self::Other(OtherStage(other.into())),
            _ => {
                return Err(wrong_name(name));
            }
        })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Stage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The name of a stage without a variant. See [`Stage::Other`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherStage(Arc<str>);

impl fmt::Debug for OtherStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The stage of one task: a [`Stage`], and the channel if there is a task for each channel.
///
/// ```
/// use dalston_engine_sdk::stage::{Stage, StageName};
///
/// let name: StageName = "transcribe_ch1".parse()?;
/// assert_eq!((name.stage(), name.channel()), (&Stage::Transcribe, Some(1)));
/// assert_eq!(name.to_string(), "transcribe_ch1");
/// # Ok::<(), dalston_engine_sdk::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageName {
    stage: Stage,
    channel: Option<u32>,
}

impl StageName {
    /// `stage` for one channel of the recording.
    #[must_use]
    pub fn of_channel(stage: Stage, channel: u32) -> Self {
        Self {
            stage,
            channel: Some(channel),
        }
    }

    /// The stage that engines register for, without the channel.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The channel, counted from 0.
    #[must_use]
    pub fn channel(&self) -> Option<u32> {
        self.channel
    }
}

impl From<Stage> for StageName {
    fn from(stage: Stage) -> Self {
        Self { stage, channel: None }
    }
}

impl FromStr for StageName {
    type Err = ParseError;

    /// The channel follows the last `_ch`, if that is a number without leading zeros. `two_chairs`
    /// and `x_ch07` are names of stages without a channel. So every name is written as it was read.
    fn from_str(name: &str) -> Result<Self, ParseError> {
        if let Some((stage, digits)) = name.rsplit_once("_ch")
            && let Ok(channel) = digits.parse::<u32>()
            && channel.to_string() == digits
        {
            return Ok(Self::of_channel(stage.parse()?, channel));
        }
        name.parse().map(|stage| Self { stage, channel: None })
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.channel {
            None => fmt::Display::fmt(&self.stage, f),
            Some(channel) => write!(f, "{}_ch{channel}", self.stage),
        }
    }
}

impl Serialize for StageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Stage names become labels, span attributes and parts of storage keys.
const LONGEST_NAME: usize = 64;

fn wrong_name(name: &str) -> ParseError {
    let expected = format!("1 to {LONGEST_NAME} characters from a-z, 0-9, _ and -, such as transcribe");
    ParseError::new(
        "stage",
        name.chars().take(LONGEST_NAME).collect::<String>(),
        expected,
    )
}

fn is_well_formed(name: &str) -> bool {
    let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_follows_the_last_ch() {
        for (text, stage, channel) in [
            ("transcribe", "transcribe", None),
            ("transcribe_ch0", "transcribe", Some(0)),
            ("align_ch12", "align", Some(12)),
            ("pii_detect", "pii_detect", None),
            ("two_chairs", "two_chairs", None),
            ("two_chairs_ch1", "two_chairs", Some(1)),
            ("a_ch1_ch2", "a_ch1", Some(2)),
            ("transcribe_ch", "transcribe_ch", None),
            ("transcribe_ch01", "transcribe_ch01", None),
            ("transcribe_ch-1", "transcribe_ch-1", None),
            ("transcribe_ch99999999999", "transcribe_ch99999999999", None),
        ] {
            let name: StageName = text.parse().unwrap();
            assert_eq!(
                (name.stage().as_str(), name.channel()),
                (stage, channel),
                "{text}"
            );
            assert_eq!(name.to_string(), text);
            assert_eq!(
                serde_json::from_value::<StageName>(serde_json::json!(text)).unwrap(),
                name
            );
        }
    }

    #[test]
    fn a_name_that_is_no_label_or_key_is_refused() {
        for text in ["", "Transcribe", "a/b", "a b", "ä", "_ch0", &"x".repeat(65)] {
            let message = text.parse::<StageName>().unwrap_err().to_string();
            assert!(message.contains(": expected 1 to 64 characters"), "{message}");
        }
    }

    #[test]
    fn known_stages_are_never_other() {
        assert_eq!(Stage::other("audio_redact"), Ok(Stage::AudioRedact));
        assert_eq!(Stage::other("transcribe"), Ok(Stage::Transcribe));
    }
}
