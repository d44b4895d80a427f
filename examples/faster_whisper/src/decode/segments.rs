//! Cuts the text of a window into segments.

use super::hypothesis::Hypothesis;
use super::transcription::Word;

/// A segment before its text is decoded. Times are seconds of the recording.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) tokens: Vec<i64>,
    /// `None` unless the times of words were found.
    pub(super) words: Option<Vec<Word>>,
}

/// The segments of a window, and where the next window starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cut {
    pub(super) parts: Vec<Part>,
    /// Seconds to advance; `None`: to the end of the window.
    pub(super) advance: Option<f64>,
    /// Whether a single timestamp ends the text: no speech follows it.
    pub(super) single_end: bool,
}

/// Facts about a window for its cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamps {
    /// Whether timestamps were decoded.
    pub(super) decoded: bool,
    /// The token of time 0.
    pub(super) first: i64,
    /// Seconds between two timestamps.
    pub(super) step: f64,
    /// Start of the window, in seconds.
    pub(super) offset: f64,
    /// Seconds of the window.
    pub(super) length: f64,
    /// Whether no window follows that could repeat the text behind the last pair of timestamps.
    pub(super) is_last: bool,
}

pub(super) fn cut(hypothesis: &Hypothesis, stamps: Stamps) -> Cut {
    let Stamps { first, offset, .. } = stamps;
    let time = |id: i64| (id - first) as f64 * stamps.step;
    let ids = hypothesis.ids.as_slice();
    let is_stamp = |at: usize| ids.get(at).is_some_and(|&id| id >= first);
    let single_end = ids.len() > 1 && is_stamp(ids.len() - 1) && !is_stamp(ids.len() - 2);

    let whole = |end: f64| Cut {
        parts: vec![Part {
            start: offset,
            end: offset + end,
            tokens: ids.to_vec(),
            words: None,
        }],
        advance: None,
        single_end: single_end && stamps.decoded,
    };
    if !stamps.decoded {
        // Without its rules, a model can emit timestamps that mean nothing.
        return whole(stamps.length);
    }

    // Two timestamps in a row: one segment ends, the next begins.
    let mut cuts: Vec<usize> = (1..ids.len())
        .filter(|&at| is_stamp(at) && is_stamp(at - 1))
        .collect();
    if cuts.is_empty() {
        let last = ids
            .iter()
            .rev()
            .copied()
            .find(|&id| id >= first)
            .filter(|&id| id != first);
        return whole(last.map_or(stamps.length, time));
    }
    if single_end {
        cuts.push(ids.len());
    }
    let mut parts = Vec::with_capacity(cuts.len());
    let mut from = 0;
    let mut end = 0.0;
    for cut in cuts {
        let tokens = ids.get(from..cut).unwrap_or_default();
        if let (Some(&start), Some(&stop)) = (tokens.first(), tokens.last()) {
            end = time(stop);
            parts.push(Part {
                start: offset + time(start),
                end: offset + end,
                tokens: tokens.to_vec(),
                words: None,
            });
        }
        from = cut;
    }
    let rest = ids.get(from..).unwrap_or_default();
    if let Some(&start) = rest.first().filter(|_| stamps.is_last) {
        parts.push(Part {
            start: offset + time(start),
            end: offset + stamps.length,
            tokens: rest.to_vec(),
            words: None,
        });
    }
    Cut {
        parts,
        advance: (!single_end).then_some(end),
        single_end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_behind_the_last_pair_is_kept_if_no_window_follows() {
        // 100 is the token of time 0, and each of the others is a second later.
        let hypothesis = Hypothesis {
            ids: vec![100, 1, 102, 102, 2, 3],
            text: String::new(),
            ended: true,
            avg_logprob: 0.0,
            no_speech_prob: 0.0,
            compression_ratio: 1.0,
            temperature: 0.0,
        };
        let times = |is_last| {
            let stamps = Stamps {
                decoded: true,
                first: 100,
                step: 1.0,
                offset: 10.0,
                length: 5.0,
                is_last,
            };
            let parts = cut(&hypothesis, stamps).parts.into_iter();
            parts.map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(times(false), [(10.0, 12.0)]);
        assert_eq!(times(true), [(10.0, 12.0), (12.0, 15.0)]);
    }
}
