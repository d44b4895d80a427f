//! Whisper as a Dalston engine.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Once;

use dalston_engine_sdk::audio::{Audio, AudioFormat};
use dalston_engine_sdk::stage::{TimestampGranularity, TranscribeTask};
use dalston_engine_sdk::{
    Check, Device, Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext, TaskError,
    TaskRequest, TranscribeRequest, Transcript, torch,
};

use crate::config;
use crate::decode::seek;
use crate::error::{Error, LoadError};
use crate::model::Placement;
use crate::tokenizer::{Task, Vocabulary};
use crate::whisper::Whisper;

/// The model in this example's `models` directory.
const SHIPPED_MODEL: &str = "whisper-nano-digits";

/// The platform sends this value with every task.
const PLATFORM_BEAM_SIZE: u32 = 5;

/// The transcription engine: stage `transcribe`, with any Hugging Face Whisper directory as model.
#[derive(Debug, Clone, Copy, Default)]
pub struct FasterWhisper;

impl Engine for FasterWhisper {
    type Model = Whisper;
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("faster-whisper", env!("CARGO_PKG_VERSION"))
            .stage(Stage::Transcribe)
            .default_model(SHIPPED_MODEL)
            .audio(AudioFormat::MONO_16K)
            .word_timestamps(false)
            .language_forcing(true)
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Whisper, TaskError> {
        let dir = model_dir(model, cx)?;
        let chosen =
            torch::Placement::choose(cx.config()).map_err(|e| TaskError::permanent("unusable_device", e))?;
        let placement = Placement {
            device: chosen.device(),
            kind: chosen.kind(),
        };
        cx.set_device(if chosen.device().is_cuda() {
            Device::Cuda
        } else {
            Device::Cpu
        });
        Whisper::load(&dir, placement)
            .and_then(|whisper| {
                check_rate(&whisper, &dir)?;
                Ok(whisper)
            })
            .map_err(load_error)
    }

    fn process(
        &self,
        whisper: &mut Whisper,
        task: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Transcript, TaskError> {
        cx.check_cancelled()?;
        let request = task.transcribe()?;
        let audio = task.audio()?;
        let mut warnings = request.warnings.clone();
        warnings.extend(audio.warnings().iter().cloned());
        warnings.extend(unsupported(&request, task));
        let config = transcribe_config(&request, whisper.vocabulary(), &mut warnings)?;

        let span = tracing::info_span!(
            "engine.recognize",
            "dalston.device" = device_name(whisper.placement()),
            "dalston.compute_type" = precision_name(whisper.placement()),
            "dalston.beam_size" = 1,
            "dalston.vad_filter" = false,
            "dalston.mode" = "direct",
            "dalston.model_id" = cx.info().model.as_str(),
            "dalston.audio_duration_s" = audio.duration().as_secs_f64(),
            "dalston.segment_count" = tracing::field::Empty,
            "whisper.windows" = tracing::field::Empty,
        );
        let found = {
            let _entered = span.enter();
            let found = whisper.transcribe(&Recording(audio), &config, &mut Watch(cx));
            found.map_err(|error| task_error(error, cx))?
        };
        span.record("dalston.segment_count", found.segments.len());
        span.record("whisper.windows", found.windows);
        if let Some(language) = &found.language {
            cx.set_language(language);
        }
        Ok(transcript(found, &request, &config, warnings))
    }

    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        let mut checks = torch::checks(cx.config());
        checks.push(model_check(self, cx));
        checks
    }
}

/// One warning for each requested option that is not supported.
fn unsupported(request: &TranscribeRequest, task: &TaskRequest) -> Vec<String> {
    let mut warnings = Vec::new();
    match request.beam_size {
        None | Some(..=1) => {}
        // The platform's default, not a wish of the client: logged once instead of warned about.
        Some(PLATFORM_BEAM_SIZE) => {
            static LOGGED: Once = Once::new();
            LOGGED.call_once(|| tracing::warn!(beam_size = PLATFORM_BEAM_SIZE, "beam_search_not_supported"));
        }
        Some(size) => warnings.push(format!(
            "beam search is not supported: decoded greedily instead of with beam_size {size}"
        )),
    }
    if let Some(candidates) = request
        .best_of
        .filter(|&n| n > 1 && request.temperature.iter().any(|&t| t > 0.0))
    {
        warnings.push(format!(
            "best_of {candidates} is not supported: one candidate was sampled"
        ));
    }
    // Word timestamps are the default of the stage, so only an explicit value counts.
    let finer = task.config().contains_key("timestamp_granularity")
        && request.timestamp_granularity > TimestampGranularity::Segment;
    if request.word_timestamps == Some(true) || finer {
        warnings.push("word timestamps are not supported: only segments have times".to_owned());
    }
    if request.include_transcription_logprobs {
        warnings.push(
            "log-probabilities of single tokens are not supported: segments have avg_logprob".to_owned(),
        );
    }
    if request.chunking_strategy.is_some() {
        warnings.push(
            "chunking_strategy is not supported: the recording was cut by the model's own windows".to_owned(),
        );
    }
    warnings
}

fn transcribe_config(
    request: &TranscribeRequest,
    vocabulary: &Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<seek::TranscribeConfig, TaskError> {
    let mut config = seek::TranscribeConfig::default();
    config.language.clone_from(&request.language);
    config.task = match request.task {
        TranscribeTask::Translate => Task::Translate,
        _ => Task::Transcribe,
    };
    config.timestamps = request.timestamp_granularity != TimestampGranularity::None;
    config.initial_prompt.clone_from(&request.prompt);
    config.hotwords = request.vocabulary.as_ref().map(|words| words.join(", "));
    config.suppress_blank = request.suppress_blank;
    config.temperatures.clone_from(&request.temperature);
    if let Some(tokens) = &request.suppress_tokens {
        config.suppress_tokens = suppressed(tokens, vocabulary, warnings)?;
    }
    Ok(config)
}

/// The ids to suppress: a number is an id, -1 the model's own set, other text the token with this
/// spelling.
fn suppressed(
    tokens: &[String],
    vocabulary: &Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<i64>>, TaskError> {
    let mut ids = Vec::new();
    let mut usual = false;
    for token in tokens {
        match token.trim().parse::<i64>() {
            Ok(-1) => usual = true,
            Ok(id) if (0..vocabulary.size()).contains(&id) => ids.push(id),
            Ok(id) => {
                let problem = format!(
                    "suppress_tokens names {id}: expected -1 or 0 to {}",
                    vocabulary.size() - 1
                );
                return Err(TaskError::permanent("invalid_config", problem));
            }
            Err(_) => match vocabulary
                .encode(token)
                .map_err(|e| TaskError::permanent("invalid_config", e))?
                .as_slice()
            {
                [id] => ids.push(*id),
                parts => warnings.push(format!(
                    "{token:?} is {} tokens of this model and was not suppressed: name a single token",
                    parts.len()
                )),
            },
        }
    }
    if usual && ids.is_empty() {
        return Ok(None);
    }
    if usual {
        ids.extend(vocabulary.usually_suppressed());
    }
    Ok(Some(ids))
}

fn transcript(
    found: seek::Transcription,
    request: &TranscribeRequest,
    config: &seek::TranscribeConfig,
    mut warnings: Vec<String>,
) -> Transcript {
    let text = found.text();
    let segments = found.segments.iter().enumerate().map(|(index, segment)| {
        let tokens: Vec<u32> = segment
            .tokens
            .iter()
            .filter_map(|&id| u32::try_from(id).ok())
            .collect();
        Segment::new(segment.start, segment.end, segment.text.as_str())
            .id(index.to_string())
            // The geometric mean of the tokens' probabilities.
            .confidence(segment.avg_logprob.exp())
            .tokens(&tokens)
            .avg_logprob(segment.avg_logprob)
            .compression_ratio(segment.compression_ratio)
            .no_speech_prob(segment.no_speech_prob)
            .temperature(segment.temperature)
    });
    let mut transcript = Transcript::new(text, segments).duration(found.duration);
    transcript = match (&request.language, &found.language, found.language_probability) {
        (Some(_), Some(language), _) => transcript.requested_language(language),
        (None, Some(language), Some(probability)) => transcript.detected_language(language, probability),
        (_, Some(language), None) => {
            // An English-only model detects no language.
            transcript.language.clone_from(language);
            transcript
        }
        (Some(language), None, _) => transcript.requested_language(language),
        (None, None, _) => transcript,
    };
    if !config.timestamps {
        transcript = transcript.timestamp_granularity(TimestampGranularity::None);
    }
    if found.segments.is_empty() {
        warnings.push("no speech was found".to_owned());
    }
    warnings.extend(found.warnings);
    warnings.into_iter().fold(transcript, Transcript::warning)
}

/// The directory of the model. The shipped model is found by name from every working directory,
/// unless the model root contains a model of that name. It is never downloaded from the storage of
/// a deployment.
fn model_dir(model: &ModelId, cx: &LoadContext) -> Result<PathBuf, TaskError> {
    let shipped = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models")).join(SHIPPED_MODEL);
    let root = cx.config().model_root.as_deref();
    let another =
        Path::new(SHIPPED_MODEL).is_dir() || root.is_some_and(|root| root.join(SHIPPED_MODEL).is_dir());
    if model.as_str() == SHIPPED_MODEL && shipped.is_dir() && !another {
        return Ok(shipped);
    }
    let file = Path::new(model.as_str());
    if config::is_openai(file) {
        return Err(load_error(config::openai(file)));
    }
    cx.model_dir(model)
}

fn check_rate(whisper: &Whisper, dir: &std::path::Path) -> Result<(), LoadError> {
    let (rate, expected) = (
        whisper.config().features.sampling_rate,
        i64::from(AudioFormat::MONO_16K.sample_rate),
    );
    if rate == expected {
        return Ok(());
    }
    let problem = format!("sampling_rate is {rate}: expected {expected}, the rate of this engine's audio");
    Err(LoadError::Invalid {
        path: config::features_path(dir),
        problem,
    })
}

fn model_check(engine: &FasterWhisper, cx: &LoadContext) -> Check {
    let model = cx
        .config()
        .model
        .clone()
        .or(engine.info().default_model)
        .unwrap_or_default();
    let found = model_dir(&model, cx).and_then(|dir| {
        let description = Whisper::inspect(&dir).map_err(load_error)?;
        Ok(format!("{}: {description}", dir.display()))
    });
    match found {
        Ok(detail) => Check::ok("model", detail),
        Err(error) => Check::missing("model", error.to_string())
            .advice("name a Hugging Face Whisper directory with --model or DALSTON_DEFAULT_MODEL"),
    }
}

/// A broken model file is permanent. Errors of memory and file system may pass.
fn load_error(error: LoadError) -> TaskError {
    match error {
        LoadError::Torch(_) => error.into(),
        LoadError::Read { .. } => TaskError::retryable("model_unreadable", error),
        _ => TaskError::permanent("invalid_model", error),
    }
}

fn task_error(error: Error, cx: &TaskContext) -> TaskError {
    match error {
        // The context knows the reason.
        Error::Stopped => cx.check_cancelled().err().unwrap_or_else(TaskError::cancelled),
        Error::UnknownLanguage { .. } => TaskError::permanent("unknown_language", error),
        Error::CannotTranslate { .. } => TaskError::permanent("unsupported_task", error),
        Error::NotANumber { .. } => TaskError::permanent("not_a_number", error),
        Error::Tokenizer(_) => TaskError::permanent("invalid_text", error),
        Error::Samples(_) | Error::Torch(_) => error.into(),
    }
}

fn device_name(placement: Placement) -> String {
    match placement.device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

fn precision_name(placement: Placement) -> &'static str {
    match placement.kind {
        tch::Kind::Half => "float16",
        tch::Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

/// The audio of the task, read window by window.
struct Recording<'a>(&'a Audio);

impl seek::Samples for Recording<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read(range)?)
    }
}

/// The context of the task as an observer.
struct Watch<'a>(&'a TaskContext);

impl seek::Observer for Watch<'_> {
    fn keep_going(&mut self) -> bool {
        self.0.cancel_reason().is_none()
    }

    fn advanced(&mut self, fraction: f32) {
        self.0.progress(fraction);
    }
}
