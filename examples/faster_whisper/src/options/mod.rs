//! The options of a transcription, with the names and the defaults of faster-whisper.

mod value;

use dalston_engine_sdk::audio::VadOptions;
use serde_json::Value;
use thiserror::Error;

use crate::task::Task;
use value::{Accept, anything};
pub use value::{Clips, TextOrTokens, TokenChoice};

/// Why the value of an option is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name} is {value}: expected {expected}")]
pub struct OptionError {
    /// The option.
    pub name: &'static str,
    /// Its value, shortened.
    pub value: String,
    /// What is accepted.
    pub expected: String,
}

impl OptionError {
    pub(crate) fn new(
        name: &'static str,
        value: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            name,
            value: value.to_string(),
            expected: expected.into(),
        }
    }
}

/// The name and the help text of an option.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// The name, as faster-whisper's.
    pub name: &'static str,
    /// What it does, and its default.
    pub help: &'static str,
    /// Whether it is switched on or off.
    pub is_flag: bool,
    /// Whether a value is accepted. The error says what is expected.
    pub check: fn(&Value) -> Result<(), String>,
}

/// Declares each option once: its text, name, type, default, and what it accepts.
macro_rules! options {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $default:expr, $expected:literal if $check:expr;)*) => {
        /// The options of a transcription, with the names and the defaults of faster-whisper.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub struct Options {
            $($(#[doc = $help])+ pub $name: $kind,)*
        }

        impl Default for Options {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Options {
            /// All options.
            pub const DESCRIBED: &[Described] = &[$(Described {
                name: stringify!($name),
                help: concat!($($help),+),
                is_flag: <$kind as Accept>::IS_FLAG,
                check: |value| {
                    let accepted = Self::default().set(stringify!($name), value);
                    accepted.map(drop).map_err(|error| format!("expected {}", error.expected))
                },
            },)*];

            /// Sets the option `name` to a value of JSON. Returns whether there is such an option.
            /// Null is the default, except where an option may be off.
            ///
            /// # Errors
            /// The option does not accept the value.
            pub fn set(&mut self, name: &str, value: &Value) -> Result<bool, OptionError> {
                match name {
                    $(stringify!($name) if !value.is_null() || <$kind as Accept>::NULLABLE => {
                        let accepted: fn(&$kind) -> bool = $check;
                        self.$name = Accept::accept(value)
                            .filter(accepted)
                            .ok_or_else(|| OptionError::new(stringify!($name), shortened(value), $expected))?;
                    })*
                    _ => return Ok(Self::DESCRIBED.iter().any(|option| option.name == name)),
                }
                Ok(true)
            }
        }
    };
}

options! {
    /// Language of the recording. Default: detected
    language: Option<String> = None, "a language code, auto or null" if anything;
    /// transcribe, or translate to English. Default: transcribe
    task: Task = Task::Transcribe, "transcribe or translate" if anything;
    /// Width of the beam search at temperature 0. Default: 5
    beam_size: usize = 5, "a whole number from 1 to 64" if |n| (1..=64).contains(n);
    /// Number of texts to draw at a temperature above 0. Default: 5
    best_of: usize = 5, "a whole number from 1 to 64" if |n| (1..=64).contains(n);
    /// The beam search ends with this many ended texts per beam. Default: 1
    patience: f64 = 1.0, "a number above 0, to 10" if |n| *n > 0.0 && *n <= 10.0;
    /// A score is a log-probability divided by the length to the power of this. Default: 1
    length_penalty: f64 = 1.0, "a number from -10 to 10" if |n| (-10.0..=10.0).contains(n);
    /// Factor above 1 against tokens that are in the text already. Default: 1
    repetition_penalty: f64 = 1.0, "a number above 0, to 100" if |n| *n > 0.0 && *n <= 100.0;
    /// No sequence of this many tokens appears twice. 0, the default, allows all
    no_repeat_ngram_size: usize = 0, "a whole number from 0 to 448" if |n| *n <= 448;
    /// Temperatures to try in turn until a text passes the thresholds. Default: 0 to 1 in steps of 0.2
    temperature: Vec<f64> = vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
        "a number from 0 to 1, or a list of at most 20 of them"
        if |all| (1..=20).contains(&all.len()) && all.iter().all(|one| (0.0..=1.0).contains(one));
    /// Above this ratio of a text to its compressed form, the next temperature is tried. Default: 2.4
    compression_ratio_threshold: Option<f64> = Some(2.4), "a number or null" if anything;
    /// Below this average log-probability, the next temperature is tried. Default: -1
    log_prob_threshold: Option<f64> = Some(-1.0), "a number or null" if anything;
    /// Above this probability of no speech, an unlikely text is left out. Default: 0.6
    no_speech_threshold: Option<f64> = Some(0.6), "a number or null" if anything;
    /// Whether earlier text is the prompt of a window. Default: true
    condition_on_previous_text: bool = true, "true or false" if anything;
    /// Above this temperature a text is not the prompt of the next window. Default: 0.5
    prompt_reset_on_temperature: f64 = 0.5, "a number" if anything;
    /// Text, or a list of tokens, before the recording. Default: none
    initial_prompt: TextOrTokens = TextOrTokens::None, "a text, or a list of tokens" if anything;
    /// Begin of the text of the recording. Default: none
    prefix: Option<String> = None, "a text or null" if anything;
    /// Whether no window begins with a blank. Default: true
    suppress_blank: bool = true, "true or false" if anything;
    /// Tokens that are never written: ids, texts of one token, and -1 for those of the model. Default: -1
    suppress_tokens: Vec<TokenChoice> = vec![TokenChoice::Id(-1)], "a list of tokens" if |all| all.len() <= 10_000;
    /// Whether to leave out the times of segments. Default: false
    without_timestamps: bool = false, "true or false" if anything;
    /// The latest time of the first segment of a window, in seconds. Default: 1
    max_initial_timestamp: f64 = 1.0, "a number from 0 to 30" if |n| (0.0..=30.0).contains(n);
    /// Whether to find the times of words. Default: false
    word_timestamps: bool = false, "true or false" if anything;
    /// Punctuation that belongs to the word behind it
    prepend_punctuations: String = "\"'“¿([{-".to_owned(), "a text" if anything;
    /// Punctuation that belongs to the word before it
    append_punctuations: String = "\"'.。,，!！?？:：”)]}、".to_owned(), "a text" if anything;
    /// Whether to detect the language of every window. Default: false
    multilingual: bool = false, "true or false" if anything;
    /// Whether to leave out what is no speech. Default: false
    vad_filter: bool = false, "true or false" if anything;
    /// How to find speech: an object with threshold, neg_threshold, min_speech_duration_ms,
    /// max_speech_duration_s, min_silence_duration_ms and speech_pad_ms
    vad_parameters: VadOptions = VadOptions::default(), "an object with the keys of VadOptions in their ranges"
        if |vad| vad.check().is_ok();
    /// Maximum number of tokens of a window. Default: half the positions of the decoder
    max_new_tokens: Option<usize> = None, "a whole number from 1, or null" if |n| *n != Some(0);
    /// Seconds of a window, at most those of the model. Default: those of the model
    chunk_length: Option<usize> = None, "a whole number from 1, or null" if |n| *n != Some(0);
    /// Number of windows of a recording that are decoded at once, each without earlier text. They
    /// are parts of speech; vad_filter and without_timestamps are true by default then.
    /// Default: off
    batch_size: Option<usize> = None, "a whole number from 1 to 256, or null"
        if |n| n.is_none_or(|n| (1..=256).contains(&n));
    /// Parts of the recording, in seconds: start,end,start,… or a list of objects with start and end.
    /// Default: 0, to the end
    clip_timestamps: Clips = Clips::default(), "seconds in ascending order, as 0,10.5,20" if anything;
    /// Leaves out probable inventions around a silence of this many seconds; needs word_timestamps. Default: off
    hallucination_silence_threshold: Option<f64> = None, "a number from 0, or null" if |n| n.is_none_or(|n| n >= 0.0);
    /// Expected words, before the prompt of every window. Default: none
    hotwords: Option<String> = None, "a text or null" if anything;
    /// The probability at which a detected language is accepted. Default: 0.5
    language_detection_threshold: Option<f64> = Some(0.5), "a number from 0 to 1, or null"
        if |n| n.is_none_or(|n| (0.0..=1.0).contains(&n));
    /// Maximum number of windows to detect the language in. Default: 1
    language_detection_segments: usize = 1, "a whole number from 1 to 1000" if |n| (1..=1000).contains(n);
    /// Seed of the random numbers at a temperature above 0. Default: 0
    seed: u64 = 0, "a whole number from 0" if anything;
}

impl Options {
    /// The defaults of faster-whisper's `BatchedInferencePipeline`, which decodes so many windows
    /// at once.
    #[must_use]
    pub fn batched(batch_size: usize) -> Self {
        let mut vad_parameters = VadOptions::default();
        vad_parameters.min_silence_duration_ms = 160;
        Self {
            batch_size: Some(batch_size),
            vad_filter: true,
            vad_parameters,
            without_timestamps: true,
            condition_on_previous_text: false,
            ..Self::default()
        }
    }
}

/// The value for an error message.
pub(crate) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(name: &str, value: Value) -> Result<Options, String> {
        let mut options = Options::default();
        match options.set(name, &value) {
            Ok(true) => Ok(options),
            Ok(false) => Err("unknown".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn values_of_json_and_of_a_command_line_are_accepted() {
        assert_eq!(set("beam_size", json!(3)).unwrap().beam_size, 3);
        assert_eq!(set("temperature", json!(0.5)).unwrap().temperature, [0.5]);
        assert_eq!(
            set("temperature", json!("0, 0.4")).unwrap().temperature,
            [0.0, 0.4]
        );
        assert_eq!(
            set("no_speech_threshold", json!(null))
                .unwrap()
                .no_speech_threshold,
            None
        );
        assert!(set("multilingual", json!("True")).unwrap().multilingual);
        let tokens = set("suppress_tokens", json!("-1,7")).unwrap().suppress_tokens;
        assert_eq!(tokens, [TokenChoice::Id(-1), TokenChoice::Id(7)]);
        let tokens = set("suppress_tokens", json!(["-1", " five"]))
            .unwrap()
            .suppress_tokens;
        assert_eq!(
            tokens,
            [TokenChoice::Id(-1), TokenChoice::Text(" five".to_owned())]
        );
        let clips = set("clip_timestamps", json!("1,2.5,4")).unwrap().clip_timestamps;
        assert_eq!(clips.ranges(), [(1.0, Some(2.5)), (4.0, None)]);
        let parts = json!([{"start": 1, "end": 2.5}, {"start": 4.0, "end": 6.0}]);
        let clips = set("clip_timestamps", parts).unwrap().clip_timestamps;
        assert_eq!(clips.ranges(), [(1.0, Some(2.5)), (4.0, Some(6.0))]);
        assert_eq!(set("prefix", json!(5)).unwrap().prefix.as_deref(), Some("5"));
    }

    #[test]
    fn impossible_values_are_named() {
        for (name, value, problem) in [
            (
                "beam_size",
                json!(0),
                "beam_size is 0: expected a whole number from 1 to 64",
            ),
            (
                "beam_size",
                json!("many"),
                "beam_size is \"many\": expected a whole number from 1 to 64",
            ),
            (
                "patience",
                json!(0),
                "patience is 0: expected a number above 0, to 10",
            ),
            (
                "repetition_penalty",
                json!(-1),
                "repetition_penalty is -1: expected a number above 0, to 100",
            ),
            (
                "temperature",
                json!([0.0, 7.0]),
                "temperature is [0.0,7.0]: expected a number from 0 to 1, or a list of at most 20 of them",
            ),
            (
                "clip_timestamps",
                json!("3,1"),
                "clip_timestamps is \"3,1\": expected seconds in ascending order, as 0,10.5,20",
            ),
            (
                "clip_timestamps",
                json!([{"start": 1}]),
                "clip_timestamps is [{\"start\":1}]: expected seconds in ascending order, as 0,10.5,20",
            ),
            (
                "task",
                json!("sing"),
                "task is \"sing\": expected transcribe or translate",
            ),
            ("made_up", json!(1), "unknown"),
        ] {
            assert_eq!(set(name, value).unwrap_err(), problem);
        }
    }
}
