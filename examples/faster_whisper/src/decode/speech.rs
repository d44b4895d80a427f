//! Leaves out the parts of a recording without speech, and finds the times in it again.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::ops::Range;

use dalston_engine_sdk::audio::{SpeechFinder, VadOptions, VoiceDetector};

use super::hundredths;
use super::transcription::{Observer, Samples, Transcription};
use crate::error::Error;

/// Number of frames that are read at once.
const FRAMES: usize = 1024;

/// Number of frames that the detector hears before the recording starts: its own begin.
const PRIMING_FRAMES: usize = 64;

/// How far a time in hundredths of a second can be from a sample, in seconds.
const ROUNDING: f64 = 0.005;

/// What is transcribed of a recording.
pub(super) enum Source<'a> {
    /// All of it.
    Whole(Box<dyn Samples + 'a>),
    /// The parts with speech.
    Speech(Speech<'a>),
}

impl Samples for Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Whole(samples) => samples.len(),
            Self::Speech(speech) => speech.len(),
        }
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>> {
        match self {
            Self::Whole(samples) => samples.read(range),
            Self::Speech(speech) => speech.read(range),
        }
    }
}

/// The parts of speech of a recording, one after the other.
pub(super) struct Speech<'a> {
    samples: Box<dyn Samples + 'a>,
    parts: Vec<Part>,
    len: usize,
}

/// A part of speech.
struct Part {
    /// Samples of speech before it.
    before: usize,
    /// Its place in the recording.
    range: Range<usize>,
}

impl<'a> Speech<'a> {
    /// Finds the speech.
    pub(super) fn find(
        samples: Box<dyn Samples + 'a>,
        detector: &mut dyn VoiceDetector,
        options: VadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self, Error> {
        // A sudden begin of noise is speech for a detector that has heard nothing before it.
        let begin = samples.read(0..samples.len().min(PRIMING_FRAMES * detector.frame_len()));
        for frame in begin.map_err(Error::Samples)?.chunks(detector.frame_len()) {
            detector.probability(frame);
        }
        let mut finder = SpeechFinder::new(detector, options);
        let step = FRAMES * detector.frame_len();
        for start in (0..samples.len()).step_by(step) {
            if !observer.keep_going() {
                return Err(Error::Stopped);
            }
            let end = (start + step).min(samples.len());
            let read = samples.read(start..end).map_err(Error::Samples)?;
            for frame in read.chunks(detector.frame_len()) {
                finder.push(detector.probability(frame));
            }
        }
        let mut len = 0;
        let parts = finder.finish(samples.len()).into_iter().map(|range| {
            let part = Part { before: len, range };
            len += part.range.len();
            part
        });
        Ok(Self {
            parts: parts.collect(),
            samples,
            len,
        })
    }

    /// Number of samples of the recording.
    pub(super) fn recording_len(&self) -> usize {
        self.samples.len()
    }

    /// Number of samples of each part.
    pub(super) fn lens(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.range.len()).collect()
    }

    /// Seconds of each part, given samples per second.
    pub(super) fn parts(&self, rate: f64) -> Vec<(f64, f64)> {
        let seconds = |sample: usize| sample as f64 / rate;
        let times = |part: &Part| (seconds(part.range.start), seconds(part.range.end));
        self.parts.iter().map(times).collect()
    }

    /// Replaces times in the speech with times in the recording. A word lies in one part.
    pub(super) fn restore(&self, transcription: &mut Transcription, rate: f64) {
        for segment in &mut transcription.segments {
            for word in segment.words.iter_mut().flatten() {
                let middle = f64::midpoint(word.start, word.end);
                let part = self.part(middle, rate, Edge::Start);
                word.start = shifted(word.start, part, rate);
                word.end = shifted(word.end, part, rate);
            }
            let words = segment.words.as_deref().unwrap_or_default();
            if let (Some(first), Some(last)) = (words.first(), words.last()) {
                (segment.start, segment.end) = (first.start, last.end);
            } else {
                let start = self.part(segment.start, rate, Edge::Start);
                let end = self.part(segment.end, rate, Edge::End);
                segment.start = shifted(segment.start, start, rate);
                segment.end = shifted(segment.end, end, rate);
            }
        }
    }

    /// The part at this time in the speech.
    fn part(&self, seconds: f64, rate: f64, edge: Edge) -> Option<&Part> {
        let after = self.parts.iter().find(|part| {
            let end = (part.before + part.range.len()) as f64 / rate;
            match edge {
                Edge::Start => seconds < end - ROUNDING,
                Edge::End => seconds <= end + ROUNDING,
            }
        });
        after.or(self.parts.last())
    }
}

/// Whether a time between two parts belongs to the later or to the earlier one.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    Start,
    End,
}

fn shifted(seconds: f64, part: Option<&Part>, rate: f64) -> f64 {
    let silence = part.map_or(0, |part| part.range.start - part.before);
    hundredths(seconds + silence as f64 / rate)
}

impl Samples for Speech<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn StdError + Send + Sync>> {
        let mut all = Vec::with_capacity(range.len());
        for part in &self.parts {
            let start = range.start.max(part.before);
            let end = range.end.min(part.before + part.range.len());
            if start < end {
                let shift = part.range.start - part.before;
                all.extend_from_slice(&self.samples.read(start + shift..end + shift)?);
            }
        }
        Ok(Cow::Owned(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_speech_become_times_in_the_recording() {
        let samples: Vec<f32> = (0..100).map(|n| n as f32).collect();
        let speech = Speech {
            samples: Box::new(&samples[..]),
            parts: vec![
                Part {
                    before: 0,
                    range: 10..30,
                },
                Part {
                    before: 20,
                    range: 60..90,
                },
            ],
            len: 50,
        };
        assert_eq!(speech.read(18..22).unwrap().as_ref(), [28.0, 29.0, 60.0, 61.0]);
        // At 10 samples a second.
        let start = |seconds| shifted(seconds, speech.part(seconds, 10.0, Edge::Start), 10.0);
        let end = |seconds| shifted(seconds, speech.part(seconds, 10.0, Edge::End), 10.0);
        assert_eq!(
            (start(0.0), start(1.9), start(2.0), start(4.9)),
            (1.0, 2.9, 6.0, 8.9)
        );
        assert_eq!((end(2.0), end(2.1), end(5.0)), (3.0, 6.1, 9.0));
    }
}
