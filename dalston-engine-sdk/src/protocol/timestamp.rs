//! Section 12, item 20: how the platform writes times.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment as the platform writes it: `2026-01-31T12:00:00.000000+00:00`.
///
/// Reading accepts what Python's `datetime.fromisoformat` accepts: `Z` or any offset, a `T` or a space, no fraction or up
/// to nine digits of it, and a time without an offset, which is taken for UTC. Writing always gives microseconds (what is
/// finer is cut off) and `+00:00`.
///
/// ```
/// use dalston_engine_sdk::protocol::Timestamp;
///
/// let time: Timestamp = "2026-01-31T13:00:00.5+01:00".parse()?;
/// assert_eq!(time.to_string(), "2026-01-31T12:00:00.500000+00:00");
/// # Ok::<(), dalston_engine_sdk::protocol::InvalidTimestamp>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// This moment, by the system's clock.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// The same moment as the standard library's type, for example to give a span its start.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        self.0.into()
    }

    /// Seconds from `earlier` to `self`. Negative when `earlier` is the later one, which happens when the two times come
    /// from the clocks of two hosts.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.0.duration_since(earlier.0).as_secs_f64()
    }
}

impl From<SystemTime> for Timestamp {
    /// Times outside the years -9999 to 9999 become the nearest time inside.
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
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        if let Some(time) = read_usual(text.as_bytes()) {
            return Ok(Self(time));
        }
        let text = text.trim();
        let with_offset = text.parse::<jiff::Timestamp>();
        let time = with_offset.or_else(|_| {
            let civil = text.parse::<jiff::civil::DateTime>()?;
            jiff::tz::TimeZone::UTC.to_timestamp(civil)
        });
        time.map(Self).map_err(|source| InvalidTimestamp {
            text: shortened(text),
            source: source.into(),
        })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let utc = jiff::tz::TimeZone::UTC.to_datetime(self.0);
        let (date, time) = (utc.date(), utc.time());
        let microseconds = time.subsec_nanosecond() / 1000;
        if date.year() < 0 {
            let (hour, minute, second) = (time.hour(), time.minute(), time.second());
            return write!(
                f,
                "{date}T{hour:02}:{minute:02}:{second:02}.{microseconds:06}+00:00"
            );
        }
        let mut text = *USUAL;
        let mut put = |at: Range<usize>, number: i32| {
            let mut rest = number.unsigned_abs();
            for place in text[at].iter_mut().rev() {
                *place = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        };
        put(YEAR, date.year().into());
        put(MONTH, date.month().into());
        put(DAY, date.day().into());
        put(HOUR, time.hour().into());
        put(MINUTE, time.minute().into());
        put(SECOND, time.second().into());
        put(MICROSECOND, microseconds);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// The form in which the platform writes nearly all times, and where its parts stand. There are several in each task, so it is read and
/// written without a general parser and formatter.
const USUAL: &[u8; 32] = b"0000-00-00T00:00:00.000000+00:00";
const YEAR: Range<usize> = 0..4;
const MONTH: Range<usize> = 5..7;
const DAY: Range<usize> = 8..10;
const HOUR: Range<usize> = 11..13;
const MINUTE: Range<usize> = 14..16;
const SECOND: Range<usize> = 17..19;
const MICROSECOND: Range<usize> = 20..26;

/// A time in the usual form. Whatever is odd about it is left for the parser that can say so.
fn read_usual(text: &[u8]) -> Option<jiff::Timestamp> {
    let text: &[u8; 32] = text.try_into().ok()?;
    let mut digits = text[..MICROSECOND.end].iter().zip(USUAL);
    let usual = digits.all(|(byte, usual)| match usual {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    });
    if !usual || text[MICROSECOND.end..] != USUAL[MICROSECOND.end..] {
        return None;
    }
    let number = |at: Range<usize>| {
        text[at]
            .iter()
            .fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0'))
    };
    let small = |at: Range<usize>| i8::try_from(number(at)).ok();
    let time = jiff::civil::DateTime::new(
        i16::try_from(number(YEAR)).ok()?,
        small(MONTH)?,
        small(DAY)?,
        small(HOUR)?,
        small(MINUTE)?,
        small(SECOND)?,
        number(MICROSECOND) * 1000,
    );
    jiff::tz::Offset::UTC.to_timestamp(time.ok()?).ok()
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

    /// Stops at the end of the year 9999.
    fn add(self, later: Duration) -> Self {
        Self(self.0.checked_add(later).unwrap_or(jiff::Timestamp::MAX))
    }
}

/// A text that is not a time.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a time: expected for example 2026-01-31T12:00:00+00:00 or 2026-01-31T12:00:00.5Z")]
pub struct InvalidTimestamp {
    text: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Texts come from outside and go into messages: no more than a glance of them.
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
    fn every_way_in_which_the_platform_writes_a_time_is_read() {
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
    fn fractions_of_one_to_nine_digits_are_read_and_microseconds_are_written() {
        let digits = "123456789";
        for count in 1..=9 {
            let text = format!("2026-01-31T12:00:00.{}Z", &digits[..count]);
            let kept = format!("{:0<6}", &digits[..count.min(6)]);
            assert_eq!(read(&text), format!("2026-01-31T12:00:00.{kept}+00:00"));
        }
    }

    #[test]
    fn the_usual_form_is_read_and_written_as_every_other_one_is() {
        for text in [
            "0000-01-01T00:00:00.000000",
            "0999-12-31T23:59:59.999999",
            "1969-12-31T23:59:59.000001",
            "2024-02-29T01:02:03.040506",
            "9999-12-30T22:00:00.999999",
        ] {
            let usual: Timestamp = format!("{text}+00:00").parse().unwrap();
            let other: Timestamp = format!("{text}Z").parse().unwrap();
            assert_eq!(usual, other, "{text}");
            assert_eq!(usual.to_string(), format!("{text}+00:00"));
        }
        for odd in [
            "2023-02-29T01:02:03.040506+00:00",
            "2026-00-31T01:02:03.040506+00:00",
            "2026-01-31T24:02:03.040506+00:00",
            "2026-01-31T01:60:03.040506+00:00",
            "2026-01-31T01:02:03.04050x+00:00",
            "2026-01-31x01:02:03.040506+00:00",
        ] {
            let error = odd.parse::<Timestamp>().unwrap_err().to_string();
            assert!(error.contains(odd), "{error}");
        }
        assert_eq!(
            read("2026-01-31T01:02:03.040506-00:30"),
            "2026-01-31T01:32:03.040506+00:00"
        );
        let early = Timestamp::from(SystemTime::UNIX_EPOCH - Duration::from_secs(63_000_000_000));
        assert_eq!(early.to_string(), "-000027-08-11T08:00:00.000000+00:00");
    }

    #[test]
    fn a_time_before_1970_keeps_its_microseconds() {
        assert_eq!(
            read("1969-12-31T23:59:59.999999Z"),
            "1969-12-31T23:59:59.999999+00:00"
        );
    }

    #[test]
    fn what_is_not_a_time_is_refused_with_an_example_of_what_is() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "1769860800",
            "2026-01-31T25:00:00Z",
        ] {
            let message = text.parse::<Timestamp>().unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("{text:?} is not a time: expected for example ")),
                "{message}"
            );
        }
        let endless = "9".repeat(100_000);
        assert!(endless.parse::<Timestamp>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_difference_of_two_hosts_clocks_may_be_negative() {
        let early: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let late = early + Duration::from_millis(1500);
        assert_eq!(late.seconds_since(early), 1.5);
        assert_eq!(early.seconds_since(late), -1.5);
        assert_eq!(Timestamp::from(late.to_system_time()), late);
    }
}
