//! The trait of an engine: [`Engine`], and its description: [`EngineInfo`].

use std::fmt;

use serde_json::Value;

#[cfg(feature = "audio")]
use crate::audio::AudioFormat;
#[cfg(feature = "realtime")]
use crate::audio::{Earshot, VoiceDetector};
use crate::batch::{Batch, Batching};
use crate::context::TaskContext;
use crate::error::TaskError;
use crate::load::LoadContext;
use crate::model_id::ModelId;
use crate::protocol::Capabilities;
use crate::stage::{Stage, StageOutput};
use crate::start::StartContext;
#[cfg(feature = "realtime")]
use crate::stream::TranscriptStream;
use crate::task::TaskRequest;
use crate::task_option::TaskOption;

/// A transcription engine: it describes itself, loads a model, and processes tasks with it.
///
/// The runner does everything else: it reads tasks, downloads and decodes their inputs, opens the
/// spans, records metrics, uploads the result and reports it.
///
/// [`load`](Self::load) and [`process`](Self::process) are synchronous and run on the same
/// inference thread. There may be several of these threads, each with its own models, so `Engine`
/// is `Send + Sync` while a model need be neither.
///
/// ```
/// use dalston_engine_sdk::{
///     Engine, EngineInfo, LoadContext, ModelId, Stage, StageOutput, TaskContext, TaskError, TaskRequest,
/// };
///
/// struct WordCounter;
///
/// #[derive(serde::Serialize)]
/// struct Count {
///     words: usize,
/// }
///
/// impl StageOutput for Count {}
///
/// impl Engine for WordCounter {
///     type Model = (); // an engine without a model
///     type Output = Count;
///
///     fn info(&self) -> EngineInfo {
///         let stage = Stage::other("count").expect("a plain name");
///         EngineInfo::new("word-counter", env!("CARGO_PKG_VERSION")).stage(stage)
///     }
///
///     fn load(&self, _model: &ModelId, _cx: &LoadContext) -> Result<(), TaskError> {
///         Ok(())
///     }
///
///     fn process(&self, _model: &mut (), task: &TaskRequest, _cx: &TaskContext) -> Result<Count, TaskError> {
///         let input = task.require_input("text")?;
///         let text = std::fs::read_to_string(input.path())?;
///         Ok(Count { words: text.split_whitespace().count() })
///     }
/// }
/// ```
pub trait Engine: Send + Sync + 'static {
    /// A loaded model: the result of [`load`](Self::load), and the input of
    /// [`process`](Self::process).
    ///
    /// A model is loaded, used and dropped on one inference thread, so it need not be `Send` or
    /// `Sync`. An engine without a model has `type Model = ();`, and then its traces show no model
    /// loads.
    type Model: 'static;

    /// The result of a task, written to `response.json` under `data`.
    type Output: StageOutput;

    /// The id, version and capabilities of this engine. Called a few times at start. It should be
    /// cheap and constant.
    fn info(&self) -> EngineInfo;

    /// Prepares the engine, for example its own metrics. Does nothing unless overridden.
    ///
    /// It is called once, when the worker is built: before the worker answers on its HTTP port,
    /// loads a model or reads a task. So the metrics that it registers are in the first scrape.
    /// `describe` and `doctor` do not call it.
    ///
    /// ```
    /// use dalston_engine_sdk::StartContext;
    /// use dalston_engine_sdk::dalston_telemetry::metrics::{Counter, DenseFamily};
    /// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest};
    /// # use serde_json::{Value, json};
    ///
    /// #[derive(Default)]
    /// struct WordCounter {
    ///     words: DenseFamily<(), Counter>,
    /// }
    ///
    /// impl Engine for WordCounter {
    /// #     type Model = ();
    /// #     type Output = Value;
    /// #     fn info(&self) -> EngineInfo {
    /// #         EngineInfo::new("word-counter", "1.0.0").stage(Stage::other("count").expect("a plain name"))
    /// #     }
    /// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
    ///     fn start(&mut self, cx: &StartContext) {
    ///         let words = self.words.clone();
    ///         cx.metrics().register(|registry| registry.register("word_counter_words", "Words that were counted", words));
    ///     }
    ///
    ///     fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
    ///         let text = std::fs::read_to_string(task.require_input("input")?.path())?;
    ///         let words = text.split_whitespace().count();
    ///         self.words.with(()).inc_by(words as u64);
    ///         Ok(json!({ "words": words }))
    ///     }
    ///     // ...
    /// }
    /// # let metrics = dalston_engine_sdk::dalston_telemetry::metrics::Metrics::new();
    /// # WordCounter::default().start(&StartContext::new("word-counter", Default::default(), metrics.clone()));
    /// # assert!(metrics.encode().contains("word_counter_words_total 0\n"));
    /// ```
    fn start(&mut self, cx: &StartContext) {
        let _ = cx;
    }

    /// Loads a model.
    ///
    /// The runner caches the model and calls this only if the inference thread has not loaded it:
    /// the first time, after it was evicted, and after a panic or exhausted memory.
    ///
    /// # Errors
    ///
    /// An error fails the task that asked for the model. The load is tried again for a later task.
    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Self::Model, TaskError>;

    /// Processes one task.
    ///
    /// Long work calls [`TaskContext::check_cancelled`] from time to time and returns its error.
    ///
    /// # Errors
    ///
    /// An error, and also a panic, fails this task only.
    fn process(
        &self,
        model: &mut Self::Model,
        task: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Self::Output, TaskError>;

    /// Processes several tasks at once, for an engine whose [`EngineInfo`] has
    /// [`batching`](EngineInfo::batching). A single task goes to [`process`](Self::process).
    ///
    /// All tasks have the same model and the same [`batch_key`](Self::batch_key). Each one is ended
    /// with [`BatchItem::finish`](crate::BatchItem::finish) as soon as its result is known. Unless
    /// overridden, the tasks are processed one after the other.
    ///
    /// ```
    /// use dalston_engine_sdk::{Batch, Batching};
    /// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest};
    /// # use serde_json::{Value, json};
    /// # struct WordCounter;
    /// # fn read(task: &TaskRequest) -> Result<String, TaskError> {
    /// #     Ok(std::fs::read_to_string(task.require_input("input")?.path())?)
    /// # }
    ///
    /// impl Engine for WordCounter {
    /// #     type Model = ();
    /// #     type Output = Value;
    /// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
    /// #     fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
    /// #         Ok(json!({ "words": read(task)?.split_whitespace().count() }))
    /// #     }
    ///     fn info(&self) -> EngineInfo {
    ///         let stage = Stage::other("count").expect("a plain name");
    ///         EngineInfo::new("word-counter", "1.0.0").stage(stage).batching(Batching::up_to(8))
    ///     }
    ///
    ///     fn process_batch(&self, _: &mut (), batch: &mut Batch<'_, Value>) -> Result<(), TaskError> {
    ///         for item in batch.take_all() {
    ///             let text = item.scope().run(|| read(item.task()));
    ///             item.finish(text.map(|text| json!({ "words": text.split_whitespace().count() })));
    ///         }
    ///         Ok(())
    ///     }
    ///     // ...
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// After an error or a panic, each task that was not finished is processed alone, so that one
    /// bad input fails only its own task. If the error is exhausted memory, they are processed in
    /// batches of at most half the size, and so are later batches with this model for a while. In
    /// neither case is an attempt of the platform spent.
    fn process_batch(
        &self,
        model: &mut Self::Model,
        batch: &mut Batch<'_, Self::Output>,
    ) -> Result<(), TaskError> {
        for item in batch.take_all() {
            let output = item.scope().run(|| self.process(model, item.task(), item.cx()));
            item.finish(output);
        }
        Ok(())
    }

    /// Which tasks may share a batch: those with the same model and equal keys. `None` stands for a
    /// task that must run alone. Unless overridden, it is the stage and the whole configuration of
    /// the task.
    ///
    /// It is called on the control loop and should be cheap.
    fn batch_key(&self, task: &TaskRequest) -> Option<String> {
        let config = Value::Object(task.config().clone());
        Some(format!("{} {config}", task.stage()))
    }

    /// Begins a realtime session with a model that transcribes audio while it comes, for an engine
    /// whose [`EngineInfo`] has [`native_streaming`](EngineInfo::native_streaming()).
    ///
    /// `session` has the configuration of a `transcribe` task. Its audio is the first that the
    /// stream will get.
    ///
    /// # Errors
    ///
    /// As those of [`TranscriptStream`]. Unless overridden, an error that says so.
    #[cfg(feature = "realtime")]
    fn stream(
        &self,
        model: &mut Self::Model,
        session: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Box<dyn TranscriptStream<Self::Model>>, TaskError> {
        let _ = (model, session, cx);
        let text = "the engine declares native_streaming, and does not implement Engine::stream";
        Err(TaskError::permanent("no_stream", text))
    }

    /// The detector of speech for one realtime session. [`Earshot`](crate::audio::Earshot) unless
    /// overridden.
    ///
    /// Its frames may have any length and rate. The thresholds of the client, the hysteresis and
    /// the lengths of speech and silence are applied to its probabilities. It runs on the threads
    /// of the sessions: a frame should take much less time than it lasts.
    #[cfg(feature = "realtime")]
    fn voice_detector(&self) -> Box<dyn VoiceDetector + Send> {
        Box::new(Earshot::new())
    }

    /// More checks for `doctor`: model files, licences, helper programs.
    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        let _ = cx;
        Vec::new()
    }
}

/// The description of an engine, for the platform and for `describe`.
///
/// ```
/// use dalston_engine_sdk::{EngineInfo, Stage};
///
/// let info = EngineInfo::new("my-asr", "1.4.0")
///     .stage(Stage::Transcribe)
///     .default_model("tiny")
///     .languages(["en", "de"])
///     .word_timestamps(true);
/// assert_eq!(info.id, "my-asr");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The engine id: the name of its task queue, part of its span names, a metric label.
    /// Lower-case letters, digits, dots, dashes and underscores, at most 64 of them.
    pub id: String,
    /// The version of the engine.
    pub version: String,
    /// Its stages. At least one.
    pub stages: Vec<Stage>,
    /// The model for tasks that name none.
    pub default_model: Option<ModelId>,
    /// All models that this engine works with. `None` if the list is open.
    pub model_variants: Option<Vec<String>>,
    /// The format of the decoded audio. `None` leaves the input file as it is.
    #[cfg(feature = "audio")]
    pub audio: Option<AudioFormat>,
    /// How many tasks it takes at once. `None` if it takes one after the other.
    pub batching: Option<Batching>,
    /// Whether it serves realtime sessions.
    #[cfg(feature = "realtime")]
    pub realtime: bool,
    /// Whether its model transcribes audio of sessions while it comes.
    #[cfg(feature = "realtime")]
    pub native_streaming: bool,
    /// Whether results have the times of words.
    pub word_timestamps: bool,
    /// Whether results name the speakers.
    pub includes_diarization: bool,
    /// ISO 639-1 codes of its languages. `None` if it is not restricted.
    pub languages: Option<Vec<String>>,
    /// Whether a task may prescribe the language.
    pub language_forcing: bool,
    /// The options of tasks that it adds to those of its stages.
    pub options: Vec<TaskOption>,
    /// Whether it needs a GPU.
    pub gpu_required: bool,
    /// GPU memory it needs, in MiB.
    pub gpu_memory_mib: Option<u32>,
    /// Whether it runs on a CPU.
    pub supports_cpu: bool,
    /// Main memory it needs, in GiB.
    pub memory_gib: Option<u32>,
    /// Inference time divided by audio time on a GPU, as measured by the author.
    pub realtime_factor_gpu: Option<f64>,
    /// Inference time divided by audio time on a CPU, as measured by the author.
    pub realtime_factor_cpu: Option<f64>,
}

impl EngineInfo {
    /// An engine with this id and version and without a stage. It runs on a CPU and is not
    /// restricted in its languages.
    #[must_use]
    pub fn new(id: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            version: version.into(),
            stages: Vec::new(),
            default_model: None,
            model_variants: None,
            #[cfg(feature = "audio")]
            audio: None,
            batching: None,
            #[cfg(feature = "realtime")]
            realtime: false,
            #[cfg(feature = "realtime")]
            native_streaming: false,
            word_timestamps: false,
            includes_diarization: false,
            languages: None,
            language_forcing: true,
            options: Vec::new(),
            gpu_required: false,
            gpu_memory_mib: None,
            supports_cpu: true,
            memory_gib: None,
            realtime_factor_gpu: None,
            realtime_factor_cpu: None,
        }
    }

    /// Adds a stage.
    #[must_use]
    pub fn stage(mut self, stage: Stage) -> Self {
        if !self.stages.contains(&stage) {
            self.stages.push(stage);
        }
        self
    }

    /// Sets the model for tasks that name none.
    #[must_use]
    pub fn default_model(mut self, model: impl Into<ModelId>) -> Self {
        self.default_model = Some(model.into());
        self
    }

    /// Sets the closed list of models that the engine works with.
    #[must_use]
    pub fn model_variants<S: Into<String>>(mut self, models: impl IntoIterator<Item = S>) -> Self {
        self.model_variants = Some(models.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the format to which the runner decodes and resamples audio.
    #[cfg(feature = "audio")]
    #[must_use]
    pub fn audio(mut self, format: AudioFormat) -> Self {
        self.audio = Some(format);
        self
    }

    /// Lets the runner give the engine several tasks at once, in
    /// [`Engine::process_batch`]. Default: one after the other.
    #[must_use]
    pub fn batching(mut self, limits: Batching) -> Self {
        self.batching = Some(limits);
        self
    }

    /// Sets whether the command `run` also serves realtime sessions. Default `false`.
    ///
    /// [`Engine::process`] then gets the utterances of sessions as `transcribe` tasks, with audio
    /// in the engine's format ([`audio`](Self::audio()), else 16 kHz mono). See
    /// [`realtime`](crate::realtime).
    #[cfg(feature = "realtime")]
    #[must_use]
    pub fn realtime(mut self, yes: bool) -> Self {
        self.realtime = yes;
        self
    }

    /// Sets whether the model transcribes audio of realtime sessions while it comes. Default
    /// `false`.
    ///
    /// Sessions then go to [`Engine::stream`] and not to [`Engine::process`].
    #[cfg(feature = "realtime")]
    #[must_use]
    pub fn native_streaming(mut self, yes: bool) -> Self {
        self.native_streaming = yes;
        self
    }

    /// Sets whether results have the times of words. Default `false`.
    #[must_use]
    pub fn word_timestamps(mut self, yes: bool) -> Self {
        self.word_timestamps = yes;
        self
    }

    /// Sets whether results name the speakers. Default `false`.
    #[must_use]
    pub fn includes_diarization(mut self, yes: bool) -> Self {
        self.includes_diarization = yes;
        self
    }

    /// Restricts the languages, given as ISO 639-1 codes.
    #[must_use]
    pub fn languages<S: Into<String>>(mut self, codes: impl IntoIterator<Item = S>) -> Self {
        self.languages = Some(codes.into_iter().map(Into::into).collect());
        self
    }

    /// Sets whether a task may prescribe the language. Default `true`.
    #[must_use]
    pub fn language_forcing(mut self, yes: bool) -> Self {
        self.language_forcing = yes;
        self
    }

    /// Adds an option of tasks.
    #[must_use]
    pub fn option(mut self, option: TaskOption) -> Self {
        self.options.push(option);
        self
    }

    /// Sets whether the engine needs a GPU. Default `false`.
    #[must_use]
    pub fn gpu_required(mut self, yes: bool) -> Self {
        self.gpu_required = yes;
        self
    }

    /// Sets the GPU memory it needs, in MiB.
    #[must_use]
    pub fn gpu_memory_mib(mut self, mib: u32) -> Self {
        self.gpu_memory_mib = Some(mib);
        self
    }

    /// Sets whether it runs on a CPU. Default `true`.
    #[must_use]
    pub fn supports_cpu(mut self, yes: bool) -> Self {
        self.supports_cpu = yes;
        self
    }

    /// Sets the main memory it needs, in GiB.
    #[must_use]
    pub fn memory_gib(mut self, gib: u32) -> Self {
        self.memory_gib = Some(gib);
        self
    }

    /// Sets the measured inference time divided by audio time on a GPU. The platform ranks engines
    /// by it.
    #[must_use]
    pub fn realtime_factor_gpu(mut self, factor: f64) -> Self {
        self.realtime_factor_gpu = Some(factor);
        self
    }

    /// Sets the measured inference time divided by audio time on a CPU.
    #[must_use]
    pub fn realtime_factor_cpu(mut self, factor: f64) -> Self {
        self.realtime_factor_cpu = Some(factor);
        self
    }

    /// Whether its model transcribes audio of sessions while it comes.
    pub(crate) fn streams_natively(&self) -> bool {
        #[cfg(feature = "realtime")]
        return self.native_streaming;
        #[cfg(not(feature = "realtime"))]
        false
    }

    /// The description in the form of the platform, for the registry and `describe`.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            engine_id: self.id.clone(),
            version: self.version.clone(),
            stages: self.stages.clone(),
            supports_word_timestamps: self.word_timestamps,
            supports_native_streaming: self.streams_natively(),
            model_variants: self.model_variants.clone(),
            gpu_required: self.gpu_required,
            gpu_vram_mb: self.gpu_memory_mib,
            supports_cpu: self.supports_cpu,
            min_ram_gb: self.memory_gib,
            rtf_gpu: self.realtime_factor_gpu,
            rtf_cpu: self.realtime_factor_cpu,
            max_concurrency: None,
            includes_diarization: self.includes_diarization,
            vocabulary_support: None,
            supports_language_forcing: self.language_forcing,
        }
    }
}

/// One row of `doctor`: a subject, a finding, and advice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The subject, in a word or two.
    pub name: String,
    /// The state of the subject.
    pub status: CheckStatus,
    /// The finding.
    pub detail: String,
    /// What an operator can do about it.
    pub advice: Option<String>,
}

impl Check {
    /// A subject in order.
    #[must_use]
    pub fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: CheckStatus::Ok,
            detail: detail.into(),
            advice: None,
        }
    }

    /// A subject with which the engine works worse than it could.
    #[must_use]
    pub fn warning(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Warning,
            ..Self::ok(name, detail)
        }
    }

    /// A subject without which the engine can't work.
    #[must_use]
    pub fn missing(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Missing,
            ..Self::ok(name, detail)
        }
    }

    /// Adds what an operator can do about it.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// Subject, finding and advice on one line.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.detail)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// The state of the subject of a [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStatus {
    /// In order.
    Ok,
    /// The engine works, but worse than it could.
    Warning,
    /// The engine can't work.
    Missing,
}
