//! Language detection.

use tch::{Kind, Tensor};

use crate::error::Error;
use crate::whisper::LanguageProbability;

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
