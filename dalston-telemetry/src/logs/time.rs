//! Times of log lines, in UTC.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

thread_local! {
    /// The second of the latest timestamp, and its text up to the decimal point. Formatting it
    /// takes longer than the rest of a line.
    static SECOND: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
}

/// Appends `2026-01-31T12:59:59.000001Z`.
pub(crate) fn push_timestamp(line: &mut Vec<u8>, time: SystemTime) {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let cached = SECOND.try_with(|second| {
        let (seconds, text) = &mut *second.borrow_mut();
        if *seconds != since_1970.as_secs() {
            *seconds = since_1970.as_secs();
            text.clear();
            push_second(text, time);
        }
        line.extend_from_slice(text);
    });
    // Fails only while the thread ends.
    if cached.is_err() {
        push_second(line, time);
    }
    // Writing to a vector does not fail.
    let _ = write!(line, "{:06}Z", since_1970.subsec_micros());
}

fn push_second(text: &mut Vec<u8>, time: SystemTime) {
    let _ = write!(text, "{}", timestamp(time).strftime("%Y-%m-%dT%H:%M:%S."));
}

/// Appends `12:59:59.001`.
pub(super) fn push_time_of_day(line: &mut Vec<u8>, time: SystemTime) {
    let _ = write!(line, "{}", timestamp(time).strftime("%H:%M:%S%.3f"));
}

/// A clock that is set to a time before 1970 is taken for 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time.max(UNIX_EPOCH)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(push: fn(&mut Vec<u8>, SystemTime), time: SystemTime) -> String {
        let mut line = Vec::new();
        push(&mut line, time);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_are_utc_with_microseconds() {
        let table = [
            (0, "1970-01-01T00:00:00.000000Z", "00:00:00.000"),
            (
                1_709_211_599_999_999,
                "2024-02-29T12:59:59.999999Z",
                "12:59:59.999",
            ),
            (
                1_709_211_599_000_001,
                "2024-02-29T12:59:59.000001Z",
                "12:59:59.000",
            ),
            (
                1_709_211_600_000_000,
                "2024-02-29T13:00:00.000000Z",
                "13:00:00.000",
            ),
        ];
        for (micros, timestamp, time_of_day) in table {
            let time = UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(of(push_timestamp, time), timestamp);
            assert_eq!(of(push_time_of_day, time), time_of_day);
        }
    }

    #[test]
    fn a_clock_before_1970_shows_as_1970() {
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(of(push_timestamp, before), "1970-01-01T00:00:00.000000Z");
    }
}
