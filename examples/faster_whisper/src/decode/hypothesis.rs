//! How to decode a window, and the outcome.

use super::compression_ratio;
use super::search::Sampled;
use crate::error::Error;
use crate::options::Options;
use crate::tokenizer::Vocabulary;

/// How to decode a window once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 searches for the most likely text. Above 0, tokens are drawn from the softmax of the
    /// logits divided by this value.
    pub temperature: f64,
    /// Maximum number of tokens.
    pub max_tokens: usize,
    /// See [`Options::beam_size`].
    pub beam_size: usize,
    /// See [`Options::best_of`].
    pub best_of: usize,
    /// See [`Options::patience`].
    pub patience: f64,
    /// See [`Options::length_penalty`].
    pub length_penalty: f64,
    /// See [`Options::seed`].
    pub seed: u64,
}

impl Sampling {
    /// Takes the most likely token at each step.
    #[must_use]
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            beam_size: 1,
            ..Self::new(&Options::default(), 0.0, max_tokens)
        }
    }

    /// As the options say.
    #[must_use]
    pub fn new(options: &Options, temperature: f64, max_tokens: usize) -> Self {
        Self {
            temperature,
            max_tokens,
            beam_size: options.beam_size,
            best_of: options.best_of,
            patience: options.patience,
            length_penalty: options.length_penalty,
            seed: options.seed,
        }
    }
}

/// The outcome of decoding one window once.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The tokens, without the end of text. They start with the prefix of the prompt.
    pub ids: Vec<i64>,
    /// Their text, stripped.
    pub text: String,
    /// Whether the end of text came before the limit.
    pub ended: bool,
    /// Mean log-probability of all sampled tokens and the end of text.
    pub avg_logprob: f64,
    /// See [`Window::no_speech_probability`](crate::Window::no_speech_probability).
    pub no_speech_prob: f64,
    /// See [`compression_ratio`].
    pub compression_ratio: f64,
    /// The temperature of the sampling.
    pub temperature: f64,
}

impl Hypothesis {
    pub(crate) fn new(
        sampled: Sampled,
        no_speech_prob: f64,
        temperature: f64,
        vocabulary: &Vocabulary,
    ) -> Result<Self, Error> {
        let text = vocabulary.decode(&sampled.ids)?;
        let avg_logprob = sampled.sum_logprob / (sampled.ids.len() + 1) as f64;
        if !avg_logprob.is_finite() || !no_speech_prob.is_finite() {
            return Err(Error::NotANumber { offset: 0.0 });
        }
        Ok(Self {
            compression_ratio: compression_ratio(&text),
            ids: sampled.ids,
            text,
            ended: sampled.ended,
            avg_logprob,
            no_speech_prob,
            temperature,
        })
    }
}
