//! The tokens that may follow.
//!
//! Rules that depend on the sampled tokens are evaluated on the host and applied to ranges of the
//! row of logits. The rule that depends on the logits is evaluated in tensors, so that no row is
//! copied from the device.

use std::ops::Range;

use tch::{Device, TchError, Tensor};

use crate::tokenizer::Vocabulary;

/// Suppression and timestamp rules.
#[derive(Debug)]
pub struct Rules {
    /// -∞ for suppressed tokens, 0 for others: 1 × vocabulary.
    never: Tensor,
    /// The same for the first token.
    never_first: Tensor,
    timestamps: bool,
    limits: Limits,
}

/// The configuration of [`Rules::new`].
#[derive(Debug, Clone, Default)]
pub struct RuleConfig {
    /// Tokens that are never sampled.
    pub suppress: Vec<i64>,
    /// Tokens that are not sampled first.
    pub suppress_first: Vec<i64>,
    /// Whether to decode timestamps. Without, timestamp tokens are unlikely but not suppressed.
    pub timestamps: bool,
    /// The latest first timestamp in steps, if there is a limit.
    pub max_initial_timestamp: Option<i64>,
}

impl Rules {
    /// Prepares the masks on `device`. Ids outside the vocabulary are ignored.
    ///
    /// # Errors
    /// libtorch ran out of memory.
    pub fn new(vocabulary: &Vocabulary, config: &RuleConfig, device: Device) -> Result<Self, TchError> {
        let mut mask = vec![0.0_f32; vocabulary.size() as usize];
        let suppress = |mask: &mut Vec<f32>, ids: &[i64]| {
            for &id in ids {
                if let Some(cell) = usize::try_from(id).ok().and_then(|index| mask.get_mut(index)) {
                    *cell = f32::NEG_INFINITY;
                }
            }
        };
        suppress(&mut mask, &config.suppress);
        if config.timestamps {
            suppress(&mut mask, &[vocabulary.no_timestamps()]);
        }
        let upload = |mask: &[f32]| Tensor::f_from_slice(mask)?.f_to_device(device)?.f_unsqueeze(0);
        let never = upload(&mask)?;
        suppress(&mut mask, &config.suppress_first);
        let limits = Limits {
            end_of_text: vocabulary.end_of_text(),
            first_timestamp: vocabulary.first_timestamp(),
            size: vocabulary.size(),
            max_initial: config.max_initial_timestamp,
        };
        Ok(Self {
            never,
            never_first: upload(&mask)?,
            timestamps: config.timestamps,
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
        let mask = if sampled.is_empty() {
            &self.never_first
        } else {
            &self.never
        };
        let row = logits.f_add(mask)?;
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
