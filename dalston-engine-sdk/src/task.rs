//! What an engine is asked to do: [`TaskRequest`], its [`Input`]s, and [`TaskInfo`] about the attempt.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[cfg(feature = "audio")]
use crate::audio::Audio;
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::protocol::{ArtifactReference, TaskRequestData, Timestamp};
use crate::stage::{StageName, TranscribeRequest};

/// One task: the stage, its configuration, and inputs that are already on this machine.
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

    /// The stage, with the channel if the task is one of several per-channel tasks.
    #[must_use]
    pub fn stage(&self) -> &StageName {
        &self.stage
    }

    /// The channel that this task is about, from its configuration or from the name of its stage.
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

    /// The configuration as a type of the engine's own.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that says what does not fit.
    pub fn config_as<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        T::deserialize(Value::Object(self.config().clone()))
            .map_err(|error| TaskError::permanent("invalid_config", error).context("the task's config"))
    }

    /// The configuration of a transcribe task, with the platform's defaults filled in.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `invalid_config` that names the key.
    pub fn transcribe(&self) -> Result<TranscribeRequest, TaskError> {
        TranscribeRequest::from_config(self.config())
            .map_err(|error| TaskError::permanent("invalid_config", error).context("the task's config"))
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

    /// The input that is bound to a slot, for engines that can't do without it.
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

    /// The input audio, decoded and resampled to the form that the engine declared.
    ///
    /// # Errors
    ///
    /// A permanent error with the code `missing_input` if the task has no audio, or if the engine declared no format.
    #[cfg(feature = "audio")]
    pub fn audio(&self) -> Result<&Audio, TaskError> {
        self.audio.as_ref().ok_or_else(|| {
            TaskError::permanent(
                "missing_input",
                "the task has no decoded audio: its slot \"audio\" is empty, or the engine declares no audio format",
            )
        })
    }

    /// What an earlier stage of the same job answered, for example `prepare`.
    #[must_use]
    pub fn previous(&self, stage: &str) -> Option<&Value> {
        self.data.previous_responses.get(stage)
    }

    /// The payload, which only some stages have.
    #[must_use]
    pub fn payload(&self) -> Option<&Map<String, Value>> {
        self.data.payload.as_ref()
    }

    /// Everything that `request.json` says.
    #[must_use]
    pub fn data(&self) -> &TaskRequestData {
        &self.data
    }

    /// What was wrong with the input and did not keep it from being used.
    pub(crate) fn warnings(&self) -> &[String] {
        #[cfg(feature = "audio")]
        if let Some(audio) = &self.audio {
            return audio.warnings();
        }
        &[]
    }

    /// The duration of the input audio in seconds, as far as anyone knows it before the engine starts.
    pub(crate) fn audio_seconds(&self) -> Option<f64> {
        #[cfg(feature = "audio")]
        if let Some(audio) = &self.audio {
            return Some(audio.duration().as_secs_f64());
        }
        let prepare = self.previous("prepare")?;
        let channel = self.channel().unwrap_or(0) as usize;
        let prepared = prepare.get("channel_files").and_then(|files| files.get(channel));
        let seconds = prepared
            .or_else(|| prepare.get("source_media"))?
            .get("duration")?
            .as_f64()?;
        // It comes from outside and becomes an attribute and a sample: only what is a duration may pass.
        (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
    }

    /// The language that the task prescribes, if it prescribes one.
    pub(crate) fn requested_language(&self) -> Option<&str> {
        let language = self.config().get("language")?.as_str()?;
        (!language.is_empty() && !language.eq_ignore_ascii_case("auto")).then_some(language)
    }
}

/// A file that a task works on.
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

    /// The name that the task knows it by, for example `audio`.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// Where the file is. It is gone when the task has ended.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the platform knows about it: kind, media type, channel, producer.
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
    /// The id of the job that it is a part of.
    pub job_id: String,
    /// The stage.
    pub stage: StageName,
    /// The id of the engine that works on it.
    pub engine_id: String,
    /// The process that works on it.
    pub instance: String,
    /// The id of the request at the gateway that caused it.
    pub request_id: Option<String>,
    /// The model that it uses.
    pub model: ModelId,
    /// Which delivery of the task this is, from 1.
    pub attempt: u32,
    /// When it was queued, by the clock of whoever queued it.
    pub enqueued_at: Option<Timestamp>,
    /// The duration of the input audio in seconds, if known.
    pub audio_seconds: Option<f64>,
}
