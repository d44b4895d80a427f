//! The options of a task: its configuration, in the words of the platform and of faster-whisper.

use dalston_engine_sdk::stage::{TimestampGranularity, TranscribeTask};
use dalston_engine_sdk::{TaskError, TaskOption, TaskRequest, TranscribeRequest};

use crate::chunking::{self, Chunking};
use crate::options::{Described, Options, TextOrTokens};
use crate::task::Task;

/// What a task asks for.
pub(crate) struct Request {
    pub(crate) options: Options,
    /// Whether the task names the language.
    pub(crate) language_given: bool,
    /// Keys and wishes without effect.
    pub(crate) warnings: Vec<String>,
}

impl Request {
    /// Reads the configuration. faster-whisper's names win over the platform's.
    pub(crate) fn of(task: &TaskRequest) -> Result<Self, TaskError> {
        let mut options = Options::default();
        let mut platform = task.config().clone();
        for (name, value) in task.config() {
            let known = options
                .set(name, value)
                .map_err(|error| TaskError::permanent("invalid_config", error))?;
            // The platform knows these two, too, and more forms of the language.
            if known && name != "language" && name != "task" {
                platform.remove(name);
            }
        }
        let chunking = match platform.remove(chunking::NAME).filter(|value| !value.is_null()) {
            Some(value) => {
                Some(Chunking::read(&value).map_err(|error| TaskError::permanent("invalid_config", error))?)
            }
            None => None,
        };
        let request = TranscribeRequest::from_config(&platform)
            .map_err(|error| TaskError::permanent("invalid_config", error))?;
        let is_set = |name: &str| task.config().get(name).is_some_and(|value| !value.is_null());
        options.language.clone_from(&request.language);
        options.task = match request.task {
            TranscribeTask::Translate => Task::Translate,
            _ => Task::Transcribe,
        };
        if let Some(prompt) = request.prompt.as_ref().filter(|_| !is_set("initial_prompt")) {
            options.initial_prompt = TextOrTokens::Text(prompt.clone());
        }
        if let Some(words) = request.vocabulary.as_ref().filter(|_| !is_set("hotwords")) {
            options.hotwords = Some(words.join(", "));
        }
        options.without_timestamps |= request.timestamp_granularity == TimestampGranularity::None;
        // Batch jobs of the platform do not say that they want words.
        if !is_set("word_timestamps") {
            options.word_timestamps =
                !options.without_timestamps && request.timestamp_granularity >= TimestampGranularity::Word;
        }
        let mut warnings = request.warnings.clone();
        warnings.extend(without_effect(&request, &options));
        if let Some(batch_size) = options.batch_size {
            if options.condition_on_previous_text && is_set("condition_on_previous_text") {
                let why = "condition_on_previous_text has no effect with batch_size";
                warnings.push(why.to_owned());
            }
            let batched = Options::batched(batch_size);
            if !is_set("vad_filter") {
                options.vad_filter = batched.vad_filter;
            }
            if !is_set("vad_parameters") {
                options.vad_parameters = batched.vad_parameters;
            }
            if !is_set("without_timestamps") {
                options.without_timestamps = batched.without_timestamps;
            }
        }
        if let Some(chunking) = chunking {
            if is_set("vad_parameters") || (is_set("vad_filter") && !options.vad_filter) {
                let why = "chunking_strategy has no effect beside vad_parameters or without vad_filter";
                warnings.push(why.to_owned());
            } else {
                options.vad_filter = true;
                chunking.apply(&mut options.vad_parameters);
            }
        }
        if is_set("vad_parameters") && !options.vad_filter {
            warnings.push("vad_parameters has no effect without vad_filter".to_owned());
        }
        let has_text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        if has_text(&options.hotwords) && has_text(&options.prefix) {
            warnings.push("hotwords has no effect with prefix".to_owned());
        }
        Ok(Self {
            language_given: options.language.is_some(),
            options,
            warnings,
        })
    }
}

/// One warning for each wish that has no effect.
fn without_effect(request: &TranscribeRequest, options: &Options) -> Vec<String> {
    let mut warnings = Vec::new();
    if request.timestamp_granularity > TimestampGranularity::Word {
        let finer = request.timestamp_granularity.as_str();
        warnings.push(format!("times of a {finer} are not supported: words have times"));
    }
    if options.hallucination_silence_threshold.is_some() && options.batch_size.is_some() {
        warnings.push("hallucination_silence_threshold has no effect with batch_size".to_owned());
    } else if options.hallucination_silence_threshold.is_some() && !options.word_timestamps {
        warnings.push("hallucination_silence_threshold has no effect without word_timestamps".to_owned());
    }
    if request.include_transcription_logprobs {
        warnings.push(
            "log-probabilities of single tokens are not supported: segments have avg_logprob".to_owned(),
        );
    }
    warnings
}

/// The option for command lines and HTTP routes.
pub(crate) fn task_option(option: &Described) -> TaskOption {
    let described = TaskOption::new(option.name, option.help.trim_start(), option.check).flag(option.is_flag);
    match option.name {
        // Without the key, a task of the platform wants words.
        "word_timestamps" => described.local_default(false),
        _ => described,
    }
}
