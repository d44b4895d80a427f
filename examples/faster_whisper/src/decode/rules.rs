//! The tokens that may follow.
//!
//! Rules that depend on the sampled tokens are evaluated on the host and applied to ranges of the
//! row of logits. On a GPU, the rule that depends on the logits is evaluated in tensors, so that no
//! row is copied from the device. On the CPU, all rules are applied in the memory of the row: a
//! call of libtorch for each would take longer than a small model.

use std::collections::BTreeSet;
use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::model::host;
use crate::tokenizer::Vocabulary;

/// Suppression and timestamp rules.
#[derive(Debug)]
pub struct Rules {
    never: Suppressed,
    /// For the first token.
    never_first: Suppressed,
    timestamps: bool,
    repetition_penalty: f64,
    no_repeat_ngram_size: usize,
    limits: Limits,
}

/// Tokens that are not sampled.
#[derive(Debug)]
struct Suppressed {
    ids: Vec<i64>,
    /// -∞ for them, 0 for others: 1 × vocabulary.
    mask: Tensor,
}

impl Suppressed {
    fn new(ids: &BTreeSet<i64>, vocabulary: &Vocabulary, device: Device) -> Result<Self, TchError> {
        let mut mask = vec![0.0_f32; vocabulary.size() as usize];
        let known = |id: &&i64| (0..vocabulary.size()).contains(*id);
        let ids: Vec<i64> = ids.iter().filter(known).copied().collect();
        for id in &ids {
            if let Some(cell) = mask.get_mut(*id as usize) {
                *cell = f32::NEG_INFINITY;
            }
        }
        let mask = Tensor::f_from_slice(&mask)?.f_to_device(device)?.f_unsqueeze(0)?;
        Ok(Self { ids, mask })
    }
}

/// The configuration of [`Rules::new`].
#[derive(Debug, Clone)]
pub struct RuleConfig {
    /// Tokens that are never sampled.
    pub suppress: Vec<i64>,
    /// Tokens that are not sampled first.
    pub suppress_first: Vec<i64>,
    /// Whether to decode timestamps. Without, timestamp tokens are unlikely but not suppressed.
    pub timestamps: bool,
    /// The latest first timestamp in steps, if there is a limit.
    pub max_initial_timestamp: Option<i64>,
    /// Divides the positive logits of tokens in the text, and multiplies the negative ones. 1 has
    /// no effect.
    pub repetition_penalty: f64,
    /// No sequence of this many tokens appears twice. 0 has no effect.
    pub no_repeat_ngram_size: usize,
}

impl Default for RuleConfig {
    fn default() -> Self {
        Self {
            suppress: Vec::new(),
            suppress_first: Vec::new(),
            timestamps: false,
            max_initial_timestamp: None,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
        }
    }
}

impl Rules {
    /// Prepares the masks on `device`. Ids outside the vocabulary are ignored.
    ///
    /// # Errors
    /// libtorch ran out of memory.
    pub fn new(vocabulary: &Vocabulary, config: &RuleConfig, device: Device) -> Result<Self, TchError> {
        let mut ids: BTreeSet<i64> = config.suppress.iter().copied().collect();
        if config.timestamps {
            ids.insert(vocabulary.no_timestamps());
        }
        let never = Suppressed::new(&ids, vocabulary, device)?;
        ids.extend(&config.suppress_first);
        let limits = Limits {
            end_of_text: vocabulary.end_of_text(),
            first_timestamp: vocabulary.first_timestamp(),
            size: vocabulary.size(),
            max_initial: config.max_initial_timestamp,
        };
        Ok(Self {
            never,
            never_first: Suppressed::new(&ids, vocabulary, device)?,
            timestamps: config.timestamps,
            repetition_penalty: config.repetition_penalty,
            no_repeat_ngram_size: config.no_repeat_ngram_size,
            limits,
        })
    }

    /// The end-of-text token.
    #[must_use]
    pub fn end_of_text(&self) -> i64 {
        self.limits.end_of_text
    }

    /// The row of logits (1 × vocabulary, float32) with -∞ for every token that may not follow
    /// `sampled`.
    ///
    /// # Errors
    /// libtorch ran out of memory.
    pub fn apply(&self, logits: &Tensor, sampled: &[i64]) -> Result<Tensor, TchError> {
        self.apply_after(logits, sampled, 0)
    }

    /// As [`apply`](Self::apply), for a text whose first `given` tokens were not sampled.
    pub(crate) fn apply_after(
        &self,
        logits: &Tensor,
        text: &[i64],
        given: usize,
    ) -> Result<Tensor, TchError> {
        self.restrict(logits.f_detach_copy()?, text, given)
    }

    /// As [`apply_after`](Self::apply_after), in the memory of the row.
    pub(crate) fn restrict(&self, mut row: Tensor, text: &[i64], given: usize) -> Result<Tensor, TchError> {
        if let Some(cells) = host::cells_mut(&mut row) {
            self.restrict_cells(cells, text, given);
            return Ok(row);
        }
        let sampled = text.get(given..).unwrap_or_default();
        self.penalise(&mut row, text)?;
        let _ = row.f_add_(&self.never_after(sampled).mask)?;
        let repeats = ends_of_repeats(text, self.no_repeat_ngram_size);
        if !repeats.is_empty() {
            let ids = Tensor::f_from_slice(&repeats)?.f_to_device(row.device())?;
            let _ = row.f_index_fill_(-1, &ids, f64::NEG_INFINITY)?;
        }
        if !self.timestamps {
            return Ok(row);
        }
        for range in self.limits.forbidden(sampled).into_iter().flatten() {
            let _ = row
                .f_narrow(-1, range.start, range.end - range.start)?
                .f_fill_(f64::NEG_INFINITY)?;
        }
        // A timestamp is due if all timestamps together are more likely than the most likely text
        // token. The denominator of the softmax is the same on both sides, so raw logits suffice.
        let Limits {
            first_timestamp,
            size,
            ..
        } = self.limits;
        let mut text = row.f_narrow(-1, 0, first_timestamp)?;
        let stamps = row
            .f_narrow(-1, first_timestamp, size - first_timestamp)?
            .f_logsumexp([-1], true)?;
        let due = stamps.f_gt_tensor(&text.f_amax([-1], true)?)?;
        let _ = text.f_masked_fill_(&due, f64::NEG_INFINITY)?;
        Ok(row)
    }

    /// As [`restrict`](Self::restrict), on the CPU.
    fn restrict_cells(&self, row: &mut [f32], text: &[i64], given: usize) {
        let sampled = text.get(given..).unwrap_or_default();
        if self.repetition_penalty != 1.0 {
            let penalty = self.repetition_penalty as f32;
            for id in text.iter().collect::<BTreeSet<_>>() {
                if let Some(cell) = row.get_mut(*id as usize) {
                    *cell *= if *cell < 0.0 { penalty } else { penalty.recip() };
                }
            }
        }
        let repeats = ends_of_repeats(text, self.no_repeat_ngram_size);
        for id in self.never_after(sampled).ids.iter().chain(&repeats) {
            if let Some(cell) = row.get_mut(*id as usize) {
                *cell = f32::NEG_INFINITY;
            }
        }
        if !self.timestamps {
            return;
        }
        for range in self.limits.forbidden(sampled).into_iter().flatten() {
            if let Some(cells) = row.get_mut(range.start as usize..range.end as usize) {
                cells.fill(f32::NEG_INFINITY);
            }
        }
        let first = (self.limits.first_timestamp as usize).min(row.len());
        let (text, stamps) = row.split_at_mut(first);
        if host::log_sum_exp(stamps) > host::largest(text) {
            text.fill(f32::NEG_INFINITY);
        }
    }

    fn never_after(&self, sampled: &[i64]) -> &Suppressed {
        if sampled.is_empty() {
            &self.never_first
        } else {
            &self.never
        }
    }

    /// Applies the repetition penalty. Each token counts once.
    fn penalise(&self, row: &mut Tensor, text: &[i64]) -> Result<(), TchError> {
        if self.repetition_penalty == 1.0 || text.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = text
            .iter()
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(row.device())?;
        let before = row.f_index_select(-1, &ids)?;
        let factor = before
            .f_lt(0.0)?
            .f_to_kind(Kind::Float)?
            .f_mul_scalar(self.repetition_penalty - 1.0 / self.repetition_penalty)?
            .f_add_scalar(1.0 / self.repetition_penalty)?;
        let _ = row.f_index_copy_(-1, &ids, &before.f_mul(&factor)?)?;
        Ok(())
    }
}

/// The tokens after which the last `size` tokens of `text` would appear twice.
fn ends_of_repeats(text: &[i64], size: usize) -> Vec<i64> {
    let Some(start) = size
        .checked_sub(1)
        .and_then(|known| text.len().checked_sub(known))
    else {
        return Vec::new();
    };
    let last = text.get(start..).unwrap_or_default();
    text.windows(size)
        .filter_map(|window| window.split_last())
        .filter(|(_, before)| *before == last)
        .map(|(end, _)| *end)
        .collect()
}

/// The ids that the timestamp rules use.
#[derive(Debug, Clone)]
struct Limits {
    end_of_text: i64,
    first_timestamp: i64,
    size: i64,
    max_initial: Option<i64>,
}

impl Limits {
    /// The ranges of ids that may not follow `sampled` if timestamps are decoded.
    fn forbidden(&self, sampled: &[i64]) -> [Option<Range<i64>>; 2] {
        let is_stamp = |&id: &i64| id >= self.first_timestamp;
        let mut tail = sampled.iter().rev();
        let Some(last) = tail.next() else {
            // The first token is a timestamp up to the limit.
            let late = self
                .max_initial
                .map(|max| self.range(self.first_timestamp + max + 1, self.size));
            return [Some(self.range(0, self.first_timestamp)), late];
        };
        let last_is_stamp = is_stamp(last);
        let pair_is_complete = tail.next().is_none_or(is_stamp);
        let pair = match (last_is_stamp, pair_is_complete) {
            // A pair is complete, or the first one is open: text must follow.
            (true, true) => Some(self.range(self.first_timestamp, self.size)),
            // A segment has ended: the second timestamp of its pair follows, or the end of text.
            (true, false) => Some(self.range(0, self.end_of_text)),
            (false, _) => None,
        };
        // Timestamps never decrease. They repeat only where one segment ends and the next starts.
        let past = sampled
            .iter()
            .rev()
            .copied()
            .find(|id| is_stamp(id))
            .map(|stamp| {
                let still = last_is_stamp && !pair_is_complete;
                self.range(self.first_timestamp, if still { stamp } else { stamp + 1 })
            });
        [pair, past]
    }

    fn range(&self, start: i64, end: i64) -> Range<i64> {
        let start = start.clamp(0, self.size);
        start..end.clamp(start, self.size)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn rules_in_memory_are_those_in_tensors() {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/whisper-nano-digits"));
        let vocabulary = &Vocabulary::load(dir, &Config::load(dir).unwrap()).unwrap();
        let (size, stamp) = (vocabulary.size(), vocabulary.first_timestamp());
        for (timestamps, of_stamps) in [(false, 0.0), (true, -3.0), (true, 3.0)] {
            let config = RuleConfig {
                suppress: vec![1, 2, -1, size],
                suppress_first: vec![3],
                timestamps,
                max_initial_timestamp: Some(50),
                repetition_penalty: 1.3,
                no_repeat_ngram_size: 2,
            };
            let rules = Rules::new(vocabulary, &config, Device::Cpu).unwrap();
            let texts = [
                vec![],
                vec![stamp + 4],
                vec![stamp + 4, 5, 6, 5],
                vec![stamp, 5, stamp + 9],
                vec![stamp, 5, stamp + 9, stamp + 9, 7],
            ];
            for text in texts {
                let both = Tensor::randn([1, size, 2], (Kind::Float, Device::Cpu));
                let _ = both
                    .narrow(1, stamp, size - stamp)
                    .f_add_scalar_(of_stamps)
                    .unwrap();
                // Its numbers are not side by side, so it is changed as on a GPU.
                let spread = both.select(2, 0);
                let cells = rules.restrict(spread.contiguous(), &text, 0).unwrap();
                let tensor = rules.restrict(spread, &text, 0).unwrap();
                assert_eq!(cells.isfinite(), tensor.isfinite(), "{timestamps} {text:?}");
                let off = (cells.exp() - tensor.exp()).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{timestamps} {text:?}: {off}");
            }
        }
    }
}
