//! From logits to text: suppression and timestamp rules, sampling, language detection, and the way through long audio.

pub mod greedy;
pub(crate) mod language;
mod pace;
pub mod rules;
pub mod seek;

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// How often text repeats itself: its UTF-8 bytes by the bytes of its zlib stream. 0 for no text.
///
/// Speech is around 1 to 2; a model that is stuck in a loop goes well above.
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
