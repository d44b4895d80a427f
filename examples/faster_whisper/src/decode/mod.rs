//! Decoding: suppression and timestamp rules, sampling, language detection, and seeking through
//! long recordings.

pub mod greedy;
pub(crate) mod language;
mod pace;
pub mod rules;
pub mod seek;

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

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
