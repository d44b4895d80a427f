//! The stage `prepare`: section 4.2 of the protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::rounded_into_range;
use super::config::{self, ConfigError};
use super::media::{AudioMedia, MEDIA, REGION, SpeechRegion};
use super::schema::{Kind, Schema, defaulted, optional, required};
use super::status::{AnswerStatus, answer};
use super::validation::ValidationError;

/// The options of a `prepare` task. The recording itself is
/// [`TaskRequest::media`](crate::TaskRequest::media).
///
/// ```
/// use dalston_engine_sdk::stage::PrepareRequest;
///
/// let config = serde_json::json!({"split_channels": true});
/// let request = PrepareRequest::from_config(config.as_object().unwrap())?;
/// assert!(request.split_channels);
/// assert_eq!(request.target_sample_rate, 16_000);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrepareRequest {
    /// The sample rate of the prepared files in Hz, at least 1. Default: 16000.
    pub target_sample_rate: u32,
    /// The number of channels of each prepared file, at least 1. Default: 1.
    pub target_channels: u32,
    /// The encoding of the samples. Default: `pcm_s16le`.
    pub target_encoding: String,
    /// Whether to normalise the volume. Default: yes.
    pub normalize_volume: bool,
    /// Whether to look for stretches with speech. Default: no.
    pub detect_speech_regions: bool,
    /// Whether each channel becomes a file of its own. Default: no.
    pub split_channels: bool,
}

impl PrepareRequest {
    /// Reads the options of a task. Unknown keys are ignored.
    ///
    /// # Errors
    ///
    /// If a value has the wrong type or is out of range. The error names the key and the accepted
    /// values.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ConfigError> {
        config::read(config, |config| {
            Ok(Self {
                target_sample_rate: config.integer("target_sample_rate", 1)?.unwrap_or(16_000),
                target_channels: config.integer("target_channels", 1)?.unwrap_or(1),
                target_encoding: config
                    .text("target_encoding")?
                    .unwrap_or_else(|| "pcm_s16le".to_owned()),
                normalize_volume: config.boolean("normalize_volume")?.unwrap_or(true),
                detect_speech_regions: config.boolean("detect_speech_regions")?.unwrap_or(false),
                split_channels: config.boolean("split_channels")?.unwrap_or(false),
            })
        })
    }
}

/// The answer of the `prepare` stage.
///
/// Each prepared file is also an output file of the task, with the kind `audio`, the role
/// `prepared`, its channel from 0, and the name `prepared_audio`, or `prepared_audio_ch{n}` if
/// there is one for each channel.
///
/// ```
/// use dalston_engine_sdk::stage::{AudioMedia, Preparation, SpeechRegion, StageOutput};
///
/// let file = AudioMedia::new("T:prepared_audio", "wav", 2.44, 16_000, 1).bit_depth(16);
/// let source = AudioMedia::new("J:source:audio", "mp3", 2.44, 44_100, 2);
/// let preparation = Preparation::new([file])
///     .source_media(source)
///     .speech_regions([SpeechRegion::new(0.2, 2.1)], 0.78);
/// assert_eq!(preparation.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Preparation {
    /// The prepared files: one, or one for each channel in order.
    pub channel_files: Vec<AudioMedia>,
    /// The recording before the conversion. The final transcript shows its duration, channels and
    /// sample rate.
    #[serde(default)]
    pub source_media: Option<AudioMedia>,
    /// Whether there is a file for each channel.
    #[serde(default)]
    pub split_channels: bool,
    /// The stretches with speech, if they were looked for.
    #[serde(default)]
    pub speech_regions: Option<Vec<SpeechRegion>>,
    /// The part of the duration with speech, 0 to 1.
    #[serde(default)]
    pub speech_ratio: Option<f64>,
    /// Whether the stage was skipped, and warnings.
    #[serde(flatten)]
    pub status: AnswerStatus,
}

impl Preparation {
    /// Prepared files. With more than one, there is one for each channel.
    #[must_use]
    pub fn new(channel_files: impl IntoIterator<Item = AudioMedia>) -> Self {
        let channel_files: Vec<_> = channel_files.into_iter().collect();
        Self {
            split_channels: channel_files.len() > 1,
            channel_files,
            source_media: None,
            speech_regions: None,
            speech_ratio: None,
            status: AnswerStatus::default(),
        }
    }

    /// Sets the recording before the conversion.
    #[must_use]
    pub fn source_media(mut self, media: AudioMedia) -> Self {
        self.source_media = Some(media);
        self
    }

    /// Sets whether there is a file for each channel. Needed only for one file.
    #[must_use]
    pub fn split_channels(mut self, split: bool) -> Self {
        self.split_channels = split;
        self
    }

    /// Sets the stretches with speech, and the part of the duration with speech, 0 to 1.
    #[must_use]
    pub fn speech_regions(mut self, regions: impl IntoIterator<Item = SpeechRegion>, ratio: f64) -> Self {
        self.speech_regions = Some(regions.into_iter().collect());
        self.speech_ratio = Some(rounded_into_range(ratio));
        self
    }
}

answer!(Preparation, Prepare);

pub(super) static ANSWER: Schema = Schema {
    rule: files_and_split_agree,
    ..Schema::answer(&[
        required("channel_files", Kind::List(&Kind::Object(&MEDIA))),
        optional("source_media", Kind::Object(&MEDIA)),
        defaulted("split_channels", Kind::Flag),
        optional("speech_regions", Kind::List(&Kind::Object(&REGION))),
        optional("speech_ratio", Kind::Share),
    ])
};

/// The next stages look up the file of their channel by its number.
fn files_and_split_agree(answer: &Map<String, Value>) -> Result<(), ValidationError> {
    let is = |key| answer.get(key).and_then(Value::as_bool) == Some(true);
    let expected = match is("split_channels") {
        true => "one for each channel",
        false => "one, or split_channels",
    };
    match answer["channel_files"].as_array().map_or(0, Vec::len) {
        0 if is("skipped") => Ok(()),
        1 => Ok(()),
        files if files > 1 && is("split_channels") => Ok(()),
        files => Err(ValidationError::new(
            "channel_files",
            format!("has {files} files: expected {expected}"),
        )),
    }
}
