//! Words with times: from aligned tokens, with faster-whisper's corrections of their lengths.

use super::segments::Part;
use super::transcription::Word;
use crate::align::Alignment;
use crate::options::Options;

/// Marks at the end of a sentence. A pause follows, which the alignment adds to the mark or to the
/// next word.
const SENTENCE_ENDS: &str = ".。!！?？";
/// The longest median length of a word in seconds.
const MAX_MEDIAN: f64 = 0.7;
/// The number of median lengths of words after which a pause is a long one.
const LONG_PAUSE: f64 = 4.0;
/// Seconds by which the times of words and segments may differ.
const MAX_DIFFERENCE: f64 = 0.5;

/// A word before it is part of a segment. Times are seconds of the window.
#[derive(Debug, Clone, PartialEq)]
struct Timed {
    text: String,
    tokens: usize,
    start: f64,
    end: f64,
    probability: f64,
}

impl Timed {
    fn length(&self) -> f64 {
        self.end - self.start
    }
}

/// The words of all parts of a window.
pub(super) struct Text {
    /// Each with its number of tokens.
    pub(super) words: Vec<(String, usize)>,
    pub(super) alignment: Alignment,
}

/// What the words of a window are made from.
pub(super) struct Aligned<'a> {
    pub(super) text: Text,
    /// Seconds per position of the encoder.
    pub(super) step: f64,
    /// Start of the window in seconds.
    pub(super) offset: f64,
    /// The first token that is no text.
    pub(super) end_of_text: i64,
    pub(super) options: &'a Options,
}

/// Gives each part its words, and corrects the times of parts. `last_speech` is the end of the last
/// word before the window.
pub(super) fn add(parts: &mut [Part], aligned: Aligned<'_>, mut last_speech: f64) {
    let mut words = timed(&aligned);
    let median = median_length(&words);
    let longest = 2.0 * median;
    if words.iter().any(|word| word.length() != 0.0) {
        shorten_at_sentence_ends(&mut words, longest);
    }
    merge_punctuation(
        &mut words,
        &aligned.options.prepend_punctuations,
        &aligned.options.append_punctuations,
    );
    let mut words = words.into_iter();
    for part in parts {
        let tokens = part.tokens.iter().filter(|&&id| id < aligned.end_of_text).count();
        let mut taken = 0;
        let mut own = Vec::new();
        while taken < tokens
            && let Some(word) = words.next()
        {
            taken += word.tokens;
            if !word.text.is_empty() {
                own.push(Word {
                    text: word.text,
                    start: super::hundredths(aligned.offset + word.start),
                    end: super::hundredths(aligned.offset + word.end),
                    probability: word.probability,
                });
            }
        }
        shorten_after_pause(&mut own, median, longest, last_speech);
        agree(part, &mut own, median);
        if !own.is_empty() {
            last_speech = part.end;
        }
        part.words = Some(own);
    }
}

fn timed(aligned: &Aligned<'_>) -> Vec<Timed> {
    let mut first = 0;
    let time = |token: usize| {
        aligned
            .text
            .alignment
            .starts
            .get(token)
            .map(|&at| at as f64 * aligned.step)
    };
    let mut words = Vec::with_capacity(aligned.text.words.len());
    for (text, tokens) in &aligned.text.words {
        let next = first + tokens;
        let probabilities = aligned
            .text
            .alignment
            .probabilities
            .get(first..next)
            .unwrap_or_default();
        if let (Some(start), Some(end)) = (time(first), time(next)) {
            words.push(Timed {
                text: text.clone(),
                tokens: *tokens,
                start,
                end,
                probability: probabilities.iter().sum::<f64>() / probabilities.len().max(1) as f64,
            });
        }
        first = next;
    }
    words
}

fn median_length(words: &[Timed]) -> f64 {
    let mut lengths: Vec<f64> = words
        .iter()
        .map(Timed::length)
        .filter(|length| *length != 0.0)
        .collect();
    lengths.sort_by(f64::total_cmp);
    let middle = |at: usize| lengths.get(at).copied();
    let half = lengths.len() / 2;
    let median = match (middle(half.wrapping_sub(1)), middle(half)) {
        (Some(low), Some(high)) if lengths.len().is_multiple_of(2) => f64::midpoint(low, high),
        (_, Some(high)) => high,
        _ => 0.0,
    };
    median.min(MAX_MEDIAN)
}

fn shorten_at_sentence_ends(words: &mut [Timed], longest: f64) {
    for at in 1..words.len() {
        let Some([before, word]) = words.get_mut(at - 1..=at) else {
            continue;
        };
        if word.length() > longest {
            if SENTENCE_ENDS.contains(&word.text) {
                word.end = word.start + longest;
            } else if SENTENCE_ENDS.contains(&before.text) {
                word.start = word.end - longest;
            }
        }
    }
}

/// Joins punctuation with the word that it belongs to. The text of what was joined becomes empty.
fn merge_punctuation(words: &mut [Timed], prepended: &str, appended: &str) {
    let join = |to: &mut Timed, from: &mut Timed, text: String| {
        to.text = text;
        to.tokens += std::mem::take(&mut from.tokens);
        from.text.clear();
    };
    let mut following = words.len().saturating_sub(1);
    for at in (0..following).rev() {
        let (head, tail) = words.split_at_mut(at + 1);
        let (Some(word), Some(next)) = (head.last_mut(), tail.get_mut(following - at - 1)) else {
            continue;
        };
        if word.text.starts_with(' ') && prepended.contains(word.text.trim()) {
            let text = format!("{}{}", word.text, next.text);
            join(next, word, text);
        } else {
            following = at;
        }
    }
    let mut previous = 0;
    for at in 1..words.len() {
        let (head, tail) = words.split_at_mut(at);
        let (Some(word), Some(next)) = (head.get_mut(previous), tail.first_mut()) else {
            continue;
        };
        if !word.text.ends_with(' ') && appended.contains(&next.text) {
            let text = format!("{}{}", word.text, next.text);
            join(word, next, text);
        } else {
            previous = at;
        }
    }
}

/// The first two words after a long pause are not longer than `longest`.
fn shorten_after_pause(words: &mut [Word], median: f64, longest: f64, last_speech: f64) {
    let (first, second) = match words {
        [] => return,
        [first] => (first, None),
        [first, second, ..] => (first, Some(second)),
    };
    let is_long = first.end - first.start > longest
        || second
            .as_ref()
            .is_some_and(|second| second.end - first.start > 2.0 * longest);
    if first.end - last_speech <= LONG_PAUSE * median || !is_long {
        return;
    }
    if let Some(second) = second.filter(|second| second.end - second.start > longest) {
        let boundary = (second.end / 2.0).max(second.end - longest);
        first.end = boundary;
        second.start = boundary;
    }
    first.start = (first.end - longest).max(0.0);
}

/// Gives a part the times of its words, except where its first or last word is too long.
fn agree(part: &mut Part, words: &mut [Word], median: f64) {
    if let Some(first) = words.first_mut() {
        if part.start < first.end && part.start - MAX_DIFFERENCE > first.start {
            first.start = (first.end - median).min(part.start).max(0.0);
        } else {
            part.start = first.start;
        }
    }
    if let Some(last) = words.last_mut() {
        if part.end > last.start && part.end + MAX_DIFFERENCE < last.end {
            last.end = (last.start + median).max(part.end);
        } else {
            part.end = last.end;
        }
    }
}

/// The end of the last word, or of the last part.
pub(super) fn end(parts: &[Part]) -> Option<f64> {
    let words = parts
        .iter()
        .rev()
        .flat_map(|part| part.words.iter().flatten().rev());
    words
        .map(|word| word.end)
        .next()
        .or_else(|| parts.last().map(|part| part.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(texts: &[&str]) -> Vec<Timed> {
        let timed = |(at, text): (usize, &&str)| Timed {
            text: (*text).to_owned(),
            tokens: 1,
            start: at as f64,
            end: at as f64 + 1.0,
            probability: 1.0,
        };
        texts.iter().enumerate().map(timed).collect()
    }

    #[test]
    fn punctuation_joins_its_word() {
        let options = Options::default();
        let merged = |texts: &[&str]| {
            let mut words = words(texts);
            merge_punctuation(
                &mut words,
                &options.prepend_punctuations,
                &options.append_punctuations,
            );
            assert_eq!(words.iter().map(|word| word.tokens).sum::<usize>(), texts.len());
            words.into_iter().map(|word| word.text).collect::<Vec<_>>()
        };
        assert_eq!(merged(&[" one", ",", " two", "."]), [" one,", "", " two.", ""]);
        assert_eq!(merged(&[" (", "one", ")", " two"]), ["", " (one)", "", " two"]);
        assert_eq!(merged(&[" \"", " (", "one"]), ["", "", " \" (one"]);
        assert_eq!(merged(&[]), Vec::<String>::new());
    }

    #[test]
    fn pause_at_a_sentence_end_belongs_to_no_word() {
        let mut all = words(&[" one", ".", " two", " three"]);
        all[1].end = 5.0;
        all[2].start = 5.0;
        all[2].end = 9.0;
        let median = median_length(&all);
        assert_eq!(median, MAX_MEDIAN);
        shorten_at_sentence_ends(&mut all, 2.0);
        assert_eq!((all[1].start, all[1].end), (1.0, 3.0));
        assert_eq!((all[2].start, all[2].end), (7.0, 9.0));
    }
}
