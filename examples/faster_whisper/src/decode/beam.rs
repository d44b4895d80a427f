//! Beam search, with the scores and the end of CTranslate2's, which faster-whisper uses.

use tch::Tensor;

use super::rules::Rules;
use super::search::{Next, Sampled};
use crate::error::Error;
use crate::model::host::top_log_softmax;

/// How wide to search, and when to end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Width {
    /// Number of texts that are continued at each step.
    pub(crate) beams: usize,
    /// The search ends with this many ended texts per beam.
    pub(crate) patience: f64,
    /// A score is a log-probability divided by the length to the power of this.
    pub(crate) length_penalty: f64,
}

/// A text that is continued. Its keys and values are in the row of the same number.
#[derive(Debug, Clone)]
struct Beam {
    ids: Vec<i64>,
    score: f64,
}

/// A token after one of the beams.
struct Candidate {
    row: usize,
    token: i64,
    score: f64,
}

/// The state between two steps.
#[derive(Debug)]
pub(crate) struct Beams {
    width: Width,
    given: usize,
    /// Tokens that may still be taken.
    left: usize,
    beams: Vec<Option<Beam>>,
    ended: Vec<Sampled>,
}

impl Beams {
    pub(super) fn new(width: Width, given: &[i64], max_tokens: usize) -> Self {
        let start = Beam {
            ids: given.to_vec(),
            score: 0.0,
        };
        Self {
            width,
            given: given.len(),
            left: max_tokens,
            beams: vec![Some(start)],
            ended: Vec::new(),
        }
    }

    pub(super) fn advance(&mut self, logits: &Tensor, rules: &Rules) -> Result<Next, Error> {
        let Width { beams, patience, .. } = self.width;
        let is_last = self.left <= 1;
        self.left = self.left.saturating_sub(1);
        let candidates = candidates(logits, rules, self.given, &self.beams, 2 * beams)?;
        let mut best_ended = false;
        let mut chosen = Vec::with_capacity(beams);
        // Half of the candidates replace those that end here.
        let (now, mut spare) = candidates.split_at(candidates.len().min(beams));
        for (rank, candidate) in now.iter().enumerate() {
            let ends = candidate.token == rules.end_of_text();
            if !ends && !is_last {
                chosen.push(candidate);
                continue;
            }
            best_ended |= rank == 0;
            let mut ids = text(&self.beams, candidate.row);
            ids.extend((!ends).then_some(candidate.token));
            self.ended.push(Sampled {
                ids,
                ended: ends,
                sum_logprob: candidate.score,
            });
            let next = spare
                .iter()
                .position(|candidate| candidate.token != rules.end_of_text());
            if let Some((candidate, rest)) = next.and_then(|at| spare.get(at..)?.split_first()) {
                chosen.push(candidate);
                spare = rest;
            }
        }
        let enough = if self.width.length_penalty == 0.0 {
            // Without a penalty, no later text has a better score than the best one.
            best_ended
        } else {
            self.ended.len() >= (beams as f64 * patience).round() as usize
        };
        if enough || is_last || chosen.is_empty() {
            return Ok(Next::Done(self.best()));
        }
        let (next, moves) = place(&self.beams, &chosen, beams);
        self.beams = next;
        // The end of text is a token of every vocabulary. What follows it in a row without a text
        // is not used.
        let last = |beam: &Option<Beam>| beam.as_ref()?.ids.last().copied();
        let tokens = self
            .beams
            .iter()
            .map(|beam| last(beam).unwrap_or(rules.end_of_text()));
        Ok(Next::Read {
            tokens: tokens.collect(),
            moves,
        })
    }

    fn best(&mut self) -> Sampled {
        let penalty = self.width.length_penalty;
        let score = |sampled: &Sampled| sampled.sum_logprob / (sampled.ids.len() as f64).powf(penalty);
        let best = self.ended.drain(..).reduce(
            |best, other| {
                if score(&other) > score(&best) { other } else { best }
            },
        );
        // Without a text that ended, every token was forbidden.
        best.unwrap_or_else(|| Sampled {
            ids: text(&self.beams, 0),
            ended: false,
            sum_logprob: 0.0,
        })
    }
}

/// The best continuations of all beams, best first. Changes the logits.
fn candidates(
    logits: &Tensor,
    rules: &Rules,
    given: usize,
    beams: &[Option<Beam>],
    most: usize,
) -> Result<Vec<Candidate>, Error> {
    for (row, beam) in beams.iter().enumerate() {
        if let Some(beam) = beam {
            let _ = rules.restrict(logits.f_narrow(0, row as i64, 1)?, &beam.ids, given)?;
        }
    }
    let mut all = Vec::with_capacity(beams.len() * most);
    for (row, (beam, best)) in beams.iter().zip(top_log_softmax(logits, most)?).enumerate() {
        let Some(beam) = beam else { continue };
        for (token, logprob) in best {
            if logprob.is_nan() {
                return Err(Error::NotANumber { offset: 0.0 });
            }
            if logprob.is_finite() {
                all.push(Candidate {
                    row,
                    token: token as i64,
                    score: f64::from(beam.score as f32 + logprob),
                });
            }
        }
    }
    all.sort_by(|one, other| other.score.total_cmp(&one.score));
    all.truncate(most);
    Ok(all)
}

/// Gives each continuation a row. The first one of a beam stays in its row, and the others get the
/// rows of beams that are not continued: `(from, to)` for each row to copy.
fn place(
    beams: &[Option<Beam>],
    chosen: &[&Candidate],
    size: usize,
) -> (Vec<Option<Beam>>, Vec<(usize, usize)>) {
    let mut next: Vec<Option<Beam>> = vec![None; size];
    let mut others = Vec::new();
    let continued = |candidate: &Candidate| {
        let mut ids = text(beams, candidate.row);
        ids.push(candidate.token);
        Beam {
            ids,
            score: candidate.score,
        }
    };
    for candidate in chosen {
        match next.get_mut(candidate.row) {
            Some(place @ None) => *place = Some(continued(candidate)),
            _ => others.push(candidate),
        }
    }
    let mut moves = Vec::with_capacity(others.len());
    let mut free = next.iter_mut().enumerate().filter(|(_, place)| place.is_none());
    for candidate in others {
        if let Some((row, place)) = free.next() {
            *place = Some(continued(candidate));
            moves.push((candidate.row, row));
        }
    }
    (next, moves)
}

fn text(beams: &[Option<Beam>], row: usize) -> Vec<i64> {
    match beams.get(row) {
        Some(Some(beam)) => beam.ids.clone(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_beams_with_several_continuations_move() {
        let beam = |id| {
            Some(Beam {
                ids: vec![id],
                score: 0.0,
            })
        };
        let beams = [beam(10), beam(11), beam(12), beam(13)];
        let candidate = |row, token| Candidate {
            row,
            token,
            score: -1.0,
        };
        // Beam 2 goes on twice, beam 0 not at all.
        let chosen = [candidate(2, 5), candidate(3, 6), candidate(2, 7), candidate(1, 8)];
        let (next, moves) = place(&beams, &chosen.iter().collect::<Vec<_>>(), 4);
        let ids: Vec<_> = next.into_iter().map(|beam| beam.unwrap().ids).collect();
        assert_eq!(ids, [vec![12, 7], vec![11, 8], vec![12, 5], vec![13, 6]]);
        assert_eq!(moves, [(2, 0)]);
    }
}
