//! Draws several texts at a temperature and keeps the best one.

use tch::{Kind, Tensor};

use super::hypothesis::Sampling;
use super::rules::Rules;
use super::search::{Next, Sampled};
use crate::error::Error;

/// The state between two steps.
#[derive(Debug)]
pub(crate) struct Draws {
    texts: Vec<Sampled>,
    given: usize,
    temperature: f64,
    length_penalty: f64,
    /// Tokens that may still be drawn.
    left: usize,
    /// Whether no token was drawn yet, so that all texts have the same row.
    is_first: bool,
    random: fastrand::Rng,
}

impl Draws {
    pub(super) fn new(how: &Sampling, given: &[i64], max_tokens: usize) -> Self {
        let text = Sampled {
            ids: given.to_vec(),
            ended: false,
            sum_logprob: 0.0,
        };
        Self {
            texts: vec![text; how.best_of.max(1)],
            given: given.len(),
            temperature: how.temperature,
            length_penalty: how.length_penalty,
            left: max_tokens,
            is_first: true,
            random: fastrand::Rng::with_seed(how.seed),
        }
    }

    /// Draws a token of each text from the softmax of the logits divided by the temperature.
    pub(super) fn advance(&mut self, logits: &Tensor, rules: &Rules) -> Result<Next, Error> {
        let mut allowed = Vec::with_capacity(self.texts.len());
        for (row, text) in self.texts.iter().enumerate() {
            let row = logits.f_narrow(0, if self.is_first { 0 } else { row as i64 }, 1)?;
            allowed.push(match text.ended {
                true => row,
                false => rules.apply_after(&row, &text.ids, self.given)?,
            });
        }
        self.is_first = false;
        let allowed = Tensor::f_cat(&allowed, 0)?;
        let (tokens, logprobs) = draw_one(&allowed, self.temperature, &mut self.random)?;
        for ((text, &token), logprob) in self.texts.iter_mut().zip(&tokens).zip(logprobs) {
            if text.ended {
                continue;
            }
            text.sum_logprob += logprob;
            if token == rules.end_of_text() {
                text.ended = true;
            } else {
                text.ids.push(token);
            }
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || self.texts.iter().all(|text| text.ended) {
            return self.best().map(Next::Done);
        }
        Ok(Next::Read {
            tokens,
            moves: Vec::new(),
        })
    }

    /// The text with the best score.
    fn best(&mut self) -> Result<Sampled, Error> {
        let penalty = self.length_penalty;
        let score = |text: &Sampled| text.sum_logprob / (text.ids.len() as f64).powf(penalty);
        let best = self.texts.drain(..).reduce(
            |best, other| {
                if score(&other) > score(&best) { other } else { best }
            },
        );
        // There is at least one text.
        best.ok_or(Error::Stopped)
    }
}

/// A random token of each row, and its log-probability at temperature 1.
///
/// The random numbers come from the host: libtorch's own generators belong to the whole process, so
/// a second transcription would change the numbers of the first.
fn draw_one(
    rows: &Tensor,
    temperature: f64,
    random: &mut fastrand::Rng,
) -> Result<(Vec<i64>, Vec<f64>), Error> {
    let (count, size) = rows.size2()?;
    let below = rows
        .f_div_scalar(temperature)?
        .f_softmax(-1, Kind::Double)?
        .f_cumsum(-1, Kind::Double)?;
    let targets: Vec<f64> = (0..count).map(|_| random.f64().max(f64::MIN_POSITIVE)).collect();
    let targets = Tensor::f_from_slice(&targets)?
        .f_to_device(rows.device())?
        .f_unsqueeze(1)?
        .f_mul(&below.f_narrow(-1, size - 1, 1)?)?;
    // The first token at which the sum reaches the target. Its own probability is above zero.
    let tokens = below
        .f_lt_tensor(&targets)?
        .f_sum_dim_intlist([-1].as_slice(), true, Kind::Int64)?
        .f_clamp_max(size - 1)?;
    let logprobs = rows
        .f_log_softmax(-1, Kind::Double)?
        .f_gather(-1, &tokens, false)?;
    Ok((
        Vec::<i64>::try_from(&tokens.f_flatten(0, -1)?)?,
        Vec::<f64>::try_from(&logprobs.f_flatten(0, -1)?)?,
    ))
}
