//! Names, values and times as a waterfall shows them.

use std::time::Duration;

use opentelemetry::Value;

/// A duration with three significant digits, in the unit that suits it.
pub(super) fn duration_text(duration: Duration, ascii: bool) -> String {
    let seconds = duration.as_secs_f64();
    // At these limits, rounding to three digits reaches the next unit.
    let (value, unit) = if duration.is_zero() {
        return "0 s".to_owned();
    } else if seconds < 999.5e-9 {
        return format!("{} ns", duration.as_nanos());
    } else if seconds < 999.5e-6 {
        (seconds * 1e6, if ascii { "us" } else { "µs" })
    } else if seconds < 999.5e-3 {
        (seconds * 1e3, "ms")
    } else if seconds < 99.95 {
        (seconds, "s")
    } else {
        let whole = seconds.round() as u64;
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        if hours > 0 {
            return format!("{hours}h{minutes:02}m{seconds:02}s");
        }
        return format!("{minutes}m{seconds:02}s");
    };
    let digits = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// The value of an attribute, numbers with four significant digits.
pub(super) fn value_text(value: &Value) -> String {
    match value {
        Value::F64(number) if number.is_finite() && *number != 0.0 => {
            let digits = 3 - number.abs().log10().floor() as i32;
            let rounded = format!("{number:.*}", usize::try_from(digits).unwrap_or(0).min(12));
            match rounded.contains('.') {
                true => rounded.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => rounded,
            }
        }
        value => printable(&value.as_str()),
    }
}

/// A text cut to `room` characters. An ellipsis stands for what is missing.
pub(super) fn shorten(text: &str, room: usize, ascii: bool) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let ellipsis = if ascii { "~" } else { "…" };
    let mut short: String = text.chars().take(room.saturating_sub(1)).collect();
    short.push_str(ellipsis);
    short
}

/// A text without control characters. Names and values come from outside the process, and control
/// characters in them would move the cursor or break the lines.
pub(super) fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}
