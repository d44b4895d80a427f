//! Whisper as a Dalston engine.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dalston_engine_sdk::audio::{Audio, AudioFormat};
use dalston_engine_sdk::stage::{AlignmentMethod, TimestampGranularity};
use dalston_engine_sdk::{
    Batch, Batching, Check, Device, Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, TaskContext,
    TaskError, TaskRequest, Transcript, Word, torch,
};
use tracing::Span;

use crate::chunking;
use crate::config;
use crate::decode::transcription::{Observer, Recording, Samples, Transcription};
use crate::error::{Error, LoadError};
use crate::model::Placement;
use crate::options::Options;
use crate::precision;
use crate::request::{self, Request};
use crate::whisper::Whisper;

/// The model in this example's `models` directory.
const SHIPPED_MODEL: &str = "whisper-nano-digits";
/// Tasks that are decoded at once.
const MAX_TASKS: usize = 8;
/// Seconds of audio of a batch. Short tasks end early, but later ones wait for the longest.
const MAX_AUDIO_SECONDS: f64 = 240.0;

/// The transcription engine: stage `transcribe`, with any Hugging Face Whisper directory as model.
#[derive(Debug, Clone, Copy, Default)]
pub struct FasterWhisper;

impl Engine for FasterWhisper {
    type Model = Whisper;
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        let info = EngineInfo::new("faster-whisper", env!("CARGO_PKG_VERSION"))
            .stage(Stage::Transcribe)
            .realtime(true)
            .default_model(SHIPPED_MODEL)
            .audio(AudioFormat::MONO_16K)
            .word_timestamps(true)
            .language_forcing(true)
            .batching(Batching::up_to(MAX_TASKS).audio_seconds(MAX_AUDIO_SECONDS));
        Options::DESCRIBED
            .iter()
            .fold(info, |info, option| info.option(request::task_option(option)))
            .option(chunking::option())
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Whisper, TaskError> {
        let dir = model_dir(model, cx)?;
        let chosen =
            precision::choose(cx.config()).map_err(|e| TaskError::permanent("unusable_device", e))?;
        let placement = chosen.placement;
        let span = tracing::info_span!(
            "whisper.load",
            "dalston.compute_type" = precision::name(placement),
            "whisper.compute_type_reason" = chosen.reason.as_str(),
        );
        let _entered = span.enter();
        cx.set_device(if placement.device.is_cuda() {
            Device::Cuda
        } else {
            Device::Cpu
        });
        let mut whisper = Whisper::load(&dir, placement)
            .and_then(|whisper| {
                check_rate(&whisper, &dir)?;
                Ok(whisper)
            })
            .map_err(load_error)?;
        if let Some(path) = &cx.config().vad_model {
            let silero = torch::SileroFile::read(path);
            whisper
                .set_voice_detector(silero.map_err(|e| TaskError::permanent("invalid_voice_detector", e))?);
        }
        Ok(whisper)
    }

    fn process(
        &self,
        whisper: &mut Whisper,
        task: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Transcript, TaskError> {
        cx.check_cancelled()?;
        let wanted = Wanted::of(task, cx, whisper)?;
        let mut found = Err(Error::Stopped);
        whisper.transcribe_batch(vec![wanted.recording(cx)], &mut |_, result| found = result)?;
        wanted.transcript(found, cx)
    }

    fn process_batch(
        &self,
        whisper: &mut Whisper,
        batch: &mut Batch<'_, Transcript>,
    ) -> Result<(), TaskError> {
        batch.drop_cancelled();
        let mut open = Vec::with_capacity(batch.len());
        let mut recordings = Vec::with_capacity(batch.len());
        for item in batch.take_all() {
            match item.scope().run(|| Wanted::of(item.task(), item.cx(), whisper)) {
                Ok(wanted) => {
                    recordings.push(wanted.recording(item.cx()));
                    open.push(Some((item, wanted)));
                }
                Err(error) => item.finish(Err(error)),
            }
        }
        let mut done = |index: usize, found| {
            if let Some((item, wanted)) = open.get_mut(index).and_then(Option::take) {
                let transcript = item.scope().run(|| wanted.transcript(found, item.cx()));
                item.finish(transcript);
            }
        };
        whisper
            .transcribe_batch(recordings, &mut done)
            .map_err(TaskError::from)
    }

    /// Each window has its own prompt and options, so tasks have nothing in common but the model.
    fn batch_key(&self, task: &TaskRequest) -> Option<String> {
        // With this option, a task is a batch of its own.
        let is_batch = task
            .config()
            .get("batch_size")
            .is_some_and(|value| !value.is_null());
        (!is_batch).then(String::new)
    }

    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        let mut checks = precision::checks(cx.config());
        checks.push(model_check(self, cx));
        checks
    }
}

/// A task before its transcription.
struct Wanted {
    options: Options,
    language_given: bool,
    warnings: Vec<String>,
    audio: Audio,
    /// `engine.recognize`
    span: Span,
}

impl Wanted {
    fn of(task: &TaskRequest, cx: &TaskContext, whisper: &Whisper) -> Result<Self, TaskError> {
        let Request {
            options,
            language_given,
            mut warnings,
        } = Request::of(task)?;
        let audio = task.audio()?.clone();
        warnings.extend(audio.warnings().iter().cloned());
        let span = tracing::info_span!(
            "engine.recognize",
            "dalston.device" = device_name(whisper.placement()),
            "dalston.compute_type" = precision::name(whisper.placement()),
            "dalston.beam_size" = options.beam_size,
            "dalston.vad_filter" = options.vad_filter,
            "dalston.mode" = if options.vad_filter { "vad" } else { "direct" },
            "dalston.model_id" = cx.info().model.as_str(),
            "dalston.audio_duration_s" = audio.duration().as_secs_f64(),
            "dalston.segment_count" = tracing::field::Empty,
            "whisper.batch_size" = options.batch_size,
            "whisper.windows" = tracing::field::Empty,
        );
        Ok(Self {
            options,
            language_given,
            warnings,
            audio,
            span,
        })
    }

    fn recording(&self, cx: &TaskContext) -> Recording<'static> {
        Recording {
            samples: Box::new(TaskAudio(self.audio.clone())),
            options: self.options.clone(),
            observer: Box::new(Watch(cx.clone())),
            span: self.span.clone(),
        }
    }

    fn transcript(
        self,
        found: Result<Transcription, Error>,
        cx: &TaskContext,
    ) -> Result<Transcript, TaskError> {
        let found = found.map_err(|error| task_error(error, cx))?;
        self.span.record("dalston.segment_count", found.segments.len());
        self.span.record("whisper.windows", found.windows);
        if let Some(speech) = &found.speech {
            cx.set_speech_segments(speech.len());
        }
        if let Some(language) = &found.language {
            cx.set_language(language);
        }
        Ok(transcript(
            found,
            &self.options,
            self.language_given,
            self.warnings,
        ))
    }
}

fn transcript(
    found: Transcription,
    options: &Options,
    language_given: bool,
    mut warnings: Vec<String>,
) -> Transcript {
    let text = found.text();
    let segments = found.segments.iter().enumerate().map(|(index, segment)| {
        let tokens: Vec<u32> = segment
            .tokens
            .iter()
            .filter_map(|&id| u32::try_from(id).ok())
            .collect();
        let words = segment.words.iter().flatten().map(word);
        let mut transcribed = Segment::new(segment.start, segment.end, segment.text.as_str());
        if options.word_timestamps {
            transcribed = transcribed.words(words);
        }
        transcribed
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
    transcript = match (&found.language, found.language_probability) {
        (Some(language), _) if language_given => transcript.requested_language(language),
        (Some(language), Some(probability)) => transcript.detected_language(language, probability),
        (Some(language), None) => {
            // An English-only model detects no language.
            transcript.language.clone_from(language);
            transcript
        }
        (None, _) => transcript,
    };
    if options.word_timestamps {
        transcript = transcript
            .timestamp_granularity(TimestampGranularity::Word)
            .alignment_method(AlignmentMethod::Attention);
    } else if options.without_timestamps && options.batch_size.is_none() {
        transcript = transcript.timestamp_granularity(TimestampGranularity::None);
    }
    if found.segments.is_empty() {
        warnings.push("no speech was found".to_owned());
    }
    warnings.extend(found.warnings);
    warnings.into_iter().fold(transcript, Transcript::warning)
}

fn word(word: &crate::Word) -> Word {
    Word::new(word.start, word.end, word.text.trim())
        .confidence(word.probability)
        .alignment_method(AlignmentMethod::Attention)
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
        Error::Option(_) => TaskError::permanent("invalid_config", error),
        Error::Tokenizer(_) => TaskError::permanent("invalid_text", error),
        Error::Samples(_) | Error::Torch(_) | Error::VoiceDetector(_) => error.into(),
    }
}

fn device_name(placement: Placement) -> String {
    match placement.device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The audio of a task, read window by window.
struct TaskAudio(Audio);

impl Samples for TaskAudio {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read(range)?)
    }
}

/// The context of a task as an observer.
struct Watch(TaskContext);

impl Observer for Watch {
    fn keep_going(&mut self) -> bool {
        self.0.cancel_reason().is_none()
    }

    fn advanced(&mut self, fraction: f32) {
        self.0.progress(fraction);
    }
}
