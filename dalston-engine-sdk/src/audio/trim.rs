//! Taking off what encoders add: silence before the first sample and after the last one.

use super::source::Block;

/// Which frames of what a decoder gives belong to the recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Edges {
    /// Frames before the recording begins.
    pub(super) before: u64,
    /// Frames of the recording, when it ends there whatever follows.
    pub(super) length: Option<u64>,
    /// Frames behind the recording, if there are as many in total as `total` says.
    pub(super) after: u64,
    /// See `after`.
    pub(super) total: Option<u64>,
}

/// Applies [`Edges`] to a stream of blocks.
#[derive(Debug, Default)]
pub(super) struct Trim {
    edges: Edges,
    decoded: u64,
    given: u64,
    /// The last frames that came, which may turn out to be those behind the recording.
    held: Vec<f32>,
}

impl Trim {
    pub(super) fn new(edges: Edges) -> Self {
        Self {
            edges,
            ..Self::default()
        }
    }

    /// Leaves in `block` what belongs to the recording, which may be nothing yet.
    pub(super) fn apply(&mut self, block: &mut Block) {
        let channels = block.channels;
        let frames = (block.samples.len() / channels) as u64;
        let early = self.edges.before.saturating_sub(self.decoded).min(frames);
        self.decoded += frames;
        block.samples.drain(..early as usize * channels);

        let most = self.edges.length.map_or(u64::MAX, |length| length - self.given);
        let keep = ((block.samples.len() / channels) as u64).min(most);
        block.samples.truncate(keep as usize * channels);

        if self.edges.after > 0 {
            block.samples.splice(..0, self.held.drain(..));
            let have = block.samples.len() / channels;
            let hold = (self.edges.after as usize).min(have);
            self.held.extend(block.samples.drain((have - hold) * channels..));
        }
        self.given += (block.samples.len() / channels) as u64;
    }

    /// Whether nothing that follows belongs to the recording.
    pub(super) fn is_over(&self) -> bool {
        self.edges.length == Some(self.given)
    }

    /// Leaves in `block` what was held back and belongs to the recording after all.
    ///
    /// A file that has more frames than its header says was joined from several; one that has fewer was cut. In neither do
    /// we know what the last frames are, and sound is better kept.
    pub(super) fn finish(&mut self, block: &mut Block) {
        block.samples.clear();
        if self.edges.total != Some(self.decoded) {
            block.samples.append(&mut self.held);
        }
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of the frames 0, 1, 2, … that come in blocks of the given lengths.
    fn trimmed(edges: Edges, blocks: &[u16]) -> Vec<f32> {
        let mut trim = Trim::new(edges);
        let (mut next, mut left) = (0, Vec::new());
        let mut block = Block {
            sample_rate: 16_000,
            channels: 2,
            ..Block::default()
        };
        for &length in blocks {
            block.samples = (next..next + length)
                .flat_map(|frame| [f32::from(frame); 2])
                .collect();
            next += length;
            trim.apply(&mut block);
            left.append(&mut block.samples);
            if trim.is_over() {
                return left;
            }
        }
        trim.finish(&mut block);
        left.append(&mut block.samples);
        left
    }

    fn frames(range: std::ops::Range<u16>) -> Vec<f32> {
        range.flat_map(|frame| [f32::from(frame); 2]).collect()
    }

    #[test]
    fn without_edges_everything_is_kept() {
        assert_eq!(trimmed(Edges::default(), &[3, 0, 4]), frames(0..7));
    }

    #[test]
    fn frames_before_and_behind_the_recording_are_dropped_across_blocks() {
        let edges = Edges {
            before: 5,
            after: 4,
            total: Some(20),
            length: None,
        };
        for blocks in [&[20][..], &[3, 3, 3, 3, 3, 3, 2], &[1; 20], &[4, 0, 16], &[18, 2]] {
            assert_eq!(trimmed(edges, blocks), frames(5..16), "{blocks:?}");
        }
    }

    #[test]
    fn nothing_is_dropped_at_the_end_of_a_file_with_another_length_than_expected() {
        let edges = Edges {
            before: 5,
            after: 4,
            total: Some(20),
            length: None,
        };
        assert_eq!(trimmed(edges, &[10, 9]), frames(5..19));
        assert_eq!(trimmed(edges, &[10, 30]), frames(5..40));
        assert_eq!(trimmed(edges, &[6]), frames(5..6));
        assert_eq!(trimmed(edges, &[3]), frames(0..0));
    }

    #[test]
    fn a_recording_of_known_length_ends_there() {
        let edges = Edges {
            before: 2,
            length: Some(5),
            ..Edges::default()
        };
        for blocks in [&[20][..], &[1; 9], &[2, 5, 3]] {
            assert_eq!(trimmed(edges, blocks), frames(2..7), "{blocks:?}");
        }
        assert_eq!(trimmed(edges, &[4]), frames(2..4));
    }
}
