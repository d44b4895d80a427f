//! Language detection.

use tch::{Kind, Tensor};

use crate::error::Error;
use crate::model::Cache;
use crate::whisper::{LanguageProbability, Whisper};

/// The outcome of a detection.
pub(super) struct Detected {
    /// `None` for an English-only model.
    pub(super) language: Option<LanguageProbability>,
    /// Whether the cache holds another window now.
    pub(super) looked_ahead: bool,
}

/// Returns the features of a later window, by its number.
type Ahead<'a> = dyn FnMut(usize) -> Result<Option<Tensor>, Error> + 'a;

/// Detects the language in at most `most` windows, until a probability is above the threshold. If
/// none is, the language that most windows have counts. The cache holds the first window.
pub(super) fn detect(
    whisper: &Whisper,
    cache: &mut Cache,
    most: usize,
    threshold: Option<f64>,
    ahead: &mut Ahead<'_>,
) -> Result<Detected, Error> {
    let span = tracing::info_span!(
        "whisper.detect_language",
        "dalston.language" = tracing::field::Empty,
        "whisper.language_probability" = tracing::field::Empty,
    );
    let _entered = span.enter();
    let mut best: Vec<LanguageProbability> = Vec::new();
    let mut looked_ahead = false;
    for index in 0..most {
        if index > 0 {
            let Some(features) = ahead(index)? else {
                break;
            };
            whisper.set_window(&whisper.encode(&[&features])?, cache)?;
            looked_ahead = true;
        }
        let Some(found) = whisper.languages(cache)?.into_iter().next() else {
            break;
        };
        let is_sure = threshold.is_none_or(|least| found.probability > least);
        best.push(found);
        if is_sure {
            best.drain(..best.len() - 1);
            break;
        }
    }
    let language = majority(&best);
    if let Some(language) = &language {
        span.record("dalston.language", &language.code);
        span.record("whisper.language_probability", language.probability);
    }
    Ok(Detected {
        language,
        looked_ahead,
    })
}

/// The most frequent language, with its largest probability; of several, the first one.
fn majority(windows: &[LanguageProbability]) -> Option<LanguageProbability> {
    let count = |code: &str| windows.iter().filter(|window| window.code == code).count();
    let most = windows.iter().map(|window| count(&window.code)).max()?;
    let first = windows.iter().find(|window| count(&window.code) == most)?;
    let of_code = windows.iter().filter(|window| window.code == first.code);
    of_code
        .max_by(|a, b| a.probability.total_cmp(&b.probability))
        .cloned()
}

/// Softmax over the language tokens alone. `row` is 1 × vocabulary, `ids` and `codes` are in the
/// same order.
pub(crate) fn probabilities(
    row: &Tensor,
    ids: &Tensor,
    codes: Vec<String>,
) -> Result<Vec<LanguageProbability>, Error> {
    let chosen = row
        .f_select(0, 0)?
        .f_index_select(0, ids)?
        .f_softmax(-1, Kind::Double)?;
    let values = Vec::<f64>::try_from(&chosen)?;
    if values.iter().any(|p| !p.is_finite()) {
        return Err(Error::NotANumber { offset: 0.0 });
    }
    let mut found: Vec<_> = codes
        .into_iter()
        .zip(values)
        .map(|(code, probability)| LanguageProbability { code, probability })
        .collect();
    found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    Ok(found)
}
