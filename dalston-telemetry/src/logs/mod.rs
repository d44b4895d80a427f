//! Log lines: JSON for machines, a readable form for terminals.
//!
//! The log layer takes events only. While tracing is off, no layer is interested in spans, and a
//! span costs as little as a disabled one.
//!
//! The thread that logs makes the whole line. A thread of its own writes it (`output`), because a
//! write to standard output can block for as long as its reader likes.

pub mod context;
mod fields;
mod filter;
pub(crate) mod format;
mod inherited;
mod json;
mod key;
mod layer;
mod line;
mod output;
mod queue;
mod readable;
pub(crate) mod time;
mod writer;

use tracing::level_filters::LevelFilter;

pub use format::LogFormat;
pub use writer::{LogBuffer, LogWriter};

pub(crate) use filter::LogFilter;
pub(crate) use layer::{LogLayer, SpanFields};
pub(crate) use output::LogOutput;

use crate::env::{Env, EnvWarning};
use crate::error::InitError;
use crate::metrics::TelemetryMetrics;
use crate::settings::logs::{DALSTON_LOG_FORMAT, NO_COLOR, TERM};

/// The value of the field and of the metric label if the kind of machine is not known.
const UNKNOWN: &str = "unknown";

/// The configuration of log lines.
pub(crate) struct LogConfig {
    pub(crate) service: String,
    pub(crate) instance_type: String,
    pub(crate) form: Form,
    pub(crate) output: LogOutput,
    pub(crate) filter: LogFilter,
    /// About the part of the filter's variable that is ignored.
    pub(crate) warning: Option<EnvWarning>,
}

/// A [`LogFormat`] without `Auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Readable { colours: bool },
}

impl LogConfig {
    /// Reads `DALSTON_LOG_FORMAT` (unless `format` is given), `NO_COLOR`, and the filter from
    /// `RUST_LOG`, else `LOG_LEVEL`, else `DALSTON_LOG_LEVEL`, else `level`. Starts the output.
    pub(crate) fn read(
        env: &Env,
        service: &str,
        instance_type: Option<&str>,
        format: Option<LogFormat>,
        level: LevelFilter,
        writer: LogWriter,
        metrics: TelemetryMetrics,
    ) -> Result<Self, InitError> {
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
        let (filter, warning) = LogFilter::from_env(env, level)?;
        Ok(Self {
            service: service.to_owned(),
            instance_type: instance_type.unwrap_or(UNKNOWN).to_owned(),
            form,
            filter,
            warning,
            output: LogOutput::start(&writer, metrics)?,
        })
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod config_tests {
    use super::*;
    use crate::metrics::Metrics;

    fn metrics() -> TelemetryMetrics {
        TelemetryMetrics::register(&Metrics::new())
    }

    fn form(env: &[(&str, &str)], format: Option<LogFormat>) -> Form {
        let (writer, _lines) = LogWriter::buffer();
        LogConfig::read(
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
    fn format_is_from_call_then_variable_then_terminal() {
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
        let error = LogConfig::read(&env, "s", None, None, LevelFilter::INFO, writer, metrics())
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "DALSTON_LOG_FORMAT is \"xml\": expected json, console or auto"
        );
    }
}
