//! Transcribes recordings of any length, window by window.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::ops::Range;

use super::greedy::{Hypothesis, Sampling};
use super::pace::Pace;
use super::rules::{RuleConfig, Rules};
use crate::error::Error;
use crate::tokenizer::Task;
use crate::whisper::Whisper;

/// A window that advances by fewer seconds is slow.
const SLOW_SECONDS: f64 = 1.0;
/// Maximum number of places in a warning. A long recording may have thousands.
const MAX_PLACES: usize = 5;
/// Above this temperature a text is too random for the prompt of the next window.
const MAX_PROMPT_TEMPERATURE: f64 = 0.5;

/// Configuration of a transcription.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TranscribeConfig {
    /// Language code; `None` detects it from the first window with speech.
    pub language: Option<String>,
    /// Transcribe (the default) or translate to English.
    pub task: Task,
    /// Whether segments have times of their own (the default) or those of their window.
    pub timestamps: bool,
    /// Text before the recording, for spelling, names and style. Used for the first window only.
    pub initial_prompt: Option<String>,
    /// Expected words, before the earlier text of each prompt. They take at most half of it.
    pub hotwords: Option<String>,
    /// Whether the prompt of a window is the text before it. More consistent, but repeats errors.
    /// Default: no.
    pub condition_on_previous_text: bool,
    /// Token ids that are never sampled. `None` (the default) uses those of the model's files.
    pub suppress_tokens: Option<Vec<i64>>,
    /// Whether to forbid a blank or the end of text at the start of a window. Default: yes.
    pub suppress_blank: bool,
    /// Temperatures to try in turn until a result passes the thresholds. Default: only 0.
    pub temperatures: Vec<f64>,
    /// Above this [compression ratio](crate::compression_ratio) the next temperature is tried.
    /// Default: 2.4.
    pub compression_ratio_threshold: Option<f64>,
    /// Below this average log-probability the next temperature is tried. Default: -1.
    pub logprob_threshold: Option<f64>,
    /// Above this probability of no speech, together with a low log-probability, a window is
    /// silent. Default: 0.6.
    pub no_speech_threshold: Option<f64>,
}

impl Default for TranscribeConfig {
    fn default() -> Self {
        Self {
            language: None,
            task: Task::Transcribe,
            timestamps: true,
            initial_prompt: None,
            hotwords: None,
            condition_on_previous_text: false,
            suppress_tokens: None,
            suppress_blank: true,
            temperatures: vec![0.0],
            compression_ratio_threshold: Some(2.4),
            logprob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
        }
    }
}

/// Samples of any length at the model's rate, one channel, read piece by piece.
pub trait Samples {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples in `range`, which lies within [`len`](Self::len).
    ///
    /// # Errors
    /// When reading fails.
    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>>;
}

impl Samples for [f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>> {
        self.get(range)
            .map(Cow::Borrowed)
            .ok_or_else(|| "range beyond the samples".into())
    }
}

/// Observes and can stop a transcription.
pub trait Observer {
    /// Whether to continue. Called before each window and every few tokens.
    fn keep_going(&mut self) -> bool {
        true
    }

    /// Reports the transcribed fraction of the recording, 0 to 1.
    fn advanced(&mut self, _fraction: f32) {}
}

/// Ignores progress and never stops.
impl Observer for () {}

/// A transcribed recording.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Transcription {
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// Language code; `None` if none was given and the recording has no speech to detect it from.
    pub language: Option<String>,
    /// Probability of the detected language; `None` if it was given.
    pub language_probability: Option<f64>,
    /// Seconds of the recording.
    pub duration: f64,
    /// Number of decoded windows.
    pub windows: usize,
    /// Warnings for the reader of the transcript.
    pub warnings: Vec<String>,
}

impl Transcription {
    /// The text of all segments.
    #[must_use]
    pub fn text(&self) -> String {
        self.segments
            .iter()
            .map(|segment| segment.text.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A part of a transcript.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Segment {
    /// Start, in seconds from the start of the recording.
    pub start: f64,
    /// End, in seconds from the start of the recording.
    pub end: f64,
    /// The text, stripped.
    pub text: String,
    /// Token ids, timestamps included.
    pub tokens: Vec<i64>,
    /// The window's: see [`Hypothesis::avg_logprob`].
    pub avg_logprob: f64,
    /// The window's: see [`Hypothesis::no_speech_prob`].
    pub no_speech_prob: f64,
    /// The window's: see [`compression_ratio`](crate::compression_ratio).
    pub compression_ratio: f64,
    /// The temperature that the window was decoded at.
    pub temperature: f64,
}

impl Whisper {
    /// Transcribes a recording of any length.
    ///
    /// A window starts where the last complete segment of the previous window ended. The number of
    /// windows is bounded for every model and recording: a window without progress is skipped with
    /// a warning.
    ///
    /// # Errors
    /// The language is unknown, the samples can't be read, `observer` stopped the transcription, or
    /// libtorch failed.
    pub fn transcribe<S: Samples + ?Sized>(
        &mut self,
        samples: &S,
        config: &TranscribeConfig,
        observer: &mut dyn Observer,
    ) -> Result<Transcription, Error> {
        Seeker::new(self, config)?.run(samples, observer)
    }
}

/// The state between two windows.
struct Seeker<'a> {
    whisper: &'a mut Whisper,
    config: &'a TranscribeConfig,
    rules: Rules,
    language: Option<String>,
    language_probability: Option<f64>,
    /// The start of every prompt.
    hotwords: Vec<i64>,
    /// Text tokens that the next prompt may use.
    previous: Vec<i64>,
    segments: Vec<Segment>,
    windows: usize,
    pace: Pace,
    skipped_at: Vec<f64>,
    /// The end of the recording in seconds, in whole hundredths.
    end: f64,
    /// Segments that the model placed behind the end.
    behind_end: usize,
}

/// The position of a window in the recording, in frames.
#[derive(Clone, Copy)]
struct Place {
    seek: usize,
    size: usize,
}

impl<'a> Seeker<'a> {
    fn new(whisper: &'a mut Whisper, config: &'a TranscribeConfig) -> Result<Self, Error> {
        let vocabulary = whisper.vocabulary();
        let language = config
            .language
            .as_deref()
            .map(|name| vocabulary.language(name))
            .transpose()?;
        // The prompt checks the task: fail before the first window.
        let any = language
            .clone()
            .or_else(|| vocabulary.languages().into_iter().next())
            .unwrap_or_default();
        vocabulary.prompt(&any, config.task, config.timestamps, &[], 0)?;
        let tokens = |text: &Option<String>| match text.as_deref().map(str::trim) {
            // In the middle of a text, words begin with a blank.
            Some(text) if !text.is_empty() => vocabulary.encode(&format!(" {text}")),
            _ => Ok(Vec::new()),
        };
        let previous = tokens(&config.initial_prompt)?;
        let mut hotwords = tokens(&config.hotwords)?;
        hotwords.truncate(whisper.max_previous_tokens() / 2);
        let rules = Rules::new(
            vocabulary,
            &rule_config(whisper, config),
            whisper.placement().device,
        )?;
        let features = &whisper.config().features;
        let pace =
            Pace::new((SLOW_SECONDS * features.sampling_rate as f64 / features.hop_length as f64) as usize);
        Ok(Self {
            whisper,
            config,
            rules,
            language,
            language_probability: None,
            hotwords,
            previous,
            segments: Vec::new(),
            windows: 0,
            pace,
            skipped_at: Vec::new(),
            end: 0.0,
            behind_end: 0,
        })
    }

    fn run<S: Samples + ?Sized>(
        mut self,
        samples: &S,
        observer: &mut dyn Observer,
    ) -> Result<Transcription, Error> {
        let features = self.whisper.config().features.clone();
        let hop = features.hop_length as usize;
        let frames = samples.len() / hop;
        let duration = samples.len() as f64 / features.sampling_rate as f64;
        // The sum keeps a duration of whole hundredths, which has no exact binary form.
        self.end = (duration * 100.0 + 1e-6).floor() / 100.0;
        let mut seek = 0;
        while seek < frames {
            if !observer.keep_going() {
                return Err(Error::Stopped);
            }
            let place = Place {
                seek,
                size: features.window_frames().min(frames - seek),
            };
            let range = place.seek * hop..(place.seek + place.size) * hop;
            let window = samples.read(range).map_err(Error::Samples)?;
            let advance = self
                .window(&window, place, observer)
                .map_err(|error| self.locate(error, place))?;
            seek += self.pace.allow(advance, place.size).unwrap_or_else(|| {
                self.skipped_at.push(self.seconds(place.seek));
                place.size
            });
            observer.advanced(seek as f32 / frames as f32);
        }
        let mut warnings = Vec::new();
        if !self.skipped_at.is_empty() {
            let places: Vec<_> = self
                .skipped_at
                .iter()
                .take(MAX_PLACES)
                .map(|at| format!("{at:.2} s"))
                .collect();
            let more = match self.skipped_at.len().saturating_sub(MAX_PLACES) {
                0 => String::new(),
                more => format!(" and {more} more places"),
            };
            let places = places.join(", ");
            warnings.push(format!(
                "the model made no progress and was skipped ahead at {places}{more}"
            ));
        }
        if self.behind_end > 0 {
            warnings.push(format!(
                "the model wrote text for a time behind the end of the recording: {} segment(s) were left out",
                self.behind_end
            ));
        }
        Ok(Transcription {
            segments: self.segments,
            language: self.language,
            language_probability: self.language_probability,
            duration,
            windows: self.windows,
            warnings,
        })
    }

    /// Decodes one window and returns the number of frames to advance.
    fn window(&mut self, samples: &[f32], place: Place, observer: &mut dyn Observer) -> Result<usize, Error> {
        self.windows += 1;
        let offset = self.seconds(place.seek);
        let features = {
            let span = tracing::info_span!("whisper.features", "whisper.window_offset_seconds" = offset);
            let _entered = span.enter();
            let features = self.whisper.features(samples)?;
            self.settle(&span);
            features
        };
        let hypothesis = self.decode(&features, offset, observer)?;
        let silent = self
            .config
            .no_speech_threshold
            .is_some_and(|max| hypothesis.no_speech_prob > max)
            && self
                .config
                .logprob_threshold
                .is_none_or(|least| hypothesis.avg_logprob <= least);
        if silent {
            self.forget_guess(&hypothesis);
            return Ok(place.size);
        }
        let advance = self.cut(&hypothesis, place)?;
        self.forget_guess(&hypothesis);
        let text_end = self.whisper.vocabulary().end_of_text();
        if self.config.condition_on_previous_text && hypothesis.temperature <= MAX_PROMPT_TEMPERATURE {
            self.previous
                .extend(hypothesis.ids.iter().filter(|&&id| id < text_end));
            let surplus = self
                .previous
                .len()
                .saturating_sub(self.whisper.max_previous_tokens());
            self.previous.drain(..surplus);
        } else {
            self.previous.clear();
        }
        Ok(advance)
    }

    /// Discards a language that was detected in silence. The next window detects it again.
    fn forget_guess(&mut self, hypothesis: &Hypothesis) {
        let guessed = self.config.language.is_none() && self.segments.is_empty();
        let silent = self
            .config
            .no_speech_threshold
            .is_some_and(|max| hypothesis.no_speech_prob > max);
        if guessed && silent {
            self.language = None;
            self.language_probability = None;
        }
    }

    /// Encodes the window, detects the language if it is not known, and decodes at the first
    /// temperature whose result passes the thresholds.
    fn decode(
        &mut self,
        features: &tch::Tensor,
        offset: f64,
        observer: &mut dyn Observer,
    ) -> Result<Hypothesis, Error> {
        let max_tokens = self.whisper.max_sampled_tokens();
        let most_previous = self.whisper.max_previous_tokens();
        let encode = tracing::info_span!("whisper.encode", "whisper.window_offset_seconds" = offset);
        let entered = encode.enter();
        let mut window = self.whisper.window(features)?;
        if !encode.is_disabled() {
            window.whisper().synchronize();
        }
        drop(entered);

        if self.language.is_none() {
            let span = tracing::info_span!(
                "whisper.detect_language",
                "dalston.language" = tracing::field::Empty,
                "whisper.language_probability" = tracing::field::Empty,
            );
            let _entered = span.enter();
            if let Some(best) = window.languages()?.into_iter().next() {
                span.record("dalston.language", &best.code);
                span.record("whisper.language_probability", best.probability);
                self.language_probability = Some(best.probability);
                self.language = Some(best.code);
            } else {
                self.language = window.whisper().vocabulary().languages().into_iter().next();
            }
        }
        let language = self.language.as_deref().unwrap_or_default();
        let room = most_previous - self.hotwords.len();
        let skipped = self.previous.len().saturating_sub(room);
        let context: Vec<i64> = self
            .hotwords
            .iter()
            .chain(self.previous.iter().skip(skipped))
            .copied()
            .collect();
        let prompt = window.whisper().vocabulary().prompt(
            language,
            self.config.task,
            self.config.timestamps,
            &context,
            most_previous,
        )?;

        let temperatures: &[f64] = match self.config.temperatures.as_slice() {
            [] => &[0.0],
            some => some,
        };
        let mut best: Option<Hypothesis> = None;
        for &temperature in temperatures {
            let span = tracing::info_span!(
                "whisper.decode",
                "whisper.window_offset_seconds" = offset,
                "whisper.temperature" = temperature,
                "whisper.prompt_tokens" = prompt.ids.len(),
                "whisper.tokens" = tracing::field::Empty,
                "whisper.avg_logprob" = tracing::field::Empty,
                "whisper.no_speech_prob" = tracing::field::Empty,
                "whisper.compression_ratio" = tracing::field::Empty,
            );
            let _entered = span.enter();
            let sampling = Sampling {
                temperature,
                max_tokens,
            };
            let hypothesis = window.decode(&prompt, &self.rules, sampling, &mut || observer.keep_going())?;
            span.record("whisper.tokens", hypothesis.ids.len());
            span.record("whisper.avg_logprob", hypothesis.avg_logprob);
            span.record("whisper.no_speech_prob", hypothesis.no_speech_prob);
            span.record("whisper.compression_ratio", hypothesis.compression_ratio);
            let good = good_enough(&hypothesis, self.config);
            best = Some(hypothesis);
            if good {
                break;
            }
        }
        // There is at least one temperature, so there is a hypothesis.
        best.ok_or(Error::Stopped)
    }

    /// Turns the tokens of a window into segments and returns the number of frames to advance.
    fn cut(&mut self, hypothesis: &Hypothesis, place: Place) -> Result<usize, Error> {
        let first = self.whisper.vocabulary().first_timestamp();
        let step = self.whisper.config().timestamp_step();
        let offset = self.seconds(place.seek);
        let time = |id: i64| (id - first) as f64 * step;
        let ids = hypothesis.ids.as_slice();
        if !self.config.timestamps {
            // Without its rules, a model can emit timestamps that mean nothing.
            self.push(ids, offset, offset + self.seconds(place.size), hypothesis)?;
            return Ok(place.size);
        }
        let is_stamp = |at: usize| ids.get(at).is_some_and(|&id| id >= first);
        let single_end = ids.len() > 1 && is_stamp(ids.len() - 1) && !is_stamp(ids.len() - 2);

        // Two timestamps in a row: one segment ends, the next begins.
        let mut cuts: Vec<usize> = (1..ids.len())
            .filter(|&at| is_stamp(at) && is_stamp(at - 1))
            .collect();
        if cuts.is_empty() {
            let last = ids
                .iter()
                .rev()
                .copied()
                .find(|&id| id >= first)
                .filter(|&id| id != first);
            let duration = last.map_or(self.seconds(place.size), time);
            self.push(ids, offset, offset + duration, hypothesis)?;
            return Ok(place.size);
        }
        if single_end {
            cuts.push(ids.len());
        }
        let mut from = 0;
        let mut end = 0.0;
        for cut in cuts {
            let part = ids.get(from..cut).unwrap_or_default();
            if let (Some(&start), Some(&stop)) = (part.first(), part.last()) {
                end = time(stop);
                self.push(part, offset + time(start), offset + end, hypothesis)?;
            }
            from = cut;
        }
        if single_end {
            return Ok(place.size);
        }
        Ok((end * self.frames_per_second()).round() as usize)
    }

    fn push(&mut self, ids: &[i64], start: f64, end: f64, hypothesis: &Hypothesis) -> Result<(), Error> {
        let text = self.whisper.vocabulary().decode(ids)?;
        // Transcripts have times in hundredths.
        let (start, end) = (hundredths(start), hundredths(end));
        if text.is_empty() || end <= start {
            return Ok(());
        }
        // The window is filled up with silence, and some models hear something in it.
        if start >= self.end {
            self.behind_end += 1;
            return Ok(());
        }
        let end = end.min(self.end);
        self.segments.push(Segment {
            start,
            end,
            text,
            tokens: ids.to_vec(),
            avg_logprob: hypothesis.avg_logprob,
            no_speech_prob: hypothesis.no_speech_prob,
            compression_ratio: hypothesis.compression_ratio,
            temperature: hypothesis.temperature,
        });
        Ok(())
    }

    /// Adds the position of the window to an error.
    fn locate(&self, error: Error, place: Place) -> Error {
        match error {
            Error::NotANumber { .. } => Error::NotANumber {
                offset: self.seconds(place.seek),
            },
            other => other,
        }
    }

    fn settle(&self, span: &tracing::Span) {
        if !span.is_disabled() {
            self.whisper.synchronize();
        }
    }

    fn seconds(&self, frames: usize) -> f64 {
        frames as f64 / self.frames_per_second()
    }

    fn frames_per_second(&self) -> f64 {
        let features = &self.whisper.config().features;
        features.sampling_rate as f64 / features.hop_length as f64
    }
}

fn rule_config(whisper: &Whisper, config: &TranscribeConfig) -> RuleConfig {
    let generation = &whisper.config().generation;
    let vocabulary = whisper.vocabulary();
    let suppress = match &config.suppress_tokens {
        // The given list replaces the model's. Control tokens are never part of a text.
        Some(given) => [given.as_slice(), vocabulary.control()].concat(),
        None => vocabulary.usually_suppressed().to_vec(),
    };
    let suppress_first = if config.suppress_blank {
        generation.begin_suppress_tokens.clone().unwrap_or_default()
    } else {
        Vec::new()
    };
    RuleConfig {
        suppress,
        suppress_first,
        timestamps: config.timestamps,
        max_initial_timestamp: generation.max_initial_timestamp_index,
    }
}

/// Whether the result passes the thresholds, so that no further temperature is needed.
fn good_enough(hypothesis: &Hypothesis, config: &TranscribeConfig) -> bool {
    let repetitive = config
        .compression_ratio_threshold
        .is_some_and(|max| hypothesis.compression_ratio > max);
    let unlikely = config
        .logprob_threshold
        .is_some_and(|least| hypothesis.avg_logprob < least);
    let silent = config
        .no_speech_threshold
        .is_some_and(|max| hypothesis.no_speech_prob > max)
        && (unlikely || config.logprob_threshold.is_none());
    silent || !(repetitive || unlikely)
}

fn hundredths(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
