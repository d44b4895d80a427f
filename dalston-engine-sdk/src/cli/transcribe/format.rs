//! `--output-format`: transcripts in the formats of Whisper's tools.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use super::out_dir::OutDir;
use crate::cli::failure::Failure;
use crate::cli::output::{Finished, json_line};
use crate::stage::{TimestampGranularity, Transcript};
use crate::subtitles::{Pieces, srt, vtt};

/// The format of a transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    /// Subtitles in SubRip's form
    Srt,
    /// Subtitles in the form of WebVTT
    Vtt,
    /// One line per segment
    Txt,
    /// Start and end in milliseconds and the text, separated by tabs
    Tsv,
    /// One line of JSON
    Json,
}

impl OutputFormat {
    fn suffix(self) -> &'static str {
        match self {
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::Txt => "txt",
            Self::Tsv => "tsv",
            Self::Json => "json",
        }
    }

    /// The response of a stage in this format.
    ///
    /// # Errors
    ///
    /// If the response is no transcript.
    pub(super) fn render(self, file: &Path, data: &Value) -> Result<String, String> {
        if self == Self::Json {
            let finished = Finished {
                file,
                data,
                processing: Duration::ZERO,
            };
            return Ok(json_line(&finished) + "\n");
        }
        let transcript: Transcript = serde_json::from_value(data.clone()).map_err(|error| {
            let format = self.suffix();
            format!("the result is no transcript, so there is no {format} of it: {error}")
        })?;
        let segments = transcript.segments.as_slice();
        // Without the option, words have no times.
        let pieces = match transcript.timestamp_granularity >= TimestampGranularity::Word {
            true => Pieces::Words,
            false => Pieces::Segments,
        };
        Ok(match self {
            Self::Srt => srt(segments, pieces),
            Self::Vtt => vtt(segments, pieces),
            Self::Tsv => {
                let mut text = "start\tend\ttext\n".to_owned();
                for segment in segments {
                    let ms = |seconds: f64| (seconds * 1000.0).round() as u64;
                    let (start, end) = (ms(segment.start), ms(segment.end));
                    let _ = writeln!(text, "{start}\t{end}\t{}", one_line(&segment.text));
                }
                text
            }
            Self::Txt | Self::Json => segments
                .iter()
                .map(|segment| one_line(&segment.text) + "\n")
                .collect(),
        })
    }
}

/// A text without the characters that separate its fields and lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `--output-dir`: a file of each format for each recording.
#[derive(Debug)]
pub(super) struct Written {
    directory: OutDir,
    formats: Vec<OutputFormat>,
}

impl Written {
    pub(super) fn new(root: &Path, formats: &[OutputFormat], files: &[PathBuf]) -> Result<Self, Failure> {
        Ok(Self {
            directory: OutDir::for_stems(root, files)?,
            formats: formats.to_vec(),
        })
    }

    pub(super) fn write(&self, file: &Path, data: &Value) -> Result<(), String> {
        for format in &self.formats {
            let text = format.render(file, data)?;
            self.directory.replace(file, format.suffix(), text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Segment, Word};

    #[test]
    fn transcripts_are_written_in_each_format() {
        let words = [Word::new(0.0, 0.5, "one"), Word::new(0.5, 1.25, "two")];
        let segments = [
            Segment::new(0.0, 1.25, "one\ttwo").words(words),
            Segment::new(61.5, 62.0, "three"),
        ];
        let plain = Transcript::from_segments(segments).timestamp_granularity(TimestampGranularity::Segment);
        let render = |format: OutputFormat, transcript: &Transcript| {
            let data = serde_json::to_value(transcript).unwrap();
            format.render(Path::new("talk.wav"), &data).unwrap()
        };
        assert_eq!(render(OutputFormat::Txt, &plain), "one two\nthree\n");
        assert_eq!(
            render(OutputFormat::Tsv, &plain),
            "start\tend\ttext\n0\t1250\tone two\n61500\t62000\tthree\n"
        );
        assert!(render(OutputFormat::Json, &plain).starts_with(r#"{"file":"talk.wav","text":"#));
        assert_eq!(render(OutputFormat::Srt, &plain).matches("-->").count(), 2);
        let timed = plain.timestamp_granularity(TimestampGranularity::Word);
        assert_eq!(render(OutputFormat::Srt, &timed).matches("-->").count(), 3);
        assert!(render(OutputFormat::Vtt, &timed).contains("<00:00:00.500>two"));

        let error = OutputFormat::Srt
            .render(Path::new("x"), &Value::Null)
            .unwrap_err();
        assert!(
            error.starts_with("the result is no transcript, so there is no srt of it"),
            "{error}"
        );
    }
}
