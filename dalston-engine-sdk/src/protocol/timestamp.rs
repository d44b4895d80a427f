//! Section 12, item 20: how the platform writes times.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use dalston_telemetry::ParseError;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment as the platform writes it: `2026-01-31T12:00:00.000000+00:00`.
///
/// Reading accepts the forms of Python's `datetime.fromisoformat`: `Z` or any offset, a `T` or a
/// space, and a fraction of up to nine digits. A time without an offset is in UTC. Writing always
/// gives microseconds, truncated, and `+00:00`.
///
/// ```
/// use dalston_engine_sdk::protocol::Timestamp;
///
/// let time: Timestamp = "2026-01-31T13:00:00.5+01:00".parse()?;
/// assert_eq!(time.to_string(), "2026-01-31T12:00:00.500000+00:00");
/// # Ok::<(), dalston_engine_sdk::ParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The current time of the system clock.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// The same moment as a type of the standard library.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        self.0.into()
    }

    /// Seconds from `earlier` to `self`. Negative if `earlier` is later, which happens with the
    /// clocks of two hosts.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.0.duration_since(earlier.0).as_secs_f64()
    }
}

impl From<SystemTime> for Timestamp {
    /// A time outside the years -9999 to 9999 becomes the nearest time inside.
    fn from(time: SystemTime) -> Self {
        let nearest = if time < SystemTime::UNIX_EPOCH {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        };
        Self(jiff::Timestamp::try_from(time).unwrap_or(nearest))
    }
}

impl FromStr for Timestamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let with_offset = text.parse::<jiff::Timestamp>();
        let time = with_offset.or_else(|_| {
            let civil = text.parse::<jiff::civil::DateTime>()?;
            jiff::tz::TimeZone::UTC.to_timestamp(civil)
        });
        time.map(Self)
            .map_err(|_| ParseError::new("time", shortened(text), EXPECTED))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let utc = jiff::tz::TimeZone::UTC.to_datetime(self.0);
        write!(f, "{utc:.6}+00:00")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of the year 9999.
    fn add(self, later: Duration) -> Self {
        Self(self.0.checked_add(later).unwrap_or(jiff::Timestamp::MAX))
    }
}

const EXPECTED: &str = "for example 2026-01-31T12:00:00+00:00 or 2026-01-31T12:00:00.5Z";

/// The beginning of a text that came from outside, for a message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        text.parse::<Timestamp>().unwrap().to_string()
    }

    #[test]
    fn every_time_format_of_the_platform_is_read() {
        for text in [
            "2026-01-31T12:00:00+00:00",
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.0+00:00",
            "2026-01-31T12:00:00.000000000Z",
            "2026-01-31 12:00:00+00:00",
            "2026-01-31T14:00:00+02:00",
            "2026-01-31T06:30:00-05:30",
            "2026-01-31T12:00:00+0000",
            "2026-01-31T12:00:00",
            "2026-01-31 12:00:00.000",
            " 2026-01-31T12:00:00Z ",
        ] {
            assert_eq!(read(text), "2026-01-31T12:00:00.000000+00:00", "{text}");
        }
    }

    #[test]
    fn fractions_are_read_and_microseconds_are_written() {
        let digits = "123456789";
        for count in 1..=9 {
            let text = format!("2026-01-31T12:00:00.{}Z", &digits[..count]);
            let kept = format!("{:0<6}", &digits[..count.min(6)]);
            assert_eq!(read(&text), format!("2026-01-31T12:00:00.{kept}+00:00"));
        }
    }

    #[test]
    fn written_form_is_read_back_unchanged() {
        for text in [
            "0000-01-01T00:00:00.000000",
            "0999-12-31T23:59:59.999999",
            "1969-12-31T23:59:59.000001",
            "2024-02-29T01:02:03.040506",
            "9999-12-30T22:00:00.999999",
        ] {
            let written: Timestamp = format!("{text}+00:00").parse().unwrap();
            assert_eq!(Ok(written), format!("{text}Z").parse().map_err(|_| ()), "{text}");
            assert_eq!(written.to_string(), format!("{text}+00:00"));
        }
        for invalid in [
            "2023-02-29T01:02:03.040506+00:00",
            "2026-00-31T01:02:03.040506+00:00",
            "2026-01-31T24:02:03.040506+00:00",
            "2026-01-31T01:60:03.040506+00:00",
            "2026-01-31T01:02:03.04050x+00:00",
            "2026-01-31x01:02:03.040506+00:00",
        ] {
            let error = invalid.parse::<Timestamp>().unwrap_err().to_string();
            assert!(error.contains(invalid), "{error}");
        }
        assert_eq!(
            read("2026-01-31T01:02:03.040506-00:30"),
            "2026-01-31T01:32:03.040506+00:00"
        );
        let early = Timestamp::from(SystemTime::UNIX_EPOCH - Duration::from_secs(63_000_000_000));
        assert_eq!(early.to_string(), "-000027-08-11T08:00:00.000000+00:00");
    }

    #[test]
    fn time_before_1970_keeps_its_microseconds() {
        assert_eq!(
            read("1969-12-31T23:59:59.999999Z"),
            "1969-12-31T23:59:59.999999+00:00"
        );
    }

    #[test]
    fn invalid_time_is_refused_with_an_example() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "1769860800",
            "2026-01-31T25:00:00Z",
        ] {
            let message = text.parse::<Timestamp>().unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("time is {text:?}: expected for example ")),
                "{message}"
            );
        }
        let endless = "9".repeat(100_000);
        assert!(endless.parse::<Timestamp>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn difference_of_two_clocks_may_be_negative() {
        let early: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let late = early + Duration::from_millis(1500);
        assert_eq!(late.seconds_since(early), 1.5);
        assert_eq!(early.seconds_since(late), -1.5);
        assert_eq!(Timestamp::from(late.to_system_time()), late);
    }
}
