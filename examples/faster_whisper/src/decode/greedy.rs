//! Takes the most likely token at every step.

use tch::{Kind, TchError, Tensor};

use super::rules::Rules;
use super::search::{Next, Sampled};
use crate::error::Error;
use crate::model::host;

#[derive(Debug)]
pub(crate) struct Greedy {
    ids: Vec<i64>,
    given: usize,
    /// Tokens that may still be taken.
    left: usize,
    /// The log-probabilities of a text on the CPU.
    sum: f64,
    /// The sum of those on a GPU stays there. Each step copies only the id of the token to the
    /// host.
    sum_on_device: Option<Tensor>,
}

impl Greedy {
    pub(super) fn new(given: &[i64], max_tokens: usize) -> Self {
        Self {
            ids: given.to_vec(),
            given: given.len(),
            left: max_tokens,
            sum: 0.0,
            sum_on_device: None,
        }
    }

    pub(super) fn advance(&mut self, logits: &Tensor, rules: &Rules) -> Result<Next, Error> {
        let mut row = rules.restrict(logits.f_alias()?, &self.ids, self.given)?;
        let id = match host::cells_mut(&mut row) {
            Some(cells) => {
                let best = host::largest(cells);
                self.sum += f64::from(best - host::log_sum_exp(cells));
                let is_best = |cell: &f32| *cell == best || cell.is_nan();
                cells.iter().position(is_best).unwrap_or_default() as i64
            }
            None => self.best_on_device(&row)?,
        };
        let ended = id == rules.end_of_text();
        if !ended {
            self.ids.push(id);
        }
        self.left = self.left.saturating_sub(1);
        if ended || self.left == 0 {
            return Ok(Next::Done(Sampled {
                ids: std::mem::take(&mut self.ids),
                ended,
                sum_logprob: self.sum
                    + self
                        .sum_on_device
                        .take()
                        .map_or(Ok(0.0), |sum| sum.f_double_value(&[0, 0]))?,
            }));
        }
        Ok(Next::Read {
            tokens: vec![id],
            moves: Vec::new(),
        })
    }

    fn best_on_device(&mut self, row: &Tensor) -> Result<i64, TchError> {
        let (best, token) = row.f_max_dim(-1, true)?;
        let mut sum = match self.sum_on_device.take() {
            Some(sum) => sum,
            None => Tensor::f_zeros([1, 1], (Kind::Double, row.device()))?,
        };
        self.sum_on_device = Some(sum.f_add_(&best.f_sub(&row.f_logsumexp([-1], true)?)?)?);
        token.f_int64_value(&[0, 0])
    }
}
