use std::time::{SystemTime, UNIX_EPOCH};

/// Times as RFC 3339 in UTC. Everything down to the second is written once per second.
#[derive(Default)]
pub(super) struct TimeCache {
    second: u64,
    /// `2026-01-31T12:59:59`, empty before its first use.
    text: String,
}

impl TimeCache {
    /// Appends `2026-01-31T12:59:59.000001Z`.
    pub(super) fn push_timestamp(&mut self, line: &mut Vec<u8>, time: SystemTime) {
        let micros = self.update(time);
        line.extend_from_slice(self.text.as_bytes());
        line.push(b'.');
        push_digits::<6>(line, micros);
        line.push(b'Z');
    }

    /// Appends `12:59:59.001`.
    pub(super) fn push_time_of_day(&mut self, line: &mut Vec<u8>, time: SystemTime) {
        let micros = self.update(time);
        let time_of_day = self.text.split_once('T').map_or("", |(_, time)| time);
        line.extend_from_slice(time_of_day.as_bytes());
        line.push(b'.');
        push_digits::<3>(line, micros / 1000);
    }

    /// Gives the microseconds within the second.
    fn update(&mut self, time: SystemTime) -> u32 {
        // A clock before 1970 is not set; any time will do.
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since_epoch.as_secs();
        if second != self.second || self.text.is_empty() {
            self.second = second;
            let timestamp = i64::try_from(second)
                .ok()
                .and_then(|second| jiff::Timestamp::from_second(second).ok());
            self.text = timestamp.unwrap_or_default().to_string();
            self.text.truncate(self.text.trim_end_matches('Z').len());
        }
        since_epoch.subsec_micros()
    }
}

fn push_digits<const N: usize>(line: &mut Vec<u8>, mut value: u32) {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += (value % 10) as u8;
        value /= 10;
    }
    line.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn timestamp(cache: &mut TimeCache, time: SystemTime) -> String {
        let mut line = Vec::new();
        cache.push_timestamp(&mut line, time);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_are_utc_with_microseconds() {
        let cache = &mut TimeCache::default();
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(timestamp(cache, at(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            timestamp(cache, at(1_709_211_599_999_999)),
            "2024-02-29T12:59:59.999999Z"
        );
        assert_eq!(
            timestamp(cache, at(1_709_211_599_000_001)),
            "2024-02-29T12:59:59.000001Z"
        );
        assert_eq!(
            timestamp(cache, at(1_709_211_600_000_000)),
            "2024-02-29T13:00:00.000000Z"
        );
    }

    #[test]
    fn a_clock_that_is_not_set_breaks_no_line() {
        let cache = &mut TimeCache::default();
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(timestamp(cache, before), "1970-01-01T00:00:00.000000Z");
    }
}
