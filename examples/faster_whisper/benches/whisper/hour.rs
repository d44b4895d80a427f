//! Long recordings without a talk: silence, noise, and one word that repeats.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use dalston_engine_sdk::audio::{AudioFormat, decode_file};
use faster_whisper::{Observer, Options, Placement, Samples, Transcription, Whisper};
use testbed::report::{Report, number};

use crate::resident_bytes;

/// The largest accepted time, compared with the length of the recording.
const FACTOR_LIMIT: f64 = 0.5;
/// The largest accepted growth of memory after the first part of the recording, in MiB.
const GROWTH_LIMIT: f64 = 16.0;
const FIRST_PART: f32 = 0.1;
/// The largest number of tokens of a segment: half the positions of the decoder.
const TOKEN_LIMIT: f64 = 224.0;

/// Transcribes recordings of so many minutes with the shipped model and all defaults. Returns the
/// rows of the table.
pub(crate) fn hour(root: &Path, minutes: usize, report: &mut Report) -> Vec<[String; 6]> {
    let dir = root.join("models/whisper-nano-digits");
    let mut whisper = Whisper::load(&dir, Placement::auto_on_cpu()).unwrap();
    let piece = |file: &str| {
        let path = root.join("audio").join(file);
        let audio = decode_file(&path, AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap();
        audio.read(..).unwrap().into_owned()
    };
    let cases = [
        ("silence", vec![0.0; 16_000], Some(0)),
        ("noise", piece("noise_only_6s.wav"), Some(0)),
        ("one word", piece("en_one.wav"), None),
    ];
    let mut rows = Vec::new();
    for (name, piece, tokens) in cases {
        let recording = Repeated {
            piece,
            len: minutes * 60 * 16_000,
        };
        let mut options = Options::default();
        options.language = Some("en".to_owned());
        let mut memory = Memory::default();
        let start = Instant::now();
        let found = whisper.transcribe(&recording, &options, &mut memory).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let factor = seconds / (minutes * 60) as f64;
        let growth = memory.growth() / f64::from(1 << 20);
        let what = format!("nano: {minutes} minutes of {name}");
        report.at_most(format!("{what}, realtime factor"), FACTOR_LIMIT, factor, "");
        report.at_most(format!("{what}, growth of memory"), GROWTH_LIMIT, growth, "MiB");
        if let Some(limit) = tokens {
            let found = all_tokens(&found) as f64;
            report.at_most(format!("{what}, tokens"), f64::from(limit), found, "");
        }
        let longest = found.segments.iter().map(|segment| segment.tokens.len()).max();
        let longest = longest.unwrap_or_default();
        report.at_most(
            format!("{what}, tokens of a segment"),
            TOKEN_LIMIT,
            longest as f64,
            "",
        );
        rows.push([
            name.to_owned(),
            number(seconds),
            number(factor),
            number(growth),
            found.windows.to_string(),
            all_tokens(&found).to_string(),
        ]);
    }
    rows
}

fn all_tokens(found: &Transcription) -> usize {
    found.segments.iter().map(|segment| segment.tokens.len()).sum()
}

/// A piece again and again, made when it is read, so that the recording takes no memory.
struct Repeated {
    piece: Vec<f32>,
    len: usize,
}

impl Samples for Repeated {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, Box<dyn Error + Send + Sync>> {
        let start = range.start % self.piece.len();
        let samples = self.piece.iter().copied().cycle().skip(start);
        Ok(Cow::Owned(samples.take(range.len()).collect()))
    }
}

/// The resident memory after the first part, and the largest one after that.
#[derive(Default)]
struct Memory {
    first: Option<f64>,
    largest: f64,
}

impl Memory {
    fn growth(&self) -> f64 {
        self.first.map_or(f64::NAN, |first| self.largest - first)
    }
}

impl Observer for Memory {
    fn advanced(&mut self, fraction: f32) {
        let now = resident_bytes();
        if fraction >= FIRST_PART {
            self.first.get_or_insert(now);
        }
        self.largest = self.largest.max(now);
    }
}
