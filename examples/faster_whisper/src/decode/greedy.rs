//! Sampling token after token, the likeliest one or, at a temperature above zero, a random one.

use tch::{Kind, TchError, Tensor};

use super::compression_ratio;
use super::rules::Rules;
use crate::error::Error;
use crate::tokenizer::Vocabulary;

/// How many tokens pass between two questions whether to go on.
const TOKENS_PER_CHECK: usize = 8;

/// How to sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; above, tokens are drawn from the softmax of logits divided by it.
    pub temperature: f64,
    /// Most tokens to sample.
    pub most: usize,
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
    /// Sum of the log-probabilities of all sampled tokens and the end of text, by their number.
    pub avg_logprob: f64,
    /// See [`Window::no_speech_probability`](crate::Window::no_speech_probability).
    pub no_speech_prob: f64,
    /// See [`compression_ratio`].
    pub compression_ratio: f64,
    /// What the tokens were sampled at.
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

/// Tokens and what the network thought of them.
#[derive(Debug)]
pub(crate) struct Sampled {
    ids: Vec<i64>,
    ended: bool,
    sum_logprob: f64,
}

/// Samples after the row of logits `first`; `step` turns a token (one element, on the device) into the next row.
pub(crate) fn sample(
    first: Tensor,
    rules: &Rules,
    most: usize,
    temperature: f64,
    step: &mut dyn FnMut(&Tensor) -> Result<Tensor, TchError>,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Sampled, Error> {
    let mut ids = Vec::with_capacity(most);
    let mut logits = first;
    let mut ended = false;
    // The sum stays on the device: the token's id is the only thing that is fetched at each step.
    let mut sum = Tensor::f_zeros([1, 1], (Kind::Double, logits.device()))?;
    while ids.len() < most {
        if ids.len() % TOKENS_PER_CHECK == 0 && !keep_going() {
            return Err(Error::Stopped);
        }
        let row = rules.apply(&logits, &ids)?;
        let (best, token) = if temperature > 0.0 {
            // The likeliest of p / e, with e drawn from an exponential distribution, is a draw from p. Unlike `multinomial` it
            // does not bring a GPU down where p is not a number; that is found out at the end.
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
        if ids.len() < most {
            logits = step(&token)?;
        }
    }
    Ok(Sampled {
        ids,
        ended,
        sum_logprob: sum.f_double_value(&[0, 0])?,
    })
}
