//! The request of a task: [`TaskRequest`] with its [`Input`]s, and [`TaskInfo`] about the attempt.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[cfg(feature = "audio")]
use crate::audio::Audio;
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::protocol::{ArtifactReference, TaskRequestData, Timestamp};
use crate::stage::{
    AlignRequest, AudioMedia, AudioRedactRequest, ConfigError, DiarizeRequest, PiiDetectRequest,
    PrepareRequest, StageName, TranscribeRequest,
};

/// One task: the stage, its configuration, and its inputs as local files.
#[doc(alias = "TaskInput")]
#[derive(Debug)]
pub struct TaskRequest {
    stage: StageName,
    data: TaskRequestData,
    inputs: Vec<Input>,
    #[cfg(feature = "audio")]
    audio: Option<Audio>,
}

impl TaskRequest {
    pub(crate) fn new(stage: StageName, data: TaskRequestData, inputs: Vec<Input>) -> Self {
        Self {
            stage,
            data,
            inputs,
            #[cfg(feature = "audio")]
            audio: None,
        }
    }

    #[cfg(feature = "audio")]
    pub(crate) fn set_audio(&mut self, audio: Audio) {
        self.audio = Some(audio);
    }

    /// The stage, with the channel if there is a task for each channel.
    #[must_use]
    pub fn stage(&self) -> &StageName {
        &self.stage
    }

    /// The channel of this task, from its configuration or from the name of its stage.
    #[must_use]
    pub fn channel(&self) -> Option<u32> {
        let configured = self
            .config()
            .get("channel")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok());
        configured.or_else(|| self.stage.channel())
    }

    /// The configuration as it arrived.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.data.config
    }

    /// The configuration as a type of the engine.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the problem.
    pub fn config_as<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        T::deserialize(Value::Object(self.config().clone()))
            .map_err(|error| TaskError::permanent("invalid_config", error).context("the task's config"))
    }

    /// The configuration of a `prepare` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn prepare(&self) -> Result<PrepareRequest, TaskError> {
        self.options(PrepareRequest::from_config)
    }

    /// The configuration of a `transcribe` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn transcribe(&self) -> Result<TranscribeRequest, TaskError> {
        self.options(TranscribeRequest::from_config)
    }

    /// The configuration of an `align` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn align(&self) -> Result<AlignRequest, TaskError> {
        self.options(AlignRequest::from_config)
    }

    /// The configuration of a `diarize` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn diarize(&self) -> Result<DiarizeRequest, TaskError> {
        self.options(DiarizeRequest::from_config)
    }

    /// The configuration of a `pii_detect` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn pii_detect(&self) -> Result<PiiDetectRequest, TaskError> {
        self.options(PiiDetectRequest::from_config)
    }

    /// The configuration of an `audio_redact` task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn audio_redact(&self) -> Result<AudioRedactRequest, TaskError> {
        self.options(AudioRedactRequest::from_config)
    }

    fn options<T>(
        &self,
        read: impl FnOnce(&Map<String, Value>) -> Result<T, ConfigError>,
    ) -> Result<T, TaskError> {
        read(self.config()).map_err(|error| TaskError::from(error).context("the task's config"))
    }

    /// All inputs, in the order of the task's bindings.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The input that is bound to a slot, for example `audio`.
    #[must_use]
    pub fn input(&self, slot: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.slot == slot)
    }

    /// The input that is bound to a slot, for engines that need it.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `missing_input` that names the slot.
    pub fn require_input(&self, slot: &str) -> Result<&Input, TaskError> {
        self.input(slot).ok_or_else(|| {
            let bound: Vec<&str> = self.inputs.iter().map(Input::slot).collect();
            TaskError::permanent(
                "missing_input",
                format!("the task has no input {slot:?}, only {bound:?}"),
            )
        })
    }

    /// The input audio, decoded and resampled to the format that the engine declares.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `missing_input` if the task has no audio, or the engine
    /// declares no format.
    #[cfg(feature = "audio")]
    pub fn audio(&self) -> Result<&Audio, TaskError> {
        self.audio.as_ref().ok_or_else(|| {
            TaskError::permanent(
                "missing_input",
                "the task has no decoded audio: its slot \"audio\" is empty, or the engine declares no audio format",
            )
        })
    }

    /// The answer of an earlier stage of the same job, for example `prepare`.
    #[must_use]
    pub fn previous(&self, stage: &str) -> Option<&Value> {
        self.data.previous_responses.get(stage)
    }

    /// The answer of an earlier stage of the same job as a type, if it is there.
    ///
    /// ```
    /// use dalston_engine_sdk::stage::{Diarization, Transcript};
    /// use dalston_engine_sdk::{TaskError, TaskRequest};
    ///
    /// fn speakers_and_text(task: &TaskRequest) -> Result<(Vec<String>, String), TaskError> {
    ///     let transcript: Transcript = task.require_previous("transcribe")?;
    ///     let diarization: Option<Diarization> = task.previous_as("diarize")?;
    ///     let speakers = diarization.map(|found| found.speakers).unwrap_or_default();
    ///     Ok((speakers, transcript.text))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_previous` if the answer is no such type.
    pub fn previous_as<T: DeserializeOwned>(&self, stage: &str) -> Result<Option<T>, TaskError> {
        let Some(answer) = self.previous(stage).filter(|answer| !answer.is_null()) else {
            return Ok(None);
        };
        let doing = || format!("the answer of the earlier stage {stage}");
        T::deserialize(answer)
            .map(Some)
            .map_err(|error| TaskError::permanent("invalid_previous", error).context(doing()))
    }

    /// The answer of an earlier stage of the same job as a type, for engines that need it.
    ///
    /// # Errors
    ///
    /// As [`previous_as`](Self::previous_as), and a permanent error with the code `missing_input`
    /// if there is no such answer.
    pub fn require_previous<T: DeserializeOwned>(&self, stage: &str) -> Result<T, TaskError> {
        self.previous_as(stage)?.ok_or_else(|| {
            let there: Vec<&String> = self.data.previous_responses.keys().collect();
            TaskError::permanent(
                "missing_input",
                format!("the task has no answer of the earlier stage {stage:?}, only of {there:?}"),
            )
        })
    }

    /// The recording of a `prepare` task, from its payload. Its file is the input `audio`.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `missing_input` if the payload has no `media`, and with the
    /// code `invalid_payload` if that is not a recording.
    pub fn media(&self) -> Result<AudioMedia, TaskError> {
        let media = self.payload().and_then(|payload| payload.get("media"));
        let media = media.ok_or_else(|| {
            let problem = "the task's payload has no media: only tasks of the stage prepare have it";
            TaskError::permanent("missing_input", problem)
        })?;
        AudioMedia::deserialize(media).map_err(|error| {
            TaskError::permanent("invalid_payload", error).context("media of the task's payload")
        })
    }

    /// The payload. Only `prepare` tasks have one, see [`media`](Self::media).
    #[must_use]
    pub fn payload(&self) -> Option<&Map<String, Value>> {
        self.data.payload.as_ref()
    }

    /// The whole `request.json`.
    #[must_use]
    pub fn data(&self) -> &TaskRequestData {
        &self.data
    }

    /// Problems of the input that did not prevent its use.
    pub(crate) fn warnings(&self) -> &[String] {
        #[cfg(feature = "audio")]
        if let Some(audio) = &self.audio {
            return audio.warnings();
        }
        &[]
    }

    /// The duration of the input audio in seconds, if it is known before inference.
    pub(crate) fn audio_seconds(&self) -> Option<f64> {
        #[cfg(feature = "audio")]
        if let Some(audio) = &self.audio {
            return Some(audio.duration().as_secs_f64());
        }
        prepared_seconds(&self.data.previous_responses, self.channel())
            .or_else(|| seconds(self.config().get("audio_duration_seconds")?))
    }

    /// The language that the task prescribes.
    pub(crate) fn requested_language(&self) -> Option<&str> {
        let language = self.config().get("language")?.as_str()?;
        (!language.is_empty() && !language.eq_ignore_ascii_case("auto")).then_some(language)
    }
}

/// An input file of a task.
#[derive(Debug, Clone)]
pub struct Input {
    slot: String,
    path: PathBuf,
    artifact: ArtifactReference,
}

impl Input {
    pub(crate) fn new(slot: String, path: PathBuf, artifact: ArtifactReference) -> Self {
        Self { slot, path, artifact }
    }

    /// Its slot, for example `audio`.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// Its path. The file is removed when the task has ended.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The facts of the platform about it: kind, media type, channel, producer.
    #[must_use]
    pub fn artifact(&self) -> &ArtifactReference {
        &self.artifact
    }
}

/// Facts about a task and this attempt at it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskInfo {
    /// The task's id.
    pub task_id: String,
    /// The id of its job.
    pub job_id: String,
    /// The stage.
    pub stage: StageName,
    /// The id of the engine.
    pub engine_id: String,
    /// The name of the worker process.
    pub instance: String,
    /// The id of the gateway request that caused it.
    pub request_id: Option<String>,
    /// The model.
    pub model: ModelId,
    /// The number of this delivery of the task, from 1.
    pub attempt: u32,
    /// When it was queued, by the clock of its producer.
    pub enqueued_at: Option<Timestamp>,
    /// The duration of the input audio in seconds, if known.
    pub audio_seconds: Option<f64>,
}

/// The duration of the prepared file of the channel, or else of the uploaded recording, from the
/// answer of `prepare`.
fn prepared_seconds(previous_responses: &Map<String, Value>, channel: Option<u32>) -> Option<f64> {
    let prepare = previous_responses.get("prepare")?;
    let channel = usize::try_from(channel.unwrap_or(0)).ok()?;
    let media = [
        prepare.get("channel_files").and_then(|files| files.get(channel)),
        prepare.get("source_media"),
    ];
    media
        .into_iter()
        .flatten()
        .find_map(|media| seconds(media.get("duration")?))
}

/// A duration. The number comes from outside and becomes an attribute and a sample.
fn seconds(value: &Value) -> Option<f64> {
    let seconds = value.as_f64()?;
    (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_duration_is_that_of_the_prepared_file_of_the_channel() {
        let previous = json!({"prepare": {
            "channel_files": [{"duration": 2.0}, {"duration": 3.0}],
            "source_media": {"duration": 4.0},
        }});
        let seconds = |previous: &Value, channel| prepared_seconds(previous.as_object().unwrap(), channel);
        assert_eq!(seconds(&previous, None), Some(2.0));
        assert_eq!(seconds(&previous, Some(1)), Some(3.0));
        assert_eq!(seconds(&previous, Some(2)), Some(4.0));
        let odd = json!({"prepare": {"channel_files": [{"duration": -1}], "source_media": null}});
        assert_eq!(seconds(&odd, None), None);
        assert_eq!(seconds(&json!({}), None), None);
    }
}
