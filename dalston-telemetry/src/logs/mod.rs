//! Log lines: JSON for machines, a readable form for terminals.
//!
//! Made by a layer of our own that takes events only: with tracing off nobody is interested in spans, and a span
//! costs what a disabled span costs.

pub mod context;
mod fields;
pub(crate) mod filter;
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
use crate::metrics::TelemetryMetrics;
use crate::settings::logs::{DALSTON_LOG_FORMAT, NO_COLOR, TERM};

/// How log lines are written.
///
/// A JSON line has at its top level
/// - `timestamp` in UTC with microseconds, `level`, `service` and `event`, the message;
/// - the event's own fields;
/// - `trace_id` and `span_id` of the span around the event; without a span, the `trace_id` that came with the task;
/// - `request_id`, `job_id`, `task_id`, `engine_id` and `instance_type`, from the spans around the event (where they
///   may also be called `dalston.job_id` and so on) and from the [`LogContext`](crate::context::LogContext); an
///   `instance_type` that none of them has is that of the machine, or `unknown`;
/// - `target`, the module that logged.
///
/// What does not exist is absent. No key occurs twice: an event's own field wins over an inherited one, and one that
/// is named like a member that every line has is written as `field.NAME`. Numbers that JSON does not have are `null`.
/// Levels are called as on the rest of the platform: `error`, `warning`, `info`, `debug`, and `trace` below them.
///
/// Secrets in URLs, headers and fields whose name says so are masked in both forms, see
/// [`redact`](crate::redact).
///
/// ```
/// use dalston_telemetry::context::LogContext;
/// use dalston_telemetry::{Env, LogFormat, LogWriter, Telemetry};
/// use tracing_subscriber::layer::SubscriberExt;
///
/// let (writer, lines) = LogWriter::buffer();
/// let (layer, _telemetry) = Telemetry::builder("engine-whisper")
///     .env(Env::default())
///     .log_format(LogFormat::Json)
///     .log_writer(writer)
///     .into_layer()?;
/// tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
///     let _task = LogContext::new().task_id("t-1").enter();
///     tracing::warn!(queue = "redis://user:secret@cache:6379", "redis_connection_error");
/// });
/// let line: serde_json::Value = serde_json::from_str(&lines.text()).unwrap();
/// assert_eq!(line["level"], "warning");
/// assert_eq!(line["event"], "redis_connection_error");
/// assert_eq!(line["task_id"], "t-1");
/// assert_eq!(line["queue"], "redis://***@cache:6379");
/// # Ok::<(), dalston_telemetry::InitError>(())
/// ```
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

/// What the label of metrics says, too.
const UNKNOWN: &str = "unknown";

/// Everything about log lines that is decided at start.
pub(crate) struct LogSettings {
    pub(crate) service: String,
    pub(crate) instance_type: String,
    pub(crate) form: Form,
    pub(crate) writer: LogWriter,
    pub(crate) filter: LogFilter,
    pub(crate) metrics: TelemetryMetrics,
}

/// A [`LogFormat`] after it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Readable { colours: bool },
}

impl LogSettings {
    /// Reads `DALSTON_LOG_FORMAT` (unless `format` decides), `NO_COLOR`, and the filter from
    /// `RUST_LOG`, else `LOG_LEVEL`, else `DALSTON_LOG_LEVEL`, else `level`.
    pub(crate) fn read(
        env: &Env,
        service: &str,
        instance_type: Option<&str>,
        format: Option<LogFormat>,
        level: LevelFilter,
        writer: LogWriter,
        metrics: TelemetryMetrics,
    ) -> Result<Self, EnvError> {
        let wanted = match format {
            Some(format) => format,
            None => DALSTON_LOG_FORMAT.read_or_default(env)?,
        };
        let is_terminal = writer.is_terminal();
        let is_dumb = TERM.first(env).is_some_and(|(_, terminal)| terminal == "dumb");
        let colours = is_terminal && !NO_COLOR.is_set(env) && !is_dumb;
        let form = match wanted {
            LogFormat::Json => Form::Json,
            LogFormat::Auto if !is_terminal => Form::Json,
            LogFormat::Auto | LogFormat::Readable => Form::Readable { colours },
        };
        Ok(Self {
            service: service.to_owned(),
            instance_type: instance_type.unwrap_or(UNKNOWN).to_owned(),
            form,
            writer,
            filter: LogFilter::from_env(env, level)?,
            metrics,
        })
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod settings_tests {
    use super::*;
    use crate::metrics::Metrics;

    fn metrics() -> TelemetryMetrics {
        TelemetryMetrics::register(&Metrics::new())
    }

    fn form(env: &[(&str, &str)], format: Option<LogFormat>) -> Form {
        let (writer, _lines) = LogWriter::buffer();
        LogSettings::read(
            &Env::from_pairs(env.iter().copied()),
            "s",
            None,
            format,
            LevelFilter::INFO,
            writer,
            metrics(),
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
        let error = LogSettings::read(&env, "s", None, None, LevelFilter::INFO, writer, metrics())
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "DALSTON_LOG_FORMAT is \"xml\": expected json, console or auto"
        );
    }
}
