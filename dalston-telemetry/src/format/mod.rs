//! Log lines: JSON for machines, a readable form for terminals.
//!
//! Log lines are made by a layer of our own that takes events only. With tracing off nobody is interested in spans,
//! and a span costs what a disabled span costs. The fields of the task around an event come from
//! [`LogContext`](crate::context::LogContext), and with tracing on also from the spans around it.
//!
//! A JSON line has at its top level `timestamp` (UTC, microseconds), `level`, `service`, `event` (the message), the
//! event's own fields, `trace_id` and `span_id` of the span around it, `request_id`, `job_id`, `task_id`,
//! `engine_id`, `instance_type` and `target` (the module). Ids that don't exist are absent. An event's own field wins
//! over an inherited one; a field that is named like a member that every line has is written as `field.NAME`, so that
//! no key occurs twice.
//!
//! Levels are named as on the rest of the platform: `debug`, `info`, `warning`, `error`, and `trace` below them.

mod fields;
mod filter;
mod json;
mod layer;
mod readable;
mod time;
mod writer;

use std::str::FromStr;

use tracing::level_filters::LevelFilter;

pub use filter::FilterError;
pub use writer::{LogBuffer, LogWriter};

pub(crate) use fields::{IDS, id_of, is_reserved};
pub(crate) use filter::LogFilter;
pub(crate) use json::member as json_member;
pub(crate) use layer::{LogLayer, SpanFields};

use crate::env::{Env, EnvError};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// The readable form if lines go to a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// Time, level, event and fields, with colours on a terminal unless `NO_COLOR` is set.
    Readable,
}

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    /// `json`, `console` (or `readable`) or `auto`.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "console" | "readable" => Ok(Self::Readable),
            _ => Err(UnknownLogFormat),
        }
    }
}

/// The name of a log format is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format: expected json, console or auto")]
#[non_exhaustive]
pub struct UnknownLogFormat;

/// Everything about log lines that is decided at start.
pub(crate) struct LogSettings {
    pub(crate) service: String,
    pub(crate) instance_type: Option<String>,
    pub(crate) form: Form,
    pub(crate) writer: LogWriter,
    pub(crate) filter: LogFilter,
}

/// A [`LogFormat`] after it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Readable { colours: bool },
}

impl LogSettings {
    /// Reads `DALSTON_LOG_FORMAT` (unless `format` decides), `NO_COLOR`, `INSTANCE_TYPE`, and the filter from
    /// `RUST_LOG`, else `LOG_LEVEL`, else `DALSTON_LOG_LEVEL`, else `level`.
    pub(crate) fn read(
        env: &Env,
        service: &str,
        format: Option<LogFormat>,
        level: LevelFilter,
        writer: LogWriter,
    ) -> Result<Self, EnvError> {
        let wanted = match format {
            Some(format) => format,
            None => env
                .parse("DALSTON_LOG_FORMAT", "json, console or auto")?
                .unwrap_or_default(),
        };
        let is_terminal = writer.is_terminal();
        let colours = is_terminal && env.get("NO_COLOR").is_none() && env.get("TERM") != Some("dumb");
        let form = match wanted {
            LogFormat::Json => Form::Json,
            LogFormat::Auto if !is_terminal => Form::Json,
            LogFormat::Auto | LogFormat::Readable => Form::Readable { colours },
        };
        Ok(Self {
            service: service.to_owned(),
            instance_type: env.get("INSTANCE_TYPE").map(str::to_owned),
            form,
            writer,
            filter: LogFilter::from_env(env, level)?,
        })
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod settings_tests {
    use super::*;

    fn form(env: &[(&str, &str)], format: Option<LogFormat>) -> Form {
        let (writer, _lines) = LogWriter::buffer();
        LogSettings::read(
            &Env::from_pairs(env.iter().copied()),
            "s",
            format,
            LevelFilter::INFO,
            writer,
        )
        .unwrap()
        .form
    }

    #[test]
    fn the_call_decides_on_the_format_then_the_variable_then_the_terminal() {
        let console = [("DALSTON_LOG_FORMAT", "console")];
        assert_eq!(form(&[], None), Form::Json, "a buffer is no terminal");
        assert_eq!(form(&console, None), Form::Readable { colours: false });
        assert_eq!(form(&console, Some(LogFormat::Json)), Form::Json);
        assert_eq!(form(&[("DALSTON_LOG_FORMAT", "JSON")], None), Form::Json);
    }

    #[test]
    fn a_wrong_format_is_named() {
        let (writer, _lines) = LogWriter::buffer();
        let env = Env::from_pairs([("DALSTON_LOG_FORMAT", "xml")]);
        let error = LogSettings::read(&env, "s", None, LevelFilter::INFO, writer)
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "DALSTON_LOG_FORMAT is \"xml\": expected json, console or auto"
        );
    }
}
