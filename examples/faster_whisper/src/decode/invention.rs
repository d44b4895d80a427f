//! Finds segments that the model probably invented: their words are improbable, very short or very
//! long, and silence surrounds them.

use super::segments::Part;
use super::transcription::Word;

const PUNCTUATION: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";
/// Number of words of a segment that are looked at.
const WORDS: usize = 8;
/// Seconds at the edge of a window in which a segment counts as beside silence.
const EDGE: f64 = 2.0;

/// The times of a window, in seconds of the recording.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) start: f64,
    /// The end of the speech that it can hold.
    pub(super) end: f64,
    /// The end of the part of the recording in it.
    pub(super) content_end: f64,
    pub(super) recording: f64,
    /// The end of the last word before it.
    pub(super) last_speech: f64,
}

/// What to leave out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Skip {
    /// The whole text: silence is before it. The next window starts at this time.
    All(f64),
    /// The segments from this one on. The next window starts at this time.
    From(usize, f64),
}

/// Looks for the first probable invention around a silence of `threshold` seconds.
pub(super) fn find(parts: &[Part], times: Times, threshold: f64) -> Option<Skip> {
    let first = parts.iter().find(|part| has_words(part));
    if let Some(first) = first.filter(|part| is_anomaly(part)) {
        let gap = first.start - times.start;
        if gap > threshold {
            return Some(Skip::All(times.start + gap));
        }
    }
    let mut last_end = times.last_speech;
    for (at, part) in parts.iter().enumerate().filter(|(_, part)| has_words(part)) {
        if is_anomaly(part) {
            let later = parts.get(at + 1..).unwrap_or_default();
            let next = later.iter().find(|part| has_words(part));
            let next_start = next
                .and_then(|part| part.words.as_ref()?.first())
                .map_or(times.content_end, |word| word.start);
            let silence_before = part.start - last_end > threshold
                || part.start < threshold
                || part.start - times.start < EDGE;
            let silence_after = next_start - part.end > threshold
                || next.is_some_and(is_anomaly)
                || times.end - part.end < EDGE;
            if silence_before && silence_after {
                let mut seek = part.start.max(times.start + 1.0);
                if times.recording - part.end < threshold {
                    seek = times.recording;
                }
                return Some(Skip::From(at, seek));
            }
        }
        last_end = part.end;
    }
    None
}

fn has_words(part: &Part) -> bool {
    part.words.as_ref().is_some_and(|words| !words.is_empty())
}

fn is_anomaly(part: &Part) -> bool {
    let words = part.words.iter().flatten();
    let scores: Vec<f64> = words
        .filter(|word| !PUNCTUATION.contains(&word.text))
        .take(WORDS)
        .map(anomaly)
        .collect();
    let score: f64 = scores.iter().sum();
    has_words(part) && (score >= 3.0 || score + 0.01 >= scores.len() as f64)
}

/// How unusual a word is: about 1 and above for one that was probably not spoken.
fn anomaly(word: &Word) -> f64 {
    let length = word.end - word.start;
    let mut score = 0.0;
    if word.probability < 0.15 {
        score += 1.0;
    }
    if length < 0.133 {
        score += (0.133 - length) * 15.0;
    }
    if length > 2.0 {
        score += length - 2.0;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(start: f64, end: f64, probability: f64) -> Part {
        let word = |start: f64, end: f64| Word {
            text: " word".to_owned(),
            start,
            end,
            probability,
        };
        let middle = f64::midpoint(start, end);
        Part {
            start,
            end,
            tokens: Vec::new(),
            words: Some(vec![word(start, middle), word(middle, end)]),
        }
    }

    const TIMES: Times = Times {
        start: 30.0,
        end: 60.0,
        content_end: 60.0,
        recording: 300.0,
        last_speech: 29.0,
    };

    #[test]
    fn improbable_words_beside_silence_are_left_out() {
        let find = |parts: &[Part]| find(parts, TIMES, 2.0);
        assert_eq!(find(&[part(40.0, 41.0, 0.9)]), None);
        // Silence before the whole text.
        assert_eq!(find(&[part(40.0, 41.0, 0.1)]), Some(Skip::All(40.0)));
        let spoken = part(30.2, 35.0, 0.9);
        assert_eq!(
            find(&[spoken.clone(), part(40.0, 41.0, 0.1)]),
            Some(Skip::From(1, 40.0))
        );
        // No silence around it.
        let around = [spoken, part(35.5, 36.5, 0.1), part(36.5, 38.0, 0.9)];
        assert_eq!(find(&around), None);
    }
}
