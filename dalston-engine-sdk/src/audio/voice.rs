//! Voice activity: which parts of a recording are speech.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;

/// Estimates frame by frame how probable speech is.
///
/// The methods of [`SpeechFinder`] turn the probabilities into parts of speech.
pub trait VoiceDetector {
    /// Samples per second that it is made for.
    fn sample_rate(&self) -> u32;

    /// Samples of a frame. At least 1.
    fn frame_len(&self) -> usize;

    /// The probability of speech in the next frame, 0 to 1. The frame has
    /// [`frame_len`](Self::frame_len) samples of one channel, from -1 to 1.
    fn probability(&mut self, frame: &[f32]) -> f32;

    /// Forgets all frames, so that another recording can follow.
    fn reset(&mut self);

    /// By how many frames a probability is late: it is that of so many frames before. 0 unless
    /// overridden.
    fn delay(&self) -> usize {
        0
    }

    /// For how many frames the probability stays high after the end of speech, beside
    /// [`delay`](Self::delay). 0 unless overridden.
    fn hangover(&self) -> usize {
        0
    }
}

/// The detector of the crate `earshot`: 16 kHz, frames of 16 ms. Its small network is part of the
/// program.
///
/// A probability is the median of the last seven frames. Single frames of noise can look like
/// speech, and no speech is that short.
pub struct Earshot {
    detector: Box<earshot::Detector>,
    /// The probabilities of the last frames, in a ring.
    last: [f32; SMOOTHED],
    next: usize,
}

impl Earshot {
    /// A detector at the start of a recording.
    #[must_use]
    pub fn new() -> Self {
        Self {
            detector: Box::default(),
            last: [0.0; SMOOTHED],
            next: 0,
        }
    }
}

impl Default for Earshot {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Earshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Earshot").finish_non_exhaustive()
    }
}

/// The number of frames that a probability is the median of. It is odd.
const SMOOTHED: usize = 7;
/// Samples of a frame of [`Earshot`].
const EARSHOT_FRAME: usize = 256;

impl VoiceDetector for Earshot {
    fn sample_rate(&self) -> u32 {
        16_000
    }

    fn frame_len(&self) -> usize {
        EARSHOT_FRAME
    }

    fn probability(&mut self, frame: &[f32]) -> f32 {
        // The detector refuses other lengths and louder samples, and does not recover from NaN.
        let mut exact = [0.0; EARSHOT_FRAME];
        for (to, from) in exact.iter_mut().zip(frame) {
            *to = if from.is_nan() { 0.0 } else { from.clamp(-1.0, 1.0) };
        }
        if let Some(place) = self.last.get_mut(self.next) {
            *place = self.detector.predict_f32(&exact);
        }
        self.next = (self.next + 1) % SMOOTHED;
        let mut sorted = self.last;
        sorted.sort_by(f32::total_cmp);
        sorted.get(SMOOTHED / 2).copied().unwrap_or_default()
    }

    fn reset(&mut self) {
        self.detector.reset();
        self.last = [0.0; SMOOTHED];
    }

    fn delay(&self) -> usize {
        SMOOTHED / 2
    }

    fn hangover(&self) -> usize {
        // Measured on the recordings of the Whisper example: 20 to 124 ms.
        6
    }
}

/// How probabilities become parts of speech, with the names and defaults of faster-whisper's
/// `VadOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct VadOptions {
    /// The probability at which speech begins. Default: 0.5.
    pub threshold: f32,
    /// The probability below which speech ends. Default: 0.15 less than `threshold`, at least 0.01.
    pub neg_threshold: Option<f32>,
    /// Shorter speech is left out, in milliseconds. Default: 0.
    pub min_speech_duration_ms: u32,
    /// Longer speech is cut, in seconds: at the last silence of more than 98 ms, or else there.
    /// Default: no limit.
    pub max_speech_duration_s: Option<f64>,
    /// Speech ends with this much silence, in milliseconds. Default: 2000.
    pub min_silence_duration_ms: u32,
    /// Silence that is kept before and after speech, in milliseconds. Default: 400.
    pub speech_pad_ms: u32,
}

impl Default for VadOptions {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            neg_threshold: None,
            min_speech_duration_ms: 0,
            max_speech_duration_s: None,
            min_silence_duration_ms: 2000,
            speech_pad_ms: 400,
        }
    }
}

impl VadOptions {
    /// Whether all values are possible.
    ///
    /// # Errors
    ///
    /// The first impossible value, and what is expected.
    pub fn check(&self) -> Result<(), String> {
        let probability = |name, value: f32| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}: expected a number from 0 to 1")),
        };
        probability("threshold", self.threshold)?;
        probability("neg_threshold", self.neg_threshold.unwrap_or_default())?;
        match self.max_speech_duration_s {
            Some(seconds) if !(seconds.is_finite() && seconds > 0.0) => Err(format!(
                "max_speech_duration_s is {seconds}: expected a number above 0"
            )),
            _ => Ok(()),
        }
    }
}

/// The shortest silence, in milliseconds, at which speech that is too long may be cut.
const CUT_SILENCE_MS: u32 = 98;

/// Turns the probabilities of frames into parts of speech.
///
/// Speech begins at a probability of [`threshold`](VadOptions::threshold), and ends where the
/// probability stays below [`neg_threshold`](VadOptions::neg_threshold).
///
/// ```
/// use dalston_engine_sdk::audio::{Earshot, SpeechFinder, VadOptions, VoiceDetector};
///
/// let samples = vec![0.0_f32; 16_000];
/// let mut detector = Earshot::new();
/// let mut finder = SpeechFinder::new(&detector, VadOptions::default());
/// for frame in samples.chunks(detector.frame_len()) {
///     finder.push(detector.probability(frame));
/// }
/// assert!(finder.finish(samples.len()).is_empty());
/// ```
#[derive(Debug)]
pub struct SpeechFinder {
    options: VadOptions,
    frame_len: usize,
    /// Samples per millisecond.
    per_ms: f64,
    /// Samples so far.
    at: usize,
    found: Vec<Range<usize>>,
    /// The start of the speech that has not ended.
    start: Option<usize>,
    /// The start of the silence after it.
    silence: Option<usize>,
    /// The last silence at which it may be cut, and where speech goes on after it.
    cut: Option<Cut>,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    end: usize,
    next: Option<usize>,
}

impl SpeechFinder {
    /// A finder for the frames of `detector`.
    #[must_use]
    pub fn new(detector: &dyn VoiceDetector, options: VadOptions) -> Self {
        Self {
            options,
            frame_len: detector.frame_len().max(1),
            per_ms: f64::from(detector.sample_rate()) / 1000.0,
            at: 0,
            found: Vec::new(),
            start: None,
            silence: None,
            cut: None,
        }
    }

    /// Adds the probability of the next frame.
    pub fn push(&mut self, probability: f32) {
        let at = self.at;
        self.at += self.frame_len;
        let is_speech = probability >= self.options.threshold;
        if is_speech
            && self.silence.take().is_some()
            && let Some(cut) = &mut self.cut
        {
            cut.next = cut.next.filter(|&next| next >= cut.end).or(Some(at));
        }
        let Some(start) = self.start else {
            if is_speech {
                self.start = Some(at);
            }
            return;
        };
        let mut start = start;
        if at - start > self.longest() {
            let cut = self.cut.take();
            self.silence = None;
            match cut {
                Some(cut) => {
                    self.found.push(start..cut.end);
                    self.start = cut.next;
                    let Some(next) = cut.next else { return };
                    start = next;
                }
                None => {
                    self.found.push(start..at);
                    self.start = None;
                    return;
                }
            }
        }
        let ends_below = self
            .options
            .neg_threshold
            .unwrap_or((self.options.threshold - 0.15).max(0.01));
        if probability >= ends_below {
            return;
        }
        let silence = *self.silence.get_or_insert(at);
        if at - silence > self.samples(CUT_SILENCE_MS) {
            self.cut = Some(Cut {
                end: silence,
                next: None,
            });
        }
        if at - silence >= self.samples(self.options.min_silence_duration_ms) {
            if silence - start > self.samples(self.options.min_speech_duration_ms) {
                self.found.push(start..silence);
            }
            (self.start, self.silence, self.cut) = (None, None, None);
        }
    }

    /// The parts of speech in a recording of `len` samples, in order, with the silence that is kept
    /// around them. They do not overlap.
    #[must_use]
    pub fn finish(mut self, len: usize) -> Vec<Range<usize>> {
        if let Some(start) = self.start
            && len.saturating_sub(start) > self.samples(self.options.min_speech_duration_ms)
        {
            self.found.push(start..len);
        }
        let pad = self.samples(self.options.speech_pad_ms);
        let mut found = self.found;
        if let Some(first) = found.first_mut() {
            first.start = first.start.saturating_sub(pad);
        }
        for at in 1..found.len() {
            if let Some([before, after]) = found.get_mut(at - 1..=at) {
                let kept = (after.start.saturating_sub(before.end) / 2).min(pad);
                before.end += kept;
                after.start -= kept;
            }
        }
        if let Some(last) = found.last_mut() {
            last.end += pad;
        }
        for part in &mut found {
            part.end = part.end.min(len);
        }
        found.retain(|part| part.start < part.end);
        found
    }

    /// The length at which speech is cut, less the silence around it.
    fn longest(&self) -> usize {
        let Some(seconds) = self.options.max_speech_duration_s else {
            return usize::MAX;
        };
        let samples = (seconds * 1000.0 * self.per_ms) as usize;
        samples.saturating_sub(self.frame_len + 2 * self.samples(self.options.speech_pad_ms))
    }

    fn samples(&self, milliseconds: u32) -> usize {
        (f64::from(milliseconds) * self.per_ms) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 100 samples, at 1000 samples a second.
    struct Slow;

    impl VoiceDetector for Slow {
        fn sample_rate(&self) -> u32 {
            1000
        }

        fn frame_len(&self) -> usize {
            100
        }

        fn probability(&mut self, _: &[f32]) -> f32 {
            0.0
        }

        fn reset(&mut self) {}
    }

    /// The parts in tenths of a second, for one digit per frame: tenths of a probability.
    fn parts(digits: &str, change: impl FnOnce(&mut VadOptions)) -> Vec<(usize, usize)> {
        let mut options = VadOptions {
            speech_pad_ms: 0,
            min_silence_duration_ms: 300,
            ..VadOptions::default()
        };
        change(&mut options);
        let mut finder = SpeechFinder::new(&Slow, options);
        for digit in digits.bytes() {
            finder.push(f32::from(digit - b'0') / 10.0);
        }
        let parts = finder.finish(digits.len() * 100);
        parts
            .iter()
            .map(|part| (part.start / 100, part.end / 100))
            .collect()
    }

    #[test]
    fn speech_begins_above_and_ends_below_its_thresholds() {
        assert_eq!(parts("0044000000", |_| ()), []);
        assert_eq!(parts("0054400000", |_| ()), [(2, 5)]);
        // A short silence ends nothing.
        assert_eq!(parts("0900900000", |_| ()), [(1, 5)]);
        assert_eq!(parts("0900009000", |_| ()), [(1, 2), (6, 10)]);
        assert_eq!(parts("0054400000", |o| o.neg_threshold = Some(0.45)), [(2, 3)]);
    }

    #[test]
    fn short_speech_is_left_out() {
        let least = |o: &mut VadOptions| o.min_speech_duration_ms = 200;
        assert_eq!(parts("0990000999900000", least), [(7, 11)]);
    }

    #[test]
    fn long_speech_is_cut_at_its_last_silence() {
        let most = |o: &mut VadOptions| o.max_speech_duration_s = Some(0.8);
        assert_eq!(parts("99990009999990000000", most), [(0, 4), (7, 13)]);
        assert_eq!(parts("99900999999999999000", most), [(0, 3), (5, 13), (14, 20)]);
        // Without a silence, where it is too long.
        assert_eq!(parts("999999999999", most), [(0, 8), (9, 12)]);
    }

    #[test]
    fn silence_around_speech_is_kept_without_overlap() {
        let pad = |o: &mut VadOptions| o.speech_pad_ms = 200;
        assert_eq!(parts("0900000900", pad), [(0, 4), (5, 10)]);
        assert_eq!(
            parts("90000900000000", |o| o.speech_pad_ms = 300),
            [(0, 3), (3, 9)]
        );
    }

    #[test]
    fn impossible_options_are_named() {
        let mut options = VadOptions::default();
        assert_eq!(options.check(), Ok(()));
        options.threshold = 2.0;
        let problem = "threshold is 2: expected a number from 0 to 1";
        assert_eq!(options.check(), Err(problem.to_owned()));
    }

    #[test]
    fn samples_that_are_no_numbers_are_no_speech() {
        let mut detector = Earshot::new();
        for sample in [f32::NAN, f32::INFINITY, 3.0] {
            let probability = detector.probability(&[sample; EARSHOT_FRAME]);
            assert!((0.0..=1.0).contains(&probability), "{sample}: {probability}");
        }
        assert!(detector.probability(&[0.0; EARSHOT_FRAME]) < 0.5);
    }
}
