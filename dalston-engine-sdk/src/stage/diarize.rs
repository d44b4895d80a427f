//! The stage `diarize`: section 4.4 of the protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::rounded_into_range;
use super::config::{self, ConfigError, model_id};
use super::schema::{Kind, Schema, defaulted, optional, required};
use super::status::{AnswerStatus, answer};
use super::validation::ValidationError;
use crate::protocol::json::Wrong;

/// The options of a `diarize` task.
///
/// ```
/// use dalston_engine_sdk::stage::DiarizeRequest;
///
/// let config = serde_json::json!({"min_speakers": 2, "max_speakers": 2});
/// let request = DiarizeRequest::from_config(config.as_object().unwrap())?;
/// assert_eq!((request.min_speakers, request.max_speakers), (Some(2), Some(2)));
/// assert!(request.detect_overlap);
/// # Ok::<(), dalston_engine_sdk::stage::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DiarizeRequest {
    /// The model. `None`: the default of the engine.
    pub loaded_model_id: Option<String>,
    /// The exact number of speakers, at least 1. Batch jobs of the platform set the minimum and the
    /// maximum to it instead.
    pub num_speakers: Option<u32>,
    /// The smallest number of speakers, at least 1.
    pub min_speakers: Option<u32>,
    /// The largest number of speakers, at least 1 and at least the smallest.
    pub max_speakers: Option<u32>,
    /// Whether turns may overlap. Default: yes.
    pub detect_overlap: bool,
    /// Whether there is exactly one speaker at any time with speech. Default: no.
    pub exclusive: bool,
    /// The longest piece of audio to process at once, in seconds, at least 30.
    pub max_chunk_s: Option<f64>,
}

impl DiarizeRequest {
    /// Reads the options of a task. Unknown keys are ignored.
    ///
    /// # Errors
    ///
    /// If a value has the wrong type or is out of range. The error names the key and the accepted
    /// values.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ConfigError> {
        config::read(config, |config| {
            let request = Self {
                loaded_model_id: model_id(config)?,
                num_speakers: config.integer("num_speakers", 1)?,
                min_speakers: config.integer("min_speakers", 1)?,
                max_speakers: config.integer("max_speakers", 1)?,
                detect_overlap: config.boolean("detect_overlap")?.unwrap_or(true),
                exclusive: config.boolean("exclusive")?.unwrap_or(false),
                max_chunk_s: config.number("max_chunk_s", 30.0..=f64::INFINITY)?,
            };
            match (request.min_speakers, request.max_speakers) {
                (Some(least), Some(most)) if least > most => {
                    let problem = format!("is {most}: expected at least min_speakers, which is {least}");
                    Err(Wrong::new("max_speakers", problem))
                }
                _ => Ok(request),
            }
        })
    }
}

/// The answer of the `diarize` stage: the turns of the speakers.
///
/// ```
/// use dalston_engine_sdk::stage::{Diarization, SpeakerTurn, StageOutput};
///
/// let diarization = Diarization::new([
///     SpeakerTurn::new("SPEAKER_00", 0.0, 4.0).confidence(0.9),
///     SpeakerTurn::new("SPEAKER_01", 3.0, 5.0).overlapping_speakers(["SPEAKER_00"]),
/// ]);
/// assert_eq!(diarization.speakers, ["SPEAKER_00", "SPEAKER_01"]);
/// assert_eq!((diarization.overlap_duration, diarization.overlap_ratio), (1.0, 0.2));
/// assert_eq!(diarization.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Diarization {
    /// The turns. They may overlap.
    pub turns: Vec<SpeakerTurn>,
    /// The ids of all speakers, each once.
    pub speakers: Vec<String>,
    /// The number of speakers.
    pub num_speakers: usize,
    /// How long at least two speak, in seconds.
    #[serde(default)]
    pub overlap_duration: f64,
    /// The part of the speech in which at least two speak, 0 to 1.
    #[serde(default)]
    pub overlap_ratio: f64,
    /// Whether the stage was skipped, and warnings.
    #[serde(flatten)]
    pub status: AnswerStatus,
}

impl Diarization {
    /// The turns, with their speakers in alphabetical order, and the overlap computed from them.
    #[must_use]
    pub fn new(turns: impl IntoIterator<Item = SpeakerTurn>) -> Self {
        let turns: Vec<_> = turns.into_iter().collect();
        let mut speakers: Vec<_> = turns.iter().map(|turn| turn.speaker.clone()).collect();
        speakers.sort_unstable();
        speakers.dedup();
        let (overlap_duration, overlap_ratio) = overlap(&turns);
        Self {
            turns,
            num_speakers: speakers.len(),
            speakers,
            overlap_duration,
            overlap_ratio,
            status: AnswerStatus::default(),
        }
    }

    /// Sets how long at least two speak, in seconds, and the part of the speech that this is, 0 to
    /// 1, for an engine that measures them itself.
    #[must_use]
    pub fn overlap(mut self, seconds: f64, ratio: f64) -> Self {
        self.overlap_duration = seconds;
        self.overlap_ratio = rounded_into_range(ratio);
        self
    }
}

/// A stretch of the recording in which one person speaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SpeakerTurn {
    /// The id of the speaker: `SPEAKER_00`, `SPEAKER_01`, …
    pub speaker: String,
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
    /// The confidence in the speaker, 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// The speakers that speak at the same time.
    #[serde(default)]
    pub overlapping_speakers: Option<Vec<String>>,
}

impl SpeakerTurn {
    /// A turn from `start` to `end`, in seconds.
    #[must_use]
    pub fn new(speaker: impl Into<String>, start: f64, end: f64) -> Self {
        Self {
            speaker: speaker.into(),
            start,
            end,
            confidence: None,
            overlapping_speakers: None,
        }
    }

    /// Sets the confidence in the speaker, 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(rounded_into_range(confidence));
        self
    }

    /// Sets the speakers that speak at the same time.
    #[must_use]
    pub fn overlapping_speakers<S: Into<String>>(mut self, speakers: impl IntoIterator<Item = S>) -> Self {
        self.overlapping_speakers = Some(speakers.into_iter().map(Into::into).collect());
        self
    }
}

/// The seconds in which at least two turns are active, and the part of all speech that they are.
fn overlap(turns: &[SpeakerTurn]) -> (f64, f64) {
    let starts = turns.iter().map(|turn| (turn.start, 1));
    let ends = turns.iter().map(|turn| (turn.end, -1));
    let mut changes: Vec<(f64, i32)> = starts.chain(ends).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut active, mut since, mut speech, mut overlap) = (0, 0.0, 0.0, 0.0);
    for (time, change) in changes {
        if active >= 1 {
            speech += time - since;
        }
        if active >= 2 {
            overlap += time - since;
        }
        active += change;
        since = time;
    }
    let ratio = if speech > 0.0 { overlap / speech } else { 0.0 };
    (overlap, ratio)
}

answer!(Diarization, Diarize);

pub(super) static ANSWER: Schema = Schema {
    rule: speakers_agree,
    ..Schema::answer(&[
        required("turns", Kind::List(&Kind::Object(&TURN))),
        required("speakers", Kind::List(&Kind::Text)),
        required("num_speakers", Kind::Whole(0)),
        defaulted("overlap_duration", Kind::Seconds),
        defaulted("overlap_ratio", Kind::Share),
    ])
};

static TURN: Schema = Schema::piece(&[
    required("speaker", Kind::Text),
    required("start", Kind::Seconds),
    required("end", Kind::Seconds),
    optional("confidence", Kind::Share),
    optional("overlapping_speakers", Kind::List(&Kind::Text)),
]);

/// The final transcript lists `speakers`, and shows the speaker of a turn beside its text.
fn speakers_agree(answer: &Map<String, Value>) -> Result<(), ValidationError> {
    let list = |key: &str| answer[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let (turns, speakers) = (list("turns"), list("speakers"));
    if answer["num_speakers"].as_f64() != Some(speakers.len() as f64) {
        let problem = format!(
            "is {}: expected the number of speakers, which is {}",
            answer["num_speakers"],
            speakers.len()
        );
        return Err(ValidationError::new("num_speakers", problem));
    }
    let unlisted = turns.iter().position(|turn| !speakers.contains(&turn["speaker"]));
    unlisted.map_or(Ok(()), |index| {
        let problem = format!("is {}: expected one of speakers", turns[index]["speaker"]);
        Err(ValidationError::new(format!("turns[{index}].speaker"), problem))
    })
}
