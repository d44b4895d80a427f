//! The decoding of windows at one temperature each, one step of the decoder after the other.

use tch::{TchError, Tensor};

use super::hypothesis::{Hypothesis, Sampling};
use super::rules::Rules;
use super::search::{Next, Search};
use crate::error::Error;
use crate::model::{Cache, Feed};
use crate::tokenizer::Prompt;
use crate::whisper::{Whisper, no_speech};

/// The decoding of a window at one temperature.
#[derive(Debug)]
pub(crate) struct Attempt {
    temperature: f64,
    search: Search,
    /// Number of texts that the search goes on with.
    rows: usize,
    /// The tokens that the decoder reads next: the prompt, then one for each row.
    ids: Vec<i64>,
    /// Number of tokens of the prompt. All rows have it in common.
    prompt: usize,
    /// The position of `<|startoftranscript|>`, until the prompt was read.
    start: Option<usize>,
    no_speech: Option<Tensor>,
}

impl Attempt {
    /// Before the prompt is read. The cache of the window must be clear of tokens.
    pub(crate) fn new(whisper: &Whisper, prompt: &Prompt, how: Sampling) -> Result<Self, Error> {
        whisper.check_ids(&prompt.ids)?;
        let positions = whisper.config().model.max_target_positions as usize;
        let given = prompt.given();
        let max_tokens = how.max_tokens.saturating_sub(given.len());
        let max_tokens = max_tokens.min(positions - prompt.ids.len()).max(1);
        Ok(Self {
            temperature: how.temperature,
            search: Search::new(&how, given, max_tokens),
            rows: 1,
            ids: prompt.ids.clone(),
            prompt: prompt.ids.len(),
            start: Some(prompt.start),
            no_speech: None,
        })
    }

    /// The rows of the decoder's output, counted from `first`, of which logits are needed.
    fn wanted(&self, first: usize) -> Vec<i64> {
        let (first, count) = (first as i64, self.ids.len() as i64);
        match self.start {
            Some(start) => vec![first + start as i64, first + count - 1],
            None => (first..first + count).collect(),
        }
    }

    /// Takes the logits of the wanted rows. Returns the text when it is complete.
    fn advance(
        &mut self,
        logits: &Tensor,
        cache: &mut Cache,
        rules: &Rules,
        whisper: &Whisper,
    ) -> Result<Option<Hypothesis>, Error> {
        let next = if self.start.take().is_some() {
            self.no_speech = no_speech(&logits.f_narrow(0, 0, 1)?, whisper.vocabulary())?;
            self.search.advance(&logits.f_narrow(0, 1, 1)?, rules)?
        } else {
            self.search.advance(logits, rules)?
        };
        match next {
            Next::Done(sampled) => {
                let no_speech_prob = self.no_speech.as_ref().map(|p| p.f_double_value(&[0]));
                let no_speech_prob = no_speech_prob.transpose()?.unwrap_or(0.0);
                let vocabulary = whisper.vocabulary();
                Hypothesis::new(sampled, no_speech_prob, self.temperature, vocabulary).map(Some)
            }
            Next::Read { tokens, moves } => {
                if self.rows < tokens.len() {
                    cache.spread(tokens.len() as i64)?;
                }
                for (from, to) in moves {
                    cache.copy_row(from as i64, to as i64, self.prompt as i64)?;
                }
                self.rows = tokens.len();
                self.ids = tokens;
                Ok(None)
            }
        }
    }
}

/// A window in a step.
pub(crate) struct Running<'a> {
    pub(crate) attempt: &'a mut Attempt,
    pub(crate) cache: &'a mut Cache,
    pub(crate) rules: &'a Rules,
}

/// One step of the decoder for all windows, those whose prompt is read among them. Returns the text
/// of each window that is complete, or its own error.
///
/// # Errors
/// The step failed for all of them.
pub(crate) fn step(
    whisper: &Whisper,
    windows: &mut [Running<'_>],
) -> Result<Vec<Result<Option<Hypothesis>, Error>>, TchError> {
    let mut wanted = Vec::new();
    let mut counts = Vec::with_capacity(windows.len());
    let mut read = 0;
    for window in windows.iter() {
        let rows = window.attempt.wanted(read);
        read += window.attempt.ids.len();
        counts.push(rows.len() as i64);
        wanted.extend(rows);
    }
    let feeds = windows.iter_mut().map(|window| Feed {
        cache: window.cache,
        ids: &window.attempt.ids,
        rows: window.attempt.rows,
    });
    let mut feeds: Vec<Feed<'_>> = feeds.collect();
    let hidden = whisper.read(&mut feeds)?;
    drop(feeds);
    let hidden = match wanted.len() == read {
        true => hidden,
        false => hidden.f_index_select(0, &Tensor::f_from_slice(&wanted)?.f_to_device(hidden.device())?)?,
    };
    let logits = whisper.project(&hidden)?;
    let mut at = 0;
    let mut results = Vec::with_capacity(windows.len());
    for (window, count) in windows.iter_mut().zip(counts) {
        let logits = logits.f_narrow(0, at, count)?;
        at += count;
        let Running {
            attempt,
            cache,
            rules,
        } = window;
        results.push(attempt.advance(&logits, cache, rules, whisper));
    }
    Ok(results)
}
