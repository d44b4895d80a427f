//! Decoding: suppression and timestamp rules, the ways to choose tokens, language detection, and
//! seeking through long recordings.

pub(crate) mod attempt;
mod batch;
mod beam;
mod chunks;
mod fallback;
mod greedy;
mod hypothesis;
mod invention;
pub(crate) mod language;
mod limits;
mod pace;
mod prompts;
pub mod rules;
mod sampling;
mod search;
mod seek;
mod segments;
mod speech;
mod suppress;
pub mod transcription;
mod windows;
mod words;

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

pub use hypothesis::{Hypothesis, Sampling};

fn hundredths(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

/// The size of a text in UTF-8 divided by its size compressed with zlib; 0 for an empty text.
///
/// Speech is around 1 to 2. Repetitive text is well above.
#[must_use]
pub fn compression_ratio(text: &str) -> f64 {
    if text.is_empty() {
        return 0.0;
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    // Writing to a Vec cannot fail.
    let compressed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    compressed.map_or(0.0, |bytes| text.len() as f64 / bytes.len() as f64)
}
