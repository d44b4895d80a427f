//! Takes the most likely token at every step.

use tch::{Kind, Tensor};

use super::rules::Rules;
use super::search::{Next, Sampled};
use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Greedy {
    ids: Vec<i64>,
    given: usize,
    /// Tokens that may still be taken.
    left: usize,
    /// The sum of log-probabilities stays on the device. Each step copies only the id of the token
    /// to the host.
    sum: Option<Tensor>,
}

impl Greedy {
    pub(super) fn new(given: &[i64], max_tokens: usize) -> Self {
        Self {
            ids: given.to_vec(),
            given: given.len(),
            left: max_tokens,
            sum: None,
        }
    }

    pub(super) fn advance(&mut self, logits: &Tensor, rules: &Rules) -> Result<Next, Error> {
        let row = rules.restrict(logits.f_alias()?, &self.ids, self.given)?;
        let (best, token) = row.f_max_dim(-1, true)?;
        let mut sum = match self.sum.take() {
            Some(sum) => sum,
            None => Tensor::f_zeros([1, 1], (Kind::Double, logits.device()))?,
        };
        let sum = sum.f_add_(&best.f_sub(&row.f_logsumexp([-1], true)?)?)?;
        let id = token.f_int64_value(&[0, 0])?;
        let ended = id == rules.end_of_text();
        if !ended {
            self.ids.push(id);
        }
        self.left = self.left.saturating_sub(1);
        if ended || self.left == 0 {
            return Ok(Next::Done(Sampled {
                ids: std::mem::take(&mut self.ids),
                ended,
                sum_logprob: sum.f_double_value(&[0, 0])?,
            }));
        }
        self.sum = Some(sum);
        Ok(Next::Read {
            tokens: vec![id],
            moves: Vec::new(),
        })
    }
}
