//! The ways to choose the tokens of a text, one step at a time, so that the windows of a batch
//! share the steps of the decoder.

use tch::Tensor;

use super::beam::{Beams, Width};
use super::greedy::Greedy;
use super::hypothesis::Sampling;
use super::rules::Rules;
use super::sampling::Draws;
use crate::error::Error;

/// A text and its log-probability.
#[derive(Debug, Clone)]
pub(crate) struct Sampled {
    /// Its tokens, without the end of text.
    pub(super) ids: Vec<i64>,
    /// Whether the end of text came.
    pub(super) ended: bool,
    /// Includes the end of text.
    pub(super) sum_logprob: f64,
}

/// What follows a step.
#[derive(Debug)]
pub(crate) enum Next {
    /// The search is over.
    Done(Sampled),
    /// The decoder copies rows, `(from, to)`, and then reads a token in each row. No row is both
    /// copied and written. Before the first step there is one row, which all others start as.
    Read {
        tokens: Vec<i64>,
        moves: Vec<(usize, usize)>,
    },
}

/// The search for the text of a window.
#[derive(Debug)]
pub(crate) enum Search {
    Greedy(Greedy),
    Beams(Beams),
    Draws(Draws),
}

impl Search {
    /// All texts start with `given`. `max_tokens` is at least 1.
    pub(crate) fn new(how: &Sampling, given: &[i64], max_tokens: usize) -> Self {
        if how.temperature > 0.0 {
            Self::Draws(Draws::new(how, given, max_tokens))
        } else if how.beam_size > 1 {
            let width = Width {
                beams: how.beam_size,
                patience: how.patience,
                length_penalty: how.length_penalty,
            };
            Self::Beams(Beams::new(width, given, max_tokens))
        } else {
            Self::Greedy(Greedy::new(given, max_tokens))
        }
    }

    /// Chooses the tokens that follow, given the logits of each row: rows × vocabulary. Changes
    /// them.
    pub(crate) fn advance(&mut self, logits: &Tensor, rules: &Rules) -> Result<Next, Error> {
        match self {
            Self::Greedy(search) => search.advance(logits, rules),
            Self::Beams(search) => search.advance(logits, rules),
            Self::Draws(search) => search.advance(logits, rules),
        }
    }
}
