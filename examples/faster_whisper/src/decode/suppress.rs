//! The tokens that are never written.

use crate::error::Error;
use crate::options::{OptionError, TokenChoice};
use crate::tokenizer::Vocabulary;

/// The ids of the chosen tokens. A text that is not a single token is a warning.
pub(super) fn ids(
    choices: &[TokenChoice],
    vocabulary: &Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<Vec<i64>, Error> {
    if choices == [TokenChoice::Id(-1)] {
        return Ok(vocabulary.usually_suppressed().to_vec());
    }
    // Another list replaces the model's, but control tokens are never part of a text.
    let mut ids = vocabulary.control().to_vec();
    for choice in choices {
        match choice {
            TokenChoice::Id(-1) => ids.extend(vocabulary.usually_suppressed()),
            TokenChoice::Id(id) if (0..vocabulary.size()).contains(id) => ids.push(*id),
            TokenChoice::Id(id) => {
                let expected = format!("-1 or 0 to {}", vocabulary.size() - 1);
                return Err(OptionError::new("suppress_tokens", id, expected).into());
            }
            TokenChoice::Text(text) => match vocabulary.encode(text)?.as_slice() {
                [id] => ids.push(*id),
                parts => warnings.push(format!(
                    "{text:?} is {} tokens of this model and was not suppressed: name a single token",
                    parts.len()
                )),
            },
        }
    }
    Ok(ids)
}
