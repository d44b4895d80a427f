//! Section 3.3: the input and output files of a task.

use serde::Serialize;
use serde_json::Value;

use super::error::{self, ProtocolError};
use super::json::{self, Object, Wrong};

/// The artifact for one input slot of a task.
///
/// The orchestrator writes it, and resolves it to an artifact id before it queues the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RequestBinding {
    /// The name under which the engine asks for the input, for example `audio`.
    pub slot: String,
    /// The properties of the artifact.
    pub selector: ArtifactSelector,
}

impl RequestBinding {
    /// A binding of `selector` to `slot`.
    #[must_use]
    pub fn new(slot: impl Into<String>, selector: ArtifactSelector) -> Self {
        Self {
            slot: slot.into(),
            selector,
        }
    }

    /// Reads a JSON list of bindings, as it stands in a task's metadata.
    ///
    /// # Errors
    ///
    /// If it is not JSON, not a list, or a binding lacks a key or has a value of the wrong type.
    pub fn list_from_slice(bytes: &[u8]) -> Result<Vec<Self>, ProtocolError> {
        error::read("request_bindings_json", bytes, |value| match value {
            Value::Array(bindings) => Self::read_list("", bindings),
            other => Err(Wrong::expected("document", &other, "a list")),
        })
    }

    /// Reads the list at `path`.
    pub(super) fn read_list(path: &str, bindings: Vec<Value>) -> Result<Vec<Self>, Wrong> {
        let bindings = bindings.into_iter().enumerate();
        bindings
            .map(|(index, binding)| Self::read(format!("{path}[{index}]"), binding))
            .collect()
    }

    fn read(path: String, value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new(path, value)?;
        let slot = object.name("slot")?;
        let path = object.path_of("selector");
        let Some(selector) = object.take("selector") else {
            return Err(Wrong::new(path, "is missing: expected an object"));
        };
        let selector = ArtifactSelector::read(path, selector)?;
        Ok(Self { slot, selector })
    }
}

/// The properties an artifact must have to fill a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ArtifactSelector {
    /// The stage that produces it, for example `prepare`.
    pub producer_stage: String,
    /// For example `audio`.
    pub kind: String,
    /// The channel. `None` accepts any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<u32>,
    /// The role, for example `prepared`. `None` accepts any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether the task can't run without it. Default `true`.
    pub required: bool,
}

impl ArtifactSelector {
    /// A required artifact of `kind` from `producer_stage`, of any channel and role.
    #[must_use]
    pub fn new(producer_stage: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            producer_stage: producer_stage.into(),
            kind: kind.into(),
            channel: None,
            role: None,
            required: true,
        }
    }

    /// Sets the role.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// Sets the channel, counted from 0.
    #[must_use]
    pub fn channel(mut self, channel: u32) -> Self {
        self.channel = Some(channel);
        self
    }

    /// Whether an artifact has these properties. The orchestrator gives a slot the first one among
    /// the artifacts of the job.
    ///
    /// ```
    /// use dalston_engine_sdk::protocol::{ArtifactReference, ArtifactSelector};
    ///
    /// let upload = ArtifactReference::source_audio("J", "s3://b/jobs/J/audio/original.wav");
    /// let selector = ArtifactSelector::new("gateway", "audio").role("source");
    /// assert!(selector.accepts(&upload));
    /// ```
    #[must_use]
    pub fn accepts(&self, artifact: &ArtifactReference) -> bool {
        artifact.producer_stage.as_deref() == Some(&*self.producer_stage)
            && artifact.kind == self.kind
            && self
                .channel
                .is_none_or(|channel| artifact.channel == Some(channel))
            && (self.role.is_none() || artifact.role == self.role)
    }

    fn read(path: String, value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new(path, value)?;
        Ok(Self {
            producer_stage: object.name("producer_stage")?,
            kind: object.name("kind")?,
            channel: object.integer("channel", 0)?,
            role: object.text("role")?,
            required: object.boolean("required")?.unwrap_or(true),
        })
    }
}

/// A file in the platform's storage, with its properties.
///
/// As in the platform's other programs, reading refuses unknown keys, and writing omits keys
/// without a value.
///
/// ```
/// use dalston_engine_sdk::protocol::ArtifactReference;
///
/// let reference = ArtifactReference::new("T:audio", "audio", "s3://b/a.wav").size(9);
/// let json = r#"{"artifact_id":"T:audio","kind":"audio","storage_locator":"s3://b/a.wav","size":9}"#;
/// assert_eq!(serde_json::to_string(&reference).unwrap(), json);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ArtifactReference {
    /// `{task_id}:{logical_name}` for an output of a task, `{job_id}:source:audio` for the upload.
    pub artifact_id: String,
    /// `audio` or `transcript`, or a kind of your own.
    pub kind: String,
    /// A full URI, in any bucket.
    pub storage_locator: String,
    /// SHA-256 in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// For example `audio/wav`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The channel of the recording that it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<u32>,
    /// `source`, `prepared`, `redacted` or `final`, or a role of your own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The task that produced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer_task_id: Option<String>,
    /// The stage that produced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer_stage: Option<String>,
}

impl ArtifactReference {
    /// A reference with only the required properties.
    #[must_use]
    pub fn new(
        artifact_id: impl Into<String>,
        kind: impl Into<String>,
        storage_locator: impl Into<String>,
    ) -> Self {
        Self {
            artifact_id: artifact_id.into(),
            kind: kind.into(),
            storage_locator: storage_locator.into(),
            checksum: None,
            size: None,
            media_type: None,
            channel: None,
            role: None,
            producer_task_id: None,
            producer_stage: None,
        }
    }

    /// The recording that a client uploaded: id `{job_id}:source:audio`, role `source`, producer
    /// stage `gateway`.
    #[must_use]
    pub fn source_audio(job_id: &str, storage_locator: impl Into<String>) -> Self {
        let id = format!("{job_id}:source:audio");
        let mut reference = Self::new(id, "audio", storage_locator).role("source");
        reference.producer_stage = Some("gateway".to_owned());
        reference
    }

    /// Reads a reference from the hash [`job_artifacts`](super::keys::job_artifacts).
    ///
    /// # Errors
    ///
    /// If it is not JSON, lacks a required key, has an unknown one, or a value has the wrong type.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ProtocolError> {
        error::read("artifact", bytes, |value| Self::read(String::new(), value))
    }

    /// Sets the size in bytes.
    #[must_use]
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets the role, for example `prepared`.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// Sets the task and the stage that produced the artifact.
    #[must_use]
    pub fn producer(mut self, task_id: impl Into<String>, stage: impl Into<String>) -> Self {
        self.producer_task_id = Some(task_id.into());
        self.producer_stage = Some(stage.into());
        self
    }

    pub(super) fn read(path: String, value: Value) -> Result<Self, Wrong> {
        let mut object = Object::new(path.clone(), value)?;
        let reference = Self {
            artifact_id: object.name("artifact_id")?,
            kind: object.name("kind")?,
            storage_locator: object.name("storage_locator")?,
            checksum: object.text("checksum")?,
            size: object.integer("size", 0)?,
            media_type: object.text("media_type")?,
            channel: object.integer("channel", 0)?,
            role: object.text("role")?,
            producer_task_id: object.text("producer_task_id")?,
            producer_stage: object.text("producer_stage")?,
        };
        match object.rest().next() {
            None => Ok(reference),
            Some(key) => {
                let problem = "is not a key of an artifact reference";
                Err(Wrong::new(json::join(&path, &key), problem))
            }
        }
    }
}
