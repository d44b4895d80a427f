//! The types of options, and the values of JSON that they accept. Command lines and forms give
//! texts, so a text may stand for a number, a list or a truth value.

use dalston_engine_sdk::audio::VadOptions;
use serde::Deserialize;
use serde_json::Value;

use crate::task::Task;

/// For options that accept every value of their type.
pub(super) fn anything<T>(_: &T) -> bool {
    true
}

/// A type of options.
pub(super) trait Accept: Sized {
    /// Whether the option is switched on or off.
    const IS_FLAG: bool = false;
    /// Whether null is a value.
    const NULLABLE: bool = false;

    /// The value, if it is one of this type.
    fn accept(value: &Value) -> Option<Self>;
}

impl Accept for bool {
    const IS_FLAG: Self = true;

    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Accept for u64 {
    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.trim().parse().ok(),
            _ => value.as_u64(),
        }
    }
}

impl Accept for usize {
    fn accept(value: &Value) -> Option<Self> {
        Self::try_from(u64::accept(value)?).ok()
    }
}

impl Accept for f64 {
    fn accept(value: &Value) -> Option<Self> {
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            _ => value.as_f64(),
        };
        number.filter(|number: &Self| number.is_finite())
    }
}

impl Accept for String {
    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(text.clone()),
            // `--prefix 5`
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl<T: Accept> Accept for Option<T> {
    const NULLABLE: bool = true;

    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            other => T::accept(other).map(Some),
        }
    }
}

impl Accept for Vec<f64> {
    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::Array(all) => all.iter().map(f64::accept).collect(),
            Value::String(text) => text
                .split(',')
                .map(|part| part.trim().parse().ok().filter(|number: &f64| number.is_finite()))
                .collect(),
            other => Some(vec![f64::accept(other)?]),
        }
    }
}

impl Accept for Task {
    fn accept(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "transcribe" => Some(Self::Transcribe),
            "translate" => Some(Self::Translate),
            _ => None,
        }
    }
}

impl Accept for VadOptions {
    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => serde_json::from_str(text).ok(),
            other => Self::deserialize(other).ok(),
        }
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenChoice {
    /// Its id, or -1 for all tokens that the model's files suppress.
    Id(i64),
    /// Its text.
    Text(String),
}

impl TokenChoice {
    fn of(text: &str) -> Self {
        text.trim()
            .parse()
            .map_or_else(|_| Self::Text(text.to_owned()), Self::Id)
    }
}

impl Accept for Vec<TokenChoice> {
    const NULLABLE: bool = true;

    fn accept(value: &Value) -> Option<Self> {
        let one = |value: &Value| match value {
            Value::String(text) => Some(TokenChoice::of(text)),
            other => other.as_i64().map(TokenChoice::Id),
        };
        match value {
            Value::Null => Some(Self::new()),
            Value::Array(all) => all.iter().map(one).collect(),
            Value::String(text) if text.is_empty() => Some(Self::new()),
            Value::String(text) => {
                // A comma can be part of the text of a token, but not of numbers.
                let parts: Self = text.split(',').map(TokenChoice::of).collect();
                let numbers = parts.iter().all(|part| matches!(part, TokenChoice::Id(_)));
                Some(if numbers {
                    parts
                } else {
                    vec![TokenChoice::of(text)]
                })
            }
            other => Some(vec![one(other)?]),
        }
    }
}

/// A text, or its tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TextOrTokens {
    /// Neither.
    #[default]
    None,
    /// A text.
    Text(String),
    /// Ids of tokens.
    Tokens(Vec<i64>),
}

impl Accept for TextOrTokens {
    const NULLABLE: bool = true;

    fn accept(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::None),
            Value::Array(ids) => ids
                .iter()
                .map(Value::as_i64)
                .collect::<Option<_>>()
                .map(Self::Tokens),
            other => String::accept(other).map(Self::Text),
        }
    }
}

/// Parts of a recording: seconds at which they start and end, in turn. The last one may be open.
#[derive(Debug, Clone, PartialEq)]
pub struct Clips(Vec<f64>);

impl Default for Clips {
    /// The whole recording.
    fn default() -> Self {
        Self(vec![0.0])
    }
}

impl Clips {
    /// Start and end of each part. The end of the last one may be that of the recording.
    #[must_use]
    pub fn ranges(&self) -> Vec<(f64, Option<f64>)> {
        let range = |pair: &[f64]| Some((*pair.first()?, pair.get(1).copied()));
        self.0.chunks(2).filter_map(range).collect()
    }
}

/// A part of a recording as `BatchedInferencePipeline` takes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clip {
    start: f64,
    end: f64,
}

impl Accept for Clips {
    fn accept(value: &Value) -> Option<Self> {
        const MOST: usize = 20_000;
        let times = match value.as_array() {
            Some(parts) if parts.iter().any(Value::is_object) => {
                let parts = Vec::<Clip>::deserialize(value).ok()?;
                parts.iter().flat_map(|part| [part.start, part.end]).collect()
            }
            _ => Vec::<f64>::accept(value)?,
        };
        let in_order = times.is_sorted() && times.first().is_none_or(|&first| first >= 0.0);
        (in_order && times.len() <= MOST).then_some(match times.is_empty() {
            true => Self::default(),
            false => Self(times),
        })
    }
}
