//! The kinds of values that variables have.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The values that a variable accepts: how they are parsed, and how an error or a table describes
/// them.
pub trait Accepts<T>: fmt::Debug + Sync {
    /// Reads a value. `None` is one that is not accepted.
    fn parse(&self, text: &str) -> Option<T>;

    /// Completes the sentence "expected …".
    fn expected(&self) -> Cow<'static, str>;
}

/// Any text: a name, a path, a URL that its user checks. The field says which: "a directory".
#[derive(Debug, Clone, Copy)]
pub struct Text(pub &'static str);

impl<T: From<String>> Accepts<T> for Text {
    fn parse(&self, text: &str) -> Option<T> {
        Some(text.to_owned().into())
    }

    fn expected(&self) -> Cow<'static, str> {
        self.0.into()
    }
}

/// `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`, in upper or lower case.
#[derive(Debug, Clone, Copy)]
pub struct Switch;

impl Accepts<bool> for Switch {
    fn parse(&self, text: &str) -> Option<bool> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn expected(&self) -> Cow<'static, str> {
        "true or false".into()
    }
}

/// A switch that the OpenTelemetry specification defines: only `true` and `false`, in upper or
/// lower case.
///
/// The specification takes everything but `true` for false, so that `OTEL_SDK_DISABLED=1` has the
/// opposite effect of its intention.
#[derive(Debug, Clone, Copy)]
pub struct OtelSwitch;

impl OtelSwitch {
    /// The words of [`Switch`] that the specification does not define, with the value that each
    /// stands for.
    pub(crate) const WORDS: &'static [(&'static str, &'static str)] = &[
        ("1", "true"),
        ("yes", "true"),
        ("on", "true"),
        ("0", "false"),
        ("no", "false"),
        ("off", "false"),
    ];
}

impl Accepts<bool> for OtelSwitch {
    fn parse(&self, text: &str) -> Option<bool> {
        text.to_ascii_lowercase().parse().ok()
    }

    fn expected(&self) -> Cow<'static, str> {
        Accepts::expected(&Switch)
    }
}

/// A whole number between two bounds, both included. [`u64::MAX`] stands for no upper bound.
#[derive(Debug, Clone, Copy)]
pub struct WholeNumber(pub u64, pub u64);

impl WholeNumber {
    fn parse(self, text: &str) -> Option<u64> {
        let number = text.parse().ok()?;
        (self.0..=self.1).contains(&number).then_some(number)
    }

    fn expected(self, what: &str) -> Cow<'static, str> {
        match (self.0, self.1) {
            (0, u64::MAX) => what.to_owned().into(),
            (least, u64::MAX) => format!("{what} from {least}").into(),
            (least, most) => format!("{what} from {least} to {most}").into(),
        }
    }
}

impl<T: TryFrom<u64>> Accepts<T> for WholeNumber {
    fn parse(&self, text: &str) -> Option<T> {
        Self::parse(*self, text)?.try_into().ok()
    }

    fn expected(&self) -> Cow<'static, str> {
        Self::expected(*self, "a whole number")
    }
}

/// A whole number of milliseconds, with a lower bound.
#[derive(Debug, Clone, Copy)]
pub struct Milliseconds(pub u64);

impl Accepts<Duration> for Milliseconds {
    fn parse(&self, text: &str) -> Option<Duration> {
        WholeNumber(self.0, u64::MAX)
            .parse(text)
            .map(Duration::from_millis)
    }

    fn expected(&self) -> Cow<'static, str> {
        WholeNumber(self.0, u64::MAX).expected("a whole number of milliseconds")
    }
}

/// A number between two bounds, both included.
#[derive(Debug, Clone, Copy)]
pub struct Number {
    /// "a number", or of what: "a number of hours".
    pub what: &'static str,
    /// The lower bound.
    pub least: f64,
    /// The upper bound. [`Number::UNBOUNDED`] is not mentioned.
    pub most: f64,
}

impl Number {
    /// An upper bound that stands for none: more than any disk holds and any machine lives, and
    /// still exact.
    pub const UNBOUNDED: f64 = 1e9;
}

impl Accepts<f64> for Number {
    fn parse(&self, text: &str) -> Option<f64> {
        let number = text.parse().ok()?;
        // No range contains NaN.
        (self.least..=self.most).contains(&number).then_some(number)
    }

    fn expected(&self) -> Cow<'static, str> {
        let Self { what, least, most } = self;
        match *most >= Self::UNBOUNDED {
            true => format!("{what} from {least}").into(),
            false => format!("{what} from {least} to {most}").into(),
        }
    }
}

/// A number of seconds, with or without a fraction, between two bounds, both included.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub f64, pub f64);

impl Seconds {
    const fn number(self) -> Number {
        Number {
            what: "a number of seconds",
            least: self.0,
            most: self.1,
        }
    }
}

impl Accepts<Duration> for Seconds {
    fn parse(&self, text: &str) -> Option<Duration> {
        Duration::try_from_secs_f64(self.number().parse(text)?).ok()
    }

    fn expected(&self) -> Cow<'static, str> {
        self.number().expected()
    }
}

/// One of several names, in upper or lower case.
#[derive(Debug, Clone, Copy)]
pub struct OneOf<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy + fmt::Debug + Sync> Accepts<T> for OneOf<T> {
    fn parse(&self, text: &str) -> Option<T> {
        let (_, value) = self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(text))?;
        Some(*value)
    }

    fn expected(&self) -> Cow<'static, str> {
        let mut text = String::new();
        for (index, (name, _)) in self.0.iter().enumerate() {
            text.push_str(match index {
                0 => "",
                index if index + 1 == self.0.len() => " or ",
                _ => ", ",
            });
            text.push_str(name);
        }
        text.into()
    }
}

/// A type that has its own parser. The field completes the sentence "expected …".
#[derive(Debug, Clone, Copy)]
pub struct Parsed(pub &'static str);

impl<T: FromStr> Accepts<T> for Parsed {
    fn parse(&self, text: &str) -> Option<T> {
        text.parse().ok()
    }

    fn expected(&self) -> Cow<'static, str> {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T>(accepts: &dyn Accepts<T>, text: &str) -> Option<T> {
        accepts.parse(text)
    }

    fn expected<T>(accepts: &dyn Accepts<T>) -> String {
        accepts.expected().into_owned()
    }

    #[test]
    fn switches_accept_usual_words() {
        for (value, expected) in [
            ("true", Some(true)),
            ("TRUE", Some(true)),
            ("1", Some(true)),
            ("on", Some(true)),
            ("no", Some(false)),
            ("False", Some(false)),
            ("maybe", None),
        ] {
            assert_eq!(Switch.parse(value), expected, "{value}");
        }
        for (value, expected) in [("True", Some(true)), ("false", Some(false)), ("1", None)] {
            assert_eq!(OtelSwitch.parse(value), expected, "{value}");
        }
    }

    #[test]
    fn whole_numbers_have_bounds() {
        let numbers = WholeNumber(1, 1024);
        for text in ["0", "1025", "-1", "1.5", "18446744073709551616", "many", "1 "] {
            assert_eq!(parse::<usize>(&numbers, text), None, "{text}");
        }
        assert_eq!(parse::<usize>(&numbers, "1024"), Some(1024));
        assert_eq!(parse::<u8>(&numbers, "1024"), None, "more than the type holds");
        assert_eq!(expected::<usize>(&numbers), "a whole number from 1 to 1024");
        assert_eq!(
            expected::<usize>(&WholeNumber(1, u64::MAX)),
            "a whole number from 1"
        );
        assert_eq!(expected::<usize>(&WholeNumber(0, u64::MAX)), "a whole number");
    }

    #[test]
    fn durations_have_bounds() {
        assert_eq!(parse(&Milliseconds(1), "0"), None);
        assert_eq!(parse(&Milliseconds(1), "20"), Some(Duration::from_millis(20)));
        assert_eq!(
            expected(&Milliseconds(1)),
            "a whole number of milliseconds from 1"
        );
        assert_eq!(expected(&Milliseconds(0)), "a whole number of milliseconds");
        let seconds = Seconds(1.0, 3600.0);
        for text in ["0.9", "3601", "NaN", "inf", "-1"] {
            assert_eq!(parse(&seconds, text), None, "{text}");
        }
        assert_eq!(parse(&seconds, "1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(expected(&seconds), "a number of seconds from 1 to 3600");
    }

    #[test]
    fn unbounded_numbers_mention_no_upper_bound() {
        let hours = Number {
            what: "a number of hours",
            least: 0.0,
            most: Number::UNBOUNDED,
        };
        assert_eq!(expected(&hours), "a number of hours from 0");
        assert_eq!((parse(&hours, "inf"), parse(&hours, "0.5")), (None, Some(0.5)));
    }

    #[test]
    fn names_are_accepted_in_any_case() {
        let colours = OneOf(&[("red", 1), ("green", 2), ("blue", 3)]);
        assert_eq!(
            (parse(&colours, "GREEN"), parse(&colours, "pink")),
            (Some(2), None)
        );
        assert_eq!(expected(&colours), "red, green or blue");
        assert_eq!(expected(&OneOf(&[("red", 1)])), "red");
    }
}
