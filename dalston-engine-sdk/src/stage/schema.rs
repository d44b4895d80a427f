//! The keys and values that the platform accepts in the answer of a stage: [`Schema`].
//!
//! The check reads JSON, so that it covers every answer: the types of this module, a type of the
//! engine, and a plain [`Value`].

use serde_json::{Map, Value};

use super::validation::ValidationError;
use crate::protocol::json::{describe, whole};

/// The keys of an object.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) fields: &'static [Field],
    /// Further keys, which several objects share.
    pub(super) shared: &'static [Field],
    /// Whether there may be other keys.
    pub(super) open: bool,
    /// Pairs of keys of which the second value may not be less than the first.
    pub(super) spans: &'static [(&'static str, &'static str)],
    /// Checks several keys together. Each has passed its own check.
    pub(super) rule: fn(&Map<String, Value>) -> Result<(), ValidationError>,
}

/// A key of an object, and its value.
#[derive(Debug)]
pub(super) struct Field {
    key: &'static str,
    kind: Kind,
    presence: Presence,
}

#[derive(Debug, PartialEq)]
enum Presence {
    Required,
    /// May be absent, but not `null`.
    Defaulted,
    /// May be absent or `null`.
    Optional,
}

/// The keys of [`AnswerStatus`](super::AnswerStatus).
static STATUS: [Field; 4] = [
    required("engine_id", Kind::Text),
    defaulted("skipped", Kind::Flag),
    optional("skip_reason", Kind::Text),
    defaulted("warnings", Kind::List(&Kind::Text)),
];

/// The values of a key.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    /// A string that is not empty.
    Name,
    /// A string of one character.
    Letter,
    Flag,
    /// An integer of at least this.
    Whole(u64),
    /// 0 for none, 1 for primary, 2 for secondary.
    Stress,
    Number,
    Seconds,
    /// A ratio, probability or confidence.
    Share,
    OneOf(&'static [&'static str]),
    List(&'static Self),
    /// Objects in the order of their starts.
    Ordered(&'static Schema),
    Object(&'static Schema),
    /// An object of counts under any names.
    Counts,
}

pub(super) const fn required(key: &'static str, kind: Kind) -> Field {
    let presence = Presence::Required;
    Field { key, kind, presence }
}

pub(super) const fn defaulted(key: &'static str, kind: Kind) -> Field {
    let presence = Presence::Defaulted;
    Field { key, kind, presence }
}

pub(super) const fn optional(key: &'static str, kind: Kind) -> Field {
    let presence = Presence::Optional;
    Field { key, kind, presence }
}

impl Schema {
    pub(super) const fn of(fields: &'static [Field]) -> Self {
        Self {
            fields,
            shared: &[],
            open: false,
            spans: &[],
            rule: |_| Ok(()),
        }
    }

    /// A whole answer, which also has the keys of [`AnswerStatus`](super::AnswerStatus).
    pub(super) const fn answer(fields: &'static [Field]) -> Self {
        Self {
            shared: &STATUS,
            ..Self::of(fields)
        }
    }

    /// A piece of audio with a `start` and an `end`.
    pub(super) const fn piece(fields: &'static [Field]) -> Self {
        Self {
            spans: &[("start", "end")],
            ..Self::of(fields)
        }
    }

    /// Checks a value of an answer of `stage`.
    pub(super) fn check(&self, value: &Value, stage: &str) -> Result<(), ValidationError> {
        let Value::Object(map) = value else {
            return Err(unexpected(value, "an object"));
        };
        let known = |key: &String| self.fields().any(|field| field.key == key);
        if let Some(unknown) = map.keys().find(|key| !self.open && !known(key)) {
            return Err(self.unknown_key(unknown, stage));
        }
        for field in self.fields() {
            field
                .check(map.get(field.key), stage)
                .map_err(|error| error.within(field.key))?;
        }
        for (start, end) in self.spans {
            let number = |key: &str| map.get(key).and_then(Value::as_f64);
            if let (Some(from), Some(to)) = (number(start), number(end))
                && to < from
            {
                let problem = format!("is {to}, before its {start} {from}");
                return Err(ValidationError::new(*end, problem));
            }
        }
        (self.rule)(map)
    }

    fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().chain(self.shared)
    }

    fn unknown_key(&self, key: &str, stage: &str) -> ValidationError {
        const LONGEST: usize = 64;
        let shown: String = key.chars().take(LONGEST).collect();
        let accepted: Vec<_> = self.fields().map(|field| field.key).collect();
        let problem = format!(
            "is not a key that the platform accepts in an answer of {stage}: expected only {}",
            accepted.join(", ")
        );
        ValidationError::new(shown, problem)
    }
}

impl Field {
    fn check(&self, value: Option<&Value>, stage: &str) -> Result<(), ValidationError> {
        match value {
            None if self.presence == Presence::Required => {
                let problem = format!("is missing: expected {}", self.kind.expected());
                Err(ValidationError::new("", problem))
            }
            None => Ok(()),
            Some(Value::Null) if self.presence == Presence::Optional => Ok(()),
            Some(value) => self.kind.check(value, stage),
        }
    }
}

impl Kind {
    fn check(&self, value: &Value, stage: &str) -> Result<(), ValidationError> {
        let number = value.as_f64();
        let fits = match self {
            Self::Text => value.is_string(),
            Self::Name => value.as_str().is_some_and(|name| !name.is_empty()),
            Self::Letter => value.as_str().is_some_and(|text| text.chars().count() == 1),
            Self::Flag => value.is_boolean(),
            Self::Whole(least) => whole(value).is_some_and(|number| number >= *least),
            Self::Stress => whole(value).is_some_and(|stress| stress <= 2),
            Self::Number => number.is_some(),
            Self::Seconds => number.is_some_and(|seconds| seconds >= 0.0),
            Self::Share => number.is_some_and(|share| (0.0..=1.0).contains(&share)),
            Self::OneOf(names) => value.as_str().is_some_and(|name| names.contains(&name)),
            Self::Object(schema) => return schema.check(value, stage),
            Self::List(kind) => return each(value, |element| kind.check(element, stage)),
            Self::Ordered(schema) => {
                each(value, |element| schema.check(element, stage))?;
                return in_order(value);
            }
            Self::Counts => {
                let Value::Object(counts) = value else {
                    return Err(unexpected(value, &self.expected()));
                };
                return counts.iter().try_for_each(|(name, count)| {
                    let checked = Self::Whole(0).check(count, stage);
                    checked.map_err(|error| error.within(name))
                });
            }
        };
        match fits {
            true => Ok(()),
            false => Err(unexpected(value, &self.expected())),
        }
    }

    fn expected(&self) -> String {
        match self {
            Self::Text => "a string".to_owned(),
            Self::Name => "a non-empty string".to_owned(),
            Self::Letter => "a string of one character".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Whole(least) => format!("an integer of at least {least}"),
            Self::Stress => "0, 1 or 2".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Seconds => "a finite number of seconds, 0 or more".to_owned(),
            Self::Share => "a number from 0 to 1".to_owned(),
            Self::OneOf(names) => format!("one of {}", names.join(", ")),
            Self::List(_) | Self::Ordered(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
            Self::Counts => "an object of counts".to_owned(),
        }
    }
}

fn unexpected(value: &Value, expected: &str) -> ValidationError {
    ValidationError::new("", format!("is {}: expected {expected}", describe(value)))
}

fn each(list: &Value, check: impl Fn(&Value) -> Result<(), ValidationError>) -> Result<(), ValidationError> {
    let Value::Array(elements) = list else {
        return Err(unexpected(list, "a list"));
    };
    elements.iter().enumerate().try_for_each(|(index, element)| {
        check(element).map_err(|error| error.within(format_args!("[{index}]")))
    })
}

/// Checks the order of the starts in a list of pieces.
fn in_order(list: &Value) -> Result<(), ValidationError> {
    let starts = list.as_array().into_iter().flatten();
    let starts = starts.map(|piece| piece["start"].as_f64().unwrap_or_default());
    let mut previous = 0.0;
    for (index, start) in starts.enumerate() {
        if start < previous {
            return Err(ValidationError::out_of_order(start, previous).within(format_args!("[{index}]")));
        }
        previous = start;
    }
    Ok(())
}
