//! What a model that streams natively has got of a session: [`Streaming`].

use super::endpoint::Clip;
use crate::stream::{StreamState, StreamStep};

/// The audio that the stream of a session has got.
#[derive(Debug)]
pub(super) struct Streaming {
    state: StreamState,
    /// The shortest audio that is pushed, in samples.
    shortest: u64,
    /// The utterance, and the end of what was pushed of it.
    pushed: Option<(u64, u64)>,
    /// The utterance with a push that failed: it is pushed again when it has ended.
    failed: Option<u64>,
}

impl Streaming {
    /// With pushes of at least a tenth of a second.
    pub(super) fn new(rate: u32) -> Self {
        Self {
            state: StreamState::default(),
            shortest: u64::from(rate / 10).max(1),
            pushed: None,
            failed: None,
        }
    }

    /// From where the utterance `of` is to be pushed, if it ends at `end` so far.
    pub(super) fn next(&mut self, of: u64, end: u64) -> Option<u64> {
        let from = self.end_of(of);
        if self.failed == Some(of) || end < from + self.shortest {
            return None;
        }
        self.pushed = Some((of, end));
        Some(from)
    }

    /// Takes what was not pushed yet of an utterance that has ended.
    pub(super) fn rest(&mut self, clip: &mut Clip) -> Vec<f32> {
        let pushed = self.end_of(clip.from) - clip.from;
        (self.pushed, self.failed) = (None, None);
        // The samples of a clip are in memory, so their number fits.
        let count = usize::try_from(pushed)
            .unwrap_or(usize::MAX)
            .min(clip.samples.len());
        let mut samples = std::mem::take(&mut clip.samples);
        samples.drain(..count);
        samples
    }

    /// A push of the utterance has failed. Its stream is gone.
    pub(super) fn fail(&mut self, of: u64) {
        (self.pushed, self.failed) = (None, Some(of));
    }

    pub(super) fn step(&self, ends: bool) -> StreamStep {
        StreamStep {
            state: self.state.clone(),
            ends,
        }
    }

    /// The end of what was pushed of an utterance.
    fn end_of(&self, of: u64) -> u64 {
        match self.pushed {
            Some((utterance, end)) if utterance == of => end,
            _ => of,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(from: u64, length: usize) -> Clip {
        Clip {
            from,
            samples: vec![0.5; length],
            start: from,
            end: from + length as u64,
        }
    }

    #[test]
    fn each_sample_is_pushed_once() {
        let mut streaming = Streaming::new(1_000);
        assert_eq!(streaming.next(500, 550), None);
        assert_eq!(streaming.next(500, 620), Some(500));
        assert_eq!(streaming.next(500, 700), None);
        assert_eq!(streaming.next(500, 730), Some(620));
        assert_eq!(streaming.rest(&mut clip(500, 300)).len(), 70);
        // More was pushed than belongs to the utterance: the silence behind it.
        assert_eq!(streaming.next(900, 1_400), Some(900));
        assert_eq!(streaming.rest(&mut clip(900, 450)).len(), 0);
    }

    #[test]
    fn utterance_with_a_failed_push_is_pushed_again_at_its_end() {
        let mut streaming = Streaming::new(1_000);
        assert_eq!(streaming.next(500, 700), Some(500));
        streaming.fail(500);
        assert_eq!(streaming.next(500, 900), None);
        assert_eq!(streaming.rest(&mut clip(500, 600)).len(), 600);
        assert_eq!(streaming.next(1_300, 1_500), Some(1_300));
    }
}
