//! Utterances in the audio of a session: [`Endpointer`].
//!
//! All positions are samples of received audio at the rate of the engine.

use std::time::Duration;

use crate::audio::VoiceDetector;

/// How an utterance is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EndpointSettings {
    pub(super) threshold: f32,
    pub(super) min_speech: Duration,
    pub(super) min_silence: Duration,
    pub(super) prefix: Duration,
    pub(super) max_utterance: Duration,
}

/// What was found in the audio.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    SpeechStart(u64),
    SpeechEnd(u64),
    Utterance(Clip),
}

/// The audio of an utterance.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Clip {
    /// The position of the first sample.
    pub(super) from: u64,
    pub(super) samples: Vec<f32>,
    /// The start and the end of the speech in it.
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Finds utterances. Without a VAD, all audio up to a flush is one.
pub(super) struct Endpointer {
    vad: Option<Box<dyn VoiceDetector + Send>>,
    pub(super) settings: EndpointSettings,
    rate: u32,
    frame: usize,
    /// An utterance that is too long is cut at once, and not at its quietest place before.
    pub(super) cuts_at_end: bool,
    /// By how much the VAD is late at the start and at the end of speech, in samples.
    delay: u64,
    end_delay: u64,
    /// The audio that may belong to an utterance.
    samples: Vec<f32>,
    /// The position of the first one.
    base: u64,
    /// The VAD has heard everything before.
    heard: u64,
    /// The end of the last utterance: no further one begins before.
    floor: u64,
    speech: Option<Speech>,
}

#[derive(Debug)]
struct Speech {
    from: u64,
    start: u64,
    /// The end of the last frame with speech.
    last: u64,
    /// The rest of an utterance that was cut counts, however short it is.
    is_rest: bool,
    /// The energy of each frame since `measured`.
    energies: Vec<f32>,
    measured: u64,
}

/// A frame is speech for longer than its probability is above the threshold, so that an utterance
/// is not split where a voice fades.
const HYSTERESIS: f32 = 0.15;
/// The silence at the end of an utterance that belongs to it.
const TRAIL: Duration = Duration::from_millis(200);
/// The part of an utterance in which it may be cut.
const CUT_PART: f64 = 0.3;

impl Endpointer {
    /// Starts at this position.
    pub(super) fn new(
        vad: Option<Box<dyn VoiceDetector + Send>>,
        settings: EndpointSettings,
        rate: u32,
        at: u64,
    ) -> Self {
        let mut endpointer = Self {
            vad: None,
            settings,
            rate,
            frame: 1,
            cuts_at_end: false,
            delay: 0,
            end_delay: 0,
            samples: Vec::new(),
            base: at,
            heard: at,
            floor: at,
            speech: None,
        };
        endpointer.detect(vad);
        endpointer
    }

    /// Goes on with another VAD, or without one. Audio that was not flushed belongs to no
    /// utterance.
    pub(super) fn detect(&mut self, vad: Option<Box<dyn VoiceDetector + Send>>) {
        let frame = vad
            .as_ref()
            .map_or((self.rate / 50).max(1) as usize, |vad| vad.frame_len().max(1));
        let samples = |frames: usize| (frames * frame) as u64;
        let (delay, end_delay) = vad.as_ref().map_or((0, 0), |vad| {
            (samples(vad.delay()), samples(vad.delay() + vad.hangover()))
        });
        (self.vad, self.frame, self.delay, self.end_delay) = (vad, frame, delay, end_delay);
        (self.heard, self.floor, self.speech) = (self.end(), self.end(), None);
        self.begin_without_vad();
        self.forget();
    }

    /// The end of the audio.
    pub(super) fn end(&self) -> u64 {
        self.base + self.samples.len() as u64
    }

    /// The end of the audio that belongs to the current utterance or to silence.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// The current utterance: its first sample, the start of the speech, and its audio so far.
    pub(super) fn current(&self) -> Option<(u64, u64, &[f32])> {
        let speech = self.speech.as_ref()?;
        Some((
            speech.from,
            speech.start,
            &self.samples[self.offset(speech.from)..],
        ))
    }

    /// Whether the VAD hears no speech in the current utterance, which may end soon.
    pub(super) fn is_in_pause(&self) -> bool {
        let silence = |speech: &Speech| self.heard.saturating_sub(speech.last) > self.end_delay;
        self.vad.is_some() && self.speech.as_ref().is_some_and(silence)
    }

    /// Takes more audio.
    pub(super) fn push(&mut self, samples: &[f32], found: &mut Vec<Found>) {
        self.samples.extend_from_slice(samples);
        while self.end() - self.heard >= self.frame as u64 {
            self.hear(self.frame, found);
        }
        self.forget();
    }

    /// Ends the current utterance now, with all audio so far.
    pub(super) fn flush(&mut self, found: &mut Vec<Found>) {
        let rest = self.end() - self.heard;
        if rest > 0 {
            self.hear(usize::try_from(rest).unwrap_or(self.frame), found);
        }
        let Some(speech) = self.speech.take() else { return };
        let to = self.end();
        let is_empty = to == speech.from;
        // The VAD does not know the last frames yet.
        let end = match self.vad {
            Some(_) if to - speech.last > self.end_delay => speech.last,
            _ => to,
        };
        if self.vad.is_some() {
            found.push(Found::SpeechEnd(end));
        }
        if !is_empty {
            found.push(Found::Utterance(self.clip(speech.from, to, speech.start, end)));
        }
        self.floor = to;
        self.begin_without_vad();
        self.forget();
    }

    /// Drops the audio that is in no complete utterance. Returns its length in samples.
    pub(super) fn clear(&mut self, found: &mut Vec<Found>) -> u64 {
        let to = self.end();
        let mut dropped = 0;
        if let Some(speech) = self.speech.take() {
            dropped = to - speech.from;
            if self.vad.is_some() {
                found.push(Found::SpeechEnd(speech.last));
            }
        }
        (self.heard, self.floor) = (to, to);
        if let Some(vad) = &mut self.vad {
            vad.reset();
        }
        self.begin_without_vad();
        self.forget();
        dropped
    }

    fn begin_without_vad(&mut self) {
        if self.vad.is_none() {
            self.speech = Some(Speech {
                from: self.floor,
                start: self.floor,
                last: self.floor,
                is_rest: true,
                energies: Vec::new(),
                measured: self.floor,
            });
        }
    }

    /// Looks at the next frame. The last one before a flush may be shorter.
    fn hear(&mut self, length: usize, found: &mut Vec<Found>) {
        let at = self.offset(self.heard);
        let samples = &self.samples[at..at + length];
        let energy = samples.iter().map(|sample| sample * sample).sum::<f32>() / length.max(1) as f32;
        let (begin, end) = (self.heard, self.heard + length as u64);
        let threshold = self.settings.threshold;
        let (is_on, is_off) = match &mut self.vad {
            None => (true, false),
            Some(vad) => {
                let probability = if length == self.frame {
                    vad.probability(samples)
                } else {
                    let mut padded = samples.to_vec();
                    padded.resize(self.frame, 0.0);
                    vad.probability(&padded)
                };
                (
                    probability > threshold,
                    probability <= (threshold - HYSTERESIS).max(0.01),
                )
            }
        };
        self.heard = end;
        let prefix = self.length(self.settings.prefix);
        match &mut self.speech {
            None if is_on => {
                let earliest = self.floor.max(self.base);
                let start = begin.saturating_sub(self.delay).max(earliest);
                found.push(Found::SpeechStart(start));
                self.speech = Some(Speech {
                    from: start.saturating_sub(prefix).max(earliest),
                    start,
                    last: end.saturating_sub(self.end_delay).max(start),
                    is_rest: false,
                    energies: vec![energy],
                    measured: begin,
                });
            }
            None => {}
            Some(speech) => {
                speech.energies.push(energy);
                if !is_off {
                    speech.last = end.saturating_sub(self.end_delay).max(speech.last);
                }
                let silence = end - speech.last;
                if self.vad.is_some() && silence >= self.length(self.settings.min_silence) {
                    self.end_utterance(found);
                } else if end - self.from() >= self.longest() {
                    self.cut(found);
                }
            }
        }
    }

    fn end_utterance(&mut self, found: &mut Vec<Found>) {
        let Some(speech) = self.speech.take() else { return };
        found.push(Found::SpeechEnd(speech.last));
        let to = (speech.last + self.length(TRAIL)).min(self.heard);
        let is_long_enough = speech.last - speech.start >= self.length(self.settings.min_speech);
        if speech.is_rest || is_long_enough {
            found.push(Found::Utterance(self.clip(
                speech.from,
                to,
                speech.start,
                speech.last,
            )));
        }
        self.floor = to;
    }

    /// Cuts an utterance that is too long at its quietest place. The speech goes on, so there is no
    /// mark of the VAD.
    fn cut(&mut self, found: &mut Vec<Found>) {
        let Some(speech) = self.speech.take() else { return };
        let frame = self.frame as u64;
        let count = speech.energies.len();
        let begin = count - ((count as f64 * CUT_PART) as usize).clamp(1, count);
        let quietest = (begin..count)
            .min_by(|a, b| speech.energies[*a].total_cmp(&speech.energies[*b]))
            .unwrap_or(count);
        let middle = match self.cuts_at_end {
            true => self.heard,
            false => speech.measured + quietest as u64 * frame + frame / 2,
        };
        let at = middle.clamp(speech.from + 1, self.heard);
        found.push(Found::Utterance(self.clip(
            speech.from,
            at,
            speech.start,
            at.min(speech.last),
        )));
        self.floor = at;
        self.speech = Some(Speech {
            from: at,
            start: at,
            last: speech.last.max(at),
            is_rest: true,
            energies: speech.energies[(quietest + 1).min(count)..].to_vec(),
            measured: speech.measured + (quietest as u64 + 1) * frame,
        });
    }

    fn clip(&self, from: u64, to: u64, start: u64, end: u64) -> Clip {
        Clip {
            from,
            samples: self.samples[self.offset(from)..self.offset(to)].to_vec(),
            start,
            end,
        }
    }

    /// Forgets audio that no utterance can contain.
    fn forget(&mut self) {
        let keep_from = match &self.speech {
            Some(speech) => speech.from,
            None => self
                .heard
                .saturating_sub(self.length(self.settings.prefix) + self.delay)
                .max(self.floor),
        };
        let count = self.offset(keep_from);
        // Not for each frame: the rest is moved.
        if count > self.samples.len() / 2 {
            self.samples.drain(..count);
            self.base += count as u64;
        }
    }

    fn from(&self) -> u64 {
        self.speech.as_ref().map_or(self.heard, |speech| speech.from)
    }

    fn longest(&self) -> u64 {
        self.length(self.settings.max_utterance)
            .max(self.frame as u64 * 4)
    }

    fn length(&self, length: Duration) -> u64 {
        (length.as_secs_f64() * f64::from(self.rate)) as u64
    }

    fn offset(&self, position: u64) -> usize {
        // The buffer is in memory, so its length fits.
        (position.saturating_sub(self.base) as usize).min(self.samples.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 1_000;

    /// Takes every sample above 0.1 for speech. A frame has 20 samples.
    struct Loud;

    /// As [`Loud`], but three frames late, and two more at the end of speech.
    #[derive(Default)]
    struct Late(std::collections::VecDeque<bool>);

    impl VoiceDetector for Late {
        fn sample_rate(&self) -> u32 {
            RATE
        }

        fn frame_len(&self) -> usize {
            20
        }

        fn probability(&mut self, frame: &[f32]) -> f32 {
            self.0.push_back(frame.iter().any(|sample| sample.abs() > 0.1));
            let from = self.0.len().saturating_sub(6);
            self.0.drain(..from);
            f32::from(u8::from(self.0.iter().rev().skip(3).any(|is_loud| *is_loud)))
        }

        fn reset(&mut self) {}

        fn delay(&self) -> usize {
            3
        }

        fn hangover(&self) -> usize {
            2
        }
    }

    impl VoiceDetector for Loud {
        fn sample_rate(&self) -> u32 {
            RATE
        }

        fn frame_len(&self) -> usize {
            20
        }

        fn probability(&mut self, frame: &[f32]) -> f32 {
            f32::from(u8::from(frame.iter().any(|sample| sample.abs() > 0.1)))
        }

        fn reset(&mut self) {}
    }

    fn endpointer(with_vad: bool, change: impl FnOnce(&mut EndpointSettings)) -> Endpointer {
        let ms = Duration::from_millis;
        let mut settings = EndpointSettings {
            threshold: 0.5,
            min_speech: ms(250),
            min_silence: ms(400),
            prefix: ms(300),
            max_utterance: ms(30_000),
        };
        change(&mut settings);
        let vad: Option<Box<dyn VoiceDetector + Send>> = if with_vad { Some(Box::new(Loud)) } else { None };
        Endpointer::new(vad, settings, RATE, 0)
    }

    /// Audio with these stretches: milliseconds and amplitude.
    fn audio(stretches: &[(usize, f32)]) -> Vec<f32> {
        let stretch = |(length, level): &(usize, f32)| std::iter::repeat_n(*level, *length);
        stretches.iter().flat_map(stretch).collect()
    }

    /// What is found, with the length of each clip instead of its audio.
    fn shown(found: &[Found]) -> Vec<String> {
        let show = |found: &Found| match found {
            Found::SpeechStart(at) => format!("start {at}"),
            Found::SpeechEnd(at) => format!("end {at}"),
            Found::Utterance(clip) => {
                let to = clip.from + clip.samples.len() as u64;
                format!("{}..{} in {}..{to}", clip.start, clip.end, clip.from)
            }
        };
        found.iter().map(show).collect()
    }

    fn pushed(endpointer: &mut Endpointer, audio: &[f32], chunk: usize) -> Vec<Found> {
        let mut found = Vec::new();
        for chunk in audio.chunks(chunk) {
            endpointer.push(chunk, &mut found);
        }
        found
    }

    #[test]
    fn utterances_have_the_times_of_the_recording() {
        let audio = audio(&[(5_000, 0.0), (1_000, 0.5), (900, 0.0), (600, 0.5), (2_000, 0.0)]);
        for chunk in [1, 7, 100, 333, 20_000] {
            let mut endpointer = endpointer(true, |_| {});
            let found = pushed(&mut endpointer, &audio, chunk);
            assert_eq!(
                shown(&found),
                [
                    "start 5000",
                    "end 6000",
                    "5000..6000 in 4700..6200",
                    "start 6900",
                    "end 7500",
                    "6900..7500 in 6600..7700",
                ],
                "chunks of {chunk}"
            );
        }
    }

    #[test]
    fn audio_is_in_one_utterance_at_most() {
        // The prefix reaches back into the utterance before.
        let audio = audio(&[(1_000, 0.5), (420, 0.0), (1_000, 0.5), (500, 0.0)]);
        let found = pushed(
            &mut endpointer(true, |s| s.prefix = Duration::from_secs(5)),
            &audio,
            100,
        );
        let clips = ["0..1000 in 0..1200", "1420..2420 in 1200..2620"];
        assert_eq!(
            shown(&found)
                .iter()
                .filter(|line| line.contains("in"))
                .collect::<Vec<_>>(),
            clips
        );
    }

    #[test]
    fn late_detector_moves_no_mark() {
        let audio = audio(&[(1_000, 0.0), (500, 0.5), (1_000, 0.0)]);
        let settings = endpointer(true, |_| {}).settings;
        let mut late = Endpointer::new(Some(Box::new(Late::default())), settings, RATE, 0);
        let found = pushed(&mut late, &audio, 100);
        let expected = ["start 1000", "end 1500", "1000..1500 in 700..1700"];
        assert_eq!(shown(&found), expected);
        // The end of the audio is the end of the speech that the detector still hears.
        let mut late = Endpointer::new(Some(Box::new(Late::default())), settings, RATE, 0);
        let mut found = pushed(&mut late, &audio[..1_200], 100);
        late.flush(&mut found);
        let expected = ["start 1000", "end 1200", "1000..1200 in 700..1200"];
        assert_eq!(shown(&found), expected);
    }

    #[test]
    fn pause_lasts_until_speech_or_the_end_of_the_utterance() {
        let audio = audio(&[(500, 0.5), (100, 0.0), (500, 0.5), (500, 0.0)]);
        let settings = endpointer(true, |_| {}).settings;
        let detectors: [Box<dyn VoiceDetector + Send>; 2] = [Box::new(Loud), Box::new(Late::default())];
        for (detector, delay) in detectors.into_iter().zip([0, 100]) {
            let mut endpointer = Endpointer::new(Some(detector), settings, RATE, 0);
            let mut pauses = Vec::new();
            for (index, frame) in audio.chunks(20).enumerate() {
                endpointer.push(frame, &mut Vec::new());
                if endpointer.is_in_pause() {
                    pauses.push((index + 1) * 20);
                }
            }
            let (first, last) = (pauses.first().copied(), pauses.last().copied());
            assert_eq!(first, Some(520 + delay), "{pauses:?}");
            // The utterance ends in the next frame.
            assert_eq!(last, Some(1_480), "{pauses:?}");
            assert!(!pauses.contains(&(700 + delay)), "{pauses:?}");
        }
    }

    #[test]
    fn short_sound_is_marked_and_no_utterance() {
        let audio = audio(&[(500, 0.0), (100, 0.5), (600, 0.0)]);
        let found = pushed(&mut endpointer(true, |_| {}), &audio, 50);
        assert_eq!(shown(&found), ["start 500", "end 600"]);
    }

    #[test]
    fn long_utterance_is_cut_at_its_quietest_frame() {
        let audio = audio(&[(1_640, 0.5), (20, 0.2), (1_340, 0.5), (1_000, 0.0)]);
        let mut endpointer = endpointer(true, |s| s.max_utterance = Duration::from_secs(2));
        let found = pushed(&mut endpointer, &audio, 100);
        // There is one start and one end, however often it is cut.
        assert_eq!(
            shown(&found),
            [
                "start 0",
                "0..1650 in 0..1650",
                "end 3000",
                "1650..3000 in 1650..3200"
            ]
        );
    }

    #[test]
    fn flush_takes_the_last_samples_with_and_without_vad() {
        let audio = audio(&[(1_000, 0.0), (505, 0.5)]);
        let mut with = endpointer(true, |_| {});
        let mut found = pushed(&mut with, &audio, 100);
        with.flush(&mut found);
        assert_eq!(
            shown(&found),
            ["start 1000", "end 1505", "1000..1505 in 700..1505"]
        );
        found.clear();
        with.flush(&mut found);
        assert_eq!(found, []);

        let mut without = endpointer(false, |_| {});
        let mut found = pushed(&mut without, &audio, 100);
        without.flush(&mut found);
        without.push(&[0.0; 30], &mut found);
        without.flush(&mut found);
        assert_eq!(shown(&found), ["0..1505 in 0..1505", "1505..1535 in 1505..1535"]);
    }

    #[test]
    fn clear_in_speech_ends_it_before_it_starts_again() {
        let mut endpointer = endpointer(true, |_| {});
        let mut found = pushed(&mut endpointer, &audio(&[(1_000, 0.5)]), 100);
        assert_eq!(endpointer.clear(&mut found), 1_000);
        found.extend(pushed(&mut endpointer, &audio(&[(500, 0.5), (500, 0.0)]), 100));
        assert_eq!(
            shown(&found),
            [
                "start 0",
                "end 1000",
                "start 1000",
                "end 1500",
                "1000..1500 in 1000..1700"
            ]
        );
    }

    #[test]
    fn silence_takes_no_memory() {
        let mut endpointer = endpointer(true, |_| {});
        let mut found = Vec::new();
        for _ in 0..1_000 {
            endpointer.push(&[0.0; 100], &mut found);
            assert!(endpointer.samples.len() < 1_000, "{}", endpointer.samples.len());
        }
        assert_eq!((found.len(), endpointer.end()), (0, 100_000));
    }
}
