//! Where the windows of a recording start and end.

use std::collections::VecDeque;
use std::ops::Range;

use super::pace::Pace;
use crate::config::FeatureConfig;
use crate::options::Options;

/// The position of a window, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Place {
    pub(super) fn end(self) -> usize {
        self.start + self.len
    }
}

/// The windows that are left.
#[derive(Debug)]
pub(super) enum Windows {
    /// A window starts where the text of the previous one ends.
    Sought {
        /// The parts of the recording that are left, in frames.
        left: VecDeque<Range<usize>>,
        /// Frames of a window.
        most: usize,
        /// Samples of a frame.
        hop: usize,
        pace: Pace,
        /// Whether a window is being decoded.
        is_running: bool,
    },
    /// The windows are known before, and several are decoded at once.
    Chunks {
        left: VecDeque<Place>,
        at_once: usize,
        running: usize,
        /// Samples of all windows, and of those that are done.
        all: usize,
        done: usize,
    },
}

impl Windows {
    /// Those of the parts that the task names, of at most `most` frames.
    pub(super) fn sought(
        options: &Options,
        features: &FeatureConfig,
        (samples, most): (usize, usize),
        pace: Pace,
    ) -> Self {
        let hop = features.hop_length as usize;
        let frames = samples / hop;
        let frame = |seconds: f64| ((seconds * features.frames_per_second()).round() as usize).min(frames);
        let ranges = options.clip_timestamps.ranges().into_iter();
        let parts = ranges.map(|(start, end)| frame(start)..end.map_or(frames, frame));
        Self::Sought {
            left: parts.filter(|part| part.start < part.end).collect(),
            most,
            hop,
            pace,
            is_running: false,
        }
    }

    /// These, except those of less than a frame.
    pub(super) fn chunks(places: Vec<Place>, at_once: usize, hop: usize) -> Self {
        let left: VecDeque<Place> = places.into_iter().filter(|place| place.len >= hop).collect();
        Self::Chunks {
            all: left.iter().map(|place| place.len).sum(),
            left,
            at_once,
            running: 0,
            done: 0,
        }
    }

    /// Whether windows are independent of each other.
    pub(super) fn are_chunks(&self) -> bool {
        matches!(self, Self::Chunks { .. })
    }

    /// Whether all windows are done.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Sought { left, .. } => left.is_empty(),
            Self::Chunks { left, running, .. } => left.is_empty() && *running == 0,
        }
    }

    /// A window that can be decoded now. `one_by_one` lets none start before the others are done.
    pub(super) fn next(&mut self, one_by_one: bool) -> Option<Place> {
        match self {
            Self::Sought {
                left,
                most,
                hop,
                is_running,
                ..
            } => {
                if *is_running {
                    return None;
                }
                let part = left.front()?;
                *is_running = true;
                Some(Place {
                    start: part.start * *hop,
                    len: part.len().min(*most) * *hop,
                })
            }
            Self::Chunks {
                left,
                at_once,
                running,
                ..
            } => {
                if *running >= if one_by_one { 1 } else { *at_once } {
                    return None;
                }
                let place = left.pop_front()?;
                *running += 1;
                Some(place)
            }
        }
    }

    /// A window is done. The next one can start behind `frames` of its frames. Returns whether the
    /// model made progress; otherwise the rest of the window is skipped.
    pub(super) fn done(&mut self, place: Place, frames: usize) -> bool {
        match self {
            Self::Sought {
                left,
                hop,
                pace,
                is_running,
                ..
            } => {
                *is_running = false;
                let size = place.len / *hop;
                let allowed = pace.allow(frames, size);
                if let Some(part) = left.front_mut() {
                    part.start += allowed.unwrap_or(size);
                    if part.start >= part.end {
                        left.pop_front();
                    }
                }
                allowed.is_some()
            }
            Self::Chunks { running, done, .. } => {
                *running -= 1;
                *done += place.len;
                true
            }
        }
    }

    /// The fraction of a recording of so many frames that is done.
    pub(super) fn fraction(&self, frames: usize) -> f32 {
        match self {
            Self::Sought { left, .. } => {
                let next = left.front().map_or(frames, |part| part.start);
                next as f32 / frames as f32
            }
            Self::Chunks { all, done, .. } => *done as f32 / *all as f32,
        }
    }
}
