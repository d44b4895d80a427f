//! The tasks of a job.

use anyhow::{Result, anyhow};
use dalston_engine_sdk::stage::{Stage, StageName};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::db::{Job, SpeakerDetection, Task, TaskStatus};
use crate::wire::EngineRecord;

/// The tasks of a job, in order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) tasks: Vec<Task>,
    /// The engine that transcribes.
    pub(super) engine_id: String,
    /// The model that was asked for; empty for the engine's own.
    pub(super) model: String,
}

impl Plan {
    /// # Errors
    ///
    /// If no engine is alive for a stage. It may come later.
    pub(super) fn new(job: &Job, engines: &[EngineRecord]) -> Result<Self> {
        let preparer = choose(engines, &Stage::Prepare, None)?;
        let wish = job.parameters.model.as_deref();
        let transcriber = choose(engines, &Stage::Transcribe, wish)?;
        // Anything but an engine is a model.
        let model = wish.filter(|wish| *wish != transcriber).unwrap_or_default();
        let per_channel = job.parameters.speaker_detection == SpeakerDetection::PerChannel;
        let prepare = Stage::Prepare.to_string();
        let config = object(json!({
            "target_sample_rate": 16_000, "target_channels": 1, "target_encoding": "pcm_s16le",
            "normalize_volume": false, "detect_speech_regions": false, "split_channels": per_channel,
        }));
        let mut tasks = vec![task(job, &prepare, &preparer, Vec::new(), config)];
        let channels = match per_channel {
            true => (0..job.media.channels).map(Some).collect(),
            false => vec![None],
        };
        for channel in channels {
            let stage = match channel {
                Some(channel) => StageName::of_channel(Stage::Transcribe, channel).to_string(),
                None => Stage::Transcribe.to_string(),
            };
            let config = transcription(job, model, channel);
            tasks.push(task(job, &stage, &transcriber, vec![prepare.clone()], config));
        }
        Ok(Self {
            tasks,
            engine_id: transcriber,
            model: model.to_owned(),
        })
    }
}

/// The engine of this id, else the best one for the stage.
fn choose(engines: &[EngineRecord], stage: &Stage, wish: Option<&str>) -> Result<String> {
    let able = || engines.iter().filter(|engine| engine.takes(stage.as_str()));
    let wished = able().find(|engine| Some(engine.engine_id()) == wish);
    // Of two equal ones the first, so that the choice is the same in each run.
    let best = || able().min_by_key(|engine| (!engine.has_words(), engine.engine_id().to_owned()));
    wished
        .or_else(best)
        .map(|engine| engine.engine_id().to_owned())
        .ok_or_else(|| anyhow!("No running engine can handle the stage {stage}"))
}

fn task(
    job: &Job,
    stage: &str,
    engine_id: &str,
    depends_on: Vec<String>,
    config: Map<String, Value>,
) -> Task {
    let is_first = depends_on.is_empty();
    Task {
        id: Uuid::new_v4().to_string(),
        job_id: job.id.clone(),
        stage: stage.to_owned(),
        engine_id: engine_id.to_owned(),
        depends_on,
        config,
        status: if is_first {
            TaskStatus::Ready
        } else {
            TaskStatus::Pending
        },
        retries: 0,
        message_id: None,
        ready_at: None,
        started_at: None,
        completed_at: None,
        deadline_at: None,
        error: None,
    }
}

fn transcription(job: &Job, model: &str, channel: Option<u32>) -> Map<String, Value> {
    let parameters = &job.parameters;
    let mut config = object(json!({
        "language": parameters.language.as_deref().unwrap_or("auto"), "beam_size": 5, "vad_filter": true,
    }));
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            config.insert(name.to_owned(), value);
        }
    };
    set("loaded_model_id", (!model.is_empty()).then(|| model.into()));
    set("prompt", parameters.prompt.clone().map(Value::from));
    set("temperature", parameters.temperature.map(Value::from));
    let vocabulary = &parameters.vocabulary;
    set("vocabulary", (!vocabulary.is_empty()).then(|| json!(vocabulary)));
    set("channel", channel.map(Value::from));
    config
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
