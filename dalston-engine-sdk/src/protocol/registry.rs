//! Section 2.5: what an engine says about itself in the registry.

use serde::Serialize;
use serde_json::json;

use super::{Timestamp, keys};
use crate::stage::Stage;

/// How long a record lives without a heartbeat, in seconds. Who is silent for longer counts as dead.
pub const RECORD_TTL_SECONDS: u64 = 60;
/// How often an instance renews its record, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 10;
/// The version of the record, as the platform's own engines write it.
pub const SCHEMA_VERSION: &str = "3";

/// What an engine can do: the field `capabilities` of the registry and the answer of `GET /v1/capabilities`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The engine id.
    pub engine_id: String,
    /// The version of the engine.
    pub version: String,
    /// The stages it can do.
    pub stages: Vec<Stage>,
    /// Whether results carry the times of single words.
    pub supports_word_timestamps: bool,
    /// Whether it can transcribe a stream while it arrives.
    pub supports_native_streaming: bool,
    /// The models it works with, if the list is closed.
    pub model_variants: Option<Vec<String>>,
    /// Whether it can't work without a GPU.
    pub gpu_required: bool,
    /// GPU memory it needs, in MiB.
    pub gpu_vram_mb: Option<u32>,
    /// Whether it can work on a CPU.
    pub supports_cpu: bool,
    /// Main memory it needs, in GiB.
    pub min_ram_gb: Option<u32>,
    /// Processing time divided by audio time on a GPU.
    pub rtf_gpu: Option<f64>,
    /// Processing time divided by audio time on a CPU.
    pub rtf_cpu: Option<f64>,
    /// How many tasks it works on at the same time.
    pub max_concurrency: Option<u32>,
    /// Whether results say who spoke.
    pub includes_diarization: bool,
    /// How it uses a vocabulary that comes with a task, if it does.
    pub vocabulary_support: Option<VocabularySupport>,
    /// Whether a task may prescribe the language.
    pub supports_language_forcing: bool,
}

/// How an engine uses a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VocabularySupport {
    /// `prompt_conditioning`, `phrase_boosting`, `word_boosting`, `instruction` or `none`.
    pub method: &'static str,
    /// In batch work.
    pub batch: bool,
    /// In realtime sessions.
    pub realtime: bool,
}

/// The state of an instance, as the registry knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum InstanceStatus {
    /// Ready and without work.
    #[default]
    Idle,
    /// Loading a model.
    Loading,
    /// Bringing a model to its machine.
    Downloading,
    /// Working.
    Processing,
    /// Finishing what it has, taking nothing new. The platform sends it no work, but knows that it lives.
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
            Self::Draining => "draining",
        }
    }
}

/// The part of a record that stays the same as long as the process lives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RegistryRecord {
    /// The process, which is also the name of the stream consumer.
    pub instance: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// How many tasks it works on at the same time.
    pub capacity: u32,
    /// `container` unless the platform's catalog says otherwise.
    pub execution_profile: String,
    /// Where it runs.
    pub node: NodeIdentity,
    /// GPU memory of the machine, in MiB.
    pub gpu_memory_total_mib: Option<u64>,
    /// When it registered.
    pub registered_at: Timestamp,
}

/// Where an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeIdentity {
    /// The host name.
    pub hostname: String,
    /// The machine: the EC2 instance id, or the host name.
    pub node_id: String,
    /// `local` or `aws`.
    pub deploy_env: String,
    /// The availability zone, on EC2.
    pub aws_az: Option<String>,
    /// The instance type, on EC2.
    pub aws_instance_type: Option<String>,
}

impl NodeIdentity {
    /// A machine that is not in a cloud.
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

/// The part of a record that changes: what a heartbeat says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Heartbeat {
    /// What the instance is doing.
    pub status: InstanceStatus,
    /// How many tasks it works on, at most the record's `capacity`. Instances are chosen by the difference.
    pub active_tasks: u32,
    /// The model that is in memory.
    pub loaded_model: Option<String>,
    /// GPU memory in use, in MiB: by the process where the driver knows it, else by all on the machine.
    pub gpu_memory_used_mib: Option<u64>,
    /// GPU memory of the machine, in MiB, if it was not known when the instance registered.
    pub gpu_memory_total_mib: Option<u64>,
}

impl Heartbeat {
    /// An instance in this state, with this many tasks.
    #[must_use]
    pub fn new(status: InstanceStatus, active_tasks: u32) -> Self {
        Self {
            status,
            active_tasks,
            ..Self::default()
        }
    }
}

/// A field of a Redis hash.
pub type Field = (&'static str, String);

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
            execution_profile: "container".to_owned(),
            node,
            gpu_memory_total_mib: None,
            registered_at: Timestamp::now(),
        }
    }

    /// The first of the engine's stages, under which it is found.
    #[must_use]
    pub fn stage(&self) -> String {
        self.capabilities
            .stages
            .first()
            .map_or_else(|| "unknown".to_owned(), ToString::to_string)
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
    pub fn heartbeat(&self, heartbeat: &Heartbeat, now: Timestamp) -> Vec<Field> {
        let mut fields = vec![
            ("instance", self.instance.clone()),
            ("engine_id", self.capabilities.engine_id.clone()),
            ("stage", self.stage()),
            ("status", heartbeat.status.as_str().to_owned()),
            ("interfaces", r#"["batch"]"#.to_owned()),
            ("active_batch", heartbeat.active_tasks.to_string()),
            ("active_realtime", "0".to_owned()),
            ("gpu_memory_used", gigabytes(heartbeat.gpu_memory_used_mib)),
            ("last_heartbeat", now.to_string()),
            ("hostname", self.node.hostname.clone()),
            ("node_id", self.node.node_id.clone()),
            ("deploy_env", self.node.deploy_env.clone()),
        ];
        fields.extend(self.node.aws_az.clone().map(|zone| ("aws_az", zone)));
        fields.extend(
            self.node
                .aws_instance_type
                .clone()
                .map(|kind| ("aws_instance_type", kind)),
        );
        if heartbeat.gpu_memory_total_mib.is_some() {
            fields.push(("gpu_memory_total", gigabytes(heartbeat.gpu_memory_total_mib)));
        }
        // Empty rather than left out: the field would keep the model that was there before.
        fields.push(("loaded_model", heartbeat.loaded_model.clone().unwrap_or_default()));
        fields
    }

    /// All fields: what registration writes, and what a heartbeat writes when it finds that the record is gone.
    #[must_use]
    pub fn complete(&self, heartbeat: &Heartbeat, now: Timestamp) -> Vec<Field> {
        let capabilities = &self.capabilities;
        // First, so that what the heartbeat knows better stands after it.
        let mut fields = vec![("gpu_memory_total", gigabytes(self.gpu_memory_total_mib))];
        fields.extend(self.heartbeat(heartbeat, now));
        fields.extend([
            ("capacity", self.capacity.to_string()),
            ("registered_at", self.registered_at.to_string()),
            (
                "supports_word_timestamps",
                capabilities.supports_word_timestamps.to_string(),
            ),
            (
                "includes_diarization",
                capabilities.includes_diarization.to_string(),
            ),
            ("execution_profile", self.execution_profile.clone()),
            ("stream_name", keys::task_stream(&capabilities.engine_id)),
            ("capabilities", json!(capabilities).to_string()),
            ("schema_version", SCHEMA_VERSION.to_owned()),
        ]);
        fields
    }
}

/// `4.2GB`, and `0GB` when nothing is known.
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
        record
    }

    fn now() -> Timestamp {
        "2026-11-20T18:20:00Z".parse().unwrap()
    }

    #[test]
    fn a_new_record_has_every_field_of_a_batch_engine() {
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
    fn a_heartbeat_says_what_the_process_is_doing() {
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
    fn memory_of_a_gpu_that_is_known_late_is_told_by_the_heartbeat_and_by_a_record_that_is_written_again() {
        let heartbeat = Heartbeat {
            gpu_memory_total_mib: Some(23_034),
            ..Heartbeat::default()
        };
        for fields in [
            record().heartbeat(&heartbeat, now()),
            record().complete(&heartbeat, now()),
        ] {
            // A hash keeps the last of two.
            let fields: BTreeMap<_, _> = fields.into_iter().collect();
            assert_eq!(fields["gpu_memory_total"], "22.5GB");
        }
    }

    #[test]
    fn an_instance_is_in_three_sets() {
        let expected = [
            "dalston:engine:instances",
            "dalston:engine:engine_id:faster-whisper",
            "dalston:engine:stage:transcribe",
        ];
        assert_eq!(record().index_sets(), expected);
    }
}
