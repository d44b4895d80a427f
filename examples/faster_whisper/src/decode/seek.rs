//! The state of a recording between its windows.

use std::collections::BTreeMap;

use tch::Tensor;

use super::chunks::{self, Extent};
use super::fallback::{Fallback, Plan};
use super::hypothesis::Hypothesis;
use super::invention::{self, Skip, Times};
use super::pace::Pace;
use super::prompts::Prompts;
use super::rules::Rules;
use super::segments::{self, Cut, Part, Stamps};
use super::transcription::{Observer, Samples, Segment, Transcription};
use super::windows::{Place, Windows};
use super::words::{self, Aligned, Text};
use super::{hundredths, language, limits};
use crate::config::FeatureConfig;
use crate::error::Error;
use crate::model::Cache;
use crate::options::Options;
use crate::whisper::{LanguageProbability, Whisper};

/// A window that advances by fewer seconds is slow.
const SLOW_SECONDS: f64 = 1.0;
/// Maximum number of places in a warning. A long recording may have thousands.
const MAX_PLACES: usize = 5;

/// The state between two windows.
pub(super) struct Seeker {
    pub(super) options: Options,
    pub(super) rules: Rules,
    windows: Windows,
    features: FeatureConfig,
    language: Option<String>,
    language_probability: Option<f64>,
    prompts: Prompts,
    max_tokens: usize,
    /// The least room that a prompt has left for tokens, if it is less than `max_new_tokens`.
    least_room: Option<usize>,
    /// Frames of a window.
    window_frames: usize,
    /// Frames of the recording.
    frames: usize,
    segments: Vec<Segment>,
    /// Number of windows that were started.
    started: usize,
    /// Number of windows that are part of the transcript.
    added: usize,
    /// Windows that are decoded before an earlier one is.
    ended: BTreeMap<usize, Ended>,
    skipped_at: Vec<f64>,
    /// The end of the recording in seconds, in whole hundredths.
    end: f64,
    /// Segments that the model placed behind the end.
    behind_end: usize,
    /// The end of the last word.
    last_speech: f64,
    pub(super) warnings: Vec<String>,
}

/// A window that is being decoded.
pub(super) struct Window {
    index: usize,
    place: Place,
    language: String,
    pub(super) fallback: Fallback,
}

/// A window with its text.
struct Ended {
    place: Place,
    hypothesis: Hypothesis,
    /// `None` for silence.
    cut: Option<Cut>,
    /// The words of the cut.
    text: Option<Text>,
}

/// Where the next window starts, in seconds.
enum After {
    /// Where the segments end.
    AsCut,
    /// Here.
    At(f64),
    /// Here, without any segment of this window.
    All(f64),
}

impl Seeker {
    /// `speech` is the number of samples of each part of speech, if the samples consist of them.
    pub(super) fn new(
        whisper: &Whisper,
        options: Options,
        samples: usize,
        speech: Option<&[usize]>,
    ) -> Result<Self, Error> {
        let vocabulary = whisper.vocabulary();
        let language = options
            .language
            .as_deref()
            .map(|name| vocabulary.language(name))
            .transpose()?;
        // The prompt checks the task: fail before the first window.
        let any = language
            .clone()
            .or_else(|| vocabulary.languages().into_iter().next())
            .unwrap_or_default();
        vocabulary.prompt(&any, options.task, !options.without_timestamps, &[], 0)?;
        let mut warnings = Vec::new();
        if options.multilingual && !vocabulary.is_multilingual() {
            warnings.push("multilingual has no effect: this model only knows English".to_owned());
        }
        let rules = Rules::new(
            vocabulary,
            &limits::rule_config(whisper, &options, &mut warnings)?,
            whisper.placement().device,
        )?;
        let features = whisper.config().features.clone();
        let window_frames = limits::window_frames(whisper, &options)?;
        let windows = match options.batch_size {
            None => {
                let pace = Pace::new((SLOW_SECONDS * features.frames_per_second()) as usize);
                Windows::sought(&options, &features, (samples, window_frames), pace)
            }
            Some(at_once) => {
                let extent = Extent {
                    samples,
                    speech,
                    rate: features.sampling_rate as f64,
                };
                let most = window_frames * features.hop_length as usize;
                let places = chunks::places(&options, &extent, most, &mut warnings)?;
                Windows::chunks(places, at_once, features.hop_length as usize)
            }
        };
        let mut seeker = Self {
            max_tokens: limits::max_tokens(whisper, &options)?,
            least_room: None,
            window_frames,
            rules,
            windows,
            language,
            language_probability: None,
            prompts: Prompts::new(whisper, &options)?,
            frames: samples / features.hop_length as usize,
            segments: Vec::new(),
            started: 0,
            added: 0,
            ended: BTreeMap::new(),
            skipped_at: Vec::new(),
            end: 0.0,
            behind_end: 0,
            last_speech: 0.0,
            warnings,
            features,
            options,
        };
        seeker.end = seeker.floor(samples);
        Ok(seeker)
    }

    /// Whether all windows are part of the transcript.
    pub(super) fn is_over(&self) -> bool {
        self.windows.is_over()
    }

    /// A window that can be decoded now, and its features.
    pub(super) fn next(
        &mut self,
        whisper: &Whisper,
        samples: &dyn Samples,
        observer: &mut dyn Observer,
    ) -> Result<Option<(Place, Tensor)>, Error> {
        // The language of the first window is that of the others.
        let Some(place) = self.windows.next(self.language.is_none()) else {
            return Ok(None);
        };
        if !observer.keep_going() {
            return Err(Error::Stopped);
        }
        let window = samples.read(place.start..place.end()).map_err(Error::Samples)?;
        let offset = self.seconds(place.start);
        let span = tracing::info_span!("whisper.features", "whisper.window_offset_seconds" = offset);
        let _entered = span.enter();
        let features = whisper.features(&window)?;
        if !span.is_disabled() {
            whisper.synchronize();
        }
        Ok(Some((place, features)))
    }

    /// Begins to decode a window that the cache holds.
    pub(super) fn start(
        &mut self,
        whisper: &Whisper,
        samples: &dyn Samples,
        (place, features): (Place, &Tensor),
        cache: &mut Cache,
    ) -> Result<Window, Error> {
        let index = self.started;
        self.started += 1;
        let language = self.detect(whisper, samples, (place, features), cache)?;
        let prompt = self.prompts.of(whisper, &self.options, &language, place)?;
        let room = limits::room(whisper, &prompt);
        if self.options.max_new_tokens.is_some_and(|wanted| wanted > room) {
            self.least_room = Some(self.least_room.map_or(room, |least| least.min(room)));
        }
        let plan = Plan {
            prompt,
            max_tokens: self.max_tokens,
            offset: self.seconds(place.start),
        };
        Ok(Window {
            index,
            place,
            language,
            fallback: Fallback::start(plan, whisper, &self.options, cache)?,
        })
    }

    /// The language of a window.
    fn detect(
        &mut self,
        whisper: &Whisper,
        samples: &dyn Samples,
        (place, features): (Place, &Tensor),
        cache: &mut Cache,
    ) -> Result<String, Error> {
        let every_window = self.options.multilingual && whisper.vocabulary().is_multilingual();
        if let Some(known) = &self.language
            && !every_window
        {
            return Ok(known.clone());
        }
        let most = if every_window {
            1
        } else {
            self.options.language_detection_segments
        };
        let mut ahead = |index: usize| read_ahead(samples, place, index, whisper);
        let threshold = self.options.language_detection_threshold;
        let found = language::detect(whisper, cache, most, threshold, &mut ahead)?;
        if found.looked_ahead {
            whisper.set_window(&whisper.encode(&[features])?, cache)?;
        }
        let (language, probability) = match found.language {
            Some(LanguageProbability { code, probability }) => (code, Some(probability)),
            None => {
                let only = whisper.vocabulary().languages().into_iter().next();
                (only.unwrap_or_default(), None)
            }
        };
        if self.language.is_none() || !self.windows.are_chunks() {
            self.language = Some(language.clone());
            self.language_probability = probability;
        }
        Ok(language)
    }

    /// Takes the text of a window. Its words are aligned while the cache holds it.
    pub(super) fn end(
        &mut self,
        whisper: &Whisper,
        window: &Window,
        hypothesis: Hypothesis,
        cache: &mut Cache,
    ) -> Result<(), Error> {
        let place = window.place;
        let silent = self
            .options
            .no_speech_threshold
            .is_some_and(|max| hypothesis.no_speech_prob > max)
            && self
                .options
                .log_prob_threshold
                .is_none_or(|least| hypothesis.avg_logprob <= least);
        let mut cut = None;
        let mut text = None;
        if !silent {
            let found = segments::cut(&hypothesis, self.stamps(whisper, place));
            if self.options.word_timestamps {
                text = self.align(whisper, window, &found, cache)?;
            }
            cut = Some(found);
        }
        let ended = Ended {
            place,
            hypothesis,
            cut,
            text,
        };
        self.ended.insert(window.index, ended);
        if self.windows.are_chunks() {
            self.windows.done(place, 0);
        }
        // In the order of the recording, because words depend on those before them.
        while let Some(ended) = self.ended.remove(&self.added) {
            self.added += 1;
            self.add(whisper, ended)?;
        }
        Ok(())
    }

    /// Adds a window to the transcript.
    fn add(&mut self, whisper: &Whisper, ended: Ended) -> Result<(), Error> {
        let place = ended.place;
        let advance = self.add_segments(whisper, ended)?;
        if !self.windows.are_chunks() && !self.windows.done(place, advance) {
            self.skipped_at.push(self.seconds(place.start));
        }
        Ok(())
    }

    /// Returns the number of frames to advance.
    fn add_segments(&mut self, whisper: &Whisper, ended: Ended) -> Result<usize, Error> {
        let Ended {
            place,
            hypothesis,
            cut,
            text,
        } = ended;
        let size = place.len / self.features.hop_length as usize;
        let Some(mut cut) = cut else {
            self.forget_guess(&hypothesis);
            return Ok(size);
        };
        let start = self.frame(self.seconds(place.start));
        let mut next = cut.advance.map(|seconds| self.seconds(place.start) + seconds);
        if self.options.word_timestamps {
            match self.add_words(whisper, place, &mut cut, text) {
                After::All(seek) => return Ok(self.frame(seek).saturating_sub(start)),
                After::At(seek) => next = Some(seek),
                After::AsCut => {}
            }
        }
        let mut tokens = Vec::new();
        for part in cut.parts {
            self.push(whisper, place, part, &hypothesis, &mut tokens)?;
        }
        self.forget_guess(&hypothesis);
        if self.windows.are_chunks() {
            return Ok(size);
        }
        if self.options.condition_on_previous_text
            && hypothesis.temperature <= self.options.prompt_reset_on_temperature
        {
            self.prompts.remember(&tokens);
        } else {
            self.prompts.forget();
        }
        Ok(next.map_or(size, |seconds| self.frame(seconds).saturating_sub(start)))
    }

    /// The words of a cut, and their alignment, if it has text.
    fn align(
        &self,
        whisper: &Whisper,
        window: &Window,
        cut: &Cut,
        cache: &mut Cache,
    ) -> Result<Option<Text>, Error> {
        let vocabulary = whisper.vocabulary();
        let end_of_text = vocabulary.end_of_text();
        let tokens = cut.parts.iter().flat_map(|part| part.tokens.iter().copied());
        let text: Vec<i64> = tokens.filter(|&id| id < end_of_text).collect();
        if text.is_empty() {
            return Ok(None);
        }
        let words = vocabulary.words(&text, &window.language)?;
        let prompt = vocabulary.prompt(&window.language, self.options.task, false, &[], 0)?;
        let span = tracing::info_span!(
            "whisper.align",
            "whisper.window_offset_seconds" = self.seconds(window.place.start),
            "whisper.tokens" = text.len(),
        );
        let _entered = span.enter();
        let frames = window.place.len / self.features.hop_length as usize;
        Ok(Some(Text {
            words,
            alignment: whisper.align(&prompt, &text, frames, cache)?,
        }))
    }

    /// Gives the parts their words.
    fn add_words(&mut self, whisper: &Whisper, place: Place, cut: &mut Cut, text: Option<Text>) -> After {
        let offset = self.seconds(place.start);
        if let Some(text) = text {
            let aligned = Aligned {
                text,
                step: whisper.config().timestamp_step(),
                offset,
                end_of_text: whisper.vocabulary().end_of_text(),
                options: &self.options,
            };
            words::add(&mut cut.parts, aligned, self.last_speech);
        }
        let mut after = After::AsCut;
        if !cut.single_end
            && let Some(end) = words::end(&cut.parts).filter(|&end| end > offset)
        {
            after = After::At(end);
        }
        let threshold = self.options.hallucination_silence_threshold;
        if let Some(threshold) = threshold.filter(|_| !self.windows.are_chunks()) {
            let window = self.window_frames * self.features.hop_length as usize;
            let times = Times {
                start: offset,
                end: self.seconds(place.start + window),
                content_end: self.seconds(place.end()),
                recording: self.end,
                last_speech: self.last_speech,
            };
            match invention::find(&cut.parts, times, threshold) {
                Some(Skip::All(seek)) => return After::All(seek),
                Some(Skip::From(index, seek)) => {
                    cut.parts.truncate(index);
                    after = After::At(seek);
                }
                None => {}
            }
        }
        self.last_speech = words::end(&cut.parts).unwrap_or(self.last_speech);
        after
    }

    /// Discards a language that was detected in silence. The next window detects it again.
    fn forget_guess(&mut self, hypothesis: &Hypothesis) {
        let guessed =
            self.options.language.is_none() && self.segments.is_empty() && !self.windows.are_chunks();
        let silent = self
            .options
            .no_speech_threshold
            .is_some_and(|max| hypothesis.no_speech_prob > max);
        if guessed && silent {
            self.language = None;
            self.language_probability = None;
        }
    }

    /// Adds a segment to the transcript, and its tokens to `tokens`.
    fn push(
        &mut self,
        whisper: &Whisper,
        place: Place,
        part: Part,
        hypothesis: &Hypothesis,
        tokens: &mut Vec<i64>,
    ) -> Result<(), Error> {
        let text = whisper.vocabulary().decode(&part.tokens)?;
        // Transcripts have times in hundredths.
        let (start, end) = (hundredths(part.start), hundredths(part.end));
        if text.is_empty() || end <= start {
            return Ok(());
        }
        // The window is filled up with silence, and some models hear something in it.
        let last = match self.windows.are_chunks() {
            true => self.floor(place.end()),
            false => self.end,
        };
        if start >= last {
            self.behind_end += 1;
            return Ok(());
        }
        let end = end.min(last);
        let mut words = part.words;
        for word in words.iter_mut().flatten() {
            word.start = word.start.min(last);
            word.end = word.end.min(last);
        }
        tokens.extend(&part.tokens);
        self.segments.push(Segment {
            start,
            end,
            text,
            tokens: part.tokens,
            avg_logprob: hypothesis.avg_logprob,
            no_speech_prob: hypothesis.no_speech_prob,
            compression_ratio: hypothesis.compression_ratio,
            temperature: hypothesis.temperature,
            words,
        });
        Ok(())
    }

    /// The fraction of the recording that is done, 0 to 1.
    pub(super) fn fraction(&self) -> f32 {
        self.windows.fraction(self.frames)
    }

    /// The transcript of so many samples.
    pub(super) fn transcription(mut self, samples: usize) -> Transcription {
        self.warn();
        Transcription {
            segments: self.segments,
            language: self.language,
            language_probability: self.language_probability,
            duration: samples as f64 / self.features.sampling_rate as f64,
            speech: None,
            windows: self.started,
            warnings: self.warnings,
        }
    }

    /// Adds the warnings about all windows.
    fn warn(&mut self) {
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
            self.warnings.push(format!(
                "the model made no progress and was skipped ahead at {places}{more}"
            ));
        }
        if let Some(room) = self.least_room {
            let why = format!("max_new_tokens was lowered to {room}, the room behind the longest prompt");
            self.warnings.push(why);
        }
        if self.behind_end > 0 {
            self.warnings.push(format!(
                "the model wrote text for a time behind the end of the recording: {} segment(s) were left out",
                self.behind_end
            ));
        }
    }

    fn stamps(&self, whisper: &Whisper, place: Place) -> Stamps {
        Stamps {
            decoded: !self.options.without_timestamps,
            first: whisper.vocabulary().first_timestamp(),
            step: whisper.config().timestamp_step(),
            offset: self.seconds(place.start),
            length: self.seconds(place.len),
            is_last: self.windows.are_chunks(),
        }
    }

    /// Adds the position of a window to an error.
    pub(super) fn locate(&self, error: Error, place: Place) -> Error {
        match error {
            Error::NotANumber { .. } => Error::NotANumber {
                offset: self.seconds(place.start),
            },
            other => other,
        }
    }

    fn frame(&self, seconds: f64) -> usize {
        (seconds * self.features.frames_per_second()).round() as usize
    }

    pub(super) fn seconds(&self, samples: usize) -> f64 {
        samples as f64 / self.features.sampling_rate as f64
    }

    /// Seconds in whole hundredths.
    fn floor(&self, samples: usize) -> f64 {
        // The sum keeps a duration of whole hundredths, which has no exact binary form.
        (self.seconds(samples) * 100.0 + 1e-6).floor() / 100.0
    }
}

impl Window {
    pub(super) fn place(&self) -> Place {
        self.place
    }
}

/// The features of the window that is `index` windows behind this one, if the recording reaches it.
fn read_ahead(
    samples: &dyn Samples,
    place: Place,
    index: usize,
    whisper: &Whisper,
) -> Result<Option<Tensor>, Error> {
    let features = &whisper.config().features;
    let start = place.start + index * features.window_samples();
    let end = (start + features.window_samples()).min(samples.len());
    if start + features.hop_length as usize > end {
        return Ok(None);
    }
    let window = samples.read(start..end).map_err(Error::Samples)?;
    whisper.features(&window).map(Some)
}
