//! The output of `transcribe`: results, failures, traces and metrics.

use std::path::Path;
use std::time::Duration;

use console::Term;
use dalston_telemetry::metrics::MetricsSnapshot;
use dalston_telemetry::opentelemetry::trace::TraceId;
use dalston_telemetry::services::engine::spans::attr;
use dalston_telemetry::{Env, SpanCollector};
use serde_json::Value;
use url::Url;

use super::format::OutputFormat;
use crate::cli::failure::{Failure, print};
use crate::cli::metrics;
use crate::cli::output::{self, Finished};
use crate::cli::terminal::{Style, complain, remark, to_stderr};

/// The response of the stage with the processing time, or one line that says why there is none.
pub(super) type FileResult = Result<(Value, Duration), String>;

/// Prints results to standard output and failures to standard error.
pub(super) struct Printer<'a> {
    pub(super) json: bool,
    /// The format of the results, instead of lines for a person.
    pub(super) format: Option<OutputFormat>,
    /// Whether there are several files, so that a title precedes each result.
    pub(super) several: bool,
    pub(super) style: Style,
    pub(super) env: &'a Env,
}

impl Printer<'_> {
    pub(super) fn print(&self, file: &Path, result: &FileResult) -> Result<(), Failure> {
        match result {
            Ok((data, processing)) => {
                let finished = Finished {
                    file,
                    data,
                    processing: *processing,
                };
                if let Some(format) = self.format {
                    return match format.render(file, data) {
                        Ok(text) => print(&text),
                        Err(error) => {
                            complain(&failure_line(file, &error), self.env);
                            Ok(())
                        }
                    };
                }
                if self.json {
                    return print(&(output::json_line(&finished) + "\n"));
                }
                let mut text = String::new();
                if self.several {
                    text = format!("{}\n", self.style.strong(&file.display().to_string()));
                }
                text.push_str(&output::readable(&finished));
                if self.several {
                    text.push('\n');
                }
                print(&text)
            }
            Err(error) => {
                complain(&failure_line(file, error), self.env);
                Ok(())
            }
        }
    }
}

/// One line that names the file once, as on the command line.
fn failure_line(file: &Path, error: &str) -> String {
    let given = match file.display().to_string() {
        empty if empty.is_empty() => "\"\"".to_owned(),
        given => given,
    };
    let error = error.replace(['\n', '\r'], " ");
    // Errors of the runner name the file by its locator, in which `..` has been resolved.
    let known = std::path::absolute(file).ok().and_then(|path| {
        Url::parse(Url::from_file_path(path).ok()?.as_str())
            .ok()?
            .to_file_path()
            .ok()
    });
    // Names can be as short as `a`, so the error is searched for the whole path.
    match known.map(|path| path.display().to_string()) {
        Some(known) if error.contains(&known) => error.replace(&known, &given),
        _ => format!("{given}: {error}"),
    }
}

pub(super) fn print_traces(
    collector: &SpanCollector,
    traces: &[TraceId],
    json: bool,
    env: &Env,
) -> Result<(), Failure> {
    // With JSON on standard output, the waterfall goes to standard error.
    let term = if json { Term::stderr() } else { Term::stdout() };
    let shown = [
        "file.path",
        attr::MODEL,
        attr::LANGUAGE,
        attr::AUDIO_DURATION_SECONDS,
        attr::REALTIME_FACTOR,
    ];
    let waterfall = Style::of(&term, env).waterfall().attributes(shown);
    for trace_id in traces {
        let picture = waterfall.render(&collector.take_trace(*trace_id));
        write(&format!("{picture}\n"), json)?;
    }
    if collector.dropped() > 0 {
        remark(
            &format!("the traces lack the {} oldest spans", collector.dropped()),
            env,
        );
    }
    Ok(())
}

pub(super) fn print_metrics(
    before: &MetricsSnapshot,
    after: &MetricsSnapshot,
    json: bool,
) -> Result<(), Failure> {
    write(
        &format!("metrics that moved\n{}", metrics::table(&after.diff(before))),
        json,
    )
}

fn write(text: &str, stderr: bool) -> Result<(), Failure> {
    if stderr {
        to_stderr(text);
        return Ok(());
    }
    print(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_file_once_and_as_given() {
        let file = Path::new("talks/one.wav");
        assert_eq!(failure_line(file, "is empty"), "talks/one.wav: is empty");
        let absolute = std::path::absolute(file).unwrap();
        assert_eq!(
            failure_line(file, &format!("decoding {}:\nno data chunk", absolute.display())),
            "decoding talks/one.wav: no data chunk"
        );
        // The locator has no `..`.
        let above = Path::new("../talks/one.wav");
        let parent = std::env::current_dir()
            .unwrap()
            .parent()
            .unwrap()
            .join("talks/one.wav");
        assert_eq!(
            failure_line(above, &format!("{} is empty", parent.display())),
            "../talks/one.wav is empty"
        );
    }

    #[test]
    fn failure_names_the_file_even_if_its_text_contains_the_name() {
        for (file, line) in [
            ("a", "a: is a directory, not a file"),
            ("file", "file: is a directory, not a file"),
            ("", "\"\": is a directory, not a file"),
        ] {
            assert_eq!(failure_line(Path::new(file), "is a directory, not a file"), line);
        }
    }
}
