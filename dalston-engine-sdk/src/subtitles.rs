//! Transcripts as subtitles.

use std::fmt::Write as _;

use crate::stage::{Segment, Word};

/// The pieces of a transcript that have times of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    Segments,
    /// A segment without words remains one piece.
    Words,
}

/// Subtitles in SubRip's form. Each piece is a subtitle.
pub(crate) fn srt(segments: &[Segment], pieces: Pieces) -> String {
    let mut text = String::new();
    let mut number = 0;
    let mut add = |start, end, piece: &str| {
        number += 1;
        let (start, end) = (clock(start, ','), clock(end, ','));
        let _ = write!(text, "{number}\n{start} --> {end}\n{}\n\n", cue_text(piece));
    };
    for segment in segments {
        match words(segment, pieces) {
            [] => add(segment.start, segment.end, &segment.text),
            words => words
                .iter()
                .for_each(|word| add(word.start, word.end, &word.text)),
        }
    }
    text
}

/// Subtitles in the form of WebVTT. Each segment is a subtitle, in which words have their times.
pub(crate) fn vtt(segments: &[Segment], pieces: Pieces) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in segments {
        let (start, end) = (clock(segment.start, '.'), clock(segment.end, '.'));
        let shown = |text: &str| cue_text(text).replace("-->", "->");
        let timed = words(segment, pieces).iter().map(|word| {
            // A time in a subtitle lies between its start and its end.
            let is_inside = word.start > segment.start && word.start < segment.end;
            let time = is_inside.then(|| format!("<{}>", clock(word.start, '.')));
            time.unwrap_or_default() + &shown(&word.text)
        });
        let timed: Vec<String> = timed.collect();
        let content = if timed.is_empty() {
            shown(&segment.text)
        } else {
            timed.join(" ")
        };
        let _ = write!(text, "{start} --> {end}\n{content}\n\n");
    }
    text
}

fn words(segment: &Segment, pieces: Pieces) -> &[Word] {
    match pieces {
        Pieces::Segments => &[],
        Pieces::Words => segment.words.as_deref().unwrap_or_default(),
    }
}

/// A text without empty lines, which would end its cue.
fn cue_text(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// Hours, minutes, seconds and milliseconds.
fn clock(seconds: f64, point: char) -> String {
    let milliseconds = (seconds * 1000.0).round() as u64;
    let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    format!(
        "{:02}:{:02}:{seconds:02}{point}{milliseconds:03}",
        minutes / 60,
        minutes % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtitle_times_are_rounded_and_carry_over() {
        assert_eq!(clock(0.0, ','), "00:00:00,000");
        assert_eq!(clock(59.9996, '.'), "00:01:00.000");
        assert_eq!(clock(3_723.25, ','), "01:02:03,250");
        assert_eq!(clock(360_000.0, '.'), "100:00:00.000");
    }

    #[test]
    fn text_of_several_lines_stays_one_subtitle() {
        let segments = [
            Segment::new(0.0, 1.5, " one\n\n two --> three "),
            Segment::new(1.5, 2.0, "four"),
        ];
        let first = "00:00:00,000 --> 00:00:01,500\none\ntwo --> three\n\n";
        assert_eq!(
            srt(&segments, Pieces::Words),
            format!("1\n{first}2\n00:00:01,500 --> 00:00:02,000\nfour\n\n")
        );
        let first = "00:00:00.000 --> 00:00:01.500\none\ntwo -> three\n\n";
        assert_eq!(
            vtt(&segments, Pieces::Words),
            format!("WEBVTT\n\n{first}00:00:01.500 --> 00:00:02.000\nfour\n\n")
        );
        let none = (srt(&[], Pieces::Segments), vtt(&[], Pieces::Segments));
        assert_eq!(none, (String::new(), "WEBVTT\n\n".to_owned()));
    }

    #[test]
    fn words_have_their_times_if_wanted() {
        let words = [Word::new(1.0, 1.5, "one"), Word::new(1.5, 2.0, "two")];
        let segments = [Segment::new(1.0, 2.0, "one two").words(words)];
        assert_eq!(
            srt(&segments, Pieces::Words),
            "1\n00:00:01,000 --> 00:00:01,500\none\n\n2\n00:00:01,500 --> 00:00:02,000\ntwo\n\n"
        );
        assert_eq!(
            vtt(&segments, Pieces::Words),
            "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\none <00:00:01.500>two\n\n"
        );
        assert_eq!(
            srt(&segments, Pieces::Segments),
            "1\n00:00:01,000 --> 00:00:02,000\none two\n\n"
        );
    }
}
