//! Section 2.5: the record of an engine in the registry.

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Timestamp, keys};
use crate::stage::Stage;

/// How long a record lives without a heartbeat, in seconds. After that the instance counts as dead.
pub const RECORD_TTL_SECONDS: u64 = 60;
/// How often an instance renews its record, in seconds.
pub(crate) const HEARTBEAT_SECONDS: u64 = 10;
/// The version of the record's schema.
const SCHEMA_VERSION: &str = "3";

/// The capabilities of an engine: the field `capabilities` of the registry and the response of `GET
/// /v1/capabilities`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The engine id.
    pub engine_id: String,
    /// The version of the engine.
    pub version: String,
    /// The stages whose tasks it takes.
    pub stages: Vec<Stage>,
    /// Whether results have word timestamps.
    pub supports_word_timestamps: bool,
    /// Whether it can transcribe a stream in real time.
    pub supports_native_streaming: bool,
    /// The models that it supports. `None` means any.
    pub model_variants: Option<Vec<String>>,
    /// Whether it needs a GPU.
    pub gpu_required: bool,
    /// The GPU memory that it needs, in MiB.
    pub gpu_vram_mb: Option<u32>,
    /// Whether it can run on a CPU.
    pub supports_cpu: bool,
    /// The main memory that it needs, in GiB.
    pub min_ram_gb: Option<u32>,
    /// Processing time divided by audio time on a GPU.
    pub rtf_gpu: Option<f64>,
    /// Processing time divided by audio time on a CPU.
    pub rtf_cpu: Option<f64>,
    /// How many tasks it processes at the same time.
    pub max_concurrency: Option<u32>,
    /// Whether results name speakers.
    pub includes_diarization: bool,
    /// How it uses the vocabulary of a task. `None` means not at all.
    pub vocabulary_support: Option<VocabularySupport>,
    /// Whether a task can set the language.
    pub supports_language_forcing: bool,
}

/// How an engine uses a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VocabularySupport {
    /// `prompt_conditioning`, `phrase_boosting`, `word_boosting`, `instruction` or `none`.
    pub method: &'static str,
    /// Whether batch tasks support it.
    pub batch: bool,
    /// Whether realtime sessions support it.
    pub realtime: bool,
}

/// The state of an instance in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum InstanceStatus {
    /// Ready, without tasks.
    #[default]
    Idle,
    /// Loading a model.
    Loading,
    /// Downloading a model.
    Downloading,
    /// Processing tasks.
    Processing,
    /// Ready for realtime sessions.
    Ready,
    /// Without room for another realtime session.
    Busy,
    /// Finishing its tasks and taking no new ones. The platform sends it no work but counts it as
    /// alive.
    Draining,
}

impl InstanceStatus {
    /// The value of `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Loading => "loading",
            Self::Downloading => "downloading",
            Self::Processing => "processing",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Draining => "draining",
        }
    }
}

/// The part of a record that stays the same for the life of the process.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RegistryRecord {
    /// The name of the process, which is also the name of the stream consumer.
    pub instance: String,
    /// The capabilities of its engine.
    pub capabilities: Capabilities,
    /// How many tasks it processes at the same time.
    pub capacity: u32,
    /// The machine that it runs on.
    pub node: NodeIdentity,
    /// When it registered.
    pub registered_at: Timestamp,
    /// Tells this process from another one with the same name.
    pub start_nonce: String,
    /// The URL for realtime sessions: `ws://host:port`. `None` is the record of a batch worker.
    pub realtime_endpoint: Option<String>,
}

/// The machine of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeIdentity {
    /// The host name.
    pub hostname: String,
    /// The EC2 instance id, or the host name.
    pub node_id: String,
    /// `local` or `aws`.
    pub deploy_env: String,
    /// The availability zone, on EC2.
    pub aws_az: Option<String>,
    /// The instance type, on EC2.
    pub aws_instance_type: Option<String>,
}

impl NodeIdentity {
    /// A machine outside a cloud.
    #[must_use]
    pub fn local(hostname: impl Into<String>, node_id: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            node_id: node_id.into(),
            deploy_env: "local".to_owned(),
            aws_az: None,
            aws_instance_type: None,
        }
    }
}

/// The part of a record that changes with each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Heartbeat {
    /// The state of the instance.
    pub status: InstanceStatus,
    /// The models in memory, of a realtime worker.
    pub models_loaded: Vec<String>,
    /// The number of tasks or sessions in progress, at most the record's `capacity`. The platform
    /// prefers instances with a large difference between the two.
    pub active_tasks: u32,
    /// The model in memory.
    pub loaded_model: Option<String>,
    /// GPU memory in use, in MiB: by this process where the driver counts it separately, else by
    /// all processes.
    pub gpu_memory_used_mib: Option<u64>,
    /// GPU memory of the machine, in MiB. A driver may take seconds to report it.
    pub gpu_memory_total_mib: Option<u64>,
}

impl Heartbeat {
    /// A heartbeat with this state and this many tasks.
    #[must_use]
    pub fn new(status: InstanceStatus, active_tasks: u32) -> Self {
        Self {
            status,
            active_tasks,
            ..Self::default()
        }
    }
}

impl RegistryRecord {
    /// A record of this process in a container, registered now.
    #[must_use]
    pub fn new(
        instance: impl Into<String>,
        capabilities: Capabilities,
        capacity: u32,
        node: NodeIdentity,
    ) -> Self {
        Self {
            instance: instance.into(),
            capabilities,
            capacity,
            node,
            registered_at: Timestamp::now(),
            start_nonce: Uuid::new_v4().simple().to_string(),
            realtime_endpoint: None,
        }
    }

    /// Makes it the record of a realtime worker with this URL. The capacity is its number of
    /// sessions.
    #[must_use]
    pub fn realtime(mut self, endpoint: impl Into<String>) -> Self {
        self.realtime_endpoint = Some(endpoint.into());
        self
    }

    /// The first of the engine's stages. The platform finds the engine by it.
    #[must_use]
    pub fn stage(&self) -> String {
        let first = self.capabilities.stages.first();
        first.map_or_else(|| "unknown".to_owned(), ToString::to_string)
    }

    /// The sets that an instance is a member of.
    #[must_use]
    pub fn index_sets(&self) -> [String; 3] {
        [
            keys::INSTANCES.to_owned(),
            keys::engine_instances(&self.capabilities.engine_id),
            keys::stage_instances(&self.stage()),
        ]
    }

    /// The fields that every heartbeat writes.
    #[must_use]
    pub fn heartbeat(&self, heartbeat: &Heartbeat, now: Timestamp) -> Vec<(&'static str, String)> {
        let active = heartbeat.active_tasks.to_string();
        let none = || "0".to_owned();
        let (interfaces, active_batch, active_realtime) = match self.realtime_endpoint {
            None => (r#"["batch"]"#, active, none()),
            Some(_) => (r#"["realtime"]"#, none(), active),
        };
        let mut fields = vec![
            ("instance", self.instance.clone()),
            ("engine_id", self.capabilities.engine_id.clone()),
            ("stage", self.stage()),
            ("status", heartbeat.status.as_str().to_owned()),
            ("interfaces", interfaces.to_owned()),
            ("active_batch", active_batch),
            ("active_realtime", active_realtime),
            ("gpu_memory_used", gigabytes(heartbeat.gpu_memory_used_mib)),
            ("last_heartbeat", now.to_string()),
            ("hostname", self.node.hostname.clone()),
            ("node_id", self.node.node_id.clone()),
            ("deploy_env", self.node.deploy_env.clone()),
        ];
        let (zone, kind) = (self.node.aws_az.clone(), self.node.aws_instance_type.clone());
        fields.extend(zone.map(|zone| ("aws_az", zone)));
        fields.extend(kind.map(|kind| ("aws_instance_type", kind)));
        if heartbeat.gpu_memory_total_mib.is_some() {
            fields.push(("gpu_memory_total", gigabytes(heartbeat.gpu_memory_total_mib)));
        }
        // The platform's realtime workers repeat these, so that a record that lapsed is complete.
        if let Some(endpoint) = &self.realtime_endpoint {
            fields.extend([
                ("endpoint", endpoint.clone()),
                ("capacity", self.capacity.to_string()),
                ("models_loaded", json!(heartbeat.models_loaded).to_string()),
            ]);
        }
        // Empty rather than omitted: an omitted field would keep the previous model.
        fields.push(("loaded_model", heartbeat.loaded_model.clone().unwrap_or_default()));
        fields
    }

    /// All fields, for registration and for a heartbeat whose record is gone.
    #[must_use]
    pub fn complete(&self, heartbeat: &Heartbeat, now: Timestamp) -> Vec<(&'static str, String)> {
        let capabilities = &self.capabilities;
        // A value in the heartbeat follows and wins.
        let mut fields = vec![("gpu_memory_total", gigabytes(None))];
        fields.extend(self.heartbeat(heartbeat, now));
        fields.extend([
            ("capacity", self.capacity.to_string()),
            ("registered_at", self.registered_at.to_string()),
            ("start_nonce", self.start_nonce.clone()),
            (
                "supports_word_timestamps",
                capabilities.supports_word_timestamps.to_string(),
            ),
            (
                "includes_diarization",
                capabilities.includes_diarization.to_string(),
            ),
            ("execution_profile", "container".to_owned()),
            ("capabilities", json!(capabilities).to_string()),
        ]);
        match &self.realtime_endpoint {
            None => fields.extend([
                ("stream_name", keys::task_stream(&capabilities.engine_id)),
                ("schema_version", SCHEMA_VERSION.to_owned()),
            ]),
            Some(_) => fields.push((
                "vocabulary_support",
                json!(capabilities.vocabulary_support).to_string(),
            )),
        }
        fields
    }
}

/// `4.2GB`, or `0GB` if the value is unknown.
fn gigabytes(mib: Option<u64>) -> String {
    match mib {
        None | Some(0) => "0GB".to_owned(),
        Some(mib) => format!("{:.1}GB", mib as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record() -> RegistryRecord {
        let capabilities = Capabilities {
            engine_id: "faster-whisper".to_owned(),
            version: "1.2.3".to_owned(),
            stages: vec![Stage::Transcribe],
            supports_word_timestamps: true,
            supports_native_streaming: false,
            model_variants: None,
            gpu_required: false,
            gpu_vram_mb: Some(4096),
            supports_cpu: true,
            min_ram_gb: None,
            rtf_gpu: Some(0.05),
            rtf_cpu: None,
            max_concurrency: Some(2),
            includes_diarization: false,
            vocabulary_support: None,
            supports_language_forcing: true,
        };
        let node = NodeIdentity::local("box-7", "box-7");
        let mut record = RegistryRecord::new("faster-whisper-0f37d5acd7e8", capabilities, 2, node);
        record.registered_at = "2026-11-20T18:17:06.690014Z".parse().unwrap();
        record.start_nonce = "5d1c".to_owned();
        record
    }

    fn now() -> Timestamp {
        "2026-11-20T18:20:00Z".parse().unwrap()
    }

    #[test]
    fn new_record_has_every_field_of_a_batch_engine() {
        let written: BTreeMap<_, _> = record()
            .complete(&Heartbeat::default(), now())
            .into_iter()
            .collect();
        let capabilities = concat!(
            r#"{"engine_id":"faster-whisper","version":"1.2.3","stages":["transcribe"],"#,
            r#""supports_word_timestamps":true,"supports_native_streaming":false,"model_variants":null,"#,
            r#""gpu_required":false,"gpu_vram_mb":4096,"supports_cpu":true,"min_ram_gb":null,"rtf_gpu":0.05,"#,
            r#""rtf_cpu":null,"max_concurrency":2,"includes_diarization":false,"vocabulary_support":null,"#,
            r#""supports_language_forcing":true}"#
        );
        let expected: BTreeMap<_, _> = [
            ("instance", "faster-whisper-0f37d5acd7e8"),
            ("engine_id", "faster-whisper"),
            ("stage", "transcribe"),
            ("status", "idle"),
            ("interfaces", r#"["batch"]"#),
            ("loaded_model", ""),
            ("capacity", "2"),
            ("active_batch", "0"),
            ("active_realtime", "0"),
            ("gpu_memory_used", "0GB"),
            ("gpu_memory_total", "0GB"),
            ("last_heartbeat", "2026-11-20T18:20:00.000000+00:00"),
            ("registered_at", "2026-11-20T18:17:06.690014+00:00"),
            ("supports_word_timestamps", "true"),
            ("includes_diarization", "false"),
            ("execution_profile", "container"),
            ("hostname", "box-7"),
            ("node_id", "box-7"),
            ("deploy_env", "local"),
            ("stream_name", "dalston:stream:faster-whisper"),
            ("capabilities", capabilities),
            ("schema_version", "3"),
            ("start_nonce", "5d1c"),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into();
        let as_json = |fields: &BTreeMap<&str, String>| -> serde_json::Value {
            fields["capabilities"].parse().unwrap()
        };
        assert_eq!(as_json(&written), as_json(&expected));
        let rest = |fields: BTreeMap<&'static str, String>| -> Vec<_> {
            fields
                .into_iter()
                .filter(|(key, _)| *key != "capabilities")
                .collect()
        };
        assert_eq!(rest(written), rest(expected));
    }

    #[test]
    fn realtime_heartbeat_has_all_identity_fields() {
        let record = record().realtime("ws://box-7:9000");
        let mut heartbeat = Heartbeat::new(InstanceStatus::Busy, 2);
        heartbeat.models_loaded = vec!["tiny".to_owned()];
        let fields: BTreeMap<_, _> = record.heartbeat(&heartbeat, now()).into_iter().collect();
        let expected: BTreeMap<_, _> = [
            ("instance", "faster-whisper-0f37d5acd7e8"),
            ("engine_id", "faster-whisper"),
            ("stage", "transcribe"),
            ("status", "busy"),
            ("interfaces", r#"["realtime"]"#),
            ("active_batch", "0"),
            ("active_realtime", "2"),
            ("capacity", "2"),
            ("endpoint", "ws://box-7:9000"),
            ("models_loaded", r#"["tiny"]"#),
            ("gpu_memory_used", "0GB"),
            ("last_heartbeat", "2026-11-20T18:20:00.000000+00:00"),
            ("hostname", "box-7"),
            ("node_id", "box-7"),
            ("deploy_env", "local"),
            ("loaded_model", ""),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into();
        assert_eq!(fields, expected);
        let complete: BTreeMap<_, _> = record.complete(&heartbeat, now()).into_iter().collect();
        assert_eq!(complete["vocabulary_support"], "null");
        for batch_field in ["schema_version", "stream_name"] {
            assert!(!complete.contains_key(batch_field), "{batch_field}");
        }
    }

    #[test]
    fn heartbeat_reports_state_of_process() {
        let mut heartbeat = Heartbeat::new(InstanceStatus::Draining, 2);
        heartbeat.loaded_model = Some("openai/whisper-small".to_owned());
        heartbeat.gpu_memory_used_mib = Some(4301);
        let fields: BTreeMap<_, _> = record().heartbeat(&heartbeat, now()).into_iter().collect();
        let expected: BTreeMap<_, _> = [
            ("instance", "faster-whisper-0f37d5acd7e8"),
            ("engine_id", "faster-whisper"),
            ("stage", "transcribe"),
            ("status", "draining"),
            ("interfaces", r#"["batch"]"#),
            ("active_batch", "2"),
            ("active_realtime", "0"),
            ("gpu_memory_used", "4.2GB"),
            ("last_heartbeat", "2026-11-20T18:20:00.000000+00:00"),
            ("hostname", "box-7"),
            ("node_id", "box-7"),
            ("deploy_env", "local"),
            ("loaded_model", "openai/whisper-small"),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into();
        assert_eq!(fields, expected);
    }

    #[test]
    fn late_gpu_memory_reaches_heartbeat_and_new_record() {
        let heartbeat = Heartbeat {
            gpu_memory_total_mib: Some(23_034),
            ..Heartbeat::default()
        };
        for fields in [
            record().heartbeat(&heartbeat, now()),
            record().complete(&heartbeat, now()),
        ] {
            // A hash keeps the last of two values.
            let fields: BTreeMap<_, _> = fields.into_iter().collect();
            assert_eq!(fields["gpu_memory_total"], "22.5GB");
        }
    }

    #[test]
    fn instance_is_in_three_sets() {
        let expected = [
            "dalston:engine:instances",
            "dalston:engine:engine_id:faster-whisper",
            "dalston:engine:stage:transcribe",
        ];
        assert_eq!(record().index_sets(), expected);
    }
}
