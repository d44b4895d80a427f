//! Samples tokens one by one: the most likely one or, at a temperature above zero, a random one.

use tch::{Kind, TchError, Tensor};

use super::compression_ratio;
use super::rules::Rules;
use crate::error::Error;
use crate::tokenizer::Vocabulary;

/// Number of tokens between two calls of `keep_going`.
const TOKENS_PER_CHECK: usize = 8;

/// How to sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token. Above 0, tokens are drawn from the softmax of the logits
    /// divided by this value.
    pub temperature: f64,
    /// Maximum number of tokens.
    pub max_tokens: usize,
}

/// The outcome of decoding one window once.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The sampled tokens, without the end of text.
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

/// Sampled tokens and their log-probability.
#[derive(Debug)]
pub(crate) struct Sampled {
    ids: Vec<i64>,
    ended: bool,
    sum_logprob: f64,
}

/// Samples after the row of logits `first`; `step` turns a token (one element, on the device) into
/// the next row.
pub(crate) fn sample(
    first: Tensor,
    rules: &Rules,
    max_tokens: usize,
    temperature: f64,
    step: &mut dyn FnMut(&Tensor) -> Result<Tensor, TchError>,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Sampled, Error> {
    let mut ids = Vec::with_capacity(max_tokens);
    let mut logits = first;
    let mut ended = false;
    // The sum stays on the device. Each step copies only the id of the token to the host.
    let mut sum = Tensor::f_zeros([1, 1], (Kind::Double, logits.device()))?;
    while ids.len() < max_tokens {
        if ids.len() % TOKENS_PER_CHECK == 0 && !keep_going() {
            return Err(Error::Stopped);
        }
        let row = rules.apply(&logits, &ids)?;
        let (best, token) = if temperature > 0.0 {
            // The maximum of p / e, with e drawn from an exponential distribution, is a draw from
            // p. Unlike `multinomial`, it does not fail an assertion on the GPU if p is not a
            // number; the sum shows that at the end.
            let chances = row.f_div_scalar(temperature)?.f_softmax(-1, Kind::Float)?;
            let noise = chances.f_empty_like()?.f_exponential_(1.0)?;
            let token = chances.f_div(&noise)?.f_argmax(-1, true)?;
            (row.f_gather(-1, &token, false)?, token)
        } else {
            row.f_max_dim(-1, true)?
        };
        let _ = sum.f_add_(&best.f_sub(&row.f_logsumexp([-1], true)?)?)?;
        let id = token.f_int64_value(&[0, 0])?;
        if id == rules.end_of_text() {
            ended = true;
            break;
        }
        ids.push(id);
        if ids.len() < max_tokens {
            logits = step(&token)?;
        }
    }
    Ok(Sampled {
        ids,
        ended,
        sum_logprob: sum.f_double_value(&[0, 0])?,
    })
}
