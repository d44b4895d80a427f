//! Decodes a window at one temperature after the other, until a text passes the thresholds.

use tracing::Span;

use super::attempt::Attempt;
use super::hypothesis::{Hypothesis, Sampling};
use crate::error::Error;
use crate::model::Cache;
use crate::options::Options;
use crate::tokenizer::Prompt;
use crate::whisper::Whisper;

/// How a window is decoded at all temperatures.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) prompt: Prompt,
    pub(super) max_tokens: usize,
    /// Start of the window, in seconds.
    pub(super) offset: f64,
}

/// The attempts to decode a window.
#[derive(Debug)]
pub(super) struct Fallback {
    plan: Plan,
    pub(super) attempt: Attempt,
    /// That of the attempt.
    span: Span,
    failed: Vec<Hypothesis>,
}

impl Fallback {
    /// Begins at the first temperature.
    pub(super) fn start(
        plan: Plan,
        whisper: &Whisper,
        options: &Options,
        cache: &mut Cache,
    ) -> Result<Self, Error> {
        let first = options.temperature.first().copied().unwrap_or(0.0);
        let (attempt, span) = begin(&plan, first, whisper, options, cache)?;
        Ok(Self {
            plan,
            attempt,
            span,
            failed: Vec::new(),
        })
    }

    /// Takes the text of the attempt. If it does not pass, the next one begins. After the last one,
    /// the most likely text of those that are not repetitive is returned, with the last
    /// temperature.
    pub(super) fn judge(
        &mut self,
        hypothesis: Hypothesis,
        whisper: &Whisper,
        options: &Options,
        cache: &mut Cache,
    ) -> Result<Option<Hypothesis>, Error> {
        self.span.record("whisper.tokens", hypothesis.ids.len());
        self.span.record("whisper.avg_logprob", hypothesis.avg_logprob);
        self.span
            .record("whisper.no_speech_prob", hypothesis.no_speech_prob);
        self.span
            .record("whisper.compression_ratio", hypothesis.compression_ratio);
        self.span = Span::none();
        if passes(&hypothesis, options) {
            return Ok(Some(hypothesis));
        }
        let last = hypothesis.temperature;
        self.failed.push(hypothesis);
        if let Some(&next) = options.temperature.get(self.failed.len()) {
            (self.attempt, self.span) = begin(&self.plan, next, whisper, options, cache)?;
            return Ok(None);
        }
        let has_variety = self
            .failed
            .iter()
            .any(|hypothesis| !is_repetitive(hypothesis, options));
        let best = self
            .failed
            .drain(..)
            .filter(|hypothesis| !has_variety || !is_repetitive(hypothesis, options))
            .reduce(|best, other| {
                if other.avg_logprob > best.avg_logprob {
                    other
                } else {
                    best
                }
            });
        Ok(best.map(|hypothesis| Hypothesis {
            temperature: last,
            ..hypothesis
        }))
    }
}

fn begin(
    plan: &Plan,
    temperature: f64,
    whisper: &Whisper,
    options: &Options,
    cache: &mut Cache,
) -> Result<(Attempt, Span), Error> {
    let span = tracing::info_span!(
        "whisper.decode",
        "whisper.window_offset_seconds" = plan.offset,
        "whisper.temperature" = temperature,
        "whisper.prompt_tokens" = plan.prompt.ids.len(),
        "whisper.tokens" = tracing::field::Empty,
        "whisper.avg_logprob" = tracing::field::Empty,
        "whisper.no_speech_prob" = tracing::field::Empty,
        "whisper.compression_ratio" = tracing::field::Empty,
    );
    cache.clear();
    let how = Sampling::new(options, temperature, plan.max_tokens);
    Ok((Attempt::new(whisper, &plan.prompt, how)?, span))
}

fn is_repetitive(hypothesis: &Hypothesis, options: &Options) -> bool {
    options
        .compression_ratio_threshold
        .is_some_and(|max| hypothesis.compression_ratio > max)
}

/// Whether the text passes the thresholds, or is one of silence, so that no further temperature is
/// needed.
fn passes(hypothesis: &Hypothesis, options: &Options) -> bool {
    let unlikely = options
        .log_prob_threshold
        .is_some_and(|least| hypothesis.avg_logprob < least);
    let silent = unlikely
        && options
            .no_speech_threshold
            .is_some_and(|max| hypothesis.no_speech_prob > max);
    silent || !(unlikely || is_repetitive(hypothesis, options))
}
