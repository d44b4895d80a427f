//! Checks that several types of answers share.

use super::validation::ValidationError;

/// Checks the `start` and `end` of a piece of audio.
pub(super) fn times(start: f64, end: f64) -> Result<(), ValidationError> {
    seconds("start", start)?;
    seconds("end", end)?;
    if end < start {
        return Err(ValidationError::new(
            "end",
            format!("is {end}, before its start {start}"),
        ));
    }
    Ok(())
}

pub(super) fn seconds(field: &str, value: f64) -> Result<(), ValidationError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ValidationError::new(
        field,
        format!("is {value}: expected a finite number of seconds, 0 or more"),
    ))
}

pub(super) fn probability(field: &str, value: f64) -> Result<(), ValidationError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(ValidationError::new(
        field,
        format!("is {value}: expected a number from 0 to 1"),
    ))
}

pub(super) fn optional_probability(field: &str, value: Option<f64>) -> Result<(), ValidationError> {
    value.map_or(Ok(()), |value| probability(field, value))
}

/// Clamps a probability that a softmax in single precision has pushed a little out of its range.
/// Other values stay as they are and fail the validation.
pub(super) fn rounded_into_range(probability: f64) -> f64 {
    const SLACK: f64 = 1e-4;
    if (-SLACK..=1.0 + SLACK).contains(&probability) {
        probability.clamp(0.0, 1.0)
    } else {
        probability
    }
}

/// Checks every piece of a list and the order of their starts.
pub(super) fn each<T>(
    list: &str,
    pieces: &[T],
    start: impl Fn(&T) -> f64,
    validate: impl Fn(&T) -> Result<(), ValidationError>,
) -> Result<(), ValidationError> {
    let mut previous = 0.0;
    for (index, piece) in pieces.iter().enumerate() {
        validate(piece).map_err(|error| error.within(format_args!("{list}[{index}]")))?;
        let start = start(piece);
        if start < previous {
            let error = ValidationError::out_of_order(start, previous);
            return Err(error.within(format_args!("{list}[{index}]")));
        }
        previous = start;
    }
    Ok(())
}
