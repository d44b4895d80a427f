//! Checks that several types of answers share.

use super::ValidationError;

/// The `start` and `end` of a piece of audio.
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
