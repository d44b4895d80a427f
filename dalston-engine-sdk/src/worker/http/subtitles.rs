//! Transcripts as subtitles.

use std::fmt::Write as _;

use crate::stage::Segment;

/// Subtitles in SubRip's form.
pub(super) fn srt(segments: &[Segment]) -> String {
    let mut text = String::new();
    for (at, segment) in segments.iter().enumerate() {
        let (start, end) = (clock(segment.start, ','), clock(segment.end, ','));
        let _ = write!(
            text,
            "{}\n{start} --> {end}\n{}\n\n",
            at + 1,
            cue_text(&segment.text)
        );
    }
    text
}

/// Subtitles in the form of WebVTT.
pub(super) fn vtt(segments: &[Segment]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in segments {
        let (start, end) = (clock(segment.start, '.'), clock(segment.end, '.'));
        let _ = write!(
            text,
            "{start} --> {end}\n{}\n\n",
            cue_text(&segment.text).replace("-->", "->")
        );
    }
    text
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
            srt(&segments),
            format!("1\n{first}2\n00:00:01,500 --> 00:00:02,000\nfour\n\n")
        );
        let first = "00:00:00.000 --> 00:00:01.500\none\ntwo -> three\n\n";
        assert_eq!(
            vtt(&segments),
            format!("WEBVTT\n\n{first}00:00:01.500 --> 00:00:02.000\nfour\n\n")
        );
        assert_eq!((srt(&[]), vtt(&[])), (String::new(), "WEBVTT\n\n".to_owned()));
    }
}
