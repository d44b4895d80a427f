//! Removing the silence that encoders add before the first sample and after the last one.
//!
//! Symphonia's gapless decoding can't replace this: it does not apply the edit list of M4A, and it
//! cuts an MP3 off at the length in its header, which is that of the first part in a joined file,
//! and a guess in a file without a Xing header.

use super::source::Block;

/// The decoded frames that belong to the recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Edges {
    /// Frames before the recording.
    pub(super) before: u64,
    /// Frames of the recording, if it has a known end.
    pub(super) length: Option<u64>,
    /// Frames behind the recording, if the file has `total` frames.
    pub(super) after: u64,
    /// The expected number of decoded frames.
    pub(super) total: Option<u64>,
}

/// Applies [`Edges`] to a stream of blocks.
#[derive(Debug, Default)]
pub(super) struct Trim {
    edges: Edges,
    decoded: u64,
    given: u64,
    /// The last frames, which may be those behind the recording.
    held: Vec<f32>,
    shape: Option<(u32, usize)>,
}

impl Trim {
    pub(super) fn new(edges: Edges) -> Self {
        Self {
            edges,
            ..Self::default()
        }
    }

    /// Leaves the frames of the recording in `block`. There may be none.
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

    /// The held back frames, if `block` has another rate or number of channels: it begins another
    /// part of a joined file, whose frames are all sound.
    pub(super) fn before_another_shape(&mut self, block: &Block) -> Option<Block> {
        let shape = (block.sample_rate, block.channels);
        let last = *self.shape.get_or_insert(shape);
        if last == shape {
            return None;
        }
        let samples = std::mem::take(&mut self.held);
        *self = Self::default();
        Some(Block {
            sample_rate: last.0,
            channels: last.1,
            samples,
            bounded: block.bounded,
        })
    }

    /// Whether all following frames are behind the recording.
    pub(super) fn is_over(&self) -> bool {
        self.edges.length == Some(self.given)
    }

    /// Leaves the held back frames in `block`, if they belong to the recording.
    ///
    /// A file with more frames than in its header was joined from several files, and one with fewer
    /// was cut off. In both the last frames may be sound, so they are kept.
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

    /// The rest of the frames 0, 1, 2, … in blocks of the given lengths.
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
    fn frames_around_the_recording_are_dropped_across_blocks() {
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
    fn the_end_of_a_file_of_unexpected_length_is_kept() {
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

    #[test]
    fn held_frames_are_given_before_another_shape() {
        let mut trim = Trim::new(Edges {
            after: 4,
            total: Some(10),
            ..Edges::default()
        });
        let mut block = Block {
            sample_rate: 16_000,
            channels: 2,
            samples: frames(0..10),
            bounded: false,
        };
        assert!(trim.before_another_shape(&block).is_none());
        trim.apply(&mut block);
        assert_eq!(block.samples, frames(0..6));
        block.channels = 1;
        let held = trim.before_another_shape(&block).unwrap();
        assert_eq!((held.sample_rate, held.channels), (16_000, 2));
        assert_eq!(held.samples, frames(6..10));
        trim.apply(&mut block);
        assert_eq!(block.samples, frames(0..6), "nothing is held back any more");
    }
}
