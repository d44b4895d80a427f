//! What the model reads before the text of a window.

use super::limits;
use super::windows::Place;
use crate::error::Error;
use crate::options::{Options, TextOrTokens};
use crate::tokenizer::Prompt;
use crate::whisper::Whisper;

/// The tokens of a recording that prompts are made of.
#[derive(Debug)]
pub(super) struct Prompts {
    /// The start of every prompt.
    hotwords: Vec<i64>,
    /// The start of the text of the recording.
    prefix: Vec<i64>,
    /// Tokens that the next prompt may use.
    previous: Vec<i64>,
    /// Maximum number of tokens before the text.
    most: usize,
}

impl Prompts {
    pub(super) fn new(whisper: &Whisper, options: &Options) -> Result<Self, Error> {
        let vocabulary = whisper.vocabulary();
        let tokens = |text: Option<&str>| match text.map(str::trim) {
            // In the middle of a text, words begin with a blank.
            Some(text) if !text.is_empty() => vocabulary.encode(&format!(" {text}")),
            _ => Ok(Vec::new()),
        };
        let previous = match &options.initial_prompt {
            TextOrTokens::None => Vec::new(),
            TextOrTokens::Text(text) => tokens(Some(text))?,
            TextOrTokens::Tokens(ids) => limits::in_vocabulary(ids, vocabulary.size())?,
        };
        let prefix = tokens(options.prefix.as_deref())?;
        let most = whisper.max_previous_tokens();
        let mut hotwords = Vec::new();
        if prefix.is_empty() {
            hotwords = tokens(options.hotwords.as_deref())?;
            hotwords.truncate(most / 2);
        }
        Ok(Self {
            hotwords,
            prefix,
            previous,
            most,
        })
    }

    /// The prompt of a window.
    pub(super) fn of(
        &self,
        whisper: &Whisper,
        options: &Options,
        language: &str,
        place: Place,
    ) -> Result<Prompt, Error> {
        let room = self.most - self.hotwords.len();
        let skipped = self.previous.len().saturating_sub(room);
        let previous = self.previous.iter().skip(skipped);
        let context: Vec<i64> = self.hotwords.iter().chain(previous).copied().collect();
        let vocabulary = whisper.vocabulary();
        let timestamps = !options.without_timestamps;
        let mut prompt = vocabulary.prompt(language, options.task, timestamps, &context, self.most)?;
        if place.start == 0 && !self.prefix.is_empty() {
            let positions = whisper.config().model.max_target_positions as usize;
            prompt.begin_with(&self.prefix, vocabulary.first_timestamp(), positions);
        }
        Ok(prompt)
    }

    /// Makes these tokens part of the next prompt.
    pub(super) fn remember(&mut self, tokens: &[i64]) {
        self.previous.extend(tokens);
        let surplus = self.previous.len().saturating_sub(self.most);
        self.previous.drain(..surplus);
    }

    /// The next prompt has no earlier text.
    pub(super) fn forget(&mut self) {
        self.previous.clear();
    }
}
