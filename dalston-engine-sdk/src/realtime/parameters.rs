//! The query parameters of a session: [`Parameters`].

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::endpoint::EndpointSettings;
use super::input::Quality;
use super::lag::LagLimits;
use crate::audio::Encoding;
use crate::config::RealtimeConfig;

/// What a client asks for. Unknown parameters are ignored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    pub(super) session_id: String,
    /// The session that this one continues.
    pub(super) resumes: Option<String>,
    pub(super) language: Option<String>,
    pub(super) model: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) vocabulary: Vec<String>,
    pub(super) encoding: Encoding,
    pub(super) encoding_name: &'static str,
    /// The declared rate, which `session.begin` repeats.
    pub(super) sample_rate: u32,
    /// The rate of the audio that arrives.
    pub(super) client_rate: u32,
    pub(super) channels: u16,
    pub(super) quality: Quality,
    pub(super) vad: bool,
    pub(super) partials: bool,
    pub(super) words: bool,
    pub(super) store_audio: bool,
    pub(super) store_transcript: bool,
    pub(super) endpoint: EndpointSettings,
    pub(super) lag: LagLimits,
    pub(super) traceparent: Option<String>,
}

const ENCODINGS: [(&str, Encoding); 4] = [
    ("pcm_s16le", Encoding::Signed16),
    ("pcm_f32le", Encoding::Float32),
    ("mulaw", Encoding::MuLaw),
    ("alaw", Encoding::ALaw),
];

/// The longest utterance. `max_utterance_duration=0` stands for it.
const LONGEST_UTTERANCE: f64 = 300.0;
/// The most words of a vocabulary, and the length of a text.
const MOST_WORDS: usize = 1_000;
const LONGEST_TEXT: usize = 4_096;

impl Parameters {
    /// Reads a query. The error names the parameter, its value and what is accepted.
    pub(super) fn parse(query: &HashMap<String, String>, config: &RealtimeConfig) -> Result<Self, String> {
        let query = Query(query);
        let session_id = match query.id("session_id")? {
            Some(id) => id,
            None => format!("sess_{}", &Uuid::new_v4().simple().to_string()[..16]),
        };
        let (encoding_name, encoding) = query.one_of("encoding", &ENCODINGS)?.unwrap_or(ENCODINGS[0]);
        let rates = 8_000..=48_000;
        let sample_rate = query.number("sample_rate", rates.clone())?.unwrap_or(16_000);
        let client_rate = query.number("client_sample_rate", rates)?.unwrap_or(sample_rate);
        let qualities = [
            ("fast", Quality::Fast),
            ("balanced", Quality::Balanced),
            ("high", Quality::High),
        ];
        let quality = query.one_of("resample_quality", &qualities)?;
        let longest: Option<f64> = query.number("max_utterance_duration", 0.0..=LONGEST_UTTERANCE)?;
        let max_utterance = match longest {
            None => config.max_utterance,
            Some(0.0) => Duration::from_secs_f64(LONGEST_UTTERANCE),
            Some(seconds) => Duration::from_secs_f64(seconds.max(1.0)),
        };
        Ok(Self {
            session_id,
            resumes: query.id("resume_session_id")?,
            language: query.text("language")?.filter(|language| language != "auto"),
            model: query.text("model")?,
            prompt: query.text("prompt")?,
            vocabulary: query.vocabulary()?,
            encoding,
            encoding_name,
            sample_rate,
            client_rate,
            channels: query.number("channels", 1..=2)?.unwrap_or(1),
            quality: quality.map_or(Quality::Balanced, |(_, quality)| quality),
            vad: query.switch("enable_vad", true),
            partials: query.switch("interim_results", true),
            words: query.switch("word_timestamps", false),
            store_audio: query.switch("store_audio", true),
            store_transcript: query.switch("store_transcript", true),
            endpoint: EndpointSettings {
                threshold: query.number("vad_threshold", 0.0..=1.0)?.unwrap_or(0.5),
                min_speech: query
                    .milliseconds("min_speech_duration_ms", 50..=2_000)?
                    .unwrap_or(MIN_SPEECH),
                min_silence: query
                    .milliseconds("min_silence_duration_ms", 50..=2_000)?
                    .unwrap_or(config.min_silence),
                prefix: query
                    .milliseconds("prefix_padding_ms", 0..=5_000)?
                    .unwrap_or(PREFIX),
                max_utterance,
            },
            lag: LagLimits {
                warning: query
                    .seconds("lag_warning_seconds")?
                    .unwrap_or(config.lag_warning),
                hard: query.seconds("lag_hard_seconds")?.unwrap_or(config.lag_hard),
                grace: query
                    .seconds("lag_hard_grace_seconds")?
                    .unwrap_or(config.lag_hard_grace),
            },
            traceparent: query.text("traceparent")?,
        })
    }

    /// The configuration of a task for the engine.
    pub(super) fn task_config(&self, with_words: bool) -> Map<String, Value> {
        let mut config = Map::new();
        let language = self.language.as_deref().unwrap_or("auto");
        config.insert("language".to_owned(), language.into());
        config.insert("word_timestamps".to_owned(), with_words.into());
        if let Some(prompt) = &self.prompt {
            config.insert("prompt".to_owned(), prompt.as_str().into());
        }
        if !self.vocabulary.is_empty() {
            config.insert("vocabulary".to_owned(), self.vocabulary.clone().into());
        }
        config
    }
}

const MIN_SPEECH: Duration = Duration::from_millis(250);
const PREFIX: Duration = Duration::from_millis(300);

/// A query whose empty values count as absent.
struct Query<'a>(&'a HashMap<String, String>);

impl Query<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        if text.len() > LONGEST_TEXT {
            return Err(format!("{name} is longer than {LONGEST_TEXT} bytes"));
        }
        Ok(Some(text.to_owned()))
    }

    /// An id becomes part of keys and log lines.
    fn id(&self, name: &str) -> Result<Option<String>, String> {
        let Some(id) = self.get(name) else { return Ok(None) };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if id.len() > 128 || !id.bytes().all(is_plain) || id.starts_with('.') {
            return Err(wrong(
                name,
                id,
                "1 to 128 letters, digits, dots, dashes and underscores",
            ));
        }
        Ok(Some(id.to_owned()))
    }

    fn number<T: FromStr + PartialOrd + Display>(
        &self,
        name: &str,
        accepted: RangeInclusive<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if accepted.contains(&number) => Ok(Some(number)),
            _ => {
                let (least, most) = accepted.into_inner();
                Err(wrong(name, text, &format!("a number from {least} to {most}")))
            }
        }
    }

    fn milliseconds(&self, name: &str, accepted: RangeInclusive<u64>) -> Result<Option<Duration>, String> {
        Ok(self.number(name, accepted)?.map(Duration::from_millis))
    }

    fn seconds(&self, name: &str) -> Result<Option<Duration>, String> {
        Ok(self.number(name, 0.0..=3_600.0)?.map(Duration::from_secs_f64))
    }

    /// As the platform reads it: everything but `true`, `1` and `yes` is false.
    fn switch(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, |text| {
            matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes")
        })
    }

    fn one_of<T: Copy>(
        &self,
        name: &str,
        known: &[(&'static str, T)],
    ) -> Result<Option<(&'static str, T)>, String> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let found = known.iter().find(|(known, _)| *known == text);
        match found {
            Some(found) => Ok(Some(*found)),
            None => {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                Err(wrong(name, text, &names.join(", ")))
            }
        }
    }

    fn vocabulary(&self) -> Result<Vec<String>, String> {
        let Some(text) = self.get("vocabulary") else {
            return Ok(Vec::new());
        };
        match serde_json::from_str::<Vec<String>>(text) {
            Ok(words) if words.len() <= MOST_WORDS => Ok(words),
            _ => Err(format!(
                "vocabulary is not valid: expected a JSON list of up to {MOST_WORDS} texts"
            )),
        }
    }
}

fn wrong(name: &str, value: &str, accepted: &str) -> String {
    let value: String = value.chars().take(100).collect();
    format!("{name} is {value:?}: expected {accepted}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, String> {
        let query = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Parameters::parse(&query, &RealtimeConfig::default())
    }

    #[test]
    fn empty_query_has_the_defaults_of_the_protocol() {
        let parameters = parse(&[("include_language_detection", "true"), ("model", "")]).unwrap();
        let id = &parameters.session_id;
        assert!(id.starts_with("sess_") && id.len() == 21, "{id}");
        let ms = Duration::from_millis;
        let expected = Parameters {
            session_id: id.clone(),
            resumes: None,
            language: None,
            model: None,
            prompt: None,
            vocabulary: Vec::new(),
            encoding: Encoding::Signed16,
            encoding_name: "pcm_s16le",
            sample_rate: 16_000,
            client_rate: 16_000,
            channels: 1,
            quality: Quality::Balanced,
            vad: true,
            partials: true,
            words: false,
            store_audio: true,
            store_transcript: true,
            endpoint: EndpointSettings {
                threshold: 0.5,
                min_speech: ms(250),
                min_silence: ms(400),
                prefix: ms(300),
                max_utterance: ms(30_000),
            },
            lag: LagLimits {
                warning: ms(3_000),
                hard: ms(5_000),
                grace: ms(2_000),
            },
            traceparent: None,
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn sample_rate_is_that_of_the_audio_unless_both_are_given() {
        let rates = |pairs| {
            let parameters = parse(pairs).unwrap();
            (parameters.sample_rate, parameters.client_rate)
        };
        assert_eq!(rates(&[("sample_rate", "24000")]), (24_000, 24_000));
        let both = [("sample_rate", "16000"), ("client_sample_rate", "48000")];
        assert_eq!(rates(&both), (16_000, 48_000));
    }

    #[test]
    fn wrong_values_are_named() {
        for (name, value, error) in [
            (
                "sample_rate",
                "96000",
                "sample_rate is \"96000\": expected a number from 8000 to 48000",
            ),
            (
                "encoding",
                "opus",
                "encoding is \"opus\": expected pcm_s16le, pcm_f32le, mulaw, alaw",
            ),
            (
                "channels",
                "3",
                "channels is \"3\": expected a number from 1 to 2",
            ),
            (
                "vad_threshold",
                "NaN",
                "vad_threshold is \"NaN\": expected a number from 0 to 1",
            ),
            (
                "min_silence_duration_ms",
                "10",
                "min_silence_duration_ms is \"10\": expected a number from 50 to 2000",
            ),
            (
                "vocabulary",
                "one",
                "vocabulary is not valid: expected a JSON list of up to 1000 texts",
            ),
            (
                "session_id",
                "../x",
                "session_id is \"../x\": expected 1 to 128 letters, digits, dots, dashes and underscores",
            ),
        ] {
            assert_eq!(parse(&[(name, value)]).unwrap_err(), error);
        }
    }

    #[test]
    fn switches_are_read_as_the_platform_reads_them() {
        let parameters = parse(&[
            ("enable_vad", "0"),
            ("interim_results", "YES"),
            ("word_timestamps", "1"),
        ])
        .unwrap();
        assert_eq!(
            (parameters.vad, parameters.partials, parameters.words),
            (false, true, true)
        );
        let endless = parse(&[("max_utterance_duration", "0")]).unwrap();
        assert_eq!(endless.endpoint.max_utterance, Duration::from_secs(300));
    }
}
