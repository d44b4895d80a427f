//! Partial transcripts of the current utterance: [`Partials`].
//!
//! A word is stable if two transcripts in a row agree on it and on all words before it
//! (LocalAgreement). An utterance is transcribed again and again as it grows, but no second of it
//! more than [`MOST_DECODES`] times: where the engine gives times of words, later transcripts begin
//! after the stable words; where it does not, each transcript comes after twice the audio.

use std::time::Duration;

use crate::stage::Transcript;

/// How often a second of audio is transcribed for partials.
const MOST_DECODES: u8 = 8;
/// The shortest new audio for a partial.
const SHORTEST: Duration = Duration::from_millis(500);

/// A word of a hypothesis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heard {
    pub(super) text: String,
    /// Its end in seconds of received audio, if the engine gives times of words.
    pub(super) end: Option<f64>,
}

impl Heard {
    /// The words of a transcript whose audio begins at `offset` seconds.
    pub(super) fn all(transcript: &Transcript, offset: f64) -> Vec<Self> {
        let segments = transcript.segments.iter();
        let timed: Vec<Self> = segments
            .flat_map(|segment| segment.words.iter().flatten())
            .map(|word| Self {
                text: word.text.trim().to_owned(),
                end: Some(word.end + offset),
            })
            .filter(|word| !word.text.is_empty())
            .collect();
        if !timed.is_empty() {
            return timed;
        }
        let words = transcript.text.split_whitespace();
        words
            .map(|word| Self {
                text: word.to_owned(),
                end: None,
            })
            .collect()
    }
}

/// A partial transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partial {
    pub(super) text: String,
    /// The characters at the start of the text that stay.
    pub(super) stable: usize,
}

/// The partial transcripts of one utterance.
#[derive(Debug)]
pub(super) struct Partials {
    rate: u32,
    /// The first sample of the utterance.
    from: u64,
    /// The next transcript begins at this sample.
    window: u64,
    /// There is no transcript before this much audio.
    due: u64,
    /// How often each second of the utterance was transcribed.
    decodes: Vec<u8>,
    /// Stable words before the window.
    settled: Vec<String>,
    /// Stable words in the window.
    agreed: Vec<Heard>,
    last: Vec<Heard>,
}

impl Partials {
    /// Of an utterance whose audio begins at `from`.
    pub(super) fn new(from: u64, rate: u32) -> Self {
        let mut partials = Self {
            rate,
            from,
            window: from,
            due: from,
            decodes: Vec::new(),
            settled: Vec::new(),
            agreed: Vec::new(),
            last: Vec::new(),
        };
        partials.due = from + partials.samples(SHORTEST);
        partials
    }

    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// The first sample of the transcript that is due when the audio ends at `end`, and counts it.
    pub(super) fn next(&mut self, end: u64) -> Option<u64> {
        if end < self.due {
            return None;
        }
        if self.most_decodes(end) >= MOST_DECODES {
            self.settle();
            if self.most_decodes(end) >= MOST_DECODES || end <= self.window {
                return None;
            }
        }
        let seconds = self.seconds(end);
        self.decodes.resize(self.decodes.len().max(seconds.end), 0);
        self.decodes[seconds].iter_mut().for_each(|count| *count += 1);
        Some(self.window)
    }

    /// Takes the words of that transcript.
    pub(super) fn take(&mut self, words: Vec<Heard>, end: u64) -> Partial {
        let is_timed = !words.is_empty() && words.iter().all(|word| word.end.is_some());
        let pause = match is_timed {
            true => self.samples(SHORTEST),
            false => (end - self.window).max(self.samples(SHORTEST)),
        };
        self.due = end + pause;
        let same = self
            .last
            .iter()
            .zip(&words)
            .take_while(|(before, now)| plain(&before.text) == plain(&now.text))
            .count();
        // Stable words stay as they are, also if this transcript has others.
        if same > self.agreed.len() {
            self.agreed.extend_from_slice(&words[self.agreed.len()..same]);
        }
        let rest = words.get(self.agreed.len()..).unwrap_or_default();
        let agreed = self.agreed.iter().map(|word| &*word.text);
        let stable: Vec<&str> = self.settled.iter().map(String::as_str).chain(agreed).collect();
        let characters = stable.join(" ").chars().count();
        let all: Vec<&str> = stable
            .into_iter()
            .chain(rest.iter().map(|word| &*word.text))
            .collect();
        let partial = Partial {
            text: all.join(" "),
            stable: characters,
        };
        self.last = words;
        partial
    }

    /// Moves the window behind the stable words.
    fn settle(&mut self) {
        let Some(end) = self.agreed.last().and_then(|word| word.end) else {
            return;
        };
        // A time of received audio, so it is a small positive number.
        let end = (end * f64::from(self.rate)) as u64;
        if end <= self.window {
            return;
        }
        self.window = end;
        self.settled.extend(self.agreed.drain(..).map(|word| word.text));
        self.last.clear();
    }

    fn most_decodes(&self, end: u64) -> u8 {
        let seconds = self.seconds(end);
        let known = seconds.start.min(self.decodes.len())..seconds.end.min(self.decodes.len());
        self.decodes[known].iter().copied().max().unwrap_or(0)
    }

    /// The seconds of the utterance in the window.
    fn seconds(&self, end: u64) -> std::ops::Range<usize> {
        let rate = u64::from(self.rate);
        let second = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let last = second(end.saturating_sub(self.from).div_ceil(rate));
        second((self.window - self.from) / rate).min(last)..last
    }

    fn samples(&self, length: Duration) -> u64 {
        (length.as_secs_f64() * f64::from(self.rate)) as u64
    }
}

/// A word without punctuation and capitals, which change from one transcript to the next.
fn plain(word: &str) -> String {
    word.chars()
        .filter(|character| character.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 1_000;

    fn words(text: &str) -> Vec<Heard> {
        let word = |text: &str| Heard {
            text: text.to_owned(),
            end: None,
        };
        text.split_whitespace().map(word).collect()
    }

    fn partial(text: &str, stable: usize) -> Partial {
        Partial {
            text: text.to_owned(),
            stable,
        }
    }

    #[test]
    fn word_is_stable_when_two_transcripts_agree() {
        let mut partials = Partials::new(0, RATE);
        assert_eq!(partials.take(words("one too"), 500), partial("one too", 0));
        assert_eq!(partials.take(words("One, two"), 1_000), partial("One, two", 4));
        assert_eq!(
            partials.take(words("one two three"), 1_500),
            partial("One, two three", 8)
        );
        // A word that was stable stays.
        assert_eq!(
            partials.take(words("on to three"), 2_000),
            partial("One, two three", 8)
        );
        assert_eq!(partials.take(words(""), 2_500), partial("One, two", 8));
    }

    /// Plays an utterance to the end and returns the ends of its transcripts. A word ends with each
    /// third of a second.
    fn play(seconds: u64, is_timed: bool) -> (Vec<u64>, Vec<u8>, Partial) {
        let mut partials = Partials::new(0, RATE);
        let mut counts = vec![0; usize::try_from(seconds).unwrap()];
        let (mut ends, mut last) = (Vec::new(), partial("", 0));
        for end in (100..=seconds * 1_000).step_by(100) {
            let Some(window) = partials.next(end) else {
                continue;
            };
            ends.push(end);
            for second in window / 1_000..end.div_ceil(1_000) {
                counts[usize::try_from(second).unwrap()] += 1;
            }
            let heard = (window.div_ceil(333)..end / 333).map(|number| Heard {
                text: format!("w{number}"),
                end: is_timed.then_some((number + 1) as f64 * 0.333),
            });
            last = partials.take(heard.collect(), end);
        }
        (ends, counts, last)
    }

    #[test]
    fn no_second_is_transcribed_more_than_eight_times() {
        for is_timed in [true, false] {
            let (ends, counts, _) = play(60, is_timed);
            assert!(counts.iter().all(|count| *count <= MOST_DECODES), "{counts:?}");
            assert!(ends.len() >= 6, "{ends:?}");
        }
    }

    #[test]
    fn partials_with_times_come_until_the_end() {
        let (ends, _, last) = play(30, true);
        let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(1_000), "{ends:?}");
        let expected: Vec<String> = (0..90).map(|number| format!("w{number}")).collect();
        assert_eq!(last.text, expected.join(" "));
    }

    #[test]
    fn short_utterance_has_no_partial() {
        let mut partials = Partials::new(3_000, RATE);
        assert_eq!(partials.next(3_499), None);
        assert_eq!(partials.next(3_500), Some(3_000));
    }
}
