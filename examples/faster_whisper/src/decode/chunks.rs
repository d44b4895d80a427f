//! The windows of a recording that is decoded in several parts at once.

use super::windows::Place;
use crate::error::Error;
use crate::options::{Clips, OptionError, Options};

/// Samples of a recording.
pub(super) struct Extent<'a> {
    pub(super) samples: usize,
    /// Those of each part of speech, if the recording consists of them.
    pub(super) speech: Option<&'a [usize]>,
    /// Samples per second.
    pub(super) rate: f64,
}

/// The windows, of at most `most` samples: the parts that the task names, or parts of speech as
/// long as they have room in a window together, or a short recording as a whole.
pub(super) fn places(
    options: &Options,
    extent: &Extent<'_>,
    most: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<Place>, Error> {
    if options.clip_timestamps != Clips::default() {
        return Ok(named(options, extent, most, warnings));
    }
    if let Some(speech) = extent.speech {
        return Ok(merged(speech, most));
    }
    if extent.samples <= most {
        return Ok(pieces(0, extent.samples, most).collect());
    }
    let expected = format!(
        "vad_filter, clip_timestamps, or a recording of at most {} s",
        most as f64 / extent.rate
    );
    let at_once = options.batch_size.unwrap_or_default();
    Err(OptionError::new("batch_size", at_once, expected).into())
}

fn named(options: &Options, extent: &Extent<'_>, most: usize, warnings: &mut Vec<String>) -> Vec<Place> {
    let sample = |seconds: f64| ((seconds * extent.rate) as usize).min(extent.samples);
    let mut places = Vec::new();
    for (start, end) in options.clip_timestamps.ranges() {
        let (start, end) = (sample(start), end.map_or(extent.samples, sample));
        if end > start + most {
            warnings.push(format!(
                "the part from {:.2} s to {:.2} s is longer than a window and was cut every {} s",
                start as f64 / extent.rate,
                end as f64 / extent.rate,
                most as f64 / extent.rate
            ));
        }
        places.extend(pieces(start, end, most));
    }
    places
}

fn merged(speech: &[usize], most: usize) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut start = 0;
    for &len in speech {
        match places.last_mut() {
            Some(last) if last.len + len <= most => last.len += len,
            _ => places.extend(pieces(start, start + len, most)),
        }
        start += len;
    }
    places
}

fn pieces(start: usize, end: usize, most: usize) -> impl Iterator<Item = Place> {
    (start..end).step_by(most.max(1)).map(move |start| Place {
        start,
        len: most.min(end - start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(places: &[Place]) -> Vec<(usize, usize)> {
        places.iter().map(|place| (place.start, place.end())).collect()
    }

    #[test]
    fn parts_of_speech_share_a_window_as_long_as_they_fit() {
        assert_eq!(
            spans(&merged(&[4, 6, 1, 9, 25, 2], 10)),
            [(0, 10), (10, 20), (20, 30), (30, 40), (40, 47)]
        );
        assert_eq!(spans(&merged(&[], 10)), []);
    }

    #[test]
    fn long_named_part_is_cut_with_a_warning() {
        let mut options = Options::batched(4);
        let clips = serde_json::json!([0.5, 1.0, 2.0]);
        options.set("clip_timestamps", &clips).unwrap();
        let extent = Extent {
            samples: 45,
            speech: None,
            rate: 10.0,
        };
        let mut warnings = Vec::new();
        let found = places(&options, &extent, 10, &mut warnings).unwrap();
        assert_eq!(spans(&found), [(5, 10), (20, 30), (30, 40), (40, 45)]);
        assert_eq!(
            warnings,
            ["the part from 2.00 s to 4.50 s is longer than a window and was cut every 1 s"]
        );
    }
}
