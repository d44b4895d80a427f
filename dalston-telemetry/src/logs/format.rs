//! The forms of log lines: [`LogFormat`].

use std::str::FromStr;

use crate::parse_error::ParseError;

/// The form of log lines.
///
/// A JSON line is one object with these members:
/// - `timestamp` in UTC with microseconds, `level`, `service` and `event`, the message;
/// - the event's own fields;
/// - `trace_id` and `span_id` of the span around the event; without a span, the `trace_id` of the
///   task;
/// - `request_id`, `job_id`, `task_id`, `engine_id` and `instance_type`, from the spans around the
///   event (where they may also be called `dalston.job_id` and so on) and from the
///   [`LogContext`](crate::context::LogContext); if neither has an `instance_type`, it is that of
///   the machine, or `unknown`;
/// - `target`, the module that logged.
///
/// `service` is the name of the service without `dalston-`. The `trace_id` of a carried context is
/// there also while tracing is off.
///
/// A member without a value is left out. No key occurs twice: an event's own field wins over an
/// inherited one. A field with the name of a member that every line has is written as `field.NAME`.
/// NaN and infinities are `null`. The levels have the names of the platform: `error`, `warning`,
/// `info`, `debug` and `trace`.
///
/// Both forms mask secrets in URLs, in headers and in fields with the name of a secret: see
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

impl LogFormat {
    /// The names of formats, for the sentence "expected …".
    pub(crate) const ACCEPTED: &str = "json, console or auto";
}

impl FromStr for LogFormat {
    type Err = ParseError;

    /// `json`, `console` (or `readable`) or `auto`.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "console" | "readable" => Ok(Self::Readable),
            _ => Err(ParseError::new("log format", name, Self::ACCEPTED)),
        }
    }
}
